//! The numbers of Core ML's protobuf schema, one constant a field, and the two ways it numbers element types.

use crate::ir::Dtype;

macro_rules! fields {
    ($($(#[$doc:meta])* $module:ident { $($name:ident = $number:literal),* $(,)? })*) => {
        $($(#[$doc])* pub mod $module { $(pub const $name: u32 = $number;)* })*
    };
}

fields! {
    model { VERSION = 1, DESCRIPTION = 2, PROGRAM = 502 }
    description { INPUT = 1, OUTPUT = 10, STATE = 13, FUNCTIONS = 20, DEFAULT_FUNCTION = 21, METADATA = 100 }
    function_description { NAME = 1, INPUT = 2, OUTPUT = 3, STATE = 6 }
    feature { NAME = 1, TYPE = 3 }
    feature_type { MULTI_ARRAY = 5, STATE = 8, OPTIONAL = 1000 }
    state_feature { ARRAY = 1 }
    array {
        SHAPE = 1, DATA_TYPE = 2, ENUMERATED = 21, RANGE = 31, INT_DEFAULT = 41, FLOAT_DEFAULT = 51, DOUBLE_DEFAULT = 61
    }
    metadata { SHORT_DESCRIPTION = 1, VERSION = 2, AUTHOR = 3, LICENSE = 4, USER_DEFINED = 100 }
    program { VERSION = 1, FUNCTIONS = 2, DOC = 3, ATTRIBUTES = 4 }
    function { INPUTS = 1, OPSET = 2, BLOCKS = 3, ATTRIBUTES = 4 }
    block { INPUTS = 1, OUTPUTS = 2, OPERATIONS = 3, ATTRIBUTES = 4 }
    operation { TYPE = 1, INPUTS = 2, OUTPUTS = 3, BLOCKS = 4, ATTRIBUTES = 5 }
    argument { ARGUMENTS = 1 }
    binding { NAME = 1, VALUE = 2 }
    named_type { NAME = 1, TYPE = 2 }
    value_type { TENSOR = 1, LIST = 2, TUPLE = 3, DICTIONARY = 4, STATE = 5 }
    tensor_type { DATA_TYPE = 1, RANK = 2, DIMENSIONS = 3, ATTRIBUTES = 4 }
    dimension { CONSTANT = 1, UNKNOWN = 2 }
    value { DOC = 1, TYPE = 2, IMMEDIATE = 3, BLOB = 5 }
    blob { FILE = 1, OFFSET = 2 }
    immediate { TENSOR = 1, TUPLE = 2, LIST = 3, DICTIONARY = 4 }
    tensor { FLOATS = 1, INTS = 2, BOOLS = 3, STRINGS = 4, LONG_INTS = 5, DOUBLES = 6, BYTES = 7 }
}

/// The element types of tensors, as MIL numbers them.
const DTYPES: [(Dtype, u64); 22] = [
    (Dtype::Bool, 1),
    (Dtype::String, 2),
    (Dtype::F16, 10),
    (Dtype::F32, 11),
    (Dtype::F64, 12),
    (Dtype::BF16, 13),
    (Dtype::I8, 21),
    (Dtype::I16, 22),
    (Dtype::I32, 23),
    (Dtype::I64, 24),
    (Dtype::I4, 25),
    (Dtype::U8, 31),
    (Dtype::U16, 32),
    (Dtype::U32, 33),
    (Dtype::U64, 34),
    (Dtype::U4, 35),
    (Dtype::U2, 36),
    (Dtype::U1, 37),
    (Dtype::U6, 38),
    (Dtype::U3, 39),
    (Dtype::F8E4M3, 40),
    (Dtype::F8E5M2, 41),
];

/// The element types of arrays in the model description.
const ARRAY_DTYPES: [(Dtype, u64); 5] =
    [(Dtype::F32, 65568), (Dtype::F64, 65600), (Dtype::F16, 65552), (Dtype::I32, 131104), (Dtype::I8, 131080)];

fn number(table: &[(Dtype, u64)], dtype: Dtype) -> Option<u64> {
    table.iter().find(|(d, _)| *d == dtype).map(|(_, n)| *n)
}

fn named(table: &[(Dtype, u64)], n: u64) -> Option<Dtype> {
    table.iter().find(|(_, m)| *m == n).map(|(d, _)| *d)
}

/// MIL's number of an element type.
pub fn dtype_number(dtype: Dtype) -> u64 {
    number(&DTYPES, dtype).unwrap_or_default()
}

/// The element type that MIL numbers so.
pub fn dtype(n: u64) -> Option<Dtype> {
    named(&DTYPES, n)
}

/// The description's number of an element type; it has none for most.
pub fn array_dtype_number(dtype: Dtype) -> Option<u64> {
    number(&ARRAY_DTYPES, dtype)
}

/// The element type that the description numbers so.
pub fn array_dtype(n: u64) -> Option<Dtype> {
    named(&ARRAY_DTYPES, n)
}

/// The message of a tensor literal that holds elements of a type. Everything without a field of its own is packed bytes.
pub fn tensor_field(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::Bool => tensor::BOOLS,
        Dtype::String => tensor::STRINGS,
        Dtype::F32 => tensor::FLOATS,
        Dtype::F64 => tensor::DOUBLES,
        Dtype::I16 | Dtype::U16 | Dtype::I32 => tensor::INTS,
        Dtype::I64 | Dtype::U64 => tensor::LONG_INTS,
        _ => tensor::BYTES,
    }
}

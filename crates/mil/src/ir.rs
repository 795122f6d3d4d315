//! The intermediate representation: an ML Program as a program, not as protobuf.
//!
//! A [`Program`] is a set of [`Function`]s that may share weights and states. A function is a straight list of [`Op`]s in
//! SSA form over an arena of [`Value`]s: every value is defined once, by a function input or by one op's output, and an op
//! may only use values defined before it. Order matters for states alone: `read_state` copies the state as it is at that
//! point, `write_state` replaces it, and everything else is pure.
//!
//! The IR keeps what the format says and nothing else. Parameters such as axes and pads are ordinary inputs, bound to
//! `const` ops, because that is how Core ML spells them; an op is known by its `kind` string, so that a program with an op
//! this crate has never heard of can still be read, printed and refused by the validator with its name.
//!
//! Weights are [`Literal`]s. Their bytes are small and in memory, mapped from the package they were read from, or not yet
//! made: a [`Producer`] writes them straight into the file that needs them, so that no weight is held in memory twice.
//! Cloning a literal shares its bytes; the package writer stores shared bytes once, which is how `main` and `prefill`
//! come to carry one copy of the model.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use memmap2::Mmap;

/// Element types, with Core ML's names. Sub-byte types are packed least significant bit first, without padding between
/// elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dtype {
    /// One byte an element in memory, 0 or 1.
    Bool,
    /// Only ever in literals.
    String,
    /// IEEE binary16.
    F16,
    /// IEEE binary32.
    F32,
    /// IEEE binary64.
    F64,
    /// The upper half of a binary32.
    BF16,
    /// Signed 4 bits.
    I4,
    /// Signed 8 bits.
    I8,
    /// Signed 16 bits.
    I16,
    /// Signed 32 bits.
    I32,
    /// Signed 64 bits.
    I64,
    /// Unsigned 1 bit: masks of sparse weights.
    U1,
    /// Unsigned 2 bits.
    U2,
    /// Unsigned 3 bits.
    U3,
    /// Unsigned 4 bits.
    U4,
    /// Unsigned 6 bits.
    U6,
    /// Unsigned 8 bits.
    U8,
    /// Unsigned 16 bits.
    U16,
    /// Unsigned 32 bits.
    U32,
    /// Unsigned 64 bits.
    U64,
    /// 8-bit float, 4 exponent bits.
    F8E4M3,
    /// 8-bit float, 5 exponent bits.
    F8E5M2,
}

impl Dtype {
    /// Bits an element occupies in a weight file or a packed literal; 0 for strings, which have no fixed size.
    pub fn bits(self) -> usize {
        match self {
            Dtype::String => 0,
            Dtype::U1 => 1,
            Dtype::U2 => 2,
            Dtype::U3 => 3,
            Dtype::U4 | Dtype::I4 => 4,
            Dtype::U6 => 6,
            Dtype::Bool | Dtype::I8 | Dtype::U8 | Dtype::F8E4M3 | Dtype::F8E5M2 => 8,
            Dtype::F16 | Dtype::BF16 | Dtype::I16 | Dtype::U16 => 16,
            Dtype::F32 | Dtype::I32 | Dtype::U32 => 32,
            Dtype::F64 | Dtype::I64 | Dtype::U64 => 64,
        }
    }

    /// The name MIL uses in text and in `dtype` parameters.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Bool => "bool",
            Dtype::String => "string",
            Dtype::F16 => "fp16",
            Dtype::F32 => "fp32",
            Dtype::F64 => "fp64",
            Dtype::BF16 => "bf16",
            Dtype::I4 => "int4",
            Dtype::I8 => "int8",
            Dtype::I16 => "int16",
            Dtype::I32 => "int32",
            Dtype::I64 => "int64",
            Dtype::U1 => "uint1",
            Dtype::U2 => "uint2",
            Dtype::U3 => "uint3",
            Dtype::U4 => "uint4",
            Dtype::U6 => "uint6",
            Dtype::U8 => "uint8",
            Dtype::U16 => "uint16",
            Dtype::U32 => "uint32",
            Dtype::U64 => "uint64",
            Dtype::F8E4M3 => "fp8e4m3fn",
            Dtype::F8E5M2 => "fp8e5m2",
        }
    }

    /// Whether this is a floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::F16 | Dtype::F32 | Dtype::F64 | Dtype::BF16 | Dtype::F8E4M3 | Dtype::F8E5M2)
    }

    /// Whether this is an integer type of any width (`bool` is not one).
    pub fn is_int(self) -> bool {
        !self.is_float() && !matches!(self, Dtype::Bool | Dtype::String)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One dimension of a tensor type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    /// Known when the program was written.
    Fixed(usize),
    /// Known at run time only. The format gives unknown dimensions no identity: two of them may or may not be equal.
    Unknown,
}

impl Dim {
    /// The size, if it is known.
    pub fn fixed(self) -> Option<usize> {
        match self {
            Dim::Fixed(n) => Some(n),
            Dim::Unknown => None,
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Fixed(n) => write!(f, "{n}"),
            Dim::Unknown => f.write_str("?"),
        }
    }
}

/// Element type and shape, outermost dimension first. A scalar has an empty shape.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// The element type.
    pub dtype: Dtype,
    /// The dimensions, outermost first.
    pub shape: Vec<Dim>,
}

impl TensorType {
    /// A type whose dimensions are all known.
    pub fn new(dtype: Dtype, shape: &[usize]) -> Self {
        Self { dtype, shape: shape.iter().map(|&n| Dim::Fixed(n)).collect() }
    }

    /// A rank-0 type.
    pub fn scalar(dtype: Dtype) -> Self {
        Self::new(dtype, &[])
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The shape, if every dimension is known.
    pub fn fixed_shape(&self) -> Option<Vec<usize>> {
        self.shape.iter().map(|d| d.fixed()).collect()
    }

    /// The number of elements, if every dimension is known and the product fits.
    pub fn elements(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |n, d| n.checked_mul(d.fixed()?))
    }

    /// Bytes of the packed payload, the last one padded with zero bits; `None` where a dimension is unknown.
    pub fn bytes(&self) -> Option<usize> {
        Some(self.elements()?.checked_mul(self.dtype.bits())?.div_ceil(8))
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.dtype)?;
        for (i, d) in self.shape.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{d}")?;
        }
        f.write_str("]")
    }
}

/// The type of a value or a literal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueType {
    /// A tensor.
    Tensor(TensorType),
    /// A state that wraps a tensor; only ever the type of a function input.
    State(TensorType),
    /// A list of equal types. Only in literals (`classify` labels).
    List(Box<ValueType>, Dim),
    /// A tuple of types. Only in literals.
    Tuple(Vec<ValueType>),
    /// A dictionary. Only in literals (`buildInfo`).
    Dictionary(Box<ValueType>, Box<ValueType>),
}

impl ValueType {
    /// The tensor type, where this is a tensor.
    pub fn tensor(&self) -> Option<&TensorType> {
        match self {
            ValueType::Tensor(t) => Some(t),
            _ => None,
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueType::Tensor(t) => t.fmt(f),
            ValueType::State(t) => write!(f, "state<{t}>"),
            ValueType::List(t, n) => write!(f, "list<{t}, {n}>"),
            ValueType::Tuple(ts) => {
                f.write_str("tuple<")?;
                for (i, t) in ts.iter().enumerate() {
                    if i > 0 {
                        f.write_str(", ")?;
                    }
                    t.fmt(f)?;
                }
                f.write_str(">")
            }
            ValueType::Dictionary(k, v) => write!(f, "dict<{k}, {v}>"),
        }
    }
}

/// An index into [`Function::values`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(pub u32);

impl ValueId {
    /// The index as a `usize`.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A named, typed value: a function input or the output of one op.
#[derive(Clone, Debug)]
pub struct Value {
    /// Unique in its function; `[A-Za-z_][A-Za-z0-9_]*` in what we write.
    pub name: String,
    /// Its declared type.
    pub ty: ValueType,
}

/// What an op's parameter is bound to.
#[derive(Clone, Debug)]
pub enum Arg {
    /// A value defined earlier in the same function.
    Value(ValueId),
    /// A literal written in place: the parameters of iOS 18 `constexpr` ops, and what others chose to inline.
    Literal(Literal),
}

/// One operation.
#[derive(Clone, Debug)]
pub struct Op {
    /// The op's type, as the format spells it: `conv`, `read_state`, `constexpr_blockwise_shift_scale`.
    pub kind: String,
    /// The `name` attribute; empty where a package has none.
    pub name: String,
    /// Parameters. Most have one argument; `values` of `concat` and `stack` have several.
    pub inputs: BTreeMap<String, Vec<Arg>>,
    /// The values it defines, in order.
    pub outputs: Vec<ValueId>,
    /// Attributes other than `name`: `val` of `const`, and the parameters of iOS 16 `constexpr` ops.
    pub attributes: BTreeMap<String, Literal>,
}

impl Op {
    /// The values that it reads, states among them.
    pub fn arguments(&self) -> impl Iterator<Item = ValueId> {
        self.inputs.values().flatten().filter_map(|arg| match arg {
            Arg::Value(id) => Some(*id),
            Arg::Literal(_) => None,
        })
    }
}

/// A constant with its type.
#[derive(Clone, Debug)]
pub struct Literal {
    /// The type; its byte size must equal the payload's.
    pub ty: ValueType,
    /// The content.
    pub payload: Payload,
}

/// The content of a literal.
#[derive(Clone)]
pub enum Payload {
    /// Row-major elements, little endian, sub-byte types packed; `bool` one byte each.
    Bytes(Arc<[u8]>),
    /// Row-major strings.
    Strings(Arc<[String]>),
    /// The elements of a list or tuple; keys and values in turn for a dictionary.
    Aggregate(Arc<[Literal]>),
    /// A blob of a weight file that is mapped into memory.
    Blob(Blob),
    /// Bytes that will exist once the package is written.
    Deferred(Deferred),
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Payload::Bytes(b) => write!(f, "Bytes({} bytes)", b.len()),
            Payload::Strings(s) => f.debug_tuple("Strings").field(s).finish(),
            Payload::Aggregate(v) => f.debug_tuple("Aggregate").field(v).finish(),
            Payload::Blob(b) => write!(f, "Blob(record {}, {} bytes)", b.record, b.range.len()),
            Payload::Deferred(d) => write!(f, "Deferred(slot {})", d.slot),
        }
    }
}

/// A blob inside a mapped weight file. The reader has checked its record against the file and the literal's type.
#[derive(Clone, Debug)]
pub struct Blob {
    /// The whole file.
    pub file: Arc<Mmap>,
    /// Offset of the metadata record: the identity of a blob within its file, equal for shared weights.
    pub record: u64,
    /// The payload bytes within the file.
    pub range: Range<usize>,
}

/// One output of a [`Producer`].
#[derive(Clone)]
pub struct Deferred {
    /// Who makes the bytes.
    pub producer: Arc<dyn Producer>,
    /// Which of the producer's outputs this is.
    pub slot: usize,
}

/// Makes the bytes of one or more literals while a package is written.
///
/// A producer with several slots (int8 data and its scales) makes them in one pass over its source. The writer calls
/// `produce` once per package, possibly from several threads for different producers, after it has laid out the file:
/// the slots' sizes follow from the literals' types.
pub trait Producer: Send + Sync {
    /// Writes every byte of every slot exactly once through `sink`, in any order.
    fn produce(&self, sink: &dyn Sink) -> std::io::Result<()>;
}

/// Where a [`Producer`]'s bytes go.
pub trait Sink: Sync {
    /// Writes `bytes` at `offset` within the slot.
    fn write(&self, slot: usize, offset: usize, bytes: &[u8]) -> std::io::Result<()>;
}

impl Literal {
    /// A tensor literal from its packed bytes.
    ///
    /// # Panics
    /// If the bytes are not as many as the type says: that is a bug of the caller, never of an input.
    pub fn from_bytes(ty: TensorType, bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes = bytes.into();
        assert_eq!(ty.bytes(), Some(bytes.len()), "literal {ty} of {} bytes", bytes.len());
        Self { ty: ValueType::Tensor(ty), payload: Payload::Bytes(bytes) }
    }

    /// A rank-0 string.
    pub fn string(s: &str) -> Self {
        Self {
            ty: ValueType::Tensor(TensorType::scalar(Dtype::String)),
            payload: Payload::Strings(Arc::from([s.to_owned()])),
        }
    }

    /// A rank-0 bool.
    pub fn bool(b: bool) -> Self {
        Self::from_bytes(TensorType::scalar(Dtype::Bool), [u8::from(b)])
    }

    /// A vector of bools.
    pub fn bools(v: &[bool]) -> Self {
        Self::from_bytes(TensorType::new(Dtype::Bool, &[v.len()]), v.iter().map(|&b| u8::from(b)).collect::<Vec<_>>())
    }

    /// A rank-0 int32.
    pub fn i32(v: i32) -> Self {
        Self::from_bytes(TensorType::scalar(Dtype::I32), v.to_le_bytes())
    }

    /// A vector of int32.
    pub fn i32s(v: &[i32]) -> Self {
        let bytes: Vec<u8> = v.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self::from_bytes(TensorType::new(Dtype::I32, &[v.len()]), bytes)
    }

    /// A rank-0 fp16, rounded to nearest even from `v`.
    pub fn f16(v: f32) -> Self {
        Self::from_bytes(TensorType::scalar(Dtype::F16), half::f16::from_f32(v).to_le_bytes())
    }

    /// An fp16 tensor, rounded to nearest even from `v`.
    ///
    /// # Panics
    /// If `v` has not as many elements as `shape`.
    pub fn f16s(shape: &[usize], v: &[f32]) -> Self {
        let bytes: Vec<u8> = v.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect();
        Self::from_bytes(TensorType::new(Dtype::F16, shape), bytes)
    }

    /// The tensor type, where this is a tensor.
    pub fn tensor_type(&self) -> Option<&TensorType> {
        self.ty.tensor()
    }

    /// The packed bytes, where they exist in memory: not for strings, aggregates, or bytes still to be produced.
    pub fn bytes(&self) -> Option<&[u8]> {
        match &self.payload {
            Payload::Bytes(b) => Some(b),
            Payload::Blob(b) => b.file.get(b.range.clone()),
            _ => None,
        }
    }
}

/// One entry point of a program.
#[derive(Clone, Debug)]
pub struct Function {
    /// Its name: `main` in a single-function package.
    pub name: String,
    /// The opset its body is written in: `CoreML8`.
    pub opset: String,
    /// Every value of the function; inputs first in what we write.
    pub values: Vec<Value>,
    /// Inputs in order, states among them.
    pub inputs: Vec<ValueId>,
    /// The body.
    pub ops: Vec<Op>,
    /// Outputs in order.
    pub outputs: Vec<ValueId>,
    /// What the model description says about inputs, outputs and states. The format repeats the types here, and no tool
    /// outside Apple's compares the two: the validator does.
    pub interface: Interface,
}

impl Function {
    /// The value behind an id of this function.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }
}

/// A function's features in the model description.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Interface {
    /// Inputs that are not states.
    pub inputs: Vec<Feature>,
    /// Outputs.
    pub outputs: Vec<Feature>,
    /// States.
    pub states: Vec<Feature>,
}

/// A named array of the model description.
#[derive(Clone, Debug, PartialEq)]
pub struct Feature {
    /// The name: that of the function's input, output or state.
    pub name: String,
    /// The element type.
    pub dtype: Dtype,
    /// The (default) shape; absent for outputs whose shape is only known at run time.
    pub shape: Option<Vec<usize>>,
    /// Which other shapes are accepted.
    pub flexibility: Flexibility,
    /// Whether a prediction may leave this input out.
    pub optional: bool,
    /// What every element of an input that was left out is.
    pub default: Option<f64>,
}

/// The shapes that an input accepts besides its default.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Flexibility {
    /// None.
    #[default]
    Fixed,
    /// One of these.
    Enumerated(Vec<Vec<usize>>),
    /// Any within these inclusive bounds, one pair a dimension; no upper bound where `None`.
    Range(Vec<(usize, Option<usize>)>),
}

/// A whole model: what one `.mlpackage` holds.
#[derive(Clone, Debug)]
pub struct Program {
    /// The specification version: 9 is iOS 18 and macOS 15, the first with states and multiple functions.
    pub spec_version: i32,
    /// Functions in name order.
    pub functions: Vec<Function>,
    /// The function that runs when none is named.
    pub default_function: String,
    /// Whether the description uses the multifunction form; a single `main` may be written either way.
    pub multifunction: bool,
    /// `userDefined` metadata of the model description: the contract travels here.
    pub metadata: BTreeMap<String, String>,
    /// Free text of the model description: short description, version, author, licence.
    pub about: About,
    /// Program attributes (`buildInfo` and nothing else in practice).
    pub attributes: BTreeMap<String, Literal>,
}

/// The fixed fields of the model description's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// One line on what the model is.
    pub short_description: String,
    /// A version, free text.
    pub version: String,
    /// Who made it.
    pub author: String,
    /// Its licence.
    pub license: String,
}

impl Program {
    /// The function of that name.
    pub fn function(&self, name: &str) -> Option<&Function> {
        self.functions.iter().find(|f| f.name == name)
    }
}

//! From the IR to the model's protobuf. Every map is written in key order, so that equal programs are equal bytes.

use super::schema::{self, *};
use super::wire::Writer;
use crate::ir::{
    Arg, Dim, Dtype, Feature, Flexibility, Function, Interface, Literal, Op, Payload, Program, TensorType, ValueType,
};

/// Where the content of a literal is.
pub enum Content<'a> {
    /// In the weight file, at the record of this offset.
    Record(u64),
    /// In the model itself: these packed bytes.
    Inline(&'a [u8]),
}

/// Says where each tensor literal of bytes is, given whether its place may refer to a weight file.
pub trait Placement {
    /// The place of a literal.
    fn content<'a>(&'a self, literal: &'a Literal, may_be_blob: bool) -> Content<'a>;
}

/// The name that models use for their weight file.
const WEIGHT_FILE: &str = "@model_path/weights/weight.bin";

/// The model's bytes.
pub fn model(program: &Program, placement: &dyn Placement) -> Vec<u8> {
    let mut w = Writer::default();
    w.number(model::VERSION, program.spec_version as u64);
    w.message(model::DESCRIPTION, |w| description(w, program));
    w.message(model::PROGRAM, |w| {
        w.number(program::VERSION, 1);
        for f in &program.functions {
            w.entry(program::FUNCTIONS, &f.name, |w| function(w, f, placement));
        }
        for (name, lit) in &program.attributes {
            w.entry(program::ATTRIBUTES, name, |w| literal(w, lit, false, placement));
        }
    });
    w.into_bytes()
}

fn description(w: &mut Writer, program: &Program) {
    if program.multifunction {
        for f in &program.functions {
            w.message(description::FUNCTIONS, |w| {
                w.string(function_description::NAME, &f.name);
                let fields = [function_description::INPUT, function_description::OUTPUT, function_description::STATE];
                interface(w, &f.interface, fields);
            });
        }
        w.string(description::DEFAULT_FUNCTION, &program.default_function);
    } else if let [f] = program.functions.as_slice() {
        interface(w, &f.interface, [description::INPUT, description::OUTPUT, description::STATE]);
    }
    let about = &program.about;
    w.message(description::METADATA, |w| {
        w.string_or_default(metadata::SHORT_DESCRIPTION, &about.short_description);
        w.string_or_default(metadata::VERSION, &about.version);
        w.string_or_default(metadata::AUTHOR, &about.author);
        w.string_or_default(metadata::LICENSE, &about.license);
        for (key, text) in &program.metadata {
            w.message(metadata::USER_DEFINED, |w| {
                w.string(1, key);
                w.string(2, text);
            });
        }
    });
}

fn interface(w: &mut Writer, interface: &Interface, [input, output, state]: [u32; 3]) {
    for f in &interface.inputs {
        feature(w, input, f, false);
    }
    for f in &interface.outputs {
        feature(w, output, f, false);
    }
    for f in &interface.states {
        feature(w, state, f, true);
    }
}

fn feature(w: &mut Writer, field: u32, f: &Feature, state: bool) {
    w.message(field, |w| {
        w.string(feature::NAME, &f.name);
        w.message(feature::TYPE, |w| {
            if state {
                w.message(feature_type::STATE, |w| w.message(state_feature::ARRAY, |w| array(w, f)));
            } else {
                w.message(feature_type::MULTI_ARRAY, |w| array(w, f));
            }
            if f.optional {
                w.number(feature_type::OPTIONAL, 1);
            }
        });
    });
}

fn packed_dims(w: &mut Writer, field: u32, dims: &[usize]) {
    let mut inner = Writer::default();
    for &d in dims {
        inner.raw(d as u64);
    }
    if !dims.is_empty() {
        w.bytes(field, &inner.into_bytes());
    }
}

fn array(w: &mut Writer, f: &Feature) {
    packed_dims(w, array::SHAPE, f.shape.as_deref().unwrap_or_default());
    // The validator has made sure that the type is one the description has.
    w.number(array::DATA_TYPE, schema::array_dtype_number(f.dtype).unwrap_or_default());
    match &f.flexibility {
        Flexibility::Fixed => {}
        Flexibility::Enumerated(shapes) => w.message(array::ENUMERATED, |w| {
            for shape in shapes {
                w.message(1, |w| packed_dims(w, 1, shape));
            }
        }),
        Flexibility::Range(bounds) => w.message(array::RANGE, |w| {
            for &(low, high) in bounds {
                w.message(1, |w| {
                    w.number_or_default(1, low as u64);
                    w.number(2, high.map_or(u64::MAX, |h| h as u64));
                });
            }
        }),
    }
    match (f.default, f.dtype) {
        (None, _) => {}
        (Some(v), Dtype::I32) => w.number(array::INT_DEFAULT, v as i64 as u64),
        (Some(v), Dtype::F64) => w.f64(array::DOUBLE_DEFAULT, v),
        (Some(v), _) => w.f32(array::FLOAT_DEFAULT, v as f32),
    }
}

fn function(w: &mut Writer, f: &Function, placement: &dyn Placement) {
    for &id in &f.inputs {
        let value = f.value(id);
        w.message(function::INPUTS, |w| named_type(w, &value.name, &value.ty));
    }
    w.string(function::OPSET, &f.opset);
    w.entry(function::BLOCKS, &f.opset, |w| {
        for &id in &f.outputs {
            w.string(block::OUTPUTS, &f.value(id).name);
        }
        for op in &f.ops {
            w.message(block::OPERATIONS, |w| operation(w, f, op, placement));
        }
    });
}

/// Whether a literal of this op may be in the weight file: those of `const` and `constexpr` ops, and no others.
pub fn may_be_blob(op: &Op) -> bool {
    op.kind == "const" || op.kind.starts_with("constexpr_")
}

fn operation(w: &mut Writer, f: &Function, op: &Op, placement: &dyn Placement) {
    let blob = may_be_blob(op);
    w.string(operation::TYPE, &op.kind);
    for (param, args) in &op.inputs {
        w.entry(operation::INPUTS, param, |w| {
            for arg in args {
                w.message(argument::ARGUMENTS, |w| match arg {
                    Arg::Value(id) => w.string(binding::NAME, &f.value(*id).name),
                    Arg::Literal(lit) => w.message(binding::VALUE, |w| literal(w, lit, blob, placement)),
                });
            }
        });
    }
    for &id in &op.outputs {
        let value = f.value(id);
        w.message(operation::OUTPUTS, |w| named_type(w, &value.name, &value.ty));
    }
    // `name` sorts among the others.
    let name = Literal::string(&op.name);
    let mut attributes: Vec<(&str, &Literal)> = op.attributes.iter().map(|(k, v)| (k.as_str(), v)).collect();
    attributes.push(("name", &name));
    attributes.sort_by_key(|(key, _)| *key);
    for (key, lit) in attributes {
        w.entry(operation::ATTRIBUTES, key, |w| literal(w, lit, blob, placement));
    }
}

fn named_type(w: &mut Writer, name: &str, ty: &ValueType) {
    w.string(named_type::NAME, name);
    w.message(named_type::TYPE, |w| value_type(w, ty));
}

fn dimension(w: &mut Writer, d: Dim) {
    match d {
        Dim::Fixed(n) => w.message(dimension::CONSTANT, |w| w.number_or_default(1, n as u64)),
        Dim::Unknown => w.message(dimension::UNKNOWN, |_| {}),
    }
}

fn tensor_type(w: &mut Writer, ty: &TensorType) {
    w.number(tensor_type::DATA_TYPE, schema::dtype_number(ty.dtype));
    w.number_or_default(tensor_type::RANK, ty.rank() as u64);
    for &d in &ty.shape {
        w.message(tensor_type::DIMENSIONS, |w| dimension(w, d));
    }
}

fn value_type(w: &mut Writer, ty: &ValueType) {
    match ty {
        ValueType::Tensor(t) => w.message(value_type::TENSOR, |w| tensor_type(w, t)),
        ValueType::State(t) => {
            w.message(value_type::STATE, |w| w.message(1, |w| w.message(value_type::TENSOR, |w| tensor_type(w, t))));
        }
        ValueType::List(t, n) => w.message(value_type::LIST, |w| {
            w.message(1, |w| value_type(w, t));
            w.message(2, |w| dimension(w, *n));
        }),
        ValueType::Tuple(types) => w.message(value_type::TUPLE, |w| {
            for t in types {
                w.message(1, |w| value_type(w, t));
            }
        }),
        ValueType::Dictionary(k, v) => w.message(value_type::DICTIONARY, |w| {
            w.message(1, |w| value_type(w, k));
            w.message(2, |w| value_type(w, v));
        }),
    }
}

fn literal(w: &mut Writer, lit: &Literal, may_be_blob: bool, placement: &dyn Placement) {
    w.message(value::TYPE, |w| value_type(w, &lit.ty));
    match (&lit.payload, &lit.ty) {
        (Payload::Strings(strings), _) => immediate_tensor(w, tensor::STRINGS, |w| {
            for s in strings.iter() {
                w.string(1, s);
            }
        }),
        (Payload::Aggregate(items), ty) => w.message(value::IMMEDIATE, |w| {
            let element = |w: &mut Writer, field, lit| w.message(field, |w| literal(w, lit, false, placement));
            match ty {
                ValueType::Dictionary(..) => w.message(immediate::DICTIONARY, |w| {
                    for pair in items.chunks_exact(2) {
                        w.message(1, |w| {
                            element(w, 1, &pair[0]);
                            element(w, 2, &pair[1]);
                        });
                    }
                }),
                ty => {
                    let field = if matches!(ty, ValueType::List(..)) { immediate::LIST } else { immediate::TUPLE };
                    w.message(field, |w| items.iter().for_each(|item| element(w, 1, item)));
                }
            }
        }),
        _ => match placement.content(lit, may_be_blob) {
            Content::Record(offset) => w.message(value::BLOB, |w| {
                w.string(blob::FILE, WEIGHT_FILE);
                w.number(blob::OFFSET, offset);
            }),
            Content::Inline(bytes) => {
                let dtype = lit.tensor_type().map_or(Dtype::U8, |t| t.dtype);
                immediate_tensor(w, schema::tensor_field(dtype), |w| elements(w, dtype, bytes));
            }
        },
    }
}

fn immediate_tensor(w: &mut Writer, field: u32, values: impl FnOnce(&mut Writer)) {
    w.message(value::IMMEDIATE, |w| w.message(immediate::TENSOR, |w| w.message(field, values)));
}

/// The elements of a tensor literal, in the form its type has. A packed zero is a byte like any other, an empty list none.
fn elements(w: &mut Writer, dtype: Dtype, bytes: &[u8]) {
    let width = dtype.bits() / 8;
    match dtype {
        Dtype::I16 | Dtype::U16 | Dtype::I32 | Dtype::I64 | Dtype::U64 => {
            let mut packed = Writer::default();
            for element in bytes.chunks_exact(width) {
                let mut wide = [0u8; 8];
                wide[..width].copy_from_slice(element);
                let raw = u64::from_le_bytes(wide);
                // Negative numbers are written as 64 bits, whatever their width.
                packed.raw(match dtype {
                    Dtype::I16 => raw as i16 as i64 as u64,
                    Dtype::I32 => raw as i32 as i64 as u64,
                    _ => raw,
                });
            }
            w.bytes(1, &packed.into_bytes());
        }
        _ => w.bytes(1, bytes),
    }
}

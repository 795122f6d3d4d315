//! What is known before a program runs: `const` ops, inline literals, and weights once decompressed.
//!
//! A constant is converted at its first use and then shared: by every op that uses it, and by every function of the package that
//! refers to the same bytes. Kernels that read weights a row at a time take fp16 constants as they are stored; for the
//! others they are widened.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use anemone_mil::decode::{self, Dense};
use anemone_mil::ir::{Arg, Dtype, Literal, Payload};
use anemone_mil::ops::{self, Call};
use half::f16;
use half::slice::HalfFloatSliceExt;

use super::Fault;
use super::value::{Elements, Halves, Value, elements};

/// Smaller fp16 constants are widened even for kernels that would take them as stored.
const WORTH_KEEPING: usize = 1 << 12;

/// A constant and its converted form.
#[derive(Clone)]
pub struct Constant(Arc<Inner>);

struct Inner {
    literal: Literal,
    dense: OnceLock<Value>,
}

impl Constant {
    /// A constant of a literal; its elements are not looked at yet.
    pub fn new(literal: Literal) -> Self {
        Self(Arc::new(Inner { literal, dense: OnceLock::new() }))
    }

    /// The value in working form.
    pub fn dense(&self) -> Result<Value, Fault> {
        if let Some(value) = self.0.dense.get() {
            return Ok(value.clone());
        }
        let value = widened(&self.0.literal)?;
        Ok(self.0.dense.get_or_init(|| value).clone())
    }

    /// The value as it is stored, if it is fp16 and large, otherwise in working form.
    pub fn stored(&self) -> Result<Value, Fault> {
        let literal = &self.0.literal;
        match literal.tensor_type() {
            Some(ty) if ty.dtype == Dtype::F16 && self.0.dense.get().is_none() => {
                let shape = shape_of(literal)?;
                let n = elements(&shape)?;
                if n < WORTH_KEEPING || literal.bytes().map(<[u8]>::len) != Some(n * 2) {
                    return self.dense();
                }
                Ok(Value { dtype: Dtype::F16, shape, data: Elements::Halves(Halves::new(literal.clone())) })
            }
            _ => self.dense(),
        }
    }

    /// The string, if it is one.
    pub fn text(&self) -> Option<&str> {
        self.0.literal.to_str()
    }
}

fn shape_of(literal: &Literal) -> Result<Vec<usize>, Fault> {
    literal
        .tensor_type()
        .and_then(|t| t.fixed_shape())
        .ok_or_else(|| Fault::new(format!("a constant of type {} is not supported", literal.ty)))
}

fn widened(literal: &Literal) -> Result<Value, Fault> {
    let shape = shape_of(literal)?;
    let n = elements(&shape)?;
    let unsupported = || Fault::new(format!("a constant of type {} is not supported", literal.ty));
    let dtype = literal.tensor_type().map(|t| t.dtype).ok_or_else(unsupported)?;
    let value = match dtype {
        Dtype::F16 | Dtype::F32 => Value::floats(dtype, &shape, literal.to_floats().ok_or_else(unsupported)?),
        Dtype::Bool => {
            let v = literal.to_bools().ok_or_else(unsupported)?;
            Value::ints(dtype, &shape, v.into_iter().map(i32::from).collect::<Vec<_>>())
        }
        Dtype::I8 | Dtype::U8 | Dtype::I16 | Dtype::U16 | Dtype::I32 => {
            let v = literal.to_ints().ok_or_else(unsupported)?;
            Value::ints(dtype, &shape, v.into_iter().map(|v| v as i32).collect::<Vec<_>>())
        }
        _ => return Err(unsupported()),
    };
    if value.is_whole() && value.len() == n { Ok(value) } else { Err(unsupported()) }
}

/// What makes two literals one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Identity {
    /// A blob of a mapped file: the file's address and the record.
    Blob(usize, u64),
    /// Large bytes in memory, by address.
    Address(usize),
    /// Small bytes in memory, such as a scale that every function spells out for itself.
    Content(Vec<u8>),
}

/// Bytes up to this many are compared, not located.
const COMPARED: usize = 1 << 12;

/// What a constant is made of: the op and parameter, the bytes, and the type they are read as.
type Recipe = Vec<(String, Identity, String)>;

/// Constants by what they are made of, so that functions which share weights share what is made of them.
#[derive(Default)]
pub struct Shared {
    made: BTreeMap<Recipe, Vec<Constant>>,
    /// Bytes that decompressed weights occupy.
    pub bytes: usize,
}

impl Shared {
    /// The constants that a `const` or `constexpr` op defines. Weights are decompressed as long as all of them, and what it
    /// takes to decompress them, fit into `limit` bytes.
    pub fn of(&mut self, call: &Call<'_>, limit: usize) -> Result<Vec<Constant>, Fault> {
        let mut recipe = Recipe::new();
        let known = add_to_recipe(call, &mut recipe, 0).is_some();
        if known && let Some(made) = self.made.get(&recipe) {
            return Ok(made.clone());
        }
        let made = match call.op().attributes.get("val") {
            Some(literal) => vec![Constant::new(literal.clone())],
            None => self.decompressed(call, limit)?,
        };
        if known {
            self.made.insert(recipe, made.clone());
        }
        Ok(made)
    }

    fn decompressed(&mut self, call: &Call<'_>, limit: usize) -> Result<Vec<Constant>, Fault> {
        // On the way, elements and what they are made of are f32.
        let n = call.outputs().map(|ty| ty.elements().unwrap_or(usize::MAX)).fold(0, usize::saturating_add);
        if self.bytes.saturating_add(n.saturating_mul(12)) > limit {
            return Err(Fault::new(format!("decompressing {n} elements exceeds the memory limit of {limit} bytes")));
        }
        let results = decode::results(call).map_err(|e| Fault::new(e.to_string()))?;
        let constants: Vec<Constant> = results.into_iter().map(packed).collect::<Result<_, _>>()?;
        self.bytes += constants.iter().map(|c| c.0.literal.bytes().map_or(0, <[u8]>::len)).sum::<usize>();
        Ok(constants)
    }
}

/// A decompressed weight as a literal of its own type: fp16 stays two bytes an element.
fn packed(dense: Dense) -> Result<Constant, Fault> {
    let Dense { ty, values } = dense;
    let bytes: Vec<u8> = match ty.dtype {
        Dtype::F16 => {
            let mut bytes = Vec::with_capacity(values.len() * 2);
            let mut block = [f16::ZERO; 256];
            for values in values.chunks(block.len()) {
                let block = &mut block[..values.len()];
                block.convert_from_f32_slice(values);
                bytes.extend(block.iter().flat_map(|h| h.to_le_bytes()));
            }
            bytes
        }
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::I8 => values.iter().map(|&v| v as i8 as u8).collect(),
        Dtype::U8 => values.iter().map(|&v| v as u8).collect(),
        // Masks between sparse encodings: no kernel reads them.
        _ => return Ok(Constant::new(Literal::bools(&[]))),
    };
    if ty.bytes() != Some(bytes.len()) {
        return Err(Fault::new(format!("{} bytes for {ty}", bytes.len())));
    }
    Ok(Constant::new(Literal::from_bytes(ty, bytes)))
}

/// Adds what an op's results are made of; `None` where they cannot be compared.
fn add_to_recipe(call: &Call<'_>, recipe: &mut Recipe, depth: usize) -> Option<()> {
    let op = call.op();
    let literals = op.attributes.iter().map(|(name, literal)| (name, Arg::Literal(literal.clone())));
    let inputs = op.inputs.iter().flat_map(|(name, args)| args.iter().map(move |arg| (name, arg.clone())));
    for (name, arg) in literals.chain(inputs) {
        let role = format!("{}.{name}", op.kind);
        match arg {
            Arg::Literal(literal) => {
                let identity = match &literal.payload {
                    Payload::Blob(b) => Identity::Blob(Arc::as_ptr(&b.file) as usize, b.record),
                    Payload::Bytes(b) if b.len() <= COMPARED => Identity::Content(b.to_vec()),
                    Payload::Bytes(b) => Identity::Address(Arc::as_ptr(b).cast::<u8>() as usize),
                    Payload::Strings(s) => Identity::Content(s.join("\0").into_bytes()),
                    Payload::Aggregate(_) | Payload::Deferred(_) => return None,
                };
                recipe.push((role, identity, literal.ty.to_string()));
            }
            Arg::Value(id) => {
                let source = call.scope().definition(id).filter(|_| depth < 8)?;
                let spec = ops::spec_in(&source.kind, call.opset()).filter(|s| s.is_constant())?;
                // Which of its results is used matters as much as what they are made of.
                let which = source.outputs.iter().position(|&o| o == id)?;
                recipe.push((role, Identity::Content(vec![which as u8]), source.kind.clone()));
                add_to_recipe(&Call::new(spec, source, call.scope(), call.opset()), recipe, depth + 1)?;
            }
        }
    }
    Some(())
}

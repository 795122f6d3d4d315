//! What is known before a program runs: `const` ops, inline literals, and weights once decompressed.
//!
//! A constant is converted at its first use and then shared: by every op that uses it, and by every function of the package that
//! refers to the same bytes. Kernels that read weights a row at a time take fp16, int8 with a scale for each row, and indices of four
//! bits with tables for rows, as they are stored; whatever else is decompressed once, to its own type.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use anemone_mil::decode::{self, Dense};
use anemone_mil::ir::{Arg, Dtype, Literal, Payload, TensorType};
use anemone_mil::ops::{self, Call};
use half::f16;
use half::slice::HalfFloatSliceExt;

use super::Fault;
use super::value::{Elements, PALETTE, Stored, Value, elements};

/// Smaller weights are widened even for kernels that would take them as stored.
const WORTH_KEEPING: usize = 1 << 12;

/// A constant and its converted form.
#[derive(Clone)]
pub struct Constant(Arc<Inner>);

struct Inner {
    source: Source,
    dense: OnceLock<Value>,
}

enum Source {
    Literal(Literal),
    /// A weight of that type that never needs to be decompressed as a whole.
    Stored(TensorType, Stored),
}

impl Constant {
    /// A constant of a literal; its elements are not looked at yet.
    pub fn new(literal: Literal) -> Self {
        Self::of(Source::Literal(literal))
    }

    fn of(source: Source) -> Self {
        Self(Arc::new(Inner { source, dense: OnceLock::new() }))
    }

    /// The value in working form.
    pub fn dense(&self) -> Result<Value, Fault> {
        if let Some(value) = self.0.dense.get() {
            return Ok(value.clone());
        }
        let value = match &self.0.source {
            Source::Literal(literal) => widened(literal)?,
            Source::Stored(ty, stored) => {
                let mut v = vec![0.0f32; stored.len()];
                stored.widen(0, &mut v);
                Value::floats(ty.dtype, &shape_of(ty)?, v)
            }
        };
        Ok(self.0.dense.get_or_init(|| value).clone())
    }

    /// The value as it is stored, if it is a large weight, otherwise in working form.
    pub fn stored(&self) -> Result<Value, Fault> {
        if self.0.dense.get().is_some() {
            return self.dense();
        }
        let (ty, stored) = match &self.0.source {
            Source::Stored(ty, stored) => (ty, stored.clone()),
            Source::Literal(literal) => match literal.tensor_type() {
                Some(ty) if ty.dtype == Dtype::F16 => (ty, Stored::Halves(literal.clone())),
                _ => return self.dense(),
            },
        };
        let shape = shape_of(ty)?;
        let n = elements(&shape)?;
        if n < WORTH_KEEPING || stored.len() != n {
            return self.dense();
        }
        Ok(Value { dtype: ty.dtype, shape, data: Elements::Stored(stored) })
    }

    /// The string, if it is one.
    pub fn text(&self) -> Option<&str> {
        match &self.0.source {
            Source::Literal(literal) => literal.to_str(),
            Source::Stored(..) => None,
        }
    }
}

fn shape_of(ty: &TensorType) -> Result<Vec<usize>, Fault> {
    ty.fixed_shape().ok_or_else(|| Fault::new(format!("a constant of type {ty} is not supported")))
}

fn widened(literal: &Literal) -> Result<Value, Fault> {
    let unsupported = || Fault::new(format!("a constant of type {} is not supported", literal.ty));
    let ty = literal.tensor_type().ok_or_else(unsupported)?;
    let (dtype, shape) = (ty.dtype, shape_of(ty)?);
    let n = elements(&shape)?;
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
            None => match scaled_bytes(call).or_else(|| palette(call)) {
                Some((ty, stored)) => vec![Constant::of(Source::Stored(ty, stored))],
                None => self.decompressed(call, limit)?,
            },
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
        self.bytes += call.outputs().filter_map(TensorType::bytes).sum::<usize>();
        Ok(constants)
    }
}

/// The form in which nearly all quantised models keep their projections: int8, symmetric, one fp16 scale for the tensor or for
/// each slice of its first dimension.
fn scaled_bytes(call: &Call<'_>) -> Option<(TensorType, Stored)> {
    if call.spec().name != "constexpr_blockwise_shift_scale" || call.has("offset") {
        return None;
    }
    let (data, scale) = (call.literal("data")?, call.literal("scale")?);
    let (ty, scale_ty) = (data.tensor_type()?, scale.tensor_type()?);
    let per_slice = scale_ty.shape.iter().skip(1).all(|d| d.fixed() == Some(1));
    if ty.dtype != Dtype::I8 || scale_ty.dtype != Dtype::F16 || !per_slice {
        return None;
    }
    let scales: Arc<[f32]> = scale.to_floats()?.into();
    let n = data.bytes().map(<[u8]>::len).filter(|&n| n > 0 && Some(n) == ty.elements())?;
    let even = !scales.is_empty() && n.is_multiple_of(scales.len());
    let result = TensorType { dtype: Dtype::F16, shape: ty.shape.clone() };
    even.then(|| (result, Stored::Bytes { data: data.clone(), scales }))
}

/// The form of most palettised models: four bits an element, and one table of scalars for the tensor or for each group of slices of its
/// first dimension.
fn palette(call: &Call<'_>) -> Option<(TensorType, Stored)> {
    if call.spec().name != "constexpr_lut_to_dense" {
        return None;
    }
    let (indices, lut) = (call.literal("indices")?, call.literal("lut")?);
    let ty = call.outputs().next()?;
    let lut_ty = lut.tensor_type()?;
    // In the older form a table is a vector, and indices are bytes in which they lie packed.
    let (groups, of_scalars) = match lut_ty.fixed_shape()?.as_slice() {
        [PALETTE] => (1, true),
        [first, ones @ .., PALETTE, vector] => (*first, *vector == 1 && ones.iter().all(|&d| d == 1)),
        _ => return None,
    };
    if lut_ty.dtype != Dtype::F16 || !of_scalars || groups == 0 {
        return None;
    }
    let n = ty.elements().filter(|n| n.is_multiple_of(2))?;
    let whole = indices.bytes()?.len() == n / 2 && ty.shape.first()?.fixed()?.is_multiple_of(groups);
    let tables: Arc<[f32]> = lut.to_floats()?.into();
    let stored = Stored::Palette { indices: indices.clone(), tables: Arc::clone(&tables) };
    (whole && tables.len() == groups * PALETTE).then(|| (ty.clone(), stored))
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

#[cfg(test)]
mod tests {
    use anemone_mil::{FunctionBuilder, Operand, validate};

    use super::*;

    /// The weights that an op of a small program defines: as stored, and as the decoder has them.
    fn both(kind: &str, params: &[(&str, Literal)]) -> (Value, Vec<f32>) {
        let mut b = FunctionBuilder::new("main", "CoreML8").unwrap();
        let params: Vec<(&str, Operand)> =
            params.iter().map(|(name, literal)| (*name, literal.clone().into())).collect();
        let weight = b.op(kind, "weight", &params).unwrap();
        let x = b.input("x", TensorType::new(Dtype::F16, &[1])).unwrap();
        let y = b.op("add", "y", &[("x", x.into()), ("y", weight.into())]).unwrap();
        let program = anemone_mil::program(vec![b.finish(&[("y", y)]).unwrap()], BTreeMap::new());
        let program = validate(program).unwrap_or_else(|report| panic!("{report}"));
        let call = program.call(0, 0);
        let constants = Shared::default().of(&call, 0).unwrap();
        (constants[0].stored().unwrap(), decode::results(&call).unwrap()[0].values.clone())
    }

    /// They are kept as they are, and mean what the decoder says, read in pieces that begin and end anywhere.
    fn kept(kind: &str, params: &[(&str, Literal)]) {
        let (value, expected) = both(kind, params);
        let Elements::Stored(stored) = &value.data else { panic!("decompressed") };
        let mut found = vec![0.0; expected.len()];
        let mut at = 0;
        for piece in found.chunks_mut(1001) {
            stored.widen(at, piece);
            at += piece.len();
        }
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found), bits(&expected));
    }

    /// Bytes without a pattern that an error could hide behind.
    fn bytes(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 89 + i / 251) as u8).collect()
    }

    #[test]
    fn int8_weights_stay_as_they_are_and_mean_what_the_decoder_says() {
        for scales in [&[0.013][..], &[1.0, 6e-8, 3e-5, 511.0], &[0.0, 65504.0, -0.7, 1e-7]] {
            let shape = [16, 24, 16, 1];
            let data = Literal::from_bytes(TensorType::new(Dtype::I8, &shape), bytes(shape.iter().product()));
            let scale = Literal::f16s(&[scales.len(), 1, 1, 1], scales);
            kept("constexpr_blockwise_shift_scale", &[("data", data), ("scale", scale)]);
        }
    }

    #[test]
    fn palettes_of_four_bits_stay_as_they_are_and_mean_what_the_decoder_says() {
        for groups in [1, 4, 16] {
            let shape = [16, 25, 16, 1];
            let indices =
                Literal::from_bytes(TensorType::new(Dtype::U4, &shape), bytes(shape.iter().product::<usize>() / 2));
            let entries: Vec<f32> = (0..groups * PALETTE).map(|i| (i as f32 * 0.37).sin()).collect();
            let lut = Literal::f16s(&[groups, 1, 1, 1, PALETTE, 1], &entries);
            kept("constexpr_lut_to_dense", &[("indices", indices), ("lut", lut)]);
        }
    }
}

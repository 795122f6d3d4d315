//! Compressed weights, decompressed: what every `constexpr` op means, element by element.
//!
//! This is the plain reading of the encodings, one element after another, which whatever is faster is tested against. Values
//! are carried as f32: it holds every value of fp16, fp32 and of the integers that weights have, so rounding to the result's
//! type after each operation is all the arithmetic there is. A product of two fp16 numbers is exact in f32, hence
//! `scale * (data - offset)` here is what fp16 arithmetic gives.

use half::slice::HalfFloatSliceExt;

use crate::ir::{Arg, Dim, Dtype, Literal, TensorType, ValueId};
use crate::ops::{self, Call, Opset, Scope, TypeError};

/// How many `constexpr` ops may feed one another.
const MAX_CHAIN: usize = 8;

/// How many elements a decoded weight may have: a few kilobytes of palette can stand for more memory than there is.
const MAX_ELEMENTS: usize = 1 << 31;

/// A constant with all of its elements, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Dense {
    /// Its type.
    pub ty: TensorType,
    /// Its elements: exactly the values that the type holds.
    pub values: Vec<f32>,
}

/// Why a constant could not be decoded.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The value is not known before the program runs.
    #[error("`{0}` is not a constant")]
    NotConstant(String),
    /// The literal holds no numbers in memory.
    #[error("a literal of {0} has no numbers to read")]
    Literal(String),
    /// `constexpr` ops feed one another too often.
    #[error("more than {MAX_CHAIN} constexpr ops in a chain")]
    Chain,
    /// The weight is larger than any that is decoded.
    #[error("a weight of type {0}: at most {MAX_ELEMENTS} elements are supported")]
    TooLarge(TensorType),
    /// The op's arguments do not fit together: not the case in a valid program.
    #[error(transparent)]
    Type(#[from] TypeError),
    /// An index points outside of its table, or a mask counts other than its values: not the case in a valid program.
    #[error("{0}")]
    Content(String),
}

/// The elements of a constant value: a `const` op's, or a `constexpr` op's, whatever feeds it.
pub fn value(scope: Scope<'_>, id: ValueId, opset: Opset) -> Result<Dense, DecodeError> {
    value_at(scope, id, opset, 0)
}

/// The results of a `const` or `constexpr` op.
pub fn results(call: &Call<'_>) -> Result<Vec<Dense>, DecodeError> {
    results_at(call, 0)
}

/// The elements of a literal.
pub fn literal(lit: &Literal) -> Result<Dense, DecodeError> {
    let fail = || DecodeError::Literal(lit.ty.to_string());
    let ty = lit.tensor_type().ok_or_else(fail)?.clone();
    let values = if let Some(v) = lit.to_floats() {
        v
    } else if let Some(v) = lit.to_bools() {
        v.into_iter().map(|b| f32::from(u8::from(b))).collect()
    } else {
        lit.to_ints().ok_or_else(fail)?.into_iter().map(|v| v as f32).collect()
    };
    if ty.elements() != Some(values.len()) {
        return Err(fail());
    }
    Ok(Dense { ty, values })
}

/// Writes the elements of a `const` or `constexpr` op's one result from `start` on into `out`, without decoding the others. So read
/// fp16, and int8 with an fp16 scale for the tensor or for each slice of its first dimension, which is how nearly all weights are
/// stored; `false`, with nothing written, where this one is stored in another way or has fewer elements.
pub fn elements(call: &Call<'_>, start: usize, out: &mut [f32]) -> bool {
    let end = start.checked_add(out.len());
    let part = |literal: &'_ Literal, dtype: Dtype| {
        let n = literal.tensor_type().filter(|ty| ty.dtype == dtype)?.elements()?;
        end.filter(|&end| end <= n).map(|_| n)
    };
    match call.spec().name {
        "const" => {
            let Some(literal) = call.op().attributes.get("val") else { return false };
            let Some((bytes, _)) = literal.bytes().zip(part(literal, Dtype::F16)) else { return false };
            let halves = bytes[2 * start..].chunks_exact(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32());
            out.iter_mut().zip(halves).for_each(|(out, v)| *out = v);
            true
        }
        "constexpr_blockwise_shift_scale" if !call.has("offset") => {
            let Some((data, scale)) = call.literal("data").zip(call.literal("scale")) else { return false };
            let Some((bytes, n)) = data.bytes().zip(part(data, Dtype::I8)) else { return false };
            let shape = scale.tensor_type().filter(|ty| ty.dtype == Dtype::F16).map(sizes).unwrap_or_default();
            let by_slice = shape.iter().skip(1).all(|&d| d == 1);
            let (Some(scales), Some(&count)) = (scale.bytes(), shape.first()) else { return false };
            if !by_slice || count == 0 || n % count != 0 || scales.len() != 2 * count {
                return false;
            }
            let (mut at, mut rest, each) = (start, out, n / count);
            while !rest.is_empty() {
                let (now, later) = rest.split_at_mut(rest.len().min(each - at % each));
                let scale = half::f16::from_le_bytes([scales[2 * (at / each)], scales[2 * (at / each) + 1]]).to_f32();
                for (out, &q) in now.iter_mut().zip(&bytes[at..]) {
                    *out = f32::from(q as i8) * scale;
                }
                // A product of two numbers in fp16 is exact in f32 and so rounded once.
                let mut halves = [half::f16::ZERO; 256];
                for out in now.chunks_mut(halves.len()) {
                    let halves = &mut halves[..out.len()];
                    halves.convert_from_f32_slice(out);
                    halves.convert_to_f32_slice(out);
                }
                (at, rest) = (at + now.len(), later);
            }
            true
        }
        _ => false,
    }
}

fn value_at(scope: Scope<'_>, id: ValueId, opset: Opset, depth: usize) -> Result<Dense, DecodeError> {
    let name = || scope.values.get(id.index()).map_or_else(String::new, |v| v.name.clone());
    let op = scope.definition(id).ok_or_else(|| DecodeError::NotConstant(name()))?;
    let spec = ops::spec_in(&op.kind, opset).or_else(|| ops::spec(&op.kind)).filter(|s| s.is_constant());
    let spec = spec.ok_or_else(|| DecodeError::NotConstant(name()))?;
    let position = op.outputs.iter().position(|&o| o == id);
    let results = results_at(&Call::new(spec, op, scope, opset), depth)?;
    position.and_then(|i| results.into_iter().nth(i)).ok_or_else(|| DecodeError::NotConstant(name()))
}

fn results_at(call: &Call<'_>, depth: usize) -> Result<Vec<Dense>, DecodeError> {
    if depth > MAX_CHAIN {
        return Err(DecodeError::Chain);
    }
    let arg = |name: &str| match call.arg(name) {
        Some(Arg::Value(id)) => value_at(call.scope(), *id, call.opset(), depth + 1),
        Some(Arg::Literal(lit)) => literal(lit),
        None => match call.op().attributes.get(name) {
            Some(lit) => literal(lit),
            None => Err(TypeError::new("missing-input", format!("`{name}` is missing")).into()),
        },
    };
    let optional = |name: &str| if call.has(name) { arg(name).map(Some) } else { Ok(None) };
    let vector_axis = |rank: usize| match call.has("vector_axis") {
        true => call.const_axis("vector_axis", rank),
        false => Ok(0),
    };
    let types = (call.spec().infer)(call)?;
    if let Some(ty) = types.iter().find(|ty| ty.elements().is_none_or(|n| n > MAX_ELEMENTS)) {
        return Err(DecodeError::TooLarge(ty.clone()));
    }
    let result = |i: usize, values: Vec<f32>| dense(&types[i], values);
    match (call.spec().name, call.spec().opset) {
        ("const", _) => Ok(vec![arg("val")?]),
        ("constexpr_cast", _) => Ok(vec![result(0, arg("source_val")?.values)?]),
        ("constexpr_affine_dequantize", _) => {
            let data = arg("quantized_data")?;
            let axis = call.const_axis("axis", data.ty.rank())?;
            // A vector along an axis is a tensor of the data's rank with blocks as long as the other dimensions.
            let spread = |mut d: Dense| {
                let along = if d.ty.rank() == 1 { d.ty.shape[0] } else { Dim::Fixed(1) };
                d.ty.shape = vec![Dim::Fixed(1); data.ty.rank()];
                d.ty.shape[axis] = along;
                d
            };
            let (scale, zero) = (spread(arg("scale")?), spread(arg("zero_point")?));
            Ok(vec![shift_scale(&data, &scale, Some(&zero))?])
        }
        ("constexpr_blockwise_shift_scale", _) => {
            Ok(vec![shift_scale(&arg("data")?, &arg("scale")?, optional("offset")?.as_ref())?])
        }
        ("constexpr_lut_to_dense", Opset::CoreMl6) => {
            let table = arg("lut")?.values;
            let packed = call.literal("indices").and_then(Literal::bytes);
            let packed = packed.ok_or_else(|| DecodeError::Literal("indices".to_owned()))?;
            let dtype = match table.len() {
                2 => Dtype::U1,
                4 => Dtype::U2,
                16 => Dtype::U4,
                64 => Dtype::U6,
                _ => Dtype::U8,
            };
            let n = types[0].elements().unwrap_or(0);
            let values = (0..n).map(|i| entry(&table, crate::literal::unpack(packed, i, dtype) as usize));
            Ok(vec![result(0, values.collect::<Result<_, _>>()?)?])
        }
        ("constexpr_lut_to_dense", _) => {
            let (indices, table) = (arg("indices")?, arg("lut")?);
            let axis = vector_axis(indices.ty.rank())?;
            Ok(vec![result(0, look_up(&indices, &table, axis)?)?])
        }
        ("constexpr_sparse_to_dense", Opset::CoreMl6) => {
            let data = arg("nonzero_data")?;
            let packed = call.literal("mask").and_then(Literal::bytes);
            let packed = packed.ok_or_else(|| DecodeError::Literal("mask".to_owned()))?;
            let n = types[0].elements().unwrap_or(0);
            let mask: Vec<f32> = (0..n).map(|i| crate::literal::unpack(packed, i, Dtype::U1) as f32).collect();
            Ok(vec![result(0, spread(&mask, &data.values)?)?])
        }
        ("constexpr_sparse_to_dense", _) => {
            Ok(vec![result(0, spread(&arg("mask")?.values, &arg("nonzero_data")?.values)?)?])
        }
        ("constexpr_lut_to_sparse", _) => {
            let (mask, data, table) = (arg("indices_mask")?, arg("indices_nonzero_data")?, arg("lut")?);
            let axis = vector_axis(mask.ty.rank())?;
            let indices = dense(&mask.ty, spread(&mask.values, &data.values)?)?;
            let all = look_up(&indices, &table, axis)?;
            let vector = table.ty.shape.last().and_then(|d| d.fixed()).unwrap_or(1);
            let long = stretch(&mask, axis, vector);
            let kept = all.into_iter().zip(&long).filter(|(_, m)| **m != 0.0).map(|(v, _)| v).collect();
            Ok(vec![result(0, long)?, result(1, kept)?])
        }
        ("constexpr_sparse_blockwise_shift_scale", _) => {
            let (mask, data) = (arg("data_mask")?, arg("nonzero_data")?);
            let full = Dense {
                ty: TensorType { dtype: data.ty.dtype, shape: mask.ty.shape.clone() },
                values: spread(&mask.values, &data.values)?,
            };
            let all = shift_scale(&full, &arg("scale")?, optional("offset")?.as_ref())?;
            let kept = all.values.into_iter().zip(&mask.values).filter(|(_, m)| **m != 0.0).map(|(v, _)| v).collect();
            Ok(vec![mask, result(1, kept)?])
        }
        _ => Err(DecodeError::NotConstant(call.op().name.clone())),
    }
}

/// Values with their type, which must have as many elements.
fn dense(ty: &TensorType, values: Vec<f32>) -> Result<Dense, DecodeError> {
    if ty.elements() != Some(values.len()) {
        return Err(DecodeError::Content(format!("{} values for {ty}", values.len())));
    }
    Ok(Dense { ty: ty.clone(), values })
}

fn entry(table: &[f32], index: usize) -> Result<f32, DecodeError> {
    table
        .get(index)
        .copied()
        .ok_or_else(|| DecodeError::Content(format!("index {index} of a table of {}", table.len())))
}

fn round(dtype: Dtype, v: f32) -> f32 {
    if dtype == Dtype::F16 { half::f16::from_f32(v).to_f32() } else { v }
}

fn sizes(ty: &TensorType) -> Vec<usize> {
    ty.shape.iter().map(|d| d.fixed().unwrap_or(0)).collect()
}

/// For every element of `data`, row-major: the index into a smaller tensor of the same rank whose elements each stand for
/// a block of it.
fn blocks(data: &[usize], small: &[usize]) -> impl Iterator<Item = usize> {
    let (data, small) = (data.to_vec(), small.to_vec());
    let n: usize = data.iter().product();
    let mut at = vec![0usize; data.len()];
    (0..n).map(move |_| {
        let mut index = 0;
        for ((&p, &d), &s) in at.iter().zip(&data).zip(&small) {
            index = index * s + p / (d / s.max(1)).max(1);
        }
        for axis in (0..at.len()).rev() {
            at[axis] += 1;
            if at[axis] < data[axis] {
                break;
            }
            at[axis] = 0;
        }
        index
    })
}

/// `scale * (data - offset)`, in scale's type.
fn shift_scale(data: &Dense, scale: &Dense, offset: Option<&Dense>) -> Result<Dense, DecodeError> {
    let dtype = scale.ty.dtype;
    let (shape, groups) = (sizes(&data.ty), sizes(&scale.ty));
    let offsets: Vec<usize> = match offset {
        Some(o) => blocks(&shape, &sizes(&o.ty)).collect(),
        None => Vec::new(),
    };
    let mut values = Vec::with_capacity(data.values.len());
    for (i, (&q, block)) in data.values.iter().zip(blocks(&shape, &groups)).enumerate() {
        let shift = match offset {
            Some(o) => entry(&o.values, offsets[i])?,
            None => 0.0,
        };
        values.push(round(dtype, entry(&scale.values, block)? * round(dtype, q - shift)));
    }
    dense(&TensorType { dtype, shape: data.ty.shape.clone() }, values)
}

/// Looks indices up in the table of their group. A vector is laid out along `axis`.
fn look_up(indices: &Dense, lut: &Dense, axis: usize) -> Result<Vec<f32>, DecodeError> {
    let shape = sizes(&indices.ty);
    let table = sizes(&lut.ty);
    let [groups @ .., entries, vector] = table.as_slice() else {
        return Err(DecodeError::Content(format!("a palette of type {}", lut.ty)));
    };
    let inner: usize = shape.iter().skip(axis + 1).product();
    let along = shape.get(axis).copied().unwrap_or(1);
    let mut out = vec![0.0; indices.values.len() * vector];
    for (i, (&index, group)) in indices.values.iter().zip(blocks(&shape, groups)).enumerate() {
        let (outer, position, rest) =
            (i / inner.max(1) / along.max(1), i / inner.max(1) % along.max(1), i % inner.max(1));
        for v in 0..*vector {
            let to = ((outer * along + position) * vector + v) * inner + rest;
            out[to] = entry(&lut.values, (group * entries + index as usize) * vector + v)?;
        }
    }
    Ok(out)
}

/// Every element `times` times along `axis`.
fn stretch(d: &Dense, axis: usize, times: usize) -> Vec<f32> {
    let inner: usize = sizes(&d.ty).iter().skip(axis + 1).product();
    let rows = d.values.chunks(inner.max(1));
    rows.flat_map(|row| (0..times).flat_map(move |_| row.iter().copied())).collect()
}

/// The values in order at the places where the mask is not zero, zero elsewhere.
fn spread(mask: &[f32], values: &[f32]) -> Result<Vec<f32>, DecodeError> {
    let mut rest = values.iter();
    let out: Option<Vec<f32>> = mask.iter().map(|&m| if m != 0.0 { rest.next().copied() } else { Some(0.0) }).collect();
    match (out, rest.next()) {
        (Some(out), None) => Ok(out),
        _ => Err(DecodeError::Content(format!("{} values for another number of ones in the mask", values.len()))),
    }
}

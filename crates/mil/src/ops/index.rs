//! Elements by index, and tensors made from numbers.

use super::dtypes::*;
use super::shape::{self, dims_agree};
use super::{Call, Default, OpSpec, Opset, Outputs, Param, Place, Tolerance, TypeError};
use crate::ir::{Dim, Dtype, TensorType};

const BASE: OpSpec = OpSpec {
    name: "",
    opset: Opset::CoreMl5,
    place: Place::Inputs,
    params: &[],
    outputs: Outputs::Fixed(1),
    infer: |_| Ok(Vec::new()),
    tolerance: Tolerance::Exact,
    placement: "",
    doc: "",
};
const VALIDATE: Param = Param::defaulted("validate_indices", BOOLS, Default::Bool(false)).since(Opset::CoreMl7);
const BATCH_DIMS: Param = Param::defaulted("batch_dims", I32S, Default::Int(0)).since(Opset::CoreMl6);
const MODE: Param = Param::defaulted("mode", STR, Default::Str("add"));

pub(super) const OPS: &[OpSpec] = &[
    OpSpec {
        name: "gather",
        params: &[
            Param::required("x", MOVABLE),
            Param::required("indices", INDEX),
            Param::defaulted("axis", I32S, Default::Int(0)),
            BATCH_DIMS,
            VALIDATE,
        ],
        infer: gather,
        placement: "with run-time indices: CPU",
        doc: "The slices of `x` along `axis` that `indices` names: shape `x[..axis] + indices[batch_dims..] + x[axis + 1..]`. From iOS 17 negative indices are out of range.",
        ..BASE
    },
    OpSpec {
        name: "gather_along_axis",
        params: &[
            Param::required("x", MOVABLE),
            Param::required("indices", INDEX),
            Param::defaulted("axis", I32S, Default::Int(0)),
            VALIDATE,
        ],
        infer: gather_along_axis,
        placement: "with run-time indices: CPU",
        doc: "For each place of `indices`, the element of `x` at that place with the coordinate along `axis` replaced by the index.",
        ..BASE
    },
    OpSpec {
        name: "gather_nd",
        params: &[Param::required("x", MOVABLE), Param::required("indices", INDEX), BATCH_DIMS, VALIDATE],
        infer: gather_nd,
        placement: "with run-time indices: CPU",
        doc: "The slices of `x` at the coordinates in the last dimension of `indices`.",
        ..BASE
    },
    OpSpec {
        name: "scatter",
        params: &[
            Param::required("data", NUMBER),
            Param::required("indices", I32S),
            Param::required("updates", NUMBER),
            Param::defaulted("axis", I32S, Default::Int(0)),
            MODE,
            VALIDATE,
        ],
        infer: |call| {
            let data = call.ty("data")?;
            let axis = call.const_axis("axis", data.rank())?;
            scattered(call, |indices| [&data.shape[..axis], indices, &data.shape[axis + 1..]].concat())
        },
        placement: "with run-time indices: CPU",
        doc: "A copy of `data` with `updates` combined (`mode`) into the slices along `axis` that `indices` names.",
        ..BASE
    },
    OpSpec {
        name: "scatter_along_axis",
        params: &[
            Param::required("data", NUMBER),
            Param::required("indices", I32S),
            Param::required("updates", NUMBER),
            Param::defaulted("axis", I32S, Default::Int(0)),
            MODE,
            VALIDATE,
        ],
        infer: |call| {
            let data = call.ty("data")?;
            let axis = call.const_axis("axis", data.rank())?;
            let indices = call.ty("indices")?;
            along_axis("data", data, indices, axis)?;
            scattered(call, <[Dim]>::to_vec)
        },
        placement: "with run-time indices: CPU",
        doc: "The inverse of `gather_along_axis`: a copy of `data` with `updates` combined (`mode`) into the named elements.",
        ..BASE
    },
    OpSpec {
        name: "scatter_nd",
        params: &[
            Param::required("data", NUMBER),
            Param::required("indices", I32S),
            Param::required("updates", NUMBER),
            MODE,
            VALIDATE,
        ],
        infer: |call| {
            let (data, indices) = (call.ty("data")?, call.ty("indices")?);
            let depth = depth("data", data, indices)?;
            scattered(call, |s| [&s[..s.len() - 1], &data.shape[depth..]].concat())
        },
        placement: "with run-time indices: CPU",
        doc: "The inverse of `gather_nd`: a copy of `data` with `updates` combined (`mode`) into the slices at the coordinates.",
        ..BASE
    },
    OpSpec {
        name: "one_hot",
        params: &[
            Param::required("indices", I32S),
            Param::required("one_hot_vector_size", I32S),
            Param::defaulted("axis", I32S, Default::Int(-1)),
            Param::defaulted("on_value", CORE, Default::Int(1)),
            Param::defaulted("off_value", CORE, Default::Int(0)),
        ],
        infer: one_hot,
        doc: "`on_value` at the index along the new `axis`, `off_value` elsewhere.",
        ..BASE
    },
    OpSpec {
        name: "range_1d",
        params: &[Param::required("start", NUMBER), Param::required("end", NUMBER), Param::required("step", NUMBER)],
        infer: range_1d,
        tolerance: Tolerance::Rounding,
        doc: "`start`, `start + step`, .. up to but without `end`.",
        ..BASE
    },
    OpSpec {
        name: "fill",
        params: &[Param::required("shape", I32S), Param::defaulted("value", CORE, Default::F32(0.0))],
        infer: fill,
        doc: "A tensor of `shape`, every element `value`.",
        ..BASE
    },
    OpSpec {
        name: "fill_like",
        opset: Opset::CoreMl6,
        params: &[Param::required("ref_tensor", CORE), Param::defaulted("value", CORE, Default::F32(0.0))],
        infer: |call| Ok(vec![TensorType { dtype: value_dtype(call), shape: call.ty("ref_tensor")?.shape.clone() }]),
        doc: "A tensor of `ref_tensor`'s shape, every element `value`.",
        ..BASE
    },
    OpSpec {
        name: "shape",
        params: &[Param::required("x", MOVABLE)],
        infer: |call| Ok(vec![TensorType::new(Dtype::I32, &[call.ty("x")?.rank()])]),
        doc: "The dimensions of `x`.",
        ..BASE
    },
    OpSpec {
        name: "non_zero",
        params: &[Param::required("x", CORE)],
        infer: |call| {
            let rank = Dim::Fixed(call.ty("x")?.rank());
            Ok(vec![TensorType { dtype: Dtype::I32, shape: vec![Dim::Unknown, rank] }])
        },
        doc: "The coordinates of the elements that are not zero, in order.",
        ..BASE
    },
];

fn err(rule: &'static str, message: impl Into<String>) -> TypeError {
    TypeError::new(rule, message)
}

/// Known indices must be in range where the op is asked to see to it.
fn in_range(call: &Call<'_>, n: Dim) -> Result<(), TypeError> {
    if let (true, Dim::Fixed(n), Some(indices)) = (call.const_bool("validate_indices")?, n, call.find_ints("indices")?)
        && let Some(i) = indices.iter().find(|&&i| i < 0 || i >= n as i64)
    {
        return Err(err("argument-value", format!("index {i} is out of range for {n}")));
    }
    Ok(())
}

fn gather(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let (x, indices) = (call.ty("x")?, call.ty("indices")?);
    if x.rank() == 0 {
        return Err(err("rank", format!("`x` is {x}, a scalar")));
    }
    let axis = call.const_axis("axis", x.rank())?;
    let batch = batch_dims(call, x, indices)?;
    if batch > axis {
        return Err(err("argument-value", format!("`batch_dims` is {batch}, beyond axis {axis}")));
    }
    in_range(call, x.shape[axis])?;
    let shape = [&x.shape[..axis], &indices.shape[batch..], &x.shape[axis + 1..]].concat();
    Ok(vec![TensorType { dtype: x.dtype, shape }])
}

/// The number of leading dimensions that `x` and `indices` share.
fn batch_dims(call: &Call<'_>, x: &TensorType, indices: &TensorType) -> Result<usize, TypeError> {
    let n = call.const_int("batch_dims")?;
    let batch = usize::try_from(n).ok().filter(|&b| b <= x.rank() && b <= indices.rank());
    let batch =
        batch.ok_or_else(|| err("argument-value", format!("`batch_dims` is {n}, `x` is {x}, `indices` {indices}")))?;
    if !shape::shapes_agree(&x.shape[..batch], &indices.shape[..batch]) {
        return Err(err("shape", format!("the first {batch} dimensions of {x} and {indices} must be equal")));
    }
    Ok(batch)
}

/// Checks that `indices` fits `x` everywhere but along `axis`.
fn along_axis(name: &str, x: &TensorType, indices: &TensorType, axis: usize) -> Result<(), TypeError> {
    let fits = x.rank() == indices.rank()
        && x.shape.iter().zip(&indices.shape).enumerate().all(|(i, (&a, &b))| i == axis || dims_agree(a, b));
    match fits {
        true => Ok(()),
        false => Err(err("shape", format!("`{name}` is {x}, `indices` {indices}: only axis {axis} may differ"))),
    }
}

fn gather_along_axis(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let (x, indices) = (call.ty("x")?, call.ty("indices")?);
    let axis = call.const_axis("axis", x.rank())?;
    along_axis("x", x, indices, axis)?;
    in_range(call, x.shape[axis])?;
    Ok(vec![TensorType { dtype: x.dtype, shape: indices.shape.clone() }])
}

/// How many coordinates the last dimension of `indices` holds.
fn depth(name: &str, x: &TensorType, indices: &TensorType) -> Result<usize, TypeError> {
    match indices.shape.last() {
        Some(Dim::Fixed(n)) if *n <= x.rank() => Ok(*n),
        _ => Err(err(
            "shape",
            format!("`indices` is {indices}, its last dimension should be at most the rank of `{name}`, {x}"),
        )),
    }
}

fn gather_nd(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let (x, indices) = (call.ty("x")?, call.ty("indices")?);
    let batch = batch_dims(call, x, indices)?;
    if batch >= indices.rank() {
        return Err(err("argument-value", format!("`batch_dims` is {batch}, `indices` is {indices}")));
    }
    let rest = TensorType { dtype: x.dtype, shape: x.shape[batch..].to_vec() };
    let depth = depth("x", &rest, indices)?;
    let shape = [&indices.shape[..indices.rank() - 1], &x.shape[batch + depth..]].concat();
    Ok(vec![TensorType { dtype: x.dtype, shape }])
}

/// Checks `updates` against the shape that the indices' shape leads to; the type of `data`.
fn scattered(call: &Call<'_>, expected: impl FnOnce(&[Dim]) -> Vec<Dim>) -> Result<Vec<TensorType>, TypeError> {
    let (data, indices, updates) = (call.ty("data")?, call.ty("indices")?, call.ty("updates")?);
    let mode = call.const_str("mode")?;
    if !["add", "sub", "mul", "div", "max", "min", "update"].contains(&mode.as_str()) {
        return Err(err("argument-value", format!("`mode` is {mode:?}")));
    }
    let expected = expected(&indices.shape);
    if updates.dtype != data.dtype || !shape::shapes_agree(&updates.shape, &expected) {
        return Err(err(
            "shape",
            format!("`updates` is {updates}, expected {}{}", data.dtype, shape::shown(&expected)),
        ));
    }
    Ok(vec![data.clone()])
}

fn one_hot(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let indices = call.ty("indices")?;
    let axis = call.const_axis("axis", indices.rank() + 1)?;
    let size = match call.find_int("one_hot_vector_size")? {
        Some(n) => shape::dim("`one_hot_vector_size`", n)?,
        None => Dim::Unknown,
    };
    let (on, off) = (call.find_ty("on_value"), call.find_ty("off_value"));
    if let (Some(on), Some(off)) = (on, off)
        && on.dtype != off.dtype
    {
        return Err(err("dtype-mismatch", format!("`on_value` is {on}, `off_value` is {off}")));
    }
    let dtype = on.or(off).map_or(Dtype::I32, |t| t.dtype);
    let mut shape = indices.shape.clone();
    shape.insert(axis, size);
    Ok(vec![TensorType { dtype, shape }])
}

fn range_1d(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let (start, end, step) = (call.ty("start")?, call.ty("end")?, call.ty("step")?);
    if start.dtype != end.dtype || start.dtype != step.dtype {
        return Err(err("dtype-mismatch", format!("`start` is {start}, `end` {end}, `step` {step}")));
    }
    let n = match (call.find_float("start")?, call.find_float("end")?, call.find_float("step")?) {
        (_, _, Some(0.0)) => return Err(err("argument-value", "`step` is 0")),
        (Some(a), Some(b), Some(s)) => {
            let n = ((f64::from(b) - f64::from(a)) / f64::from(s)).ceil();
            if !n.is_finite() {
                return Err(err("argument-value", format!("from {a} to {b} by {s}")));
            }
            shape::dim("the range", n as i64)?
        }
        _ => Dim::Unknown,
    };
    Ok(vec![TensorType { dtype: start.dtype, shape: vec![n] }])
}

/// The element type of `value`, which is fp32 where it is unbound.
fn value_dtype(call: &Call<'_>) -> Dtype {
    call.find_ty("value").map_or(Dtype::F32, |t| t.dtype)
}

fn fill(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let shape = match call.find_ints("shape")? {
        Some(dims) if dims.len() <= shape::MAX_RANK => {
            dims.into_iter().map(|n| shape::dim("`shape`", n)).collect::<Result<Vec<_>, _>>()?
        }
        Some(dims) => return Err(err("rank", format!("`shape` has {} dimensions", dims.len()))),
        None => {
            let ty = call.ty("shape")?;
            let rank = ty.elements().filter(|&r| r <= shape::MAX_RANK);
            vec![Dim::Unknown; rank.ok_or_else(|| err("rank", format!("`shape` is {ty}")))?]
        }
    };
    Ok(vec![TensorType { dtype: value_dtype(call), shape }])
}

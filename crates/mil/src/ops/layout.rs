//! Moving elements without computing with them: slices, joins, reshapes, permutations.

use super::dtypes::*;
use super::elementwise::same_as_x;
use super::shape::{self, dims_agree, shown};
use super::{Call, Default, OpSpec, Opset, Outputs, Param, Place, Tolerance, TypeError};
use crate::ir::{Dim, TensorType};

const BASE: OpSpec = OpSpec {
    name: "",
    opset: Opset::CoreMl5,
    place: Place::Inputs,
    params: &[],
    outputs: Outputs::Fixed(1),
    infer: same_as_x,
    tolerance: Tolerance::Exact,
    placement: "",
    doc: "",
};
const X: Param = Param::required("x", MOVABLE);
const SLICE_CLIFF: &str = "a slice along the last axis with a non-zero begin multiplies by 16 internally before M4: values above 4094 become inf";

pub(super) const OPS: &[OpSpec] = &[
    OpSpec {
        name: "concat",
        params: &[
            Param::required("values", MOVABLE).variadic(),
            Param::required("axis", I32S).constant(),
            Param::defaulted("interleave", BOOLS, Default::Bool(false)),
        ],
        infer: concat,
        doc: "Joins along `axis`; where `interleave`, element `k` of every one, then element `k + 1`.",
        ..BASE
    },
    OpSpec {
        name: "stack",
        params: &[Param::required("values", MOVABLE).variadic(), Param::required("axis", I32S).constant()],
        infer: stack,
        doc: "Joins along a new axis.",
        ..BASE
    },
    OpSpec {
        name: "split",
        params: &[
            X,
            Param::optional("num_splits", I32S).constant(),
            Param::optional("split_sizes", I32S).constant(),
            Param::required("axis", I32S).constant(),
        ],
        outputs: Outputs::Varying,
        infer: split,
        doc: "Cuts along `axis` into `num_splits` equal parts, or parts of `split_sizes`.",
        ..BASE
    },
    OpSpec {
        name: "slice_by_index",
        params: &[
            X,
            Param::required("begin", SHAPE),
            Param::required("end", SHAPE),
            Param::defaulted("stride", SHAPE, Default::RankOnes),
            Param::defaulted("begin_mask", BOOLS, Default::RankFalse),
            Param::defaulted("end_mask", BOOLS, Default::RankFalse),
            Param::defaulted("squeeze_mask", BOOLS, Default::RankFalse),
        ],
        infer: |call| {
            let x = call.ty("x")?;
            Ok(vec![TensorType { dtype: x.dtype, shape: sliced(call, x)? }])
        },
        placement: SLICE_CLIFF,
        doc: "`x[begin:end:stride]`. A mask bit ignores begin or end there; a squeezed dimension takes the element at begin and is dropped; negative indices count from the end, once, then clamp at 0.",
        ..BASE
    },
    OpSpec {
        name: "slice_by_size",
        params: &[X, Param::required("begin", SHAPE), Param::required("size", SHAPE)],
        infer: slice_by_size,
        placement: SLICE_CLIFF,
        doc: "`size` elements from `begin`; the rest where `size` is -1.",
        ..BASE
    },
    OpSpec {
        name: "slice_update",
        opset: Opset::CoreMl8,
        params: &[
            X,
            Param::required("update", MOVABLE),
            Param::required("begin", SHAPE),
            Param::required("end", SHAPE),
            Param::defaulted("stride", SHAPE, Default::RankOnes),
            Param::defaulted("begin_mask", BOOLS, Default::RankFalse),
            Param::defaulted("end_mask", BOOLS, Default::RankFalse),
            Param::defaulted("squeeze_mask", BOOLS, Default::RankFalse),
        ],
        infer: slice_update,
        doc: "A copy of `x` with the slice that `slice_by_index` would take replaced by `update`.",
        ..BASE
    },
    OpSpec {
        name: "reshape",
        params: &[X, Param::required("shape", SHAPE)],
        infer: reshape,
        doc: "The same elements in another shape. One dimension may be -1; a 0 copies the dimension of `x` at the same distance from the end.",
        ..BASE
    },
    OpSpec {
        name: "transpose",
        params: &[X, Param::required("perm", I32S).constant()],
        infer: transpose,
        doc: "Dimension `i` of the result is dimension `perm[i]` of `x`.",
        ..BASE
    },
    OpSpec {
        name: "expand_dims",
        params: &[X, Param::required("axes", I32S).constant()],
        infer: expand_dims,
        doc: "Adds dimensions of one at `axes`, which count in the result.",
        ..BASE
    },
    OpSpec {
        name: "squeeze",
        params: &[X, Param::optional("axes", I32S).constant()],
        infer: squeeze,
        doc: "Drops dimensions of one: those in `axes`, or all. A named dimension that is not one stays.",
        ..BASE
    },
    OpSpec {
        name: "tile",
        params: &[X, Param::required("reps", I32S)],
        infer: tile,
        doc: "Repeats `x` `reps[i]` times along dimension `i`.",
        ..BASE
    },
    OpSpec {
        name: "pad",
        params: &[
            Param::required("x", FLOAT),
            Param::required("pad", I32S),
            Param::defaulted("mode", STR, Default::Str("constant")),
            Param::defaulted("constant_val", FLOAT, Default::Float(0.0)),
        ],
        infer: pad,
        doc: "Pads the last dimensions of `x`: `pad` holds before and after for each of them. Modes: constant, reflect, replicate.",
        ..BASE
    },
    OpSpec {
        name: "reverse",
        params: &[X, Param::optional("axes", I32S).constant()],
        infer: |call| {
            call.axes("axes", call.ty("x")?.rank())?;
            same_as_x(call)
        },
        doc: "Reverses along `axes`, or all.",
        ..BASE
    },
    OpSpec {
        name: "band_part",
        params: &[
            Param::required("x", CORE),
            Param::defaulted("lower", I32S, Default::Int(-1)),
            Param::defaulted("upper", I32S, Default::Int(-1)),
        ],
        infer: |call| {
            let x = call.ty("x")?;
            if x.rank() < 2 {
                return Err(TypeError::new("rank", format!("`x` is {x}, expected rank at least 2")));
            }
            same_as_x(call)
        },
        doc: "Keeps `lower` diagonals below and `upper` above the main one of the last two dimensions (-1: all), zero elsewhere.",
        ..BASE
    },
];

fn err(rule: &'static str, message: impl Into<String>) -> TypeError {
    TypeError::new(rule, message)
}

fn concat(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let values = call.variadic("values")?;
    let first = values[0];
    let axis = call.const_axis("axis", first.rank())?;
    let interleave = call.const_bool("interleave")?;
    let mut shape = first.shape.clone();
    let mut total = Some(0i64);
    for v in &values {
        if v.dtype != first.dtype {
            return Err(err("dtype-mismatch", format!("`values` mixes {first} and {v}")));
        }
        if v.rank() != first.rank() {
            return Err(err("rank", format!("`values` mixes {first} and {v}")));
        }
        for (i, &d) in v.shape.iter().enumerate() {
            if (i != axis || interleave) && !dims_agree(shape[i], d) {
                return Err(err("shape", format!("`values` mixes {first} and {v}: only axis {axis} may differ")));
            }
            if i != axis && shape[i] == Dim::Unknown {
                shape[i] = d;
            }
        }
        // Dimensions are below 2^31 and arguments fewer than that: no overflow.
        total = total.and_then(|t| Some(t + v.shape[axis].fixed()? as i64));
    }
    shape[axis] = match total {
        Some(n) => shape::dim("the joined axis", n)?,
        None => Dim::Unknown,
    };
    Ok(vec![TensorType { dtype: first.dtype, shape }])
}

fn stack(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let values = call.variadic("values")?;
    let first = values[0];
    let axis = call.const_axis("axis", first.rank() + 1)?;
    if let Some(v) = values.iter().find(|v| !shape::types_agree(v, first)) {
        return Err(err("shape", format!("`values` mixes {first} and {v}")));
    }
    let mut shape = first.shape.clone();
    shape.insert(axis, shape::dim("the new axis", values.len() as i64)?);
    Ok(vec![TensorType { dtype: first.dtype, shape }])
}

fn split(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let x = call.ty("x")?;
    let axis = call.const_axis("axis", x.rank())?;
    let (count, sizes) = (call.find_int("num_splits")?, call.find_ints("split_sizes")?);
    let along = x.shape[axis];
    let sizes: Vec<Dim> = match (count, sizes) {
        (None, None) => return Err(err("missing-input", "neither `num_splits` nor `split_sizes` is given")),
        (count, Some(sizes)) => {
            if count.is_some_and(|n| n != sizes.len() as i64) {
                return Err(err(
                    "argument-value",
                    format!("`num_splits` is not the number of `split_sizes`, {}", sizes.len()),
                ));
            }
            let mut total = 0i64;
            let mut dims = Vec::with_capacity(sizes.len());
            for n in sizes {
                dims.push(shape::dim("a part", n)?);
                total = total.saturating_add(n);
            }
            if along.fixed().is_some_and(|n| n as i64 != total) {
                return Err(err("shape", format!("`split_sizes` add up to {total}, axis {axis} has {along}")));
            }
            dims
        }
        (Some(n), None) => {
            // Every part is a named output, so more parts than outputs is an error whatever the sizes.
            if n < 1 || n as u64 > u64::from(u16::MAX) {
                return Err(err("argument-value", format!("`num_splits` is {n}")));
            }
            let part = match along {
                Dim::Fixed(d) if d as i64 % n == 0 => Dim::Fixed(d / n as usize),
                Dim::Fixed(d) => return Err(err("shape", format!("axis {axis} of {d} is not a multiple of {n}"))),
                Dim::Unknown => Dim::Unknown,
            };
            vec![part; n as usize]
        }
    };
    Ok(sizes
        .into_iter()
        .map(|d| {
            let mut shape = x.shape.clone();
            shape[axis] = d;
            TensorType { dtype: x.dtype, shape }
        })
        .collect())
}

/// The bounds of a slice along one dimension: first index, number of elements, step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// The first index taken.
    pub start: usize,
    /// How many are taken.
    pub len: usize,
    /// The distance between two; negative for a slice that runs backwards.
    pub step: i64,
}

/// What a slice of a dimension of `n` elements takes. `None` as begin or end stands for a set mask bit.
///
/// Negative begin and end count from the end, once, and clamp at 0; an end beyond the dimension clamps to it. A range that
/// is empty has `len` 0.
pub fn slice_range(n: usize, begin: Option<i64>, end: Option<i64>, step: i64) -> Range {
    let size = n as i64;
    let wrap = |v: i64| if v < 0 { (v + size).max(0) } else { v };
    let (first, last) = match step > 0 {
        true => (begin.map_or(0, wrap), end.map_or(size, wrap).min(size)),
        false => (begin.map_or(size - 1, wrap).min(size - 1), end.map_or(-1, wrap)),
    };
    let distance = if step > 0 { last - first } else { first - last };
    let len = if distance <= 0 { 0 } else { (distance - 1) / step.abs().max(1) + 1 };
    Range { start: first.clamp(0, size.max(1) - 1) as usize, len: len as usize, step }
}

/// The shape of the slice that `begin`, `end`, `stride` and the masks take from `x`.
fn sliced(call: &Call<'_>, x: &TensorType) -> Result<Vec<Dim>, TypeError> {
    let r = x.rank();
    let length = |name: &str, n: usize| match n == r {
        true => Ok(()),
        false => Err(err("argument-value", format!("`{name}` has {n} values, `x` is {x}"))),
    };
    for name in ["begin", "end"] {
        let ty = call.ty(name)?;
        if ty.rank() > 1 || ty.elements().is_some_and(|n| n != r) {
            return Err(err("argument-value", format!("`{name}` is {ty}, `x` is {x}")));
        }
    }
    let (begin, end) = (call.find_ints("begin")?, call.find_ints("end")?);
    let stride = call.const_ints("stride")?;
    length("stride", stride.len())?;
    let mut masks = Vec::new();
    for name in ["begin_mask", "end_mask", "squeeze_mask"] {
        let mask = call.find_bools(name)?.ok_or_else(|| err("not-constant", format!("`{name}` is not known")))?;
        length(name, mask.len())?;
        masks.push(mask);
    }
    let mut shape = Vec::new();
    for i in 0..r {
        if stride[i] == 0 {
            return Err(err("argument-value", "`stride` contains 0"));
        }
        if masks[2][i] {
            continue;
        }
        let bound = |known: &Option<Vec<i64>>, mask: &[bool]| match (mask[i], known) {
            (true, _) => Some(None),
            (false, Some(v)) => Some(Some(v[i])),
            (false, None) => None,
        };
        shape.push(slice_dim(x.shape[i], bound(&begin, &masks[0]), bound(&end, &masks[1]), stride[i]));
    }
    Ok(shape)
}

/// The size of a slice along one dimension; a bound is `None` where only run time knows it, `Some(None)` where masked.
fn slice_dim(n: Dim, begin: Option<Option<i64>>, end: Option<Option<i64>>, step: i64) -> Dim {
    let Dim::Fixed(n) = n else {
        // Whatever the size: an empty range, one element, or a whole that is only reversed.
        return match (begin, end) {
            (Some(Some(b)), Some(Some(e))) if b >= 0 && e >= b && step > 0 && (e - b) <= step => {
                Dim::Fixed(usize::from(e > b))
            }
            (Some(Some(-1)), Some(None)) if step > 0 => Dim::Fixed(1),
            _ => Dim::Unknown,
        };
    };
    match (begin, end) {
        (Some(b), Some(e)) => {
            let empty = b.zip(e).is_some_and(|(b, e)| b >= 0 && b == e);
            // A dimension of one stays one: the compiler takes a run-time index there to be in range.
            if n == 1 && !empty { Dim::Fixed(1) } else { Dim::Fixed(slice_range(n, b, e, step).len) }
        }
        _ if n == 1 => Dim::Fixed(1),
        _ => Dim::Unknown,
    }
}

fn slice_by_size(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let x = call.ty("x")?;
    let r = x.rank();
    for name in ["begin", "size"] {
        let ty = call.ty(name)?;
        if ty.rank() > 1 || ty.elements().is_some_and(|n| n != r) {
            return Err(err("argument-value", format!("`{name}` is {ty}, `x` is {x}")));
        }
    }
    let (begin, size) = (call.find_ints("begin")?, call.find_ints("size")?);
    let mut shape = Vec::with_capacity(r);
    for i in 0..r {
        let b = begin.as_ref().map(|v| v[i]);
        if let (Some(b), Dim::Fixed(n)) = (b, x.shape[i])
            && (b < -(n as i64) || b > n as i64)
        {
            return Err(err("argument-value", format!("`begin` is {b} along axis {i} of {n}")));
        }
        let out = match (b, size.as_ref().map(|v| v[i]), x.shape[i]) {
            (Some(b), Some(-1), Dim::Fixed(n)) => {
                let from = if b < 0 { b + n as i64 } else { b };
                shape::dim("a slice", n as i64 - from)?
            }
            (_, Some(-1), _) | (_, None, _) => Dim::Unknown,
            (b, Some(s), n) => {
                if let (Some(b), Dim::Fixed(n)) = (b, n) {
                    let from = if b < 0 { b + n as i64 } else { b };
                    if s > n as i64 - from {
                        return Err(err("argument-value", format!("{s} elements from {from} along axis {i} of {n}")));
                    }
                }
                shape::dim("`size`", s)?
            }
        };
        shape.push(out);
    }
    Ok(vec![TensorType { dtype: x.dtype, shape }])
}

fn slice_update(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let (x, update) = (call.ty("x")?, call.ty("update")?);
    if update.dtype != x.dtype {
        return Err(err("dtype-mismatch", format!("`x` is {x}, `update` is {update}")));
    }
    let slice = sliced(call, x)?;
    if !shape::shapes_agree(&slice, &update.shape) {
        return Err(err("shape", format!("the slice is {}, `update` is {update}", shown(&slice))));
    }
    if slice.is_empty() {
        return Err(err("rank", "an update of rank 0 is not supported"));
    }
    Ok(vec![x.clone()])
}

fn reshape(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let x = call.ty("x")?;
    let shape_ty = call.ty("shape")?;
    if shape_ty.rank() != 1 {
        return Err(err("rank", format!("`shape` is {shape_ty}, expected a vector")));
    }
    let Some(wanted) = call.find_ints("shape")? else {
        let rank = shape_ty.shape[0]
            .fixed()
            .filter(|&r| r <= shape::MAX_RANK)
            .ok_or_else(|| err("rank", format!("`shape` is {shape_ty}: the rank of the result is not known")))?;
        return Ok(vec![TensorType { dtype: x.dtype, shape: vec![Dim::Unknown; rank] }]);
    };
    if wanted.len() > shape::MAX_RANK {
        return Err(err("rank", format!("`shape` has {} dimensions", wanted.len())));
    }
    let old = call.opset() < Opset::CoreMl7;
    if old && wanted.contains(&0) && wanted.len() != x.rank() {
        return Err(err("argument-value", format!("a 0 in `shape` needs as many dimensions as {x} before iOS 17")));
    }
    let mut dims = Vec::with_capacity(wanted.len());
    let mut open = None;
    for (i, &n) in wanted.iter().enumerate() {
        dims.push(match n {
            -1 if open.is_some() => return Err(err("argument-value", "`shape` has more than one -1")),
            -1 => {
                open = Some(i);
                Dim::Unknown
            }
            0 => {
                let at = (i + x.rank()).checked_sub(wanted.len());
                at.and_then(|k| x.shape.get(k).copied()).unwrap_or(Dim::Fixed(1))
            }
            n => shape::dim("`shape`", n)?,
        });
    }
    let total = shape::product("`x`", &x.shape)?;
    if let Some(i) = open {
        let mut others = dims.clone();
        others[i] = Dim::Fixed(1);
        if let (Some(total), Some(rest)) = (total, shape::product("`shape`", &others)?) {
            if rest == 0 || total % rest != 0 {
                return Err(err("shape", format!("{total} elements of {x} do not fill {}", shown(&dims))));
            }
            dims[i] = shape::dim("the open dimension", total / rest)?;
        }
    } else if let (Some(total), Some(n)) = (total, shape::product("`shape`", &dims)?)
        && total != n
    {
        return Err(err("shape", format!("{total} elements of {x} do not fill {}", shown(&dims))));
    }
    Ok(vec![TensorType { dtype: x.dtype, shape: dims }])
}

fn transpose(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let x = call.ty("x")?;
    let perm = call.const_ints("perm")?;
    let mut axes = Vec::with_capacity(perm.len());
    for p in &perm {
        axes.push(shape::axis("perm", *p, x.rank())?);
    }
    let mut sorted = axes.clone();
    sorted.sort_unstable();
    if !sorted.iter().copied().eq(0..x.rank()) {
        return Err(err("argument-value", format!("`perm` is {perm:?}, no permutation of {} dimensions", x.rank())));
    }
    Ok(vec![TensorType { dtype: x.dtype, shape: axes.into_iter().map(|a| x.shape[a]).collect() }])
}

fn expand_dims(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let x = call.ty("x")?;
    let count = call.const_ints("axes")?.len();
    let rank = x.rank() + count;
    if rank > shape::MAX_RANK {
        return Err(err("rank", format!("the result would have {rank} dimensions")));
    }
    let axes = call.axes("axes", rank)?;
    let mut old = x.shape.iter().copied();
    let shape = (0..rank)
        .map(|i| if axes.contains(&i) { Dim::Fixed(1) } else { old.next().unwrap_or(Dim::Fixed(1)) })
        .collect();
    Ok(vec![TensorType { dtype: x.dtype, shape }])
}

fn squeeze(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let x = call.ty("x")?;
    let axes = call.axes("axes", x.rank())?;
    let shape = x.shape.iter().enumerate().filter(|(i, d)| !(axes.contains(i) && **d == Dim::Fixed(1)));
    Ok(vec![TensorType { dtype: x.dtype, shape: shape.map(|(_, &d)| d).collect() }])
}

fn tile(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let x = call.ty("x")?;
    let Some(reps) = call.find_ints("reps")? else {
        return Ok(vec![TensorType { dtype: x.dtype, shape: vec![Dim::Unknown; x.rank()] }]);
    };
    if reps.len() != x.rank() {
        return Err(err("argument-value", format!("`reps` has {} values, `x` is {x}", reps.len())));
    }
    let mut shape = Vec::with_capacity(reps.len());
    for (&d, &n) in x.shape.iter().zip(&reps) {
        if n < 1 {
            return Err(err("argument-value", format!("`reps` contains {n}")));
        }
        shape.push(match d {
            Dim::Fixed(d) => shape::dim("a repeated dimension", (d as i64).saturating_mul(n))?,
            Dim::Unknown => Dim::Unknown,
        });
    }
    Ok(vec![TensorType { dtype: x.dtype, shape }])
}

fn pad(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let x = call.ty("x")?;
    let mode = call.const_str("mode")?;
    if !["constant", "reflect", "replicate"].contains(&mode.as_str()) {
        return Err(err("argument-value", format!("`mode` is {mode:?}")));
    }
    let ty = call.ty("pad")?;
    let n = ty.elements().unwrap_or(usize::MAX);
    if ty.rank() != 1 || n % 2 != 0 || n / 2 > x.rank() {
        return Err(err(
            "argument-value",
            format!("`pad` is {ty}, expected two values for each of the last dimensions of {x}"),
        ));
    }
    let from = x.rank() - n / 2;
    let known = call.find_ints("pad")?;
    let mut shape = x.shape.clone();
    for (i, d) in shape[from..].iter_mut().enumerate() {
        *d = match (&known, *d) {
            (Some(pad), Dim::Fixed(size)) => {
                let (before, after) = (pad[2 * i], pad[2 * i + 1]);
                if before < 0 || after < 0 {
                    return Err(err("argument-value", format!("`pad` contains {}", before.min(after))));
                }
                if mode == "reflect" && before.max(after) >= size as i64 {
                    return Err(err(
                        "argument-value",
                        format!("a reflection of {} does not fit {size}", before.max(after)),
                    ));
                }
                shape::dim("a padded dimension", (size as i64).saturating_add(before).saturating_add(after))?
            }
            _ => Dim::Unknown,
        };
    }
    Ok(vec![TensorType { dtype: x.dtype, shape }])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_wrap_once_and_clamp() {
        let take = |n, b, e, s| {
            let r = slice_range(n, b, e, s);
            (0..r.len).map(|i| r.start as i64 + i as i64 * r.step).collect::<Vec<_>>()
        };
        assert_eq!(take(5, Some(1), Some(3), 1), [1, 2]);
        assert_eq!(take(5, Some(-2), None, 1), [3, 4]);
        assert_eq!(take(5, Some(-9), Some(2), 1), [0, 1]);
        assert_eq!(take(5, Some(0), Some(99), 2), [0, 2, 4]);
        assert_eq!(take(5, None, None, -2), [4, 2, 0]);
        assert_eq!(take(5, Some(3), Some(0), -1), [3, 2, 1]);
        assert_eq!(take(5, Some(4), Some(1), 1), [0i64; 0]);
        assert_eq!(take(0, None, None, 1), [0i64; 0]);
        assert_eq!(take(5, Some(7), None, 1), [0i64; 0]);
    }
}

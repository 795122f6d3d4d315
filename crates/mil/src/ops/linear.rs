//! Sums of products: convolution, matrix products, attention.

use super::dtypes::*;
use super::shape::{self, broadcast, dims_agree, shown};
use super::{Call, Default, OpSpec, Opset, Outputs, Param, Place, Tolerance, TypeError};
use crate::ir::{Dim, TensorType};

const BASE: OpSpec = OpSpec {
    name: "",
    opset: Opset::CoreMl5,
    place: Place::Inputs,
    params: &[],
    outputs: Outputs::Fixed(1),
    infer: |_| Ok(Vec::new()),
    tolerance: Tolerance::Accumulating,
    placement: "",
    doc: "",
};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec {
        name: "conv",
        params: &[
            Param::required("x", FLOAT),
            Param::required("weight", FLOAT),
            Param::optional("bias", FLOAT),
            Param::defaulted("strides", I32S, Default::SpatialOnes),
            Param::defaulted("pad_type", STR, Default::Str("valid")),
            Param::defaulted("pad", I32S, Default::SpatialZeros),
            Param::defaulted("dilations", I32S, Default::SpatialOnes),
            Param::defaulted("groups", I32S, Default::Int(1)),
        ],
        infer: conv,
        placement: "rank at most 4; kernel width at most 13 (M1) or 16; 16384 wide and high before M4; 65536 channels",
        doc: "Cross-correlation of `x` [N, Cin, spatial..] with `weight` [Cout, Cin / groups, kernel..]. `pad` counts only where `pad_type` is custom.",
        ..BASE
    },
    OpSpec {
        name: "linear",
        params: &[
            Param::required("x", NUMBER),
            Param::required("weight", NUMBER).constant(),
            Param::defaulted("bias", NUMBER, Default::ZeroBias),
        ],
        infer: linear,
        placement: "",
        doc: "`x * transpose(weight) + bias`, weight [Dout, Din].",
        ..BASE
    },
    OpSpec {
        name: "matmul",
        params: &[
            Param::required("x", NUMBER),
            Param::required("y", NUMBER),
            Param::defaulted("transpose_x", BOOLS, Default::Bool(false)),
            Param::defaulted("transpose_y", BOOLS, Default::Bool(false)),
        ],
        infer: matmul,
        placement: "rank 5 is rejected; results near 32752 become inf",
        doc: "The matrix product over the last two dimensions; the others broadcast, vectors are promoted as numpy does.",
        ..BASE
    },
    OpSpec {
        name: "scaled_dot_product_attention",
        opset: Opset::CoreMl8,
        params: &[
            Param::required("query", FLOAT),
            Param::required("key", FLOAT),
            Param::required("value", FLOAT),
            Param::optional("attn_mask", &[crate::ir::Dtype::Bool, crate::ir::Dtype::F16, crate::ir::Dtype::F32]),
        ],
        infer: attention,
        doc: "`softmax(query * transpose(key) / sqrt(E) + attn_mask) * value`. A bool mask keeps where true. Batch and head dimensions are equal, never broadcast.",
        ..BASE
    },
];

fn err(rule: &'static str, message: impl Into<String>) -> TypeError {
    TypeError::new(rule, message)
}

/// `values[i]`, where there is one for each spatial dimension and none is smaller than `least`.
fn per_spatial(name: &str, values: &[i64], count: usize, least: i64) -> Result<(), TypeError> {
    if values.len() != count {
        return Err(err("argument-value", format!("`{name}` has {} values, expected {count}", values.len())));
    }
    match values.iter().find(|&&v| v < least || v > i64::from(i32::MAX)) {
        Some(v) => Err(err("argument-value", format!("`{name}` contains {v}"))),
        None => Ok(()),
    }
}

fn conv(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let (x, w) = (call.ty("x")?, call.ty("weight")?);
    if !(3..=5).contains(&x.rank()) || w.rank() != x.rank() {
        return Err(err("rank", format!("`x` is {x} and `weight` {w}: expected one rank, 3, 4 or 5")));
    }
    if x.dtype != w.dtype {
        return Err(err("dtype-mismatch", format!("`x` is {x}, `weight` is {w}: element types must be equal")));
    }
    let spatial = x.rank() - 2;
    let groups = call.const_int("groups")?;
    let (strides, dilations) = (call.const_ints("strides")?, call.const_ints("dilations")?);
    let (pad, pad_type) = (call.const_ints("pad")?, call.const_str("pad_type")?);
    per_spatial("strides", &strides, spatial, 1)?;
    per_spatial("dilations", &dilations, spatial, 1)?;
    if pad_type == "custom" {
        per_spatial("pad", &pad, 2 * spatial, 0)?;
    } else if !["valid", "same", "same_lower"].contains(&pad_type.as_str()) {
        return Err(err("argument-value", format!("`pad_type` is {pad_type:?}")));
    }
    if groups < 1 {
        return Err(err("argument-value", format!("`groups` is {groups}")));
    }
    if let (Dim::Fixed(c), Dim::Fixed(k)) = (x.shape[1], w.shape[1])
        && (k as i64).checked_mul(groups) != Some(c as i64)
    {
        return Err(err("shape", format!("`x` has {c} channels; `weight` is {w} in {groups} groups")));
    }
    if let Dim::Fixed(n) = w.shape[0]
        && n as i64 % groups != 0
    {
        return Err(err("shape", format!("{n} output channels are not a multiple of {groups} groups")));
    }
    if let Some(bias) = call.find_ty("bias") {
        if bias.rank() != 1 || !dims_agree(bias.shape[0], w.shape[0]) {
            return Err(err("shape", format!("`bias` is {bias}, expected [{}]", w.shape[0])));
        }
        if bias.dtype != w.dtype {
            return Err(err("dtype-mismatch", format!("`bias` is {bias}, `weight` is {w}")));
        }
    }
    let mut shape = vec![x.shape[0], w.shape[0]];
    for i in 0..spatial {
        let (Dim::Fixed(d), Dim::Fixed(k)) = (x.shape[2 + i], w.shape[2 + i]) else {
            shape.push(Dim::Unknown);
            continue;
        };
        if k == 0 {
            return Err(err("shape", format!("`weight` is {w}, its kernel is empty")));
        }
        let (d, stride) = (d as i64, strides[i]);
        let out = match pad_type.as_str() {
            "same" | "same_lower" => (d + stride - 1) / stride,
            _ => {
                let padded = if pad_type == "custom" { d + pad[2 * i] + pad[2 * i + 1] } else { d };
                // Every factor is below 2^31, so the product stays below 2^62.
                let reach = (k as i64 - 1) * dilations[i] + 1;
                if padded < reach {
                    return Err(err("shape", format!("a kernel that reaches {reach} does not fit {padded}")));
                }
                (padded - reach) / stride + 1
            }
        };
        shape.push(shape::dim("a spatial dimension", out)?);
    }
    Ok(vec![TensorType { dtype: x.dtype, shape }])
}

fn linear(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let (x, w) = (call.ty("x")?, call.ty("weight")?);
    if x.rank() == 0 || w.rank() != 2 {
        return Err(err("rank", format!("`x` is {x} and `weight` {w}: expected rank at least 1, and 2")));
    }
    if x.dtype != w.dtype {
        return Err(err("dtype-mismatch", format!("`x` is {x}, `weight` is {w}: element types must be equal")));
    }
    let last = x.rank() - 1;
    if !dims_agree(x.shape[last], w.shape[1]) {
        return Err(err("shape", format!("`x` is {x}, `weight` takes {}", w.shape[1])));
    }
    if let Some(bias) = call.find_ty("bias") {
        // A bias of one element is spread over all rows.
        let fits = bias.rank() == 0
            || bias.rank() == 1 && (dims_agree(bias.shape[0], w.shape[0]) || bias.shape[0] == Dim::Fixed(1));
        if !fits {
            return Err(err("shape", format!("`bias` is {bias}, expected [{}]", w.shape[0])));
        }
        if bias.dtype != w.dtype {
            return Err(err("dtype-mismatch", format!("`bias` is {bias}, `weight` is {w}")));
        }
    }
    let mut shape = x.shape.clone();
    shape[last] = w.shape[0];
    Ok(vec![TensorType { dtype: x.dtype, shape }])
}

fn matmul(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let (x, y) = (call.ty("x")?, call.ty("y")?);
    if x.rank() == 0 || y.rank() == 0 {
        return Err(err("rank", format!("`x` is {x}, `y` is {y}: scalars have no matrix product")));
    }
    if x.dtype != y.dtype {
        return Err(err("dtype-mismatch", format!("`x` is {x}, `y` is {y}: element types must be equal")));
    }
    let (mut a, mut b) = (x.shape.clone(), y.shape.clone());
    // A vector is a row on the left, a column on the right, and the dimension that was added goes away again.
    if x.rank() == 1 {
        a.insert(0, Dim::Fixed(1));
    }
    if y.rank() == 1 {
        b.push(Dim::Fixed(1));
    }
    if x.rank() > 1 && call.const_bool("transpose_x")? {
        let n = a.len();
        a.swap(n - 1, n - 2);
    }
    if y.rank() > 1 && call.const_bool("transpose_y")? {
        let n = b.len();
        b.swap(n - 1, n - 2);
    }
    let (ra, rb) = (a.len(), b.len());
    if !dims_agree(a[ra - 1], b[rb - 2]) {
        return Err(err(
            "shape",
            format!("a row of {} against a column of {}: `x` is {x}, `y` is {y}", a[ra - 1], b[rb - 2]),
        ));
    }
    let mut shape = broadcast(&a[..ra - 2], &b[..rb - 2])?;
    if x.rank() > 1 {
        shape.push(a[ra - 2]);
    }
    if y.rank() > 1 {
        shape.push(b[rb - 1]);
    }
    Ok(vec![TensorType { dtype: x.dtype, shape }])
}

fn attention(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let (q, k, v) = (call.ty("query")?, call.ty("key")?, call.ty("value")?);
    let r = q.rank();
    if !(3..=5).contains(&r) || k.rank() != r || v.rank() != r {
        return Err(err("rank", format!("query {q}, key {k}, value {v}: expected one rank, 3, 4 or 5")));
    }
    if q.dtype != k.dtype || q.dtype != v.dtype {
        return Err(err("dtype-mismatch", format!("query {q}, key {k}, value {v}: element types must be equal")));
    }
    let batch = |t: &TensorType| t.shape[..r - 2].to_vec();
    if !shape::shapes_agree(&batch(q), &batch(k)) || !shape::shapes_agree(&batch(q), &batch(v)) {
        return Err(err(
            "shape",
            format!("query {q}, key {k}, value {v}: all but the last two dimensions must be equal"),
        ));
    }
    if !dims_agree(q.shape[r - 1], k.shape[r - 1]) || !dims_agree(k.shape[r - 2], v.shape[r - 2]) {
        return Err(err(
            "shape",
            format!("query {q}, key {k}, value {v}: expected [.., L, E], [.., S, E], [.., S, EV]"),
        ));
    }
    if let Some(mask) = call.find_ty("attn_mask") {
        let mut scores = batch(q);
        scores.extend([q.shape[r - 2], k.shape[r - 2]]);
        if mask.dtype != crate::ir::Dtype::Bool && mask.dtype != q.dtype {
            return Err(err("dtype-mismatch", format!("`attn_mask` is {mask}, expected bool or {}", q.dtype)));
        }
        if mask.rank() > r || broadcast(&mask.shape, &scores).is_ok_and(|s| !shape::shapes_agree(&s, &scores)) {
            return Err(err("shape", format!("`attn_mask` is {mask}, expected to spread over {}", shown(&scores))));
        }
        broadcast(&mask.shape, &scores)?;
    }
    let mut shape = q.shape.clone();
    shape[r - 1] = v.shape[r - 1];
    Ok(vec![TensorType { dtype: q.dtype, shape }])
}

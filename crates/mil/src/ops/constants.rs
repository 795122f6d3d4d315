//! Values known when the program is compiled: `const`, and the `constexpr` family that decompresses weights.
//!
//! iOS 16 wrote the parameters of these ops as attributes and packed sub-byte elements into uint8 vectors; iOS 18 writes
//! them as inputs and has sub-byte types. The decompression itself is in [`crate::decode`].

use super::dtypes::*;
use super::{Call, OpSpec, Opset, Outputs, Param, Place, Tolerance, TypeError, shape};
use crate::ir::{Dim, Dtype, TensorType};

const CONSTEXPR: OpSpec = OpSpec {
    name: "",
    opset: Opset::CoreMl8,
    place: Place::Inputs,
    params: &[],
    outputs: Outputs::Fixed(1),
    infer: |_| Ok(Vec::new()),
    tolerance: Tolerance::Exact,
    placement: "",
    doc: "",
};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec {
        name: "const",
        opset: Opset::CoreMl5,
        place: Place::Attributes,
        params: &[Param::required("val", ANY).constant()],
        infer: |call| Ok(vec![call.ty("val")?.clone()]),
        doc: "A literal.",
        ..CONSTEXPR
    },
    OpSpec {
        name: "constexpr_affine_dequantize",
        opset: Opset::CoreMl6,
        place: Place::Attributes,
        params: &[
            Param::required("quantized_data", BYTE).constant(),
            Param::required("zero_point", &[Dtype::I8, Dtype::U8, Dtype::F32]).constant(),
            Param::required("scale", FLOAT).constant(),
            Param::required("axis", I32S).constant(),
        ],
        infer: affine_dequantize,
        placement: "int8 weights are reported on the Neural Engine by many, and contradicted by one report",
        doc: "`scale * (quantized_data - zero_point)`; scale and zero point are scalars or vectors along `axis`.",
        ..CONSTEXPR
    },
    OpSpec {
        name: "constexpr_blockwise_shift_scale",
        params: &[
            Param::required("data", QUANTIZED).constant(),
            Param::required("scale", FLOAT).constant(),
            Param::optional("offset", QUANTIZED).constant(),
        ],
        infer: |call| {
            let data = call.ty("data")?;
            shift_scale(call, data.dtype, &data.shape)?;
            Ok(vec![TensorType { dtype: call.ty("scale")?.dtype, shape: data.shape.clone() }])
        },
        placement: "scale per tensor or per output channel, never along the contracted axis; int4 per block falls to the CPU in small graphs",
        doc: "`scale[i / b] * (data[i] - offset[i / b])` with blocks of `data.shape / scale.shape`. Scale has data's rank.",
        ..CONSTEXPR
    },
    OpSpec {
        name: "constexpr_lut_to_dense",
        opset: Opset::CoreMl6,
        place: Place::Attributes,
        params: &[
            Param::required("indices", U8S).constant(),
            Param::required("lut", LUT).constant(),
            Param::required("shape", U32S).constant(),
        ],
        infer: lut_to_dense_packed,
        placement: "palettised weights place well",
        doc: "`lut[indices]`, indices packed in as few bits as address the table, least significant first.",
        ..CONSTEXPR
    },
    OpSpec {
        name: "constexpr_lut_to_dense",
        params: &[
            Param::required("indices", PALETTE).constant(),
            Param::required("lut", LUT).constant(),
            Param::optional("vector_axis", I32S).constant(),
        ],
        infer: |call| {
            let indices = call.ty("indices")?;
            Ok(vec![TensorType { dtype: call.ty("lut")?.dtype, shape: lut(call, indices.dtype, &indices.shape)? }])
        },
        placement: "palettes per tensor or per grouped output channel place well; per input channel do not",
        doc: "Looks `indices` up in `lut`, of shape [groups per dimension.., 2^bits, vector]. A vector longer than one is laid out along `vector_axis`.",
        ..CONSTEXPR
    },
    OpSpec {
        name: "constexpr_sparse_to_dense",
        opset: Opset::CoreMl6,
        place: Place::Attributes,
        params: &[
            Param::required("nonzero_data", LUT).constant(),
            Param::required("mask", U8S).constant(),
            Param::required("shape", U32S).constant(),
        ],
        infer: sparse_to_dense_packed,
        doc: "Spreads `nonzero_data` over the places whose bit in `mask` is set; zero elsewhere.",
        ..CONSTEXPR
    },
    OpSpec {
        name: "constexpr_sparse_to_dense",
        params: &[Param::required("nonzero_data", QUANTIZED).constant(), Param::required("mask", U1S).constant()],
        infer: |call| {
            sparse(call, "nonzero_data", "mask")?;
            let mask = call.ty("mask")?;
            Ok(vec![TensorType { dtype: call.ty("nonzero_data")?.dtype, shape: mask.shape.clone() }])
        },
        doc: "Spreads `nonzero_data` over the places where `mask` is one; zero elsewhere.",
        ..CONSTEXPR
    },
    OpSpec {
        name: "constexpr_lut_to_sparse",
        params: &[
            Param::required("indices_mask", U1S).constant(),
            Param::required("indices_nonzero_data", PALETTE).constant(),
            Param::required("lut", LUT).constant(),
            Param::optional("vector_axis", I32S).constant(),
        ],
        outputs: Outputs::Fixed(2),
        infer: lut_to_sparse,
        doc: "A sparse tensor (mask, non-zero values) from palette indices of its non-zero places.",
        ..CONSTEXPR
    },
    OpSpec {
        name: "constexpr_sparse_blockwise_shift_scale",
        params: &[
            Param::required("data_mask", U1S).constant(),
            Param::required("nonzero_data", QUANTIZED).constant(),
            Param::required("scale", FLOAT).constant(),
            Param::optional("offset", QUANTIZED).constant(),
        ],
        outputs: Outputs::Fixed(2),
        infer: |call| {
            sparse(call, "nonzero_data", "data_mask")?;
            let (mask, data) = (call.ty("data_mask")?, call.ty("nonzero_data")?);
            shift_scale(call, data.dtype, &mask.shape)?;
            Ok(vec![mask.clone(), TensorType { dtype: call.ty("scale")?.dtype, shape: data.shape.clone() }])
        },
        doc: "A sparse tensor (mask, non-zero values) from quantised values of its non-zero places.",
        ..CONSTEXPR
    },
    OpSpec {
        name: "constexpr_cast",
        opset: Opset::CoreMl6,
        place: Place::Attributes,
        params: CAST,
        infer: cast,
        doc: "fp16 stored, fp32 meant.",
        ..CONSTEXPR
    },
    OpSpec { name: "constexpr_cast", params: CAST, infer: cast, doc: "fp16 stored, fp32 meant.", ..CONSTEXPR },
];

const CAST: &[Param] =
    &[Param::required("source_val", F16S).constant(), Param::required("output_dtype", STR).constant()];

fn cast(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let dtype = call.const_str("output_dtype")?;
    if dtype != "fp32" {
        return Err(err("argument-value", format!("`output_dtype` is {dtype:?}, only fp32 is known")));
    }
    Ok(vec![TensorType { dtype: Dtype::F32, shape: call.ty("source_val")?.shape.clone() }])
}

fn err(rule: &'static str, message: impl Into<String>) -> TypeError {
    TypeError::new(rule, message)
}

fn affine_dequantize(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let (data, scale, zero) = (call.ty("quantized_data")?, call.ty("scale")?, call.ty("zero_point")?);
    let axis = call.const_axis("axis", data.rank())?;
    if zero.dtype != data.dtype && zero.dtype != Dtype::F32 {
        return Err(err("constexpr-dtype", format!("`zero_point` is {zero}, data is {data}")));
    }
    for (name, ty) in [("scale", scale), ("zero_point", zero)] {
        match ty.shape.as_slice() {
            [] => {}
            [n] if *n == data.shape[axis] => {}
            _ => {
                return Err(err(
                    "constexpr-shape",
                    format!("`{name}` is {ty}, expected a scalar or [{}] for axis {axis} of {data}", data.shape[axis]),
                ));
            }
        }
    }
    Ok(vec![TensorType { dtype: scale.dtype, shape: data.shape.clone() }])
}

/// Checks scale and offset against the data they apply to.
fn shift_scale(call: &Call<'_>, data_dtype: Dtype, data: &[Dim]) -> Result<(), TypeError> {
    let scale = call.ty("scale")?;
    if scale.rank() != data.len() || data.is_empty() {
        return Err(err(
            "constexpr-rank",
            format!("`scale` is {scale}, expected the rank of the data, {}, and at least 1", data.len()),
        ));
    }
    for (axis, (d, s)) in data.iter().zip(&scale.shape).enumerate() {
        let (Dim::Fixed(d), Dim::Fixed(s)) = (*d, *s) else { continue };
        if s == 0 || d % s != 0 {
            return Err(err("constexpr-shape", format!("`scale` has {s} blocks along axis {axis}, data has {d}")));
        }
    }
    if let Some(offset) = call.find_ty("offset") {
        if offset.shape != scale.shape {
            return Err(err("constexpr-shape", format!("`offset` is {offset}, expected scale's shape, {scale}")));
        }
        if !offset.dtype.is_float() && offset.dtype != data_dtype {
            return Err(err("constexpr-dtype", format!("`offset` is {offset}, data is {data_dtype}")));
        }
    }
    Ok(())
}

/// Checks a palette against its indices; the shape that looking them up gives.
fn lut(call: &Call<'_>, index: Dtype, indices: &[Dim]) -> Result<Vec<Dim>, TypeError> {
    let lut = call.ty("lut")?;
    let rank = indices.len();
    if rank == 0 || lut.rank() != rank + 2 {
        return Err(err(
            "constexpr-rank",
            format!("`lut` is {lut}, expected rank {} for indices of rank {rank}", rank + 2),
        ));
    }
    for (axis, (i, g)) in indices.iter().zip(&lut.shape).enumerate() {
        let (Dim::Fixed(i), Dim::Fixed(g)) = (*i, *g) else { continue };
        if g == 0 || i % g != 0 {
            return Err(err("constexpr-shape", format!("`lut` has {g} groups along axis {axis}, indices have {i}")));
        }
    }
    let (entries, vector) = (lut.shape[rank], lut.shape[rank + 1]);
    if entries != Dim::Fixed(1 << index.bits()) {
        return Err(err(
            "constexpr-shape",
            format!("`lut` has {entries} entries, {index} indices address {}", 1u32 << index.bits()),
        ));
    }
    let mut out = indices.to_vec();
    match vector {
        Dim::Fixed(0) | Dim::Unknown => {
            return Err(err("constexpr-shape", format!("`lut` is {lut}, its vectors are empty")));
        }
        Dim::Fixed(1) => {
            if call.has("vector_axis") {
                call.const_axis("vector_axis", rank)?;
            }
        }
        Dim::Fixed(v) => {
            let axis = call.const_axis("vector_axis", rank)?;
            if let Dim::Fixed(d) = out[axis] {
                let long = (d as i64).checked_mul(v as i64).unwrap_or(i64::MAX);
                out[axis] = shape::dim("the decoded axis", long)?;
            }
        }
    }
    Ok(out)
}

fn sparse(call: &Call<'_>, data: &str, mask: &str) -> Result<(), TypeError> {
    let (ty, mask_ty) = (call.ty(data)?, call.ty(mask)?);
    if ty.rank() != 1 {
        return Err(err("constexpr-rank", format!("`{data}` is {ty}, expected a vector")));
    }
    if let (Some(Dim::Fixed(n)), Some(total)) = (ty.shape.first(), mask_ty.elements())
        && *n > total
    {
        return Err(err("constexpr-shape", format!("`{data}` is {ty}, more than all of `{mask}`, {mask_ty}")));
    }
    Ok(())
}

fn lut_to_sparse(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    sparse(call, "indices_nonzero_data", "indices_mask")?;
    let (mask, data, table) = (call.ty("indices_mask")?, call.ty("indices_nonzero_data")?, call.ty("lut")?);
    let dense = lut(call, data.dtype, &mask.shape)?;
    let vector = table.shape.last().and_then(|d| d.fixed()).unwrap_or(1);
    let values = match data.shape.first() {
        Some(Dim::Fixed(n)) => {
            let n = (*n as i64).checked_mul(vector as i64).unwrap_or(i64::MAX);
            vec![shape::dim("the number of non-zero values", n)?]
        }
        _ => vec![Dim::Unknown],
    };
    Ok(vec![TensorType { dtype: Dtype::U1, shape: dense }, TensorType { dtype: table.dtype, shape: values }])
}

/// The shape that an iOS 16 op carries as a uint32 vector.
fn carried_shape(call: &Call<'_>) -> Result<(Vec<Dim>, i64), TypeError> {
    let dims = call.const_ints("shape")?;
    if dims.is_empty() || dims.len() > shape::MAX_RANK {
        return Err(err("constexpr-shape", format!("`shape` has {} dimensions", dims.len())));
    }
    let dims = dims.into_iter().map(|n| shape::dim("`shape`", n)).collect::<Result<Vec<_>, _>>()?;
    let n = shape::product("`shape`", &dims)?.unwrap_or(0);
    Ok((dims, n))
}

/// Bytes that `n` elements of `bits` bits are packed into.
fn packed(n: i64, bits: i64) -> Option<usize> {
    usize::try_from(n.checked_mul(bits)?.checked_add(7)? / 8).ok()
}

fn lut_to_dense_packed(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let (indices, lut) = (call.ty("indices")?, call.ty("lut")?);
    let (dims, n) = carried_shape(call)?;
    let bits = match lut.shape.as_slice() {
        [Dim::Fixed(n)] if [2, 4, 16, 64, 256].contains(n) => i64::from(n.ilog2()),
        _ => return Err(err("constexpr-shape", format!("`lut` is {lut}, expected a vector of 2, 4, 16, 64 or 256"))),
    };
    let bytes = packed(n, bits);
    if indices.rank() != 1 || indices.elements() != bytes {
        return Err(err(
            "constexpr-shape",
            format!("`indices` is {indices}, {n} indices of {bits} bits need {} bytes", bytes.unwrap_or(0)),
        ));
    }
    Ok(vec![TensorType { dtype: lut.dtype, shape: dims }])
}

fn sparse_to_dense_packed(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let (data, mask) = (call.ty("nonzero_data")?, call.ty("mask")?);
    let (dims, n) = carried_shape(call)?;
    let bytes = packed(n, 1);
    if mask.rank() != 1 || mask.elements() != bytes {
        return Err(err("constexpr-shape", format!("`mask` is {mask}, {n} bits need {} bytes", bytes.unwrap_or(0))));
    }
    if data.rank() != 1 || data.elements().is_none_or(|d| d as i64 > n) {
        return Err(err("constexpr-shape", format!("`nonzero_data` is {data}, expected a vector of at most {n}")));
    }
    Ok(vec![TensorType { dtype: data.dtype, shape: dims }])
}

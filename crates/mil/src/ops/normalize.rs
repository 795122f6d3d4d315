//! Normalisation: softmax, layer norm, and their kin.

use super::dtypes::*;
use super::elementwise::same_as_x;
use super::shape::{self, dims_agree, shown};
use super::{Call, Default, OpSpec, Opset, Outputs, Param, Place, Tolerance, TypeError};
use crate::ir::TensorType;

const BASE: OpSpec = OpSpec {
    name: "",
    opset: Opset::CoreMl5,
    place: Place::Inputs,
    params: &[],
    outputs: Outputs::Fixed(1),
    infer: same_as_x,
    tolerance: Tolerance::Accumulating,
    placement: "",
    doc: "",
};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec {
        name: "softmax",
        params: &[Param::required("x", FLOAT), Param::defaulted("axis", I32S, Default::Int(-1))],
        infer: |call| {
            call.const_axis("axis", call.ty("x")?.rank())?;
            same_as_x(call)
        },
        tolerance: Tolerance::Transcendental,
        placement: "all M-series",
        doc: "`exp(x) / sum(exp(x))` along `axis`.",
        ..BASE
    },
    OpSpec {
        name: "layer_norm",
        params: &[
            Param::required("x", FLOAT),
            Param::optional("axes", I32S).constant(),
            Param::optional("gamma", FLOAT).constant(),
            Param::optional("beta", FLOAT).constant(),
            Param::defaulted("epsilon", FLOAT, Default::Float(1e-5)),
        ],
        infer: layer_norm,
        placement: "all M-series",
        doc: "`(x - mean) / sqrt(variance + epsilon) * gamma + beta` over `axes`, with the biased variance.",
        ..BASE
    },
    OpSpec {
        name: "l2_norm",
        params: &[Param::required("x", FLOAT), Param::defaulted("epsilon", FLOAT, Default::Float(1e-6))],
        infer: |call| {
            let x = call.ty("x")?;
            if x.rank() < 3 {
                return Err(TypeError::new("rank", format!("`x` is {x}, expected rank at least 3")));
            }
            same_as_x(call)
        },
        doc: "`x / sqrt(sum(x^2) + epsilon)`, the sum over the last three dimensions.",
        ..BASE
    },
    OpSpec {
        name: "batch_norm",
        params: &[
            Param::required("x", FLOAT),
            Param::required("mean", FLOAT).constant(),
            Param::required("variance", FLOAT).constant(),
            Param::optional("gamma", FLOAT).constant(),
            Param::optional("beta", FLOAT).constant(),
            Param::defaulted("epsilon", FLOAT, Default::Float(1e-5)),
        ],
        infer: |call| channels(call, &["mean", "variance", "gamma", "beta"]),
        tolerance: Tolerance::Transcendental,
        doc: "`(x - mean) / sqrt(variance + epsilon) * gamma + beta`, one value for each channel (dimension 1).",
        ..BASE
    },
    OpSpec {
        name: "instance_norm",
        params: &[
            Param::required("x", FLOAT),
            Param::optional("gamma", FLOAT).constant(),
            Param::optional("beta", FLOAT).constant(),
            Param::defaulted("epsilon", FLOAT, Default::Float(1e-5)),
        ],
        infer: |call| channels(call, &["gamma", "beta"]),
        doc: "As `batch_norm`, with mean and biased variance taken over the spatial dimensions of each channel.",
        ..BASE
    },
];

fn layer_norm(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let x = call.ty("x")?;
    let axes = call.axes("axes", x.rank())?;
    let expected: Vec<_> = axes.iter().map(|&a| x.shape[a]).collect();
    for name in ["gamma", "beta"] {
        if let Some(ty) = call.find_ty(name)
            && !shape::shapes_agree(&ty.shape, &expected)
        {
            return Err(TypeError::new("shape", format!("`{name}` is {ty}, expected shape {}", shown(&expected))));
        }
    }
    same_as_x(call)
}

fn channels(call: &Call<'_>, vectors: &[&str]) -> Result<Vec<TensorType>, TypeError> {
    let x = call.ty("x")?;
    if !(3..=5).contains(&x.rank()) {
        return Err(TypeError::new("rank", format!("`x` is {x}, expected rank 3, 4 or 5")));
    }
    for name in vectors {
        if let Some(ty) = call.find_ty(name)
            && (ty.rank() != 1 || !dims_agree(ty.shape[0], x.shape[1]))
        {
            return Err(TypeError::new("shape", format!("`{name}` is {ty}, expected [{}]", x.shape[1])));
        }
    }
    same_as_x(call)
}

//! Many elements into one, or the few that matter: reductions, running sums, the largest.

use super::dtypes::*;
use super::elementwise::{named_dtype, same_as_x};
use super::{Call, Default, OpSpec, Opset, Outputs, Param, Place, Tolerance, TypeError, shape};
use crate::ir::{Dim, Dtype, TensorType};

const REDUCE: OpSpec = OpSpec {
    name: "",
    opset: Opset::CoreMl5,
    place: Place::Inputs,
    params: &[
        Param::required("x", NUMBER),
        Param::optional("axes", I32S).constant(),
        Param::defaulted("keep_dims", BOOLS, Default::Bool(false)),
    ],
    outputs: Outputs::Fixed(1),
    infer: reduce,
    tolerance: Tolerance::Accumulating,
    placement: "all M-series",
    doc: "",
};
const ARG: OpSpec = OpSpec {
    params: &[
        Param::required("x", NUMBER),
        Param::defaulted("axis", I32S, Default::Int(-1)),
        Param::defaulted("keep_dims", BOOLS, Default::Bool(false)),
        Param::defaulted("output_dtype", STR, Default::Str("int32")).since(Opset::CoreMl7),
    ],
    infer: arg_reduce,
    tolerance: Tolerance::Exact,
    placement: "over more than 2048 elements: CPU",
    ..REDUCE
};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec { name: "reduce_sum", doc: "The sum over `axes`, over all of them where unbound.", ..REDUCE },
    OpSpec { name: "reduce_mean", doc: "The mean.", ..REDUCE },
    OpSpec { name: "reduce_max", tolerance: Tolerance::Exact, doc: "The largest.", ..REDUCE },
    OpSpec { name: "reduce_min", tolerance: Tolerance::Exact, doc: "The smallest.", ..REDUCE },
    OpSpec { name: "reduce_prod", doc: "The product.", ..REDUCE },
    OpSpec { name: "reduce_sum_square", doc: "The sum of squares.", ..REDUCE },
    OpSpec { name: "reduce_l1_norm", doc: "The sum of magnitudes.", ..REDUCE },
    OpSpec { name: "reduce_l2_norm", doc: "The square root of the sum of squares.", ..REDUCE },
    OpSpec { name: "reduce_log_sum", doc: "The logarithm of the sum.", ..REDUCE },
    OpSpec { name: "reduce_log_sum_exp", doc: "The logarithm of the sum of exponentials.", ..REDUCE },
    OpSpec {
        name: "reduce_argmax",
        doc: "The index of the largest along `axis`; which of equals is not specified.",
        ..ARG
    },
    OpSpec {
        name: "reduce_argmin",
        doc: "The index of the smallest along `axis`; which of equals is not specified.",
        ..ARG
    },
    OpSpec {
        name: "cumsum",
        params: &[
            Param::required("x", NUMBER),
            Param::defaulted("axis", I32S, Default::Int(0)),
            Param::defaulted("exclusive", BOOLS, Default::Bool(false)),
            Param::defaulted("reverse", BOOLS, Default::Bool(false)),
        ],
        infer: |call| {
            call.const_axis("axis", call.ty("x")?.rank())?;
            same_as_x(call)
        },
        placement: "",
        doc: "The running sum along `axis`, from the end where `reverse`, without the element itself where `exclusive`.",
        ..REDUCE
    },
    OpSpec {
        name: "topk",
        params: &[
            Param::required("x", MOVABLE),
            Param::defaulted("k", SHAPE, Default::Int(1)),
            Param::defaulted("axis", I32S, Default::Int(-1)),
            Param::defaulted("ascending", BOOLS, Default::Bool(false)),
            Param::defaulted("sort", BOOLS, Default::Bool(true)).since(Opset::CoreMl6),
            Param::defaulted("return_indices", BOOLS, Default::Bool(true)).since(Opset::CoreMl6),
            Param::defaulted("output_indices_dtype", STR, Default::Str("int32")).since(Opset::CoreMl7),
        ],
        outputs: Outputs::Varying,
        infer: topk,
        tolerance: Tolerance::Exact,
        placement: "CPU: do it on the host",
        doc: "The `k` largest (smallest where `ascending`) along `axis`, and their indices; all where `k` is -1.",
        ..REDUCE
    },
    OpSpec {
        name: "argsort",
        params: &[
            Param::required("x", NUMBER),
            Param::defaulted("axis", I32S, Default::Int(-1)),
            Param::defaulted("ascending", BOOLS, Default::Bool(false)),
        ],
        infer: |call| {
            let x = call.ty("x")?;
            call.const_axis("axis", x.rank())?;
            Ok(vec![TensorType { dtype: Dtype::I32, shape: x.shape.clone() }])
        },
        tolerance: Tolerance::Exact,
        placement: "",
        doc: "The indices that sort `x` along `axis`, largest first unless `ascending`.",
        ..REDUCE
    },
];

fn reduce(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let x = call.ty("x")?;
    let axes = call.axes("axes", x.rank())?;
    Ok(vec![TensorType { dtype: x.dtype, shape: reduced(&x.shape, &axes, call.const_bool("keep_dims")?) }])
}

/// A shape without the axes that were reduced, or with ones in their place.
fn reduced(shape: &[Dim], axes: &[usize], keep: bool) -> Vec<Dim> {
    let mut out = Vec::with_capacity(shape.len());
    for (i, &d) in shape.iter().enumerate() {
        match (axes.contains(&i), keep) {
            (true, true) => out.push(Dim::Fixed(1)),
            (true, false) => {}
            (false, _) => out.push(d),
        }
    }
    out
}

fn arg_reduce(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let x = call.ty("x")?;
    let axis = call.const_axis("axis", x.rank())?;
    let dtype = named_dtype(call, "output_dtype", &[Dtype::I32, Dtype::U16])?;
    Ok(vec![TensorType { dtype, shape: reduced(&x.shape, &[axis], call.const_bool("keep_dims")?) }])
}

fn topk(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let x = call.ty("x")?;
    let axis = call.const_axis("axis", x.rank())?;
    let mut shape = x.shape.clone();
    shape[axis] = match (call.const_int("k")?, shape[axis]) {
        (-1, whole) => whole,
        (k, Dim::Fixed(n)) if k < 0 || k > n as i64 => {
            return Err(TypeError::new("argument-value", format!("`k` is {k}, the axis has {n} elements")));
        }
        (k, _) => shape::dim("`k`", k)?,
    };
    let indices = call.const_bool("return_indices")?;
    if !indices && call.has("output_indices_dtype") {
        return Err(TypeError::new("argument-value", "`output_indices_dtype` is given, but no indices are returned"));
    }
    let mut types = vec![TensorType { dtype: x.dtype, shape: shape.clone() }];
    if indices {
        let dtype = named_dtype(call, "output_indices_dtype", &[Dtype::I32, Dtype::U16])?;
        types.push(TensorType { dtype, shape });
    }
    Ok(types)
}

//! Element by element: arithmetic, comparison, logic, activations, choice, and casts.

use super::dtypes::*;
use super::{Call, Default, OpSpec, Opset, Outputs, Param, Place, Tolerance, TypeError, shape};
use crate::ir::{Dtype, TensorType};

const UNARY: OpSpec = OpSpec {
    name: "",
    opset: Opset::CoreMl5,
    place: Place::Inputs,
    params: &[Param::required("x", FLOAT)],
    outputs: Outputs::Fixed(1),
    infer: same_as_x,
    tolerance: Tolerance::Transcendental,
    placement: "",
    doc: "",
};
const BINARY: OpSpec = OpSpec {
    params: &[Param::required("x", NUMBER), Param::required("y", NUMBER)],
    infer: binary,
    tolerance: Tolerance::Rounding,
    ..UNARY
};
const COMPARE: OpSpec = OpSpec { infer: compare, tolerance: Tolerance::Exact, ..BINARY };
const LOGICAL: OpSpec = OpSpec {
    params: &[Param::required("x", BOOLS), Param::required("y", BOOLS)],
    infer: binary,
    tolerance: Tolerance::Exact,
    ..UNARY
};
const ALPHA: OpSpec =
    OpSpec { params: &[Param::required("x", FLOAT), Param::required("alpha", FLOAT).constant()], ..UNARY };
const ALPHA_BETA: OpSpec = OpSpec {
    params: &[
        Param::required("x", FLOAT),
        Param::required("alpha", FLOAT).constant(),
        Param::required("beta", FLOAT).constant(),
    ],
    ..UNARY
};

pub(super) const OPS: &[OpSpec] = &[
    OpSpec { name: "add", doc: "`x + y`.", ..BINARY },
    OpSpec { name: "sub", doc: "`x - y`.", ..BINARY },
    OpSpec { name: "mul", doc: "`x * y`.", ..BINARY },
    OpSpec { name: "real_div", doc: "`x / y`; on integers, truncated towards zero.", ..BINARY },
    OpSpec { name: "floor_div", doc: "`floor(x / y)`.", ..BINARY },
    OpSpec { name: "mod", doc: "`x - y * floor(x / y)`: the sign of the divisor.", ..BINARY },
    OpSpec { name: "maximum", tolerance: Tolerance::Exact, doc: "The larger.", ..BINARY },
    OpSpec { name: "minimum", tolerance: Tolerance::Exact, doc: "The smaller.", ..BINARY },
    OpSpec { name: "pow", tolerance: Tolerance::Transcendental, doc: "`x` to the power `y`.", ..BINARY },
    OpSpec { name: "greater", doc: "`x > y`.", ..COMPARE },
    OpSpec { name: "greater_equal", doc: "`x >= y`.", ..COMPARE },
    OpSpec { name: "less", doc: "`x < y`.", ..COMPARE },
    OpSpec { name: "less_equal", doc: "`x <= y`.", ..COMPARE },
    OpSpec { name: "equal", doc: "`x == y`.", ..COMPARE },
    OpSpec { name: "not_equal", doc: "`x != y`.", ..COMPARE },
    OpSpec { name: "logical_and", doc: "Both.", ..LOGICAL },
    OpSpec { name: "logical_or", doc: "Either.", ..LOGICAL },
    OpSpec { name: "logical_xor", doc: "Exactly one.", ..LOGICAL },
    OpSpec {
        name: "logical_not",
        params: &[Param::required("x", BOOLS)],
        infer: same_as_x,
        doc: "Not `x`.",
        ..LOGICAL
    },
    OpSpec {
        name: "identity",
        params: &[Param::required("x", MOVABLE)],
        tolerance: Tolerance::Exact,
        doc: "`x`.",
        ..UNARY
    },
    OpSpec {
        name: "abs",
        params: &[Param::required("x", NUMBER)],
        tolerance: Tolerance::Exact,
        doc: "`|x|`.",
        ..UNARY
    },
    OpSpec {
        name: "sign",
        params: &[Param::required("x", NUMBER)],
        tolerance: Tolerance::Exact,
        doc: "-1, 0 or 1.",
        ..UNARY
    },
    OpSpec {
        name: "square",
        params: &[Param::required("x", NUMBER)],
        tolerance: Tolerance::Rounding,
        doc: "`x * x`.",
        ..UNARY
    },
    OpSpec { name: "relu", tolerance: Tolerance::Exact, doc: "`max(x, 0)`.", ..UNARY },
    OpSpec { name: "relu6", tolerance: Tolerance::Exact, doc: "`min(max(x, 0), 6)`.", ..UNARY },
    OpSpec { name: "floor", tolerance: Tolerance::Exact, doc: "The largest integer not above `x`.", ..UNARY },
    OpSpec { name: "ceil", tolerance: Tolerance::Exact, doc: "The smallest integer not below `x`.", ..UNARY },
    OpSpec { name: "round", tolerance: Tolerance::Exact, doc: "The nearest integer, halves to even.", ..UNARY },
    OpSpec {
        name: "sqrt",
        tolerance: Tolerance::Rounding,
        placement: "all M-series",
        doc: "The square root.",
        ..UNARY
    },
    OpSpec { name: "exp", doc: "e to the power `x`.", ..UNARY },
    OpSpec { name: "exp2", params: &[Param::required("x", NUMBER)], doc: "2 to the power `x`.", ..UNARY },
    OpSpec { name: "erf", placement: "all M-series", doc: "The error function.", ..UNARY },
    OpSpec { name: "sin", placement: "native from M3", doc: "The sine.", ..UNARY },
    OpSpec { name: "cos", placement: "native from M3", doc: "The cosine.", ..UNARY },
    OpSpec { name: "tan", doc: "The tangent.", ..UNARY },
    OpSpec { name: "asin", doc: "The inverse sine.", ..UNARY },
    OpSpec { name: "acos", doc: "The inverse cosine.", ..UNARY },
    OpSpec { name: "atan", doc: "The inverse tangent.", ..UNARY },
    OpSpec { name: "sinh", doc: "The hyperbolic sine.", ..UNARY },
    OpSpec { name: "cosh", doc: "The hyperbolic cosine.", ..UNARY },
    OpSpec { name: "tanh", doc: "The hyperbolic tangent.", ..UNARY },
    OpSpec { name: "atanh", doc: "The inverse hyperbolic tangent.", ..UNARY },
    OpSpec { name: "sigmoid", doc: "`1 / (1 + exp(-x))`.", ..UNARY },
    OpSpec { name: "silu", doc: "`x * sigmoid(x)`.", ..UNARY },
    OpSpec { name: "softplus", doc: "`log(1 + exp(x))`.", ..UNARY },
    OpSpec { name: "softsign", tolerance: Tolerance::Transcendental, doc: "`x / (1 + |x|)`.", ..UNARY },
    OpSpec {
        name: "gelu",
        params: &[Param::required("x", FLOAT), Param::defaulted("mode", STR, Default::Str("EXACT"))],
        infer: |call| {
            let mode = call.const_str("mode")?;
            if !["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"].contains(&mode.as_str()) {
                return Err(TypeError::new("argument-value", format!("`mode` is {mode:?}")));
            }
            same_as_x(call)
        },
        doc: "`x * Phi(x)`: by `erf` (EXACT), by tanh with 0.044715 (TANH_APPROXIMATION), or `x * sigmoid(1.702 x)` (SIGMOID_APPROXIMATION).",
        ..UNARY
    },
    OpSpec {
        name: "rsqrt",
        params: EPSILON,
        placement: "the default epsilon of 1e-12 is zero in fp16: set it",
        doc: "`1 / sqrt(x + epsilon)`. In fp16 the default epsilon is zero.",
        ..UNARY
    },
    OpSpec {
        name: "inverse",
        params: &[Param::required("x", FLOAT), Param::defaulted("epsilon", FLOAT, Default::Float(1e-4))],
        doc: "`1 / (x + epsilon)`.",
        ..UNARY
    },
    OpSpec {
        name: "log",
        params: &[Param::required("x", FLOAT), Param::defaulted("epsilon", FLOAT, Default::Float(1e-45))],
        doc: "`ln(x + epsilon)`. In fp16 the default epsilon is zero.",
        ..UNARY
    },
    OpSpec {
        name: "leaky_relu",
        tolerance: Tolerance::Rounding,
        doc: "`x` where positive, else `alpha * x`.",
        ..ALPHA
    },
    OpSpec { name: "elu", doc: "`x` where positive, else `alpha * (exp(x) - 1)`.", ..ALPHA },
    OpSpec {
        name: "thresholded_relu",
        tolerance: Tolerance::Exact,
        doc: "`x` where at least `alpha`, else 0.",
        ..ALPHA
    },
    OpSpec {
        name: "threshold",
        params: &[Param::required("x", NUMBER), Param::required("alpha", NUMBER).constant()],
        tolerance: Tolerance::Exact,
        doc: "`max(x, alpha)`.",
        ..UNARY
    },
    OpSpec { name: "clip", tolerance: Tolerance::Exact, doc: "`min(max(x, alpha), beta)`.", ..ALPHA_BETA },
    OpSpec { name: "linear_activation", tolerance: Tolerance::Rounding, doc: "`alpha * x + beta`.", ..ALPHA_BETA },
    OpSpec { name: "scaled_tanh", doc: "`alpha * tanh(beta * x)`.", ..ALPHA_BETA },
    OpSpec {
        name: "sigmoid_hard",
        tolerance: Tolerance::Rounding,
        doc: "`min(max(alpha * x + beta, 0), 1)`.",
        ..ALPHA_BETA
    },
    OpSpec {
        name: "clamped_relu",
        tolerance: Tolerance::Rounding,
        doc: "`min(beta, x where not negative else alpha * x)`.",
        ..ALPHA_BETA
    },
    OpSpec {
        name: "select",
        params: &[Param::required("cond", BOOLS), Param::required("a", CORE), Param::required("b", CORE)],
        infer: select,
        tolerance: Tolerance::Exact,
        doc: "`a` where `cond`, else `b`; all three broadcast.",
        ..UNARY
    },
    OpSpec {
        name: "cast",
        params: &[Param::required("x", MOVABLE), Param::required("dtype", STR).constant()],
        infer: cast,
        tolerance: Tolerance::Rounding,
        placement: "casts from or to fp32 and int32 are not placed",
        doc: "Converts: floats to integers truncate towards zero, anything to bool is `!= 0`.",
        ..UNARY
    },
    OpSpec {
        name: "quantize",
        opset: Opset::CoreMl7,
        params: &[
            Param::required("input", FLOAT),
            Param::optional("zero_point", BYTE).constant(),
            Param::required("scale", FLOAT).constant(),
            Param::optional("axis", I32S).constant(),
            Param::required("output_dtype", STR).constant(),
        ],
        infer: quantize,
        tolerance: Tolerance::Exact,
        doc: "`clamp(round(input / scale) + zero_point)`; scale and zero point are scalars or vectors along `axis`.",
        ..UNARY
    },
    OpSpec {
        name: "dequantize",
        opset: Opset::CoreMl7,
        params: &[
            Param::required("input", BYTE),
            Param::optional("zero_point", BYTE).constant(),
            Param::required("scale", FLOAT).constant(),
            Param::optional("axis", I32S).constant(),
        ],
        infer: |call| {
            quantization(call)?;
            Ok(vec![TensorType { dtype: call.ty("scale")?.dtype, shape: call.ty("input")?.shape.clone() }])
        },
        tolerance: Tolerance::Rounding,
        doc: "`scale * (input - zero_point)`.",
        ..UNARY
    },
];

const EPSILON: &[Param] = &[Param::required("x", FLOAT), Param::defaulted("epsilon", FLOAT, Default::Float(1e-12))];

/// The type of the result is that of `x`.
pub(super) fn same_as_x(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    Ok(vec![call.ty("x")?.clone()])
}

/// `x` and `y` have one element type, and so has the result.
fn binary(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let (x, y) = (call.ty("x")?, call.ty("y")?);
    if x.dtype != y.dtype {
        return Err(TypeError::new("dtype-mismatch", format!("`x` is {x}, `y` is {y}: element types must be equal")));
    }
    Ok(vec![TensorType { dtype: x.dtype, shape: shape::broadcast(&x.shape, &y.shape)? }])
}

fn compare(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let mut types = binary(call)?;
    types[0].dtype = Dtype::Bool;
    Ok(types)
}

fn select(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let (cond, a, b) = (call.ty("cond")?, call.ty("a")?, call.ty("b")?);
    if a.dtype != b.dtype {
        return Err(TypeError::new("dtype-mismatch", format!("`a` is {a}, `b` is {b}: element types must be equal")));
    }
    let shape = shape::broadcast(&shape::broadcast(&a.shape, &b.shape)?, &cond.shape)?;
    Ok(vec![TensorType { dtype: a.dtype, shape }])
}

/// The element type a `dtype`-like parameter names, where it is among `allowed`.
pub(super) fn named_dtype(call: &Call<'_>, param: &str, allowed: &[Dtype]) -> Result<Dtype, TypeError> {
    let name = call.const_str(param)?;
    allowed.iter().copied().find(|d| d.name() == name).ok_or_else(|| {
        let names: Vec<&str> = allowed.iter().map(|d| d.name()).collect();
        TypeError::new("argument-value", format!("`{param}` is {name:?}, expected one of {}", names.join(", ")))
    })
}

fn cast(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    let allowed = if call.opset() < Opset::CoreMl7 { CORE } else { MOVABLE };
    Ok(vec![TensorType { dtype: named_dtype(call, "dtype", allowed)?, shape: call.ty("x")?.shape.clone() }])
}

/// Checks the scale, zero point and axis of an activation's quantisation.
fn quantization(call: &Call<'_>) -> Result<(), TypeError> {
    let (input, scale) = (call.ty("input")?, call.ty("scale")?);
    let expected = match scale.rank() {
        0 => Vec::new(),
        1 => vec![input.shape[call.const_axis("axis", input.rank())?]],
        _ => return Err(TypeError::new("rank", format!("`scale` is {scale}, expected a scalar or a vector"))),
    };
    for (name, ty) in [("scale", Some(scale)), ("zero_point", call.find_ty("zero_point"))] {
        if let Some(ty) = ty
            && !shape::shapes_agree(&ty.shape, &expected)
        {
            return Err(TypeError::new(
                "shape",
                format!("`{name}` is {ty}, expected shape {}", shape::shown(&expected)),
            ));
        }
    }
    Ok(())
}

fn quantize(call: &Call<'_>) -> Result<Vec<TensorType>, TypeError> {
    quantization(call)?;
    let dtype = named_dtype(call, "output_dtype", BYTE)?;
    if let Some(zero) = call.find_ty("zero_point")
        && zero.dtype != dtype
    {
        return Err(TypeError::new("dtype-mismatch", format!("`zero_point` is {zero}, `output_dtype` is {dtype}")));
    }
    let input = call.ty("input")?;
    Ok(vec![TensorType { dtype, shape: input.shape.clone() }])
}

"""What one op of a loaded program computes, and how far a runtime may be from it.

The values are coremltools' own: each PyMIL op has an inference in numpy for folding constants, and here it is given operands as
constants. It runs in fp32, on operands widened to fp32, so that it says what an op means and not how fp16 rounds. Where there
is none, or where it is known to be wrong, numpy written from the op's definition takes its place (`BY_HAND`), and compressed
weights are decoded here (`decode`) and held against coremltools' decoding wherever that has one.

Which class of tolerance an op has is the op table's to say (`tolerances.json`, which a test of `crates/mil` holds equal to the
table); what a class allows is said here a second time. The judge rounds to fp32 as well as the runtime, so in fp32 twice as much
is allowed.
"""

import json
import math
import pathlib

import numpy as np

from judge import Function, Refused, mb

TOLERANCE = json.loads(pathlib.Path(__file__).with_name("tolerances.json").read_text())
# What coremltools makes of a `write_state` and the `read_state` behind it.
TOLERANCE["coreml_update_state"] = TOLERANCE["read_state"]


def widened(value):
    """fp16 as fp32; everything else as it is."""
    value = np.asarray(value)
    if value.dtype == np.float64:  # numpy's own intermediate results
        return value.astype(np.float32)
    return value.astype(np.float32) if value.dtype == np.float16 else value


# --- compressed weights


def decode(op, value_of):
    """The value of a `constexpr_*` op, in numpy. Joint forms give two: the mask and the values that are not zero."""
    given = {name: np.asarray(value_of(v)) for name, v in op.inputs.items() if v is not None and not isinstance(v, (list, tuple))}
    kind = op.op_type.removeprefix("constexpr_")
    if kind == "affine_dequantize":
        q, zero, scale = given["quantized_data"], given["zero_point"], given["scale"]
        along = lambda v: v.reshape([-1 if i == int(given["axis"]) % q.ndim else 1 for i in range(q.ndim)]) if v.ndim else v
        return shifted(q, along(scale), along(zero))
    if kind == "blockwise_shift_scale":
        return shifted(given["data"], *(spread(given.get(k), given["data"].shape) for k in ("scale", "offset")))
    if kind == "lut_to_dense":
        indices, lut = given["indices"], given["lut"]
        if "shape" in given:  # iOS 16: a stream of bits
            shape = tuple(int(d) for d in given["shape"])
            bits = int(math.log2(lut.size))
            return lut[unpack(indices, bits, math.prod(shape))].reshape(shape)
        return looked_up(indices, lut, given.get("vector_axis"))
    if kind == "sparse_to_dense":
        shape = tuple(int(d) for d in given["shape"]) if "shape" in given else given["mask"].shape
        mask = unpack(given["mask"], 1, math.prod(shape)) if "shape" in given else given["mask"].ravel()
        return scattered(mask.reshape(shape), given["nonzero_data"])
    if kind == "lut_to_sparse":
        mask, lut = given["indices_mask"], given["lut"]
        dense = looked_up(scattered(mask, given["indices_nonzero_data"]), lut, given.get("vector_axis"))
        wide = mask
        if lut.shape[-1] > 1:
            wide = np.repeat(mask, lut.shape[-1], axis=int(given["vector_axis"]))
        return wide, dense[wide.astype(bool)]
    if kind == "sparse_blockwise_shift_scale":
        mask = given["data_mask"]
        dense = shifted(scattered(mask, given["nonzero_data"]), *(spread(given.get(k), mask.shape) for k in ("scale", "offset")))
        return mask, dense[mask.astype(bool)]
    if kind == "cast":
        return given["source_val"].astype({"fp32": np.float32, "fp16": np.float16}[str(given["output_dtype"])])
    raise Refused(f"{op.op_type}: an encoding this judge does not know")


def shifted(data, scale, offset):
    """`scale (data - offset)`, each step rounded to the scale's type. Integers are subtracted exactly."""
    if offset is None:
        offset = np.zeros(1, np.int8)
    wide = np.float32 if data.dtype.kind == "f" else np.int32
    return (data.astype(wide) - offset.astype(wide)).astype(scale.dtype) * scale


def spread(blocks, shape):
    """One value for each element from one for each block."""
    if blocks is None:
        return None
    for axis, (n, m) in enumerate(zip(shape, blocks.shape)):
        blocks = np.repeat(blocks, n // m, axis=axis)
    return blocks


def looked_up(indices, lut, vector_axis):
    """Table `lut` is `[groups of each dimension..., entries, length of a vector]`."""
    rank, width = indices.ndim, lut.shape[-1]
    group = [np.arange(n) // (n // g) for n, g in zip(indices.shape, lut.shape)]
    vectors = lut[(*np.ix_(*group), indices.astype(np.int64))]
    if width == 1:
        return vectors[..., 0]
    axis = int(vector_axis) % rank
    shape = [n * width if i == axis else n for i, n in enumerate(indices.shape)]
    return np.moveaxis(vectors, -1, axis + 1).reshape(shape)


def scattered(mask, values):
    dense = np.zeros(mask.shape, values.dtype)
    dense[mask.astype(bool)] = values
    return dense


def unpack(stream, bits, count):
    """Elements of that many bits from a stream, lowest bit first."""
    flat = np.unpackbits(stream.astype(np.uint8), bitorder="little")[: count * bits].reshape(count, bits)
    return (flat.astype(np.int64) << np.arange(bits)).sum(1)


# --- ops


def convolve(x, w, strides, pads, dilations, groups):
    """Cross-correlation in float64, kernel position by kernel position."""
    x = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *pads])
    spatial = range(w.ndim - 2)
    size = [(x.shape[2 + i] - (w.shape[2 + i] - 1) * dilations[i] - 1) // strides[i] + 1 for i in spatial]
    per, inner = w.shape[0] // groups, w.shape[1]
    y = np.zeros((x.shape[0], w.shape[0], *size))
    for group in range(groups):
        rows = slice(group * per, (group + 1) * per)
        for at in np.ndindex(*w.shape[2:]):
            window = tuple(slice(a * d, a * d + (n - 1) * s + 1, s) for a, d, n, s in zip(at, dilations, size, strides))
            part = x[(slice(None), slice(group * inner, (group + 1) * inner), *window)]
            y[:, rows] += np.einsum("nc...,oc->no...", part, w[(rows, slice(None), *at)].astype(np.float64))
    return y


def conv(v, magnitude=False):
    x, w = v["x"], v["weight"]
    n = x.ndim - 2
    strides, dilations = ([int(i) for i in v.get(k, np.ones(n))] for k in ("strides", "dilations"))
    kind = str(v.get("pad_type", "valid"))
    if kind == "custom":
        pads = np.asarray(v["pad"]).reshape(n, 2).tolist()
    elif kind == "valid":
        pads = [(0, 0)] * n
    else:
        reach = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations)]
        total = [max((-(-m // s) - 1) * s + r - m, 0) for m, s, r in zip(x.shape[2:], strides, reach)]
        # `same` puts the odd one behind, `same_lower` before.
        pads = [(t - t // 2, t // 2) if kind == "same_lower" else (t // 2, t - t // 2) for t in total]
    of = np.abs if magnitude else np.asarray
    y = convolve(of(x), of(w), strides, pads, dilations, int(v.get("groups", 1)))
    if v.get("bias") is not None:
        y = y + of(v["bias"]).astype(np.float64).reshape([-1] + [1] * n)
    return y


def silu(v):
    x = v["x"].astype(np.float64)
    return x / (1 + np.exp(-x))


def elu(v):
    x = v["x"].astype(np.float64)
    return np.where(x < 0, float(v["alpha"]) * np.expm1(np.minimum(x, 0)), x)


def gelu(v):
    x, mode = v["x"].astype(np.float64), str(v.get("mode", "EXACT"))
    if mode == "EXACT":
        return 0.5 * x * np.vectorize(math.erfc)(-x / math.sqrt(2))
    u = 1.702 * x if mode == "SIGMOID_APPROXIMATION" else 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return x / (1 + np.exp(-u))


def attention(v, magnitude=False):
    q, k, x = (v[n].astype(np.float64) for n in ("query", "key", "value"))
    scores = q @ np.swapaxes(k, -1, -2) / math.sqrt(q.shape[-1])
    mask = v.get("attn_mask")
    if mask is not None:
        scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask.astype(np.float64)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    if magnitude:  # of the scores' error, carried into the values, as well
        top = (np.abs(q) @ np.abs(np.swapaxes(k, -1, -2))).max(-1, keepdims=True) / math.sqrt(q.shape[-1])
        return (p @ np.abs(x)) * (1 + top)
    return p @ x


def concat(v):
    values, axis = v["values"], int(v["axis"])
    if not v.get("interleave", False):
        return np.concatenate(values, axis)
    axis %= values[0].ndim
    stacked = np.stack(values, axis + 1)
    return stacked.reshape([n * len(values) if i == axis else n for i, n in enumerate(values[0].shape)])


def squeeze(v):
    x = v["x"]
    axes = [int(a) % x.ndim for a in v["axes"]] if v.get("axes") is not None else range(x.ndim)
    return np.squeeze(x, tuple(a for a in axes if x.shape[a] == 1))


def normalised(v, axes, gamma=None, beta=None, mean=None, variance=None, magnitude=False):
    x = v["x"].astype(np.float64)
    eps = float(v.get("epsilon", 1e-5))
    mean = x.mean(axes, keepdims=True) if mean is None else mean
    variance = ((x - mean) ** 2).mean(axes, keepdims=True) if variance is None else variance
    gamma, beta = (1.0 if gamma is None else gamma), (0.0 if beta is None else beta)
    if magnitude:
        top = np.abs(x).max(axes, keepdims=True)
        return np.abs(gamma) * (top + np.abs(mean)) / np.sqrt(variance + eps) + np.abs(beta)
    return (x - mean) / np.sqrt(variance + eps) * gamma + beta


def by_channel(v, rank):
    return None if v is None else v.astype(np.float64).reshape([1, -1] + [1] * (rank - 2))


def instance_norm(v, magnitude=False):
    rank = v["x"].ndim
    affine = [by_channel(v.get(k), rank) for k in ("gamma", "beta")]
    return normalised(v, tuple(range(2, rank)), *affine, magnitude=magnitude)


def batch_norm(v):
    return normalised(v, None, *(by_channel(v.get(k), v["x"].ndim) for k in ("gamma", "beta", "mean", "variance")))


def cumsum(v):
    x, axis, back = v["x"], int(v.get("axis", 0)), bool(v.get("reverse", False))
    x = np.flip(x, axis) if back else x
    y = np.cumsum(x.astype(np.float64) if x.dtype.kind == "f" else x, axis)
    y = y - x if v.get("exclusive", False) else y
    return (np.flip(y, axis) if back else y).astype(y.dtype if x.dtype.kind == "f" else np.int32)


def gather_nd(v):
    indices, lead = v["indices"], int(v.get("batch_dims", 0))
    if lead == 0:
        return v["x"][tuple(np.moveaxis(indices, -1, 0))]
    return np.stack([gather_nd({"x": x, "indices": i, "batch_dims": lead - 1}) for x, i in zip(v["x"], indices, strict=True)])


def one_hot(v):
    indices, n = v["indices"], int(v["one_hot_vector_size"])
    hot = np.moveaxis(indices[..., None] == np.arange(n), -1, int(v.get("axis", -1)) % (indices.ndim + 1))
    return np.where(hot, v.get("on_value", 1), v.get("off_value", 0))


COMBINE = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum}


def combined(v, old):
    mode = str(v.get("mode", "add"))
    return v["updates"] if mode == "update" else COMBINE[mode](old, v["updates"])


def scatter(v):
    y = v["data"].copy()
    at = (slice(None),) * (int(v.get("axis", 0)) % y.ndim) + (v["indices"],)
    y[at] = combined(v, y[at])
    return y


def scatter_along_axis(v):
    y, axis = v["data"].copy(), int(v.get("axis", 0))
    np.put_along_axis(y, v["indices"], combined(v, np.take_along_axis(y, v["indices"], axis)), axis)
    return y


def scatter_nd(v):
    y = v["data"].copy()
    at = tuple(np.moveaxis(v["indices"], -1, 0))
    y[at] = combined(v, y[at])
    return y


# Ops without an inference in coremltools 9.0 (`conv`, `silu`, `gather_nd`, the scatters, `one_hot`, the norms by channel, attention), and those
# whose inference differs from the op's definition: `concat` overlooks `interleave`, `squeeze` refuses what the type rule
# allows, `cumsum` raises, `elu`, `gelu` and `softplus` lose digits where
# their results are near 0.
BY_HAND = {
    "conv": conv,
    "silu": silu,
    "elu": elu,
    "gelu": gelu,
    "softplus": lambda v: np.logaddexp(v["x"].astype(np.float64), 0),
    "gather_nd": gather_nd,
    "one_hot": one_hot,
    "cumsum": cumsum,
    "concat": concat,
    "squeeze": squeeze,
    "scatter": scatter,
    "scatter_along_axis": scatter_along_axis,
    "scatter_nd": scatter_nd,
    "scaled_dot_product_attention": attention,
    "instance_norm": instance_norm,
    "batch_norm": batch_norm,
}


def evaluate(op, operands, opset, exact):
    """The results of one op, a list. `operands`: name to value, or to a list of values."""
    v = {k: [widened(x) for x in x_] if isinstance(x_, list) else widened(x_) for k, x_ in operands.items()}
    kind = op.op_type
    if kind in ("cast", "quantize", "dequantize") and exact and str(v.get("dtype", "")) in ("fp16", "fp32") and v["x"].dtype.kind == "f":
        return [v["x"]]  # `exact` holds what is declared fp16 in fp32
    if kind in BY_HAND:
        result = BY_HAND[kind](v)
        return [result]
    # Copies: an inference may write to its operands (that of `thresholded_relu` does).
    v = {k: [y.copy() for y in x] if isinstance(x, list) else x.copy() for k, x in v.items()}
    given = {k: x if isinstance(x, list) else (x.item() if x.dtype.kind in "US" else x[()] if x.ndim == 0 else x) for k, x in v.items()}
    try:
        with np.errstate(all="ignore"), Function({}, opset_version=opset):
            results = getattr(mb, kind)(**given)
    except Exception as error:
        raise Refused(f"no judgement of {kind}: {type(error).__name__}: {error}") from error
    results = list(results) if isinstance(results, (list, tuple)) else [results]
    # `dequantize` keeps its value to itself, lest compressed weights be folded.
    values = [r.op.materialized_val_inference() if kind == "dequantize" else r.val for r in results]
    if any(value is None for value in values):
        raise Refused(f"no judgement of {kind}: coremltools infers no value")
    return [np.asarray(value) for value in values]


def tolerance(op, operands, expected, half):
    """How far each element may be off. `half`: whether the result is rounded to fp16."""
    kind = op.op_type
    of = TOLERANCE[kind]
    expected = np.abs(expected.astype(np.float64))
    ulp = np.maximum(expected * 2.0**-10, 2.0**-24) if half else 2 * np.maximum(expected * 2.0**-23, 1.2e-38)
    if of == "exact":
        return np.zeros_like(expected)
    if of == "rounding":
        return ulp
    if of == "accumulating":
        terms, magnitude = accumulated(kind, operands, expected)
        return ulp + 2 * terms * 2.0**-24 * magnitude
    return 4 * ulp


def accumulated(kind, operands, expected):
    """How many terms are summed for an element, and the sum of their magnitudes."""
    v = {k: x if isinstance(x, list) else widened(x) for k, x in operands.items()}
    size = lambda name: np.abs(v[name].astype(np.float64))
    if kind == "conv":
        return math.prod(v["weight"].shape[1:]) + 1, conv(v, magnitude=True)
    if kind == "linear":
        bias = size("bias") if v.get("bias") is not None else 0
        return v["x"].shape[-1] + 1, size("x") @ size("weight").T + bias
    if kind == "matmul":
        flip = lambda x, name: np.swapaxes(x, -1, -2) if x.ndim > 1 and bool(v.get(name, False)) else x
        x, y = flip(size("x"), "transpose_x"), flip(size("y"), "transpose_y")
        return x.shape[-1], x @ y
    if kind == "scaled_dot_product_attention":
        return 8 * (v["query"].shape[-1] + v["key"].shape[-2]), attention(v, magnitude=True)
    x = size("x")
    if kind == "layer_norm":
        axes = tuple(int(a) % x.ndim for a in v["axes"]) if v.get("axes") is not None else tuple(range(x.ndim))
        shape = [x.shape[i] if i in axes else 1 for i in range(x.ndim)]
        affine = [v[k].reshape(shape) if v.get(k) is not None else None for k in ("gamma", "beta")]
        return 4 * math.prod(shape), normalised(v, axes, *affine, magnitude=True)
    if kind == "instance_norm":
        return 4 * math.prod(x.shape[2:]), instance_norm(v, magnitude=True)
    if kind == "l2_norm":
        return math.prod(x.shape[-3:]), 1 + expected
    axes = v.get("axes", v.get("axis"))
    axes = tuple(range(x.ndim)) if axes is None else tuple(int(a) % x.ndim for a in np.atleast_1d(axes))
    terms = math.prod(x.shape[a] for a in axes)
    if kind == "cumsum":
        return x.shape[axes[0]], x.sum(axes, keepdims=True)
    keep = expected.ndim == x.ndim
    magnitude = {
        "reduce_sum": lambda: x.sum(axes, keepdims=keep),
        "reduce_l1_norm": lambda: expected,
        "reduce_mean": lambda: x.mean(axes, keepdims=keep),
        "reduce_sum_square": lambda: expected,
        "reduce_l2_norm": lambda: expected,
        "reduce_prod": lambda: expected,
        # Relative to the sum whose logarithm it is.
        "reduce_log_sum": lambda: x.sum(axes, keepdims=keep) / np.abs(v["x"].astype(np.float64).sum(axes, keepdims=keep)) + expected,
        "reduce_log_sum_exp": lambda: 1 + expected + x.max(axes, keepdims=keep),
    }[kind]
    return terms, magnitude()

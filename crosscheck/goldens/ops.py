"""What every op computes, case by case, in float64 numpy written from the ops' definitions.

    python ops.py OUT_FILE

Writes JSON, one case a line: `op`, `opset`, `inputs` (given when the function runs), `params` (constants), `outputs`, and for ops
that accumulate `terms` and `magnitude`: how many terms a result sums and the largest sum of their magnitudes, from which the
tolerance follows. A tensor is `{"dtype", "shape", "data"}`; data of fp16 are exactly representable in fp16, so that a
runtime sees the very numbers these results are of. The committed set is `ops.py crates/exec/tests/ops.json`; needs `numpy`.
"""

import itertools
import json
import math
import sys

import numpy as np

RNG = np.random.default_rng(20)
CASES = []
ERF = np.vectorize(math.erf)
SIGMOID = lambda x: 1 / (1 + np.exp(-x))


class T:
    """A tensor: float64 or int64 values, and the type they are given as."""

    def __init__(self, values, dtype="fp16"):
        values = np.asarray(values)
        if dtype == "fp16":
            values = values.astype(np.float16).astype(np.float64)
        elif dtype == "fp32":
            values = values.astype(np.float32).astype(np.float64)
        else:
            values = values.astype(np.int64)
        self.v, self.dtype = values, dtype

    def json(self):
        flat = self.v.ravel()
        data = [int(v) for v in flat] if self.v.dtype == np.int64 else [number(v) for v in flat]
        return {"dtype": self.dtype, "shape": list(self.v.shape), "data": data}


def number(v):
    """A float32 in as few digits as tell it from its neighbours; infinities by name."""
    v = float(v)
    return float(str(np.float32(v))) if math.isfinite(v) else str(v)


def rand(*shape, low=-2.0, high=2.0, dtype="fp16"):
    return T(RNG.uniform(low, high, shape), dtype)


def ints(*shape, low=-9, high=10, dtype="int32"):
    return T(RNG.integers(low, high, shape), dtype)


def i32(*values):
    return T(np.array(values), "int32")


def s32(value):
    return T(np.array(value), "int32")


def param(p):
    if isinstance(p, T):
        return p.json()
    if isinstance(p, bool):
        return {"dtype": "bool", "shape": [], "data": [int(p)]}
    if isinstance(p, int):
        return s32(p).json()
    if isinstance(p, str):
        return {"dtype": "string", "shape": [], "data": [p]}
    return {"dtype": "bool", "shape": [len(p)], "data": [int(b) for b in p]}


def case(op, inputs, params, outputs, terms=0, magnitude=0.0, opset="CoreML8"):
    """`outputs`: (values, dtype) or a list of them, unrounded."""
    outputs = outputs if isinstance(outputs, list) else [outputs]
    tensors = []
    for values, dtype in outputs:
        # Not rounded to fp16: the runtime under test is held against the exact value.
        t = T(values, "fp32" if dtype in ("fp16", "fp32") else dtype)
        tensors.append(t.json() | {"dtype": dtype})
    each = lambda v: [t.json() for t in v] if isinstance(v, list) else v.json()
    CASES.append(
        {
            "op": op,
            "opset": opset,
            "inputs": {k: each(v) for k, v in inputs.items()},
            "params": {k: param(v) for k, v in params.items()},
            "outputs": tensors,
            "terms": int(terms),
            "magnitude": float(magnitude),
        }
    )


def unary():
    wide = T(np.array([-20, -6, -3, -1, -0.5, -0.0, 0.0, 0.25, 0.5, 1, 2.5, 5, 11, 0.001, -0.001]).reshape(3, 5))
    unit = T(np.array([-1, -0.75, -0.3, -0.001, 0.0, 0.1, 0.5, 0.99, 1]).reshape(3, 3))
    above = T(np.array([0.001, 0.1, 0.5, 1, 1.5, 2, 7, 100, 1000]).reshape(1, 9))
    f = {
        "abs": np.abs, "sign": np.sign, "square": np.square, "relu": lambda x: np.maximum(x, 0),
        "relu6": lambda x: np.clip(x, 0, 6), "floor": np.floor, "ceil": np.ceil, "round": np.round, "exp": np.exp,
        "exp2": np.exp2, "erf": ERF, "sin": np.sin, "cos": np.cos, "tan": np.tan, "atan": np.arctan, "tanh": np.tanh,
        "sigmoid": SIGMOID, "silu": lambda x: x * SIGMOID(x), "softsign": lambda x: x / (1 + np.abs(x)),
        "softplus": lambda x: np.logaddexp(x, 0), "identity": lambda x: x,
    }
    for name, g in f.items():
        case(name, {"x": wide}, {}, (g(wide.v), "fp16"))
        x = rand(2, 3, 4, dtype="fp32")
        case(name, {"x": x}, {}, (g(x.v), "fp32"))
    for name, g in {"asin": np.arcsin, "acos": np.arccos, "sinh": np.sinh, "cosh": np.cosh}.items():
        case(name, {"x": unit}, {}, (g(unit.v), "fp16"))
    inner = T(unit.v[np.abs(unit.v) < 1].reshape(1, -1))
    case("atanh", {"x": inner}, {}, (np.arctanh(inner.v), "fp16"))
    case("sqrt", {"x": above}, {}, (np.sqrt(above.v), "fp16"))
    for name, g, default in [
        ("rsqrt", lambda x, e: 1 / np.sqrt(x + e), 0.0),
        ("log", lambda x, e: np.log(x + e), 0.0),
        ("inverse", lambda x, e: 1 / (x + e), float(np.float16(1e-4))),
    ]:
        case(name, {"x": above}, {}, (g(above.v, default), "fp16"))
        eps = T(0.01)
        case(name, {"x": above}, {"epsilon": eps}, (g(above.v, eps.v), "fp16"))
    zero = T(np.array([0.0, 1.0]))
    case("rsqrt", {"x": zero}, {}, (np.array([np.inf, 1.0]), "fp16"))
    for name in ["abs", "sign", "square"]:
        x = ints(2, 5)
        case(name, {"x": x}, {}, (f[name](x.v), "int32"))
    a, b = T(0.3), T(1.5)
    for name, g in {
        "leaky_relu": lambda x: np.where(x < 0, a.v * x, x),
        "elu": lambda x: np.where(x < 0, a.v * np.expm1(x), x),
        "thresholded_relu": lambda x: np.where(x >= a.v, x, 0),
        "threshold": lambda x: np.maximum(x, a.v),
    }.items():
        case(name, {"x": wide}, {"alpha": a}, (g(wide.v), "fp16"))
    for name, g in {
        "clip": lambda x: np.clip(x, a.v, b.v),
        "linear_activation": lambda x: a.v * x + b.v,
        "scaled_tanh": lambda x: a.v * np.tanh(b.v * x),
        "sigmoid_hard": lambda x: np.clip(a.v * x + b.v, 0, 1),
        "clamped_relu": lambda x: np.minimum(b.v, np.where(x < 0, a.v * x, x)),
    }.items():
        case(name, {"x": wide}, {"alpha": a, "beta": b}, (g(wide.v), "fp16"))
    gelu = {
        "EXACT": lambda x: 0.5 * x * (1 + ERF(x / math.sqrt(2))),
        "TANH_APPROXIMATION": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "SIGMOID_APPROXIMATION": lambda x: x * SIGMOID(1.702 * x),
    }
    near = rand(4, 5, low=-3, high=3)
    case("gelu", {"x": near}, {}, (gelu["EXACT"](near.v), "fp16"))
    for mode, g in gelu.items():
        case("gelu", {"x": near}, {"mode": mode}, (g(near.v), "fp16"))
    flags = T(np.array([[0, 1, 1]]), "bool")
    case("logical_not", {"x": flags}, {}, (1 - flags.v, "bool"))


def binary():
    shapes = [((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (3, 1)), ((1, 4), (3, 1)), ((), (2, 2)), ((2, 1, 3), (4, 1)), ((5,), ())]
    trunc = lambda a, b: np.trunc(a / b)
    f = {
        "add": (np.add, np.add), "sub": (np.subtract, np.subtract), "mul": (np.multiply, np.multiply),
        "real_div": (np.divide, trunc), "floor_div": (np.floor_divide, np.floor_divide), "mod": (np.mod, np.mod),
        "maximum": (np.maximum, np.maximum), "minimum": (np.minimum, np.minimum),
    }
    for (name, (g, h)), (sa, sb) in zip(itertools.cycle(f.items()), shapes * 4):
        x, y = rand(*sa), rand(*sb, low=0.25)
        case(name, {"x": x, "y": y}, {}, (g(x.v, y.v), "fp16"))
        case(name, {"x": x}, {"y": y}, (g(x.v, y.v), "fp16"))
        x, y = ints(*sa), ints(*sb, low=1)
        y.v[...] = np.where(RNG.random(y.v.shape) < 0.5, -y.v, y.v)
        case(name, {"x": x, "y": y}, {}, (h(x.v, y.v), "int32"))
    x, y = rand(3, 4, low=0.1), rand(3, 1)
    case("pow", {"x": x, "y": y}, {}, (x.v**y.v, "fp16"))
    case("pow", {"x": rand(3, 4)}, {"y": T(2.0)}, (np.array(0), "fp16"))
    CASES[-1]["outputs"][0].update(T(np.array(CASES[-1]["inputs"]["x"]["data"]).reshape(3, 4) ** 2, "fp32").json() | {"dtype": "fp16"})
    x = ints(2, 3, low=-3, high=4)
    case("pow", {"x": x}, {"y": s32(3)}, (x.v**3, "int32"))
    for name, g in {
        "greater": np.greater, "greater_equal": np.greater_equal, "less": np.less, "less_equal": np.less_equal,
        "equal": np.equal, "not_equal": np.not_equal,
    }.items():
        x, y = T(RNG.integers(0, 3, (3, 4))), T(RNG.integers(0, 3, (4,)))
        case(name, {"x": x, "y": y}, {}, (g(x.v, y.v), "bool"))
        x, y = ints(3, 1, low=0, high=3), ints(1, 4, low=0, high=3)
        case(name, {"x": x, "y": y}, {}, (g(x.v, y.v), "bool"))
    for name, g in {"logical_and": np.bitwise_and, "logical_or": np.bitwise_or, "logical_xor": np.bitwise_xor}.items():
        x, y = ints(3, 4, low=0, high=2, dtype="bool"), ints(4, low=0, high=2, dtype="bool")
        case(name, {"x": x, "y": y}, {}, (g(x.v, y.v), "bool"))
    c, a, b = ints(2, 1, 3, low=0, high=2, dtype="bool"), rand(2, 4, 3), rand(4, 1)
    case("select", {"cond": c, "a": a, "b": b}, {}, (np.where(c.v, a.v, b.v), "fp16"))
    c, a, b = ints(2, 3, low=0, high=2, dtype="bool"), ints(2, 3), ints(2, 3)
    case("select", {"cond": c, "a": a, "b": b}, {}, (np.where(c.v, a.v, b.v), "int32"))


def casts():
    x = T(np.array([1.7, -1.7, 2.5, -2.5, 0.0, 100.25, 0.4]))
    case("cast", {"x": x}, {"dtype": "int32"}, (np.trunc(x.v), "int32"))
    case("cast", {"x": x}, {"dtype": "fp32"}, (x.v, "fp32"))
    case("cast", {"x": x}, {"dtype": "bool"}, (x.v != 0, "bool"))
    x = ints(6, low=-300, high=300)
    case("cast", {"x": x}, {"dtype": "fp16"}, (x.v, "fp16"))
    case("cast", {"x": x}, {"dtype": "bool"}, (x.v != 0, "bool"))
    case("cast", {"x": T(np.arange(5), "int32")}, {"dtype": "uint16"}, (np.arange(5), "uint16"))
    case("cast", {"x": T([0, 1], "bool")}, {"dtype": "fp32"}, ([0, 1], "fp32"))
    x, scale = rand(2, 3, low=-4, high=4), T(np.float16(0.0313))
    q = np.clip(np.rint(x.v / scale.v) + 3, -128, 127)
    case("quantize", {"input": x}, {"scale": scale, "zero_point": T(3, "int8"), "output_dtype": "int8"}, (q, "int8"))
    scales = T(np.array([0.5, 0.0313, 0.25]))
    q = np.clip(np.rint(x.v / scales.v), 0, 255)
    case("quantize", {"input": x}, {"scale": scales, "axis": 1, "output_dtype": "uint8"}, (q, "uint8"))
    x = ints(2, 3, low=-128, high=128, dtype="int8")
    zero = T([1, -2, 3], "int8")
    case("dequantize", {"input": x}, {"scale": scales, "zero_point": zero, "axis": -1}, (scales.v * (x.v - zero.v), "fp16"))
    case("dequantize", {"input": x}, {"scale": scale}, (scale.v * x.v, "fp16"))


def convolve(x, w, strides, pads, dilations, groups):
    """Cross-correlation by the definition, one product after another."""
    spatial = x.ndim - 2
    x = np.pad(x, [(0, 0), (0, 0)] + pads)
    reach = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations)]
    out = [(n - r) // s + 1 for n, r, s in zip(x.shape[2:], reach, strides)]
    y = np.zeros([x.shape[0], w.shape[0]] + out)
    per = w.shape[0] // groups
    for n, o, *at in np.ndindex(*y.shape):
        for c, *k in np.ndindex(*w.shape[1:]):
            place = tuple(at[i] * strides[i] + k[i] * dilations[i] for i in range(spatial))
            y[(n, o, *at)] += x[(n, o // per * w.shape[1] + c, *place)] * w[(o, c, *k)]
    return y


def same(n, k, s, d, lower):
    total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
    return ((total + 1) // 2, total // 2) if lower else (total // 2, total - total // 2)


def conv():
    def add(xs, ws, bias=True, pad_type=None, pad=None, strides=None, dilations=None, groups=1, dtype="fp16"):
        x, w = rand(*xs, dtype=dtype), rand(*ws, dtype=dtype)
        b = rand(ws[0], dtype=dtype) if bias else None
        n = len(xs) - 2
        params = {"weight": w}
        st, di = strides or [1] * n, dilations or [1] * n
        pads = [(0, 0)] * n
        if bias:
            params["bias"] = b
        if strides:
            params["strides"] = i32(*strides)
        if dilations:
            params["dilations"] = i32(*dilations)
        if groups != 1:
            params["groups"] = groups
        if pad:
            params["pad"] = i32(*pad)
        if pad_type:
            params["pad_type"] = pad_type
        if pad_type == "custom":
            pads = [(pad[2 * i], pad[2 * i + 1]) for i in range(n)]
        elif pad_type in ("same", "same_lower"):
            pads = [same(xs[2 + i], ws[2 + i], st[i], di[i], pad_type == "same_lower") for i in range(n)]
        run = lambda x, w, b: convolve(x, w, st, pads, di, groups) + b.reshape([-1] + [1] * n)
        bv = b.v if bias else np.zeros(ws[0])
        terms = int(np.prod(ws[1:])) + 1
        case("conv", {"x": x}, params, (run(x.v, w.v, bv), dtype), terms, run(abs(x.v), abs(w.v), abs(bv)).max())

    add((1, 5, 1, 1), (7, 5, 1, 1))
    add((1, 67, 1, 1), (3, 67, 1, 1), bias=False)
    add((1, 40, 6, 1), (9, 40, 1, 1))
    add((2, 3, 2, 2), (4, 3, 1, 1), bias=False, dtype="fp32")
    add((1, 3, 9), (4, 3, 3))
    add((1, 3, 9), (4, 3, 3), pad_type="custom", pad=[1, 2], strides=[2])
    add((1, 4, 6, 5), (6, 2, 3, 2), groups=2, pad_type="same", strides=[2, 1])
    add((1, 4, 6, 5), (6, 2, 3, 2), groups=2, pad_type="same_lower", strides=[1, 2])
    add((2, 4, 7, 5), (4, 1, 3, 3), groups=4, dilations=[2, 1], pad_type="custom", pad=[2, 2, 1, 1])
    add((1, 2, 4, 3, 4), (3, 2, 2, 2, 3), pad_type="custom", pad=[1, 0, 0, 1, 1, 1], strides=[1, 2, 1])
    add((1, 3, 8), (2, 3, 2), pad_type="valid", pad=[3, 3])
    # The weight may be computed at run time.
    x, w = rand(1, 4, 3, 1), rand(2, 4, 1, 1)
    y = convolve(x.v, w.v, [1, 1], [(0, 0)] * 2, [1, 1], 1)
    case("conv", {"x": x, "weight": w}, {}, (y, "fp16"), 4, 16)


def products():
    def mm(a, b, tx=False, ty=False, dtype="fp16"):
        gen = ints if dtype == "int32" else lambda *s: rand(*s, dtype=dtype)
        x, y = gen(*a), gen(*b)
        flip = lambda v, t: np.swapaxes(v, -1, -2) if t and v.ndim > 1 else v
        run = lambda x, y: np.matmul(flip(x, tx), flip(y, ty))
        params = {k: v for k, v in {"transpose_x": tx, "transpose_y": ty}.items() if v}
        k = a[-2] if tx and len(a) > 1 else a[-1]
        case("matmul", {"x": x, "y": y}, params, (run(x.v, y.v), dtype), k, abs(run(abs(x.v), abs(y.v))).max())

    for tx, ty in itertools.product([False, True], repeat=2):
        a, b = ((7, 3) if tx else (3, 7)), ((5, 7) if ty else (7, 5))
        mm((2, *a), (2, *b), tx, ty)
        mm(a, b, tx, ty, "int32")
        mm((2, 1, *a), (4, *b), tx, ty, "fp32")
    mm((1, 4, 1, 8), (1, 1, 32, 8), ty=True)
    mm((1, 2, 3, 40), (1, 2, 40, 5))
    mm((4,), (4,))
    mm((4,), (2, 4, 3))
    mm((2, 3, 4), (4,))
    mm((5,), (5, 6), tx=True, ty=False)
    for xs in [(3,), (2, 3), (2, 2, 3), (2, 1, 2, 3)]:
        x, w, b = rand(*xs), rand(4, 3), rand(4)
        top = (abs(x.v) @ abs(w.v).T + abs(b.v)).max()
        case("linear", {"x": x}, {"weight": w, "bias": b}, (x.v @ w.v.T + b.v, "fp16"), 4, top)
        case("linear", {"x": x}, {"weight": w}, (x.v @ w.v.T, "fp16"), 3, top)
    x, w = ints(2, 3), ints(4, 3)
    case("linear", {"x": x}, {"weight": w}, (x.v @ w.v.T, "int32"))
    for lead, l, s, e, ev, mask in [
        ((2,), 3, 4, 5, 2, None), ((1, 2), 1, 6, 4, 4, "float"), ((2, 2), 3, 3, 4, 3, "bool"), ((1, 2, 2), 2, 3, 4, 5, "row"),
    ]:
        q, k, v = rand(*lead, l, e), rand(*lead, s, e), rand(*lead, s, ev)
        scores = q.v @ np.swapaxes(k.v, -1, -2) / math.sqrt(e)
        inputs = {"query": q, "key": k, "value": v}
        if mask == "float":
            m = rand(l, s)
            scores = scores + m.v
            inputs["attn_mask"] = m
        elif mask == "row":
            m = T(np.where(np.arange(s) < s - 1, 0.0, -1e4).reshape(1, s))
            scores = scores + m.v
            inputs["attn_mask"] = m
        elif mask == "bool":
            m = T(np.tril(np.ones((l, s))), "bool")
            scores = np.where(m.v != 0, scores, -np.inf)
            inputs["attn_mask"] = m
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        case("scaled_dot_product_attention", inputs, {}, (p @ v.v, "fp16"), 8 * (e + s), abs(p @ abs(v.v)).max())


def norms():
    for shape, axis in [((2, 5), None), ((2, 3, 4), 1), ((3, 4), 0), ((1, 2, 2, 9), -1)]:
        x = rand(*shape, low=-6, high=6)
        p = np.exp(x.v - x.v.max(axis if axis is not None else -1, keepdims=True))
        y = p / p.sum(axis if axis is not None else -1, keepdims=True)
        case("softmax", {"x": x}, {} if axis is None else {"axis": axis}, (y, "fp16"))
    mask = T(np.array([[1.0, -1e4, 2.0, -1e4]]))
    p = np.exp(mask.v - 2.0)
    case("softmax", {"x": mask}, {}, (p / p.sum(), "fp16"))
    eps = float(np.float16(1e-5))
    for shape, axes, affine in [((2, 3, 4), (2,), True), ((2, 3, 4), (1, 2), True), ((2, 3, 4), (1,), True), ((3, 4), None, False)]:
        x = rand(*shape)
        ax = axes or tuple(range(len(shape)))
        inner = tuple(shape[a] for a in ax)
        bcast = tuple(n if i in ax else 1 for i, n in enumerate(shape))
        y = (x.v - x.v.mean(ax, keepdims=True)) / np.sqrt(x.v.var(ax, keepdims=True) + eps)
        params = {} if axes is None else {"axes": i32(*axes)}
        if affine:
            g, b = rand(*inner), rand(*inner)
            params |= {"gamma": g, "beta": b}
            y = y * g.v.reshape(bcast) + b.v.reshape(bcast)
        case("layer_norm", {"x": x}, params, (y, "fp16"), 4 * int(np.prod(inner)), 8.0)
    for shape in [(2, 3, 4), (2, 2, 3, 2), (2, 1, 2, 2, 2)]:
        x = rand(*shape)
        e = float(np.float16(1e-6))
        y = x.v / np.sqrt((x.v**2).sum((-1, -2, -3), keepdims=True) + e)
        case("l2_norm", {"x": x}, {}, (y, "fp16"), 24, 1.0)
    for shape in [(2, 3, 4), (1, 2, 3, 3), (1, 2, 2, 2, 2)]:
        x = rand(*shape)
        c = shape[1]
        by = lambda t: t.v.reshape([1, c] + [1] * (len(shape) - 2))
        g, b, m, v = rand(c), rand(c), rand(c), rand(c, low=0.5)
        y = (x.v - by(m)) / np.sqrt(by(v) + eps)
        case("batch_norm", {"x": x}, {"mean": m, "variance": v}, (y, "fp32"))
        CASES[-1]["outputs"][0]["dtype"] = "fp16"
        ax = tuple(range(2, len(shape)))
        y = (x.v - x.v.mean(ax, keepdims=True)) / np.sqrt(x.v.var(ax, keepdims=True) + eps)
        case("instance_norm", {"x": x}, {"gamma": g, "beta": b}, (y * by(g) + by(b), "fp16"), 40, 8.0)


def reductions():
    f = {
        "reduce_sum": lambda x, **k: x.sum(**k), "reduce_mean": lambda x, **k: x.mean(**k),
        "reduce_max": lambda x, **k: x.max(**k), "reduce_min": lambda x, **k: x.min(**k),
        "reduce_prod": lambda x, **k: x.prod(**k), "reduce_sum_square": lambda x, **k: (x * x).sum(**k),
        "reduce_l1_norm": lambda x, **k: abs(x).sum(**k), "reduce_l2_norm": lambda x, **k: np.sqrt((x * x).sum(**k)),
        "reduce_log_sum": lambda x, **k: np.log(x.sum(**k)), "reduce_log_sum_exp": lambda x, **k: np.log(np.exp(x).sum(**k)),
    }
    shape = (2, 3, 4)
    for name, g in f.items():
        for axes, keep in [(None, False), ((1,), True), ((-1,), False), ((0, 2), False), ((0, 2), True), ((0, 1), False)]:
            x = rand(*shape, low=0.5)
            params = {} if axes is None else {"axes": i32(*axes)}
            if keep:
                params["keep_dims"] = True
            y = g(x.v, axis=axes, keepdims=keep)
            case(name, {"x": x}, params, (y, "fp16"), 24, max(24 * 4.0, float(np.max(np.abs(y))) * 2))
        if name not in ("reduce_l2_norm", "reduce_log_sum", "reduce_log_sum_exp", "reduce_mean"):
            x = ints(*shape, low=1, high=4)
            case(name, {"x": x}, {"axes": i32(1)}, (g(x.v, axis=1), "int32"))
    x = T(np.array([[1000.0, 1000.0], [-1000.0, -1000.0]]))
    case("reduce_log_sum_exp", {"x": x}, {"axes": i32(1)}, (np.array([1000, -1000]) + math.log(2), "fp16"), 2, 1000)
    order = T(RNG.permutation(24).reshape(shape))
    for axis, keep in [(None, False), (1, True), (0, False)]:
        params = ({} if axis is None else {"axis": axis}) | ({"keep_dims": True} if keep else {})
        ax = -1 if axis is None else axis
        expand = lambda v: np.expand_dims(v, ax) if keep else v
        case("reduce_argmax", {"x": order}, params, (expand(order.v.argmax(ax)), "int32"))
        case("reduce_argmin", {"x": order}, params | {"output_dtype": "uint16"}, (expand(order.v.argmin(ax)), "uint16"))
    big = T(np.array([2**24, 2**24 + 1, 5]), "int32")
    case("reduce_argmax", {"x": big}, {}, (1, "int32"))
    for axis, exclusive, reverse in [(0, False, False), (1, True, False), (2, False, True), (1, True, True)]:
        for x, dtype in [(rand(*shape), "fp16"), (ints(*shape), "int32")]:
            v = np.flip(x.v, axis) if reverse else x.v
            y = np.cumsum(v, axis) - (v if exclusive else 0)
            y = np.flip(y, axis) if reverse else y
            flags = {"axis": axis} | ({"exclusive": True} if exclusive else {}) | ({"reverse": True} if reverse else {})
            case("cumsum", {"x": x}, flags, (y, dtype), 4, 8.0)
    for k, axis, ascending in [(2, None, False), (1, 0, False), (3, 1, True), (-1, 2, False)]:
        ax = -1 if axis is None else axis
        idx = np.argsort(order.v if ascending else -order.v, axis=ax)
        idx = np.take(idx, range(order.v.shape[ax] if k == -1 else k), axis=ax)
        params = {"k": k} | ({} if axis is None else {"axis": axis}) | ({"ascending": True} if ascending else {})
        case("topk", {"x": order}, params, [(np.take_along_axis(order.v, idx, ax), "fp16"), (idx, "int32")])
        case("argsort", {"x": order}, {"axis": ax, "ascending": ascending}, (np.argsort(order.v if ascending else -order.v, axis=ax), "int32"))
    vals = np.sort(order.v, axis=-1)[..., ::-1][..., :2]
    idx = np.argsort(-order.v, axis=-1)[..., :2]
    case("topk", {"x": order}, {"k": 2, "output_indices_dtype": "uint16"}, [(vals, "fp16"), (idx, "uint16")])


def layout():
    def reshape(shape, to, expect, opset="CoreML8"):
        x = rand(*shape)
        case("reshape", {"x": x}, {"shape": i32(*to)}, (x.v.reshape(expect), "fp16"), opset=opset)

    reshape((2, 3, 4), (6, 4), (6, 4))
    reshape((2, 3, 4), (4, -1), (4, 6))
    # Zeros align from the right since iOS 17; before, the ranks had to be equal.
    reshape((2, 3, 4), (0, -1), (3, 8))
    reshape((2, 3, 4), (0, -1, 2), (2, 6, 2), opset="CoreML6")
    reshape((2, 3, 4), (-1, 0), (6, 4))
    reshape((2, 3, 4), (2, 0, 0), (2, 3, 4))
    x = ints(2, 3)
    case("reshape", {"x": x}, {"shape": i32(3, 2)}, (x.v.reshape(3, 2), "int32"))
    for shape, perm in [((2, 3), (1, 0)), ((2, 3, 4), (2, 0, 1)), ((1, 3, 1, 4), (0, 2, 1, 3)), ((2, 3, 4, 5), (0, 2, -1, 1)), ((2, 2, 1, 3, 2), (4, 1, 0, 3, 2))]:
        x = rand(*shape)
        case("transpose", {"x": x}, {"perm": i32(*perm)}, (np.transpose(x.v, [p % len(shape) for p in perm]), "fp16"))
    x = rand(3, 4)
    case("expand_dims", {"x": x}, {"axes": i32(0, -1)}, (x.v.reshape(1, 3, 4, 1), "fp16"))
    case("expand_dims", {"x": x}, {"axes": i32(1)}, (x.v.reshape(3, 1, 4), "fp16"))
    x = rand(1, 3, 1, 4)
    case("squeeze", {"x": x}, {}, (x.v.reshape(3, 4), "fp16"))
    case("squeeze", {"x": x}, {"axes": i32(-2)}, (x.v.reshape(1, 3, 4), "fp16"))
    for shapes, axis in [([(2, 3), (2, 1), (2, 2)], 1), ([(1, 2, 2), (3, 2, 2)], 0), ([(2, 2, 3)] * 2, -1), ([(2, 2)], 0)]:
        xs = [rand(*s) for s in shapes]
        case("concat", {"values": xs}, {"axis": axis}, (np.concatenate([x.v for x in xs], axis), "fp16"))
    xs = [rand(2, 3, 2) for _ in range(3)]
    y = np.stack([x.v for x in xs], 2).reshape(2, 9, 2)
    case("concat", {"values": xs}, {"axis": 1, "interleave": True}, (y, "fp16"))
    xs = [ints(2, 3) for _ in range(2)]
    for axis in [0, 1, -1]:
        case("stack", {"values": xs}, {"axis": axis}, (np.stack([x.v for x in xs], axis), "int32"))
    for shape, axis in [((6, 2), 0), ((2, 6), 1), ((1, 6, 2), -2)]:
        x = rand(*shape)
        case("split", {"x": x}, {"num_splits": 3, "axis": axis}, [(y, "fp16") for y in np.split(x.v, 3, axis)])
        case("split", {"x": x}, {"split_sizes": i32(1, 3, 2), "axis": axis}, [(y, "fp16") for y in np.split(x.v, [1, 4], axis)])
    x = rand(3, 4, 5)
    S = slice
    for begin, end, extra, at in [
        ((0, 1, 2), (2, 3, 5), {}, (S(0, 2), S(1, 3), S(2, 5))),
        ((-2, 0, -4), (3, -1, -1), {}, (S(1, 3), S(0, 3), S(1, 4))),
        ((0, 0, 4), (3, 4, 0), {"stride": i32(2, 3, -2)}, (S(0, 3, 2), S(0, 4, 3), S(4, 0, -2))),
        ((1, 1, 1), (2, 2, 2), {"begin_mask": [True, False, False], "end_mask": [False, True, False]}, (S(0, 2), S(1, 4), S(1, 2))),
        ((1, 0, -1), (0, 4, 0), {"squeeze_mask": [True, False, True]}, (1, S(0, 4), -1)),
        ((0, 0, 0), (0, 0, 0), {"stride": i32(1, 1, -1), "begin_mask": [True] * 3, "end_mask": [True] * 3}, (S(None), S(None), S(None, None, -1))),
        ((1, 0, 0), (2, 4, 5), {}, (S(1, 2), S(0, 4), S(0, 5))),
    ]:
        case("slice_by_index", {"x": x}, {"begin": i32(*begin), "end": i32(*end)} | extra, (x.v[at], "fp16"))
        case("slice_by_index", {"x": x, "begin": i32(*begin), "end": i32(*end)}, extra, (x.v[at], "fp16"))
        u = T(RNG.uniform(-1, 1, x.v[at].shape))
        y = x.v.copy()
        y[at] = u.v
        case("slice_update", {"x": x, "update": u}, {"begin": i32(*begin), "end": i32(*end)} | extra, (y, "fp16"))
    case("slice_by_size", {"x": x}, {"begin": i32(1, 0, 2), "size": i32(2, -1, 1)}, (x.v[1:3, :, 2:3], "fp16"))
    case("slice_by_size", {"x": x, "begin": i32(1, 2, 3)}, {"size": i32(1, 2, -1)}, (x.v[1:2, 2:4, 3:], "fp16"))
    x = rand(2, 3)
    case("tile", {"x": x}, {"reps": i32(3, 2)}, (np.tile(x.v, (3, 2)), "fp16"))
    x = rand(1, 2, 4)
    modes = {"constant": {"constant_values": 1.5}, "reflect": {"mode": "reflect"}, "replicate": {"mode": "edge"}}
    for mode, kw in modes.items():
        extra = {"constant_val": T(1.5)} if mode == "constant" else {}
        y = np.pad(x.v, [(0, 0), (0, 0), (2, 3)], **kw)
        case("pad", {"x": x}, {"pad": i32(2, 3), "mode": mode} | extra, (y, "fp16"))
        y = np.pad(x.v, [(0, 0), (1, 1), (0, 2)], **kw)
        case("pad", {"x": x}, {"pad": i32(1, 1, 0, 2), "mode": mode} | extra, (y, "fp16"))
    case("pad", {"x": x}, {"pad": i32(0, 0, 1, 0, 0, 1)}, (np.pad(x.v, [(0, 0), (1, 0), (0, 1)]), "fp16"))
    x = rand(2, 3, 2)
    case("reverse", {"x": x}, {"axes": i32(0, -1)}, (np.flip(x.v, (0, 2)), "fp16"))
    case("reverse", {"x": x}, {}, (np.flip(x.v), "fp16"))
    x = rand(2, 4, 5)
    for lower, upper in [(-1, -1), (1, 0), (0, -1), (-1, 2)]:
        m, n = np.indices((4, 5))
        keep = ((lower < 0) | (m - n <= lower)) & ((upper < 0) | (n - m <= upper))
        case("band_part", {"x": x}, {"lower": lower, "upper": upper}, (np.where(keep, x.v, 0), "fp16"))


def indexing():
    x = rand(4, 3, 5)
    for idx, axis in [(i32(3, 0, 0), 0), (T([[1, 2], [0, 1]], "int32"), 1), (s32(2), -1), (T([4, 1], "uint16"), 2)]:
        case("gather", {"x": x, "indices": idx}, {"axis": axis}, (np.take(x.v, idx.v, axis), "fp16"))
    case("gather", {"x": x}, {"indices": i32(2, 1), "axis": 0, "validate_indices": True}, (x.v[[2, 1]], "fp16"))
    case("gather", {"x": x, "indices": i32(-1, 0)}, {"axis": 0}, (x.v[[-1, 0]], "fp16"), opset="CoreML6")
    table = rand(300, 16)
    case("gather", {"indices": i32(299, 7, 0)}, {"x": table, "axis": 0}, (table.v[[299, 7, 0]], "fp16"))
    b, idx = rand(2, 3, 4), T([[2, 0], [1, 1]], "int32")
    y = np.stack([b.v[i][idx.v[i]] for i in range(2)])
    case("gather", {"x": b, "indices": idx}, {"axis": 1, "batch_dims": 1}, (y, "fp16"))
    idx = T(RNG.integers(0, 3, (4, 2, 5)), "int32")
    case("gather_along_axis", {"x": x, "indices": idx}, {"axis": 1}, (np.take_along_axis(x.v, idx.v, 1), "fp16"))
    idx = T([[0, 2], [3, 1]], "int32")
    case("gather_nd", {"x": x, "indices": idx}, {}, (np.stack([x.v[0, 2], x.v[3, 1]]), "fp16"))
    idx = T([[[0, 1]], [[2, 3]]], "int32")
    case("gather_nd", {"x": b, "indices": idx}, {"batch_dims": 1}, (np.array([[b.v[0, 0, 1]], [b.v[1, 2, 3]]]), "fp16"))
    modes = {
        "update": lambda d, u: u, "add": lambda d, u: d + u, "sub": lambda d, u: d - u, "mul": lambda d, u: d * u,
        "div": lambda d, u: d / u, "max": max, "min": min,
    }
    for mode, f in modes.items():
        d, u = rand(3, 2), rand(2, 2, low=0.5)
        y = d.v.copy()
        for j, i in enumerate([2, 0]):
            for c in range(2):
                y[i, c] = f(y[i, c], u.v[j, c])
        case("scatter", {"data": d, "indices": i32(2, 0), "updates": u}, {"mode": mode, "axis": 0}, (y, "fp16"))
        d, u = ints(2, 3), ints(2, 1)
        y = d.v.copy()
        if mode != "div":
            for r in range(2):
                y[r, 1 - r] = f(y[r, 1 - r], u.v[r, 0])
            case("scatter_along_axis", {"data": d, "indices": T([[1], [0]], "int32"), "updates": u}, {"mode": mode, "axis": 1}, (y, "int32"))
        d, u = rand(3, 2, 2), rand(2, 2, low=0.5)
        y = d.v.copy()
        for j, at in enumerate([(1, 0), (2, 1)]):
            for c in range(2):
                y[at][c] = f(y[at][c], u.v[j, c])
        case("scatter_nd", {"data": d, "indices": T([[1, 0], [2, 1]], "int32"), "updates": u}, {"mode": mode}, (y, "fp16"))
    d, u = ints(3), i32(5, 7)
    y = d.v.copy()
    y[1] += 12
    case("scatter", {"data": d, "indices": i32(1, 1), "updates": u}, {}, (y, "int32"))
    y = np.array([[0, 1, 0], [0, 0, 0], [1, 0, 0]])
    case("one_hot", {"indices": i32(1, 5, 0)}, {"one_hot_vector_size": 3}, (y, "int32"))
    on, off = T(2.0), T(-1.0)
    params = {"one_hot_vector_size": 3, "axis": 0, "on_value": on, "off_value": off}
    case("one_hot", {"indices": i32(1, 2)}, params, (np.where(np.eye(3)[:, [1, 2]] == 1, 2.0, -1.0), "fp16"))
    for a, b, s in [(0, 5, 1), (5, 0, -2), (1, 9, 3), (3, 3, 1)]:
        case("range_1d", {"start": s32(a)}, {"end": s32(b), "step": s32(s)}, (np.arange(a, b, s), "int32"))
    case("range_1d", {"start": T(0.5)}, {"end": T(2.0), "step": T(0.5)}, ([0.5, 1.0, 1.5], "fp16"))
    case("fill", {"shape": i32(2, 3)}, {"value": T(1.5)}, (np.full((2, 3), 1.5), "fp16"))
    case("fill", {"shape": i32(2)}, {"value": s32(7)}, ([7, 7], "int32"))
    case("fill_like", {"ref_tensor": ints(2, 2)}, {"value": T(0.25)}, (np.full((2, 2), 0.25), "fp16"))
    case("shape", {"x": rand(2, 3, 4)}, {}, ([2, 3, 4], "int32"))
    x = T([[0, 2, 0], [1, 0, 3]], "int32")
    case("non_zero", {"x": x}, {}, (np.argwhere(x.v), "int32"))


def tails():
    """Where `1 + erf` and `1 + tanh` have lost every digit."""
    x = T(np.array([-12, -9, -7.5, -6.668791, -5, -4, -3.5, -2.25]), "fp32")
    case("gelu", {"x": x}, {}, (0.5 * x.v * np.vectorize(math.erfc)(-x.v / math.sqrt(2)), "fp32"))
    u = math.sqrt(2 / math.pi) * (x.v + 0.044715 * x.v**3)
    case("gelu", {"x": x}, {"mode": "TANH_APPROXIMATION"}, (x.v * SIGMOID(2 * u), "fp32"))


def main():
    for family in (unary, binary, casts, conv, products, norms, reductions, layout, indexing, tails):
        family()
    with open(sys.argv[1], "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in CASES) + "\n]\n")


main()

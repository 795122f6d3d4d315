"""Random packages, written by coremltools.

A seed decides everything: the opset (iOS 15 to 18), the float type, what kind of package it is (plain, stateful, with flexible
shapes, with several functions), a graph of random ops on what is there, and how its weights are encoded: by coremltools'
own compression of the finished model, or, for what that does not make (vector and quantised palettes, joint forms, odd
blocks), by `constexpr` ops put into the graph.
"""

import logging
import pathlib
import shutil
import tempfile

import numpy as np

import coremltools.optimize.coreml as cto
from judge import Program, ct, mb, types
from coremltools.converters.mil.mil import Function, get_new_symbol

# A pass that stumbles (see `make`) says so at length.
logging.disable(logging.CRITICAL)

OPSETS = {15: ct.target.iOS15, 16: ct.target.iOS16, 17: ct.target.iOS17, 18: ct.target.iOS18}
UNSIGNED = {1: types.np_uint1_dtype, 2: types.np_uint2_dtype, 3: types.np_uint3_dtype, 4: types.np_uint4_dtype, 6: types.np_uint6_dtype, 8: np.uint8}
LIMIT = 4096  # elements of a value


class Graph:
    """A function in the making: its floats, integers and truths, any of which the next op may take."""

    def __init__(self, rng, opset, dtype):
        self.rng, self.opset, self.dtype = rng, opset, dtype
        self.floats, self.ints, self.bools, self.used = [], [], [], set()

    def pick(self, values, rank=None, where=lambda v: True):
        good = [v for v in values if (rank is None or v.rank in np.atleast_1d(rank)) and where(v)]
        if not good:
            return None
        # The latest are likelier, so that graphs are deep as well as wide.
        v = good[-1] if self.rng.random() < 0.4 else good[self.rng.integers(len(good))]
        self.used.add(v)
        return v

    def float(self, rank=None, where=lambda v: True):
        return self.pick(self.floats, rank, where)

    def add(self, result):
        for v in result if isinstance(result, (list, tuple)) else [result]:
            if v.val is not None:
                continue  # folded: no op of the program
            (self.bools if types.is_bool(v.dtype) else self.ints if types.is_int(v.dtype) else self.floats).append(v)

    def number(self, value):
        return self.dtype(value)

    def random(self, *shape, low=-1.0, high=1.0):
        return self.rng.uniform(low, high, shape).astype(self.dtype)

    def axis(self, x):
        return int(self.rng.integers(-x.rank, x.rank))

    def flip(self, p=0.5):
        return bool(self.rng.random() < p)


def fixed(v):
    return all(isinstance(d, (int, np.integer)) for d in v.shape)


# --- ops. Each takes a graph and gives a value, several, or None where nothing there suits it.


def unary(g):
    x = g.float()
    name = str(g.rng.choice(
        "abs sign square relu relu6 floor ceil round sin cos atan erf tanh sigmoid silu softsign softplus identity exp exp2 sqrt rsqrt "
        "log inverse asin acos sinh cosh atanh tan elu leaky_relu thresholded_relu threshold clip linear_activation scaled_tanh "
        "sigmoid_hard clamped_relu gelu".split()
    ))
    more = {}
    if name in ("exp", "exp2", "sinh", "cosh"):
        x = mb.clip(x=x, alpha=g.number(-4), beta=g.number(4))
    elif name in ("sqrt", "rsqrt", "log", "inverse"):
        x = mb.add(x=mb.abs(x=x), y=g.number(0.25))
        if name != "sqrt":
            more = {"epsilon": g.number(0.125)}
    elif name in ("asin", "acos", "atanh", "tan"):
        x = mb.clip(x=x, alpha=g.number(-0.9), beta=g.number(0.9))
    elif name in ("elu", "leaky_relu", "thresholded_relu", "threshold"):
        more = {"alpha": g.number(0.3)}
    elif name in ("clip", "linear_activation", "scaled_tanh", "sigmoid_hard", "clamped_relu"):
        more = {"alpha": g.number(0.3), "beta": g.number(1.5)}
    elif name == "gelu":
        more = {"mode": str(g.rng.choice(["EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION"]))}
    return getattr(mb, name)(x=x, **more)


def binary(g):
    x = g.float()
    y = g.float(where=lambda v: v.shape == x.shape)
    if g.flip(0.4) or y is None:
        shape = [int(d) if g.flip() else 1 for d in x.shape] if fixed(x) else [1] * x.rank
        y = g.random(*shape[g.rng.integers(x.rank):])
    name = str(g.rng.choice("add sub mul real_div maximum minimum pow floor_div mod".split()))
    if name == "pow":
        x, y = mb.sigmoid(x=x), g.number(g.rng.choice([-1.5, 0.5, 2, 3]))
    if name in ("real_div", "floor_div", "mod"):
        y = g.random(low=0.75, high=4.0) if not isinstance(y, np.ndarray) or g.flip() else np.where(y < 0, y - 1, y + 1).astype(g.dtype)
        if name != "real_div":
            x = mb.clip(x=x, alpha=g.number(-50), beta=g.number(50))
    return getattr(mb, name)(x=x, y=y)


def compare(g):
    x = g.float()
    name = str(g.rng.choice("greater greater_equal less less_equal equal not_equal".split()))
    return getattr(mb, name)(x=x, y=g.number(g.rng.choice([0, 0.5, 1])))


def logic(g):
    x = g.pick(g.bools)
    if x is None:
        return None
    name = str(g.rng.choice("logical_and logical_or logical_xor logical_not".split()))
    y = g.pick(g.bools, where=lambda v: v.shape == x.shape)
    return mb.logical_not(x=x) if name == "logical_not" else getattr(mb, name)(x=x, y=y)


def select(g):
    cond = g.pick(g.bools)
    if cond is None:
        return None
    a = g.float(where=lambda v: v.shape == cond.shape)
    return None if a is None else mb.select(cond=cond, a=a, b=mb.mul(x=a, y=g.number(0.5)) if g.flip() else g.number(0.5))


def cast(g):
    kind = g.rng.integers(4)
    own = "fp16" if g.dtype is np.float16 else "fp32"
    if kind == 0:
        other = "fp32" if own == "fp16" else "fp16"
        return mb.cast(x=mb.cast(x=mb.tanh(x=g.float()), dtype=other), dtype=own)
    if kind == 1:
        return mb.cast(x=mb.clip(x=g.float(), alpha=g.number(-100), beta=g.number(100)), dtype="int32")
    source = g.pick(g.ints if kind == 2 else g.bools)
    return None if source is None else mb.cast(x=source, dtype=own)


def integers(g):
    x = g.pick(g.ints, where=lambda v: v.dtype == types.int32)
    if x is None:
        return None
    name = str(g.rng.choice("add sub mul real_div floor_div mod maximum minimum abs sign greater equal".split()))
    if name in ("abs", "sign"):
        return getattr(mb, name)(x=x)
    return getattr(mb, name)(x=x, y=np.int32(g.rng.choice([1, 2, 3, 7])))


def linear(g):
    x = g.float((2, 3), where=lambda v: isinstance(v.shape[-1], (int, np.integer)))
    if x is None:
        return None
    out, width = int(g.rng.integers(1, 24)), int(x.shape[-1])
    bias = {"bias": g.random(out)} if g.flip() else {}
    return mb.linear(x=x, weight=weight(g, (out, width)), **bias)


def matmul(g):
    x = g.float((2, 3, 4), where=fixed)
    if x is None:
        return None
    tx, ty = g.flip(0.3), g.flip()
    k, n = int(x.shape[-2 if tx else -1]), int(g.rng.integers(1, 16))
    lead = [int(d) if g.flip() else 1 for d in x.shape[:-2]][: g.rng.integers(3)] if g.flip(0.3) else []
    lead = [] if lead and len(lead) != x.rank - 2 else lead
    y = weight(g, (*lead, n, k) if ty else (*lead, k, n)) if g.flip(0.6) else mb.mul(x=g.random(*lead, *((n, k) if ty else (k, n))), y=reduced(g))
    return mb.matmul(x=x, y=y, transpose_x=tx, transpose_y=ty)


def reduced(g):
    """A number that is known only when the function runs."""
    return mb.tanh(x=mb.reduce_sum(x=g.float()))


def conv(g):
    x = g.float((3, 4, 5), where=fixed)
    if x is None:
        return None
    spatial = x.rank - 2
    cin = int(x.shape[1])
    groups = int(g.rng.choice([d for d in range(1, cin + 1) if cin % d == 0]))
    out = groups * int(g.rng.integers(1, 5))
    dilations = [int(g.rng.integers(1, 3)) for _ in range(spatial)]
    kind = str(g.rng.choice(["valid", "same", "custom"] + (["same_lower"] if g.opset >= 16 else [])))
    kernel = [int(g.rng.integers(1, min(3, (int(n) - 1) // d + 1) + 1)) for n, d in zip(x.shape[2:], dilations)]
    if g.flip():
        kernel, dilations = [1] * spatial, [1] * spatial
    pad = {"pad": [int(p) for p in g.rng.integers(0, 3, 2 * spatial)]} if kind == "custom" else {}
    bias = {"bias": g.random(out)} if g.flip() else {}
    strides = [int(s) for s in g.rng.integers(1, 3, spatial)]
    if kind.startswith("same"):
        dilations = [1] * spatial  # PyMIL's own rule for strides with dilations differs from Core ML's documentation
    return mb.conv(
        x=x, weight=weight(g, (out, cin // groups, *kernel)), pad_type=kind, strides=strides, dilations=dilations, groups=groups, **pad, **bias
    )


def norm(g):
    kind = g.rng.integers(5)
    if kind == 0:
        x = g.float()
        return mb.softmax(x=x, axis=g.axis(x))
    if kind == 1:
        x = g.float(where=lambda v: isinstance(v.shape[-1], (int, np.integer)))
        n = int(x.shape[-1])
        affine = {"gamma": g.random(n), "beta": g.random(n)} if g.flip() else {}
        return mb.layer_norm(x=x, axes=[-1], epsilon=g.number(1e-3), **affine)
    x = g.float((3, 4, 5) if kind == 2 else (3, 4), where=fixed)
    if x is None:
        return None
    c = int(x.shape[1])
    affine = {"gamma": g.random(c), "beta": g.random(c)} if g.flip() else {}
    if kind == 2:
        return mb.l2_norm(x=x, epsilon=g.number(1e-3))
    if kind == 3:
        return mb.batch_norm(x=x, mean=g.random(c), variance=g.random(c, low=0.5, high=2.0), epsilon=g.number(1e-3), **affine)
    return mb.instance_norm(x=x, epsilon=g.number(1e-3), **affine)


def reduce(g):
    x = g.float((2, 3, 4, 5))
    if x is None:
        return None
    name = str(g.rng.choice(
        "reduce_mean reduce_sum reduce_max reduce_min reduce_sum_square reduce_l2_norm reduce_l1_norm reduce_log_sum_exp reduce_prod reduce_log_sum".split()
    ))
    axes = sorted({int(a) for a in g.rng.integers(0, x.rank, g.rng.integers(1, x.rank))})
    if name in ("reduce_prod", "reduce_log_sum"):
        x = mb.add(x=mb.sigmoid(x=x), y=g.number(0.5))
    return getattr(mb, name)(x=x, axes=axes, keep_dims=g.flip(0.7))


def choose(g):
    x = g.float((2, 3, 4), where=fixed)
    if x is None:
        return None
    axis, kind = g.axis(x), g.rng.integers(3)
    # Equal elements have no order; adding a ramp leaves none.
    ramp = np.arange(x.shape[axis]).reshape([-1 if i == axis % x.rank else 1 for i in range(x.rank)])
    x = mb.add(x=mb.tanh(x=x), y=(g.rng.permutation(ramp) * 4).astype(g.dtype))
    if kind == 0:
        return getattr(mb, str(g.rng.choice(["reduce_argmax", "reduce_argmin"])))(x=x, axis=axis, keep_dims=g.flip(0.8))
    if kind == 1:
        return mb.argsort(x=x, axis=axis, ascending=g.flip())
    return mb.topk(x=x, k=int(g.rng.integers(1, x.shape[axis] + 1)), axis=axis, ascending=g.flip())


def join(g):
    x = g.float()
    same = [v for v in g.floats if v.shape == x.shape][:3] + [x]
    if g.flip(0.3) and x.rank < 5:
        return mb.stack(values=same, axis=int(g.rng.integers(0, x.rank + 1)))
    if not fixed(x):
        return mb.concat(values=same, axis=x.rank - 1)
    return mb.concat(values=same, axis=g.axis(x), interleave=g.flip(0.3))


def split(g):
    x = g.float((2, 3, 4, 5), where=fixed)
    if x is None:
        return None
    axis = g.axis(x)
    n = int(x.shape[axis])
    if n < 2:
        return None
    if n % 2 == 0 and g.flip():
        return mb.split(x=x, num_splits=2, axis=axis)
    cut = int(g.rng.integers(1, n))
    return mb.split(x=x, split_sizes=[cut, n - cut], axis=axis)


def cut(g):
    x = g.float((1, 2, 3, 4, 5), where=fixed)
    if x is None:
        return None
    begin = [int(g.rng.integers(0, n)) for n in x.shape]
    end = [int(g.rng.integers(b + 1, n + 1)) for b, n in zip(begin, x.shape)]
    if g.flip(0.3):
        return mb.slice_by_size(x=x, begin=begin, size=[e - b if g.flip() else -1 for b, e in zip(begin, end)])
    if g.flip(0.25) and g.opset >= 18:
        update = mb.mul(x=g.random(*[e - b for b, e in zip(begin, end)]), y=reduced(g))
        return mb.slice_update(x=x, update=update, begin=begin, end=end)
    stride = [int(s) for s in g.rng.integers(1, 3, x.rank)]
    begin = [b - int(n) if g.flip(0.2) else b for b, n in zip(begin, x.shape)]
    masks = {k: [g.flip(0.3) for _ in x.shape] for k in ("begin_mask", "end_mask")}
    squeeze = [g.flip(0.2) for _ in x.shape]
    squeeze[g.rng.integers(x.rank)] = False
    # What squeezes a dimension takes one element of it, at `begin`.
    masks = {k: [m and not s for m, s in zip(v, squeeze)] for k, v in masks.items()}
    stride = [1 if s else n for n, s in zip(stride, squeeze)]
    return mb.slice_by_index(x=x, begin=begin, end=end, stride=stride, squeeze_mask=squeeze, **masks)


def reshape(g):
    x = g.float(where=fixed)
    if x is None:
        return None
    shape = [int(d) for d in x.shape]
    kind = g.rng.integers(4)
    if kind == 0:
        return mb.transpose(x=x, perm=[int(p) for p in g.rng.permutation(x.rank)])
    if kind == 1 and x.rank < 5:
        return mb.expand_dims(x=x, axes=[int(g.rng.integers(-x.rank - 1, x.rank + 1))])
    if kind == 2 and 1 in shape and x.rank > 1:
        return mb.squeeze(x=x, axes=[shape.index(1)])
    if x.rank > 1 and g.flip():
        i = int(g.rng.integers(x.rank - 1))
        shape[i : i + 2] = [shape[i] * shape[i + 1]]
    else:
        i = int(g.rng.integers(x.rank))
        factors = [d for d in range(1, shape[i] + 1) if shape[i] % d == 0]
        if x.rank == 5:
            return None
        d = int(g.rng.choice(factors))
        shape[i : i + 1] = [d, shape[i] // d]
    if g.flip(0.3):
        shape[g.rng.integers(len(shape))] = -1
    return mb.reshape(x=x, shape=shape)


def repeat(g):
    x = g.float((1, 2, 3, 4), where=lambda v: fixed(v) and np.prod(v.shape) < LIMIT // 8)
    if x is None:
        return None
    kind = g.rng.integers(5)
    if kind == 0:
        return mb.tile(x=x, reps=[int(r) for r in g.rng.integers(1, 3, x.rank)])
    if kind == 1:
        mode = str(g.rng.choice(["constant", "reflect", "replicate"])) if x.rank > 1 else "constant"
        amount = [0] * (2 * x.rank)
        amount[-1] = amount[-2] = 1 if x.shape[-1] > 1 else 0
        if mode == "constant":
            amount = [int(a) for a in g.rng.integers(0, 3, 2 * x.rank)]
        return mb.pad(x=x, pad=amount, mode=mode, constant_val=g.number(0.5))
    if kind == 2:
        return mb.reverse(x=x, axes=[g.axis(x)])
    if kind == 3:
        return mb.cumsum(x=x, axis=int(g.rng.integers(x.rank)), exclusive=g.flip(), reverse=g.flip())
    return mb.band_part(x=x, lower=int(g.rng.integers(-1, 3)), upper=int(g.rng.integers(-1, 3))) if x.rank > 1 else None


def lookup(g):
    x = g.float((1, 2, 3, 4), where=fixed)
    if x is None:
        return None
    axis, kind = int(g.rng.integers(x.rank)), g.rng.integers(4)
    n = int(x.shape[axis])
    if kind == 0:
        return mb.gather(x=x, indices=g.rng.integers(0, n, (int(g.rng.integers(1, 5)),)).astype(np.int32), axis=axis)
    if kind == 1:
        indices = g.rng.integers(0, n, x.shape).astype(np.int32)
        return mb.gather_along_axis(x=x, indices=indices, axis=axis)
    if kind == 2:
        depth = int(g.rng.integers(1, x.rank + 1))
        indices = np.stack([g.rng.integers(0, int(d), 3) for d in x.shape[:depth]], -1).astype(np.int32)
        return mb.gather_nd(x=x, indices=indices)
    indices = g.pick(g.ints, (1, 2), where=lambda v: v.dtype == types.int32)
    if indices is None:
        return None
    indices = mb.maximum(x=mb.minimum(x=indices, y=np.int32(5)), y=np.int32(0))
    if g.flip(0.3):
        return mb.one_hot(indices=indices, one_hot_vector_size=6, on_value=g.number(1), off_value=g.number(0))
    return mb.gather(x=weight(g, (6, 8)), indices=indices, axis=0)


def attention(g):
    if g.opset < 18:
        return None
    q = g.float((3, 4), where=fixed)
    if q is None:
        return None
    s, e = int(g.rng.integers(1, 9)), int(q.shape[-1])
    lead = [int(d) for d in q.shape[:-2]]
    scale = reduced(g)
    k, v = mb.mul(x=g.random(*lead, s, e), y=scale), mb.mul(x=g.random(*lead, s, int(g.rng.integers(1, 9))), y=scale)
    mask = {"attn_mask": np.where(np.arange(s) <= g.rng.integers(s), 0, -1e4).astype(g.dtype).reshape(1, s).repeat(int(q.shape[-2]), 0)} if g.flip() else {}
    return mb.scaled_dot_product_attention(query=mb.tanh(x=q), key=k, value=v, **mask)


def scatter(g):
    x = g.float((1, 2, 3, 4), where=fixed)
    if x is None:
        return None
    kind, axis = g.rng.integers(3), int(g.rng.integers(x.rank))
    shape = [int(d) for d in x.shape]
    n = shape[axis]
    m = int(g.rng.integers(1, n + 1))
    # No place twice: in which order two updates of one place are combined is nobody's promise.
    some = [m if i == axis else d for i, d in enumerate(shape)]
    if kind == 0:
        op, indices, updates, along = mb.scatter, g.rng.permutation(n)[:m], some, {"axis": axis}
    elif kind == 1:
        lines = g.rng.random(shape).argsort(axis).take(range(m), axis)
        op, indices, updates, along = mb.scatter_along_axis, lines, some, {"axis": axis}
    else:
        depth = int(g.rng.integers(1, x.rank + 1))
        total = int(np.prod(shape[:depth]))
        flat = g.rng.permutation(total)[: g.rng.integers(1, total + 1)]
        at = np.stack(np.unravel_index(flat, shape[:depth]), -1)
        op, indices, updates, along = mb.scatter_nd, at, [len(flat), *shape[depth:]], {}
    mode = str(g.rng.choice("update add sub mul div max min".split()))
    return op(data=x, indices=indices.astype(np.int32), updates=g.random(*updates, low=0.5, high=2.0), mode=mode, **along)


def quantise(g):
    """There and back: no other op takes what lies between."""
    x = g.float(where=fixed)
    if g.opset < 17 or x is None:
        return None
    signed = g.flip()
    along = {"axis": g.axis(x)} if g.flip() else {}
    size = (int(x.shape[along["axis"]]),) if along else ()
    scale = g.rng.uniform(0.01, 0.1, size).astype(g.dtype)
    if not size:
        scale = g.number(scale)
    if g.flip():
        along["zero_point"] = integer(g, 8, size, signed) if size else (np.int8 if signed else np.uint8)(g.rng.integers(0, 100))
    data = mb.quantize(input=x, scale=scale, output_dtype="int8" if signed else "uint8", **along)
    return mb.dequantize(input=data, scale=scale, **along)


def counted(g):
    """Ops whose result has as many elements as their operands say; what is made of it has a shape again."""
    kind = g.rng.integers(4)
    if kind == 0:
        return mb.fill_like(ref_tensor=g.float(), value=g.number(g.rng.choice([0, 0.3, 2]))) if g.opset >= 16 else None
    if kind == 1:
        x = g.pick(g.bools if g.bools and g.flip() else g.ints + g.floats, (1, 2, 3))
        return None if x is None else mb.reduce_sum(x=mb.non_zero(x=x), axes=[0], keep_dims=True)
    ids = g.pick(g.ints, where=lambda v: v.dtype == types.int32 and v.rank > 0)
    if ids is None:
        return None
    n = mb.maximum(x=mb.minimum(x=mb.reduce_max(x=ids, keep_dims=False), y=np.int32(9)), y=np.int32(1))
    if kind == 2:
        return mb.reduce_sum(x=mb.range_1d(start=np.int32(-2), end=n, step=np.int32(g.rng.integers(1, 4))), axes=[0], keep_dims=True)
    shape = mb.concat(values=[mb.expand_dims(x=n, axes=[0]), np.array([3], np.int32)], axis=0)
    return mb.reduce_sum(x=mb.fill(shape=shape, value=g.number(0.25)), axes=[0, 1], keep_dims=True)


ANY_SHAPE = [unary, unary, binary, binary, compare, logic, select, cast, linear, norm, join, reduce, counted]
FIXED_SHAPE = ANY_SHAPE + [
    conv, conv, matmul, matmul, choose, split, cut, cut, reshape, reshape, repeat, lookup, attention, integers, scatter, quantise
]


# --- weights


def weight(g, shape):
    """A constant that is read by rows: as it is, or, from iOS 18 on, in an encoding of the graph's own."""
    values = g.random(*shape)
    return encoded(g, shape) if g.opset >= 18 and g.dtype is np.float16 and g.flip() and min(shape) > 0 else values


def blocks(g, shape):
    """How many blocks each dimension is cut into."""
    return [int(g.rng.choice([d for d in range(1, n + 1) if n % d == 0])) if g.flip() else 1 for n in shape]


def integer(g, bits, shape, signed):
    low = -(2 ** (bits - 1)) if signed else 0
    values = g.rng.integers(low, low + 2**bits, shape)
    if bits == 8:
        return values.astype(np.int8 if signed else np.uint8)
    return values.astype(types.np_int4_dtype if signed else UNSIGNED[bits])


def scales(g, shape):
    return g.rng.uniform(0.01, 0.1, shape).astype(np.float16)


def quantised(g, shape, signed=None, bits=None):
    signed = g.flip() if signed is None else signed
    bits = int(g.rng.choice([4, 8])) if bits is None else bits
    cut = blocks(g, shape)
    offset = {"offset": integer(g, bits, cut, signed)} if g.flip() else {}
    return mb.constexpr_blockwise_shift_scale(data=integer(g, bits, shape, signed), scale=scales(g, cut), **offset)


def palette(g, shape):
    bits = int(g.rng.choice([1, 2, 3, 4, 6, 8]))
    groups = blocks(g, shape)
    axis = int(g.rng.integers(len(shape)))
    width = int(g.rng.choice([d for d in (1, 2, 4) if shape[axis] % d == 0 and (shape[axis] // d) % groups[axis] == 0] or [1]))
    indices = integer(g, bits, [n // width if i == axis else n for i, n in enumerate(shape)], False)
    table = (*groups, 2**bits, width)
    along = {"vector_axis": np.int32(axis)} if width > 1 else {}
    lut = g.rng.uniform(-1, 1, table).astype(np.float16)
    if g.flip(0.3):  # a table that is quantised itself
        lut = mb.constexpr_blockwise_shift_scale(data=integer(g, 8, table, True), scale=scales(g, [1] * len(table)))
    return mb.constexpr_lut_to_dense(indices=indices, lut=lut, **along)


def sparse(g, shape):
    mask = (g.rng.random(shape) < 0.4).astype(types.np_uint1_dtype)
    count = max(int(mask.astype(np.int64).sum()), 0)
    if count == 0:
        return palette(g, shape)
    kind = g.rng.integers(3)
    values = g.rng.uniform(-1, 1, count).astype(np.float16)
    if kind == 1:
        mask, values = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=mask, nonzero_data=integer(g, 8, (count,), True), scale=scales(g, [n if i == 0 else 1 for i, n in enumerate(shape)])
        )
    elif kind == 2:
        lut = g.rng.uniform(-1, 1, ([1] * len(shape) + [16, 1])).astype(np.float16)
        mask, values = mb.constexpr_lut_to_sparse(indices_mask=mask, indices_nonzero_data=integer(g, 4, (count,), False), lut=lut)
    return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=mask)


def encoded(g, shape):
    return [quantised, palette, sparse][g.rng.integers(3)](g, shape)


def compressed(rng, model, opset):
    """The model with coremltools' own compression of its weights, and what that was."""
    symmetric = str(rng.choice(["linear_symmetric", "linear"]))
    small = {"weight_threshold": 64}
    dtype = str(rng.choice(["int8", "uint8"] + (["int4", "uint4"] if opset >= 18 else [])))
    granularity = str(rng.choice(["per_tensor", "per_channel"] + (["per_block"] if opset >= 18 else [])))
    block = {"block_size": int(rng.choice([2, 4, 8]))} if granularity == "per_block" else {}
    linear = cto.OpLinearQuantizerConfig(mode=symmetric, dtype=dtype, granularity=granularity, **block, **small)
    grouped = {"granularity": "per_grouped_channel", "group_size": int(rng.choice([1, 2, 4]))} if opset >= 18 and rng.random() < 0.6 else {}
    if grouped and rng.random() < 0.5:
        grouped["enable_per_channel_scale"] = True
    bits = int(rng.choice([1, 2, 3, 4, 6, 8] if opset >= 18 else [1, 2, 4, 6, 8]))
    palettes = cto.OpPalettizerConfig(mode="uniform", nbits=bits, **grouped, **small)
    prune = cto.OpMagnitudePrunerConfig(target_sparsity=float(rng.choice([0.25, 0.5, 0.9])), **small)
    of = lambda config: cto.OptimizationConfig(global_config=config)
    kinds = {
        "quantised": lambda m: cto.linear_quantize_weights(m, of(linear)),
        "palettised": lambda m: cto.palettize_weights(m, of(palettes)),
        "pruned": lambda m: cto.prune_weights(m, of(prune)),
    }
    if opset >= 18:
        eight = cto.OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", granularity="per_tensor", **small)
        kinds["palettised, tables quantised"] = lambda m: cto.linear_quantize_weights(kinds["palettised"](m), of(eight), joint_compression=True)
        kinds["pruned and quantised"] = lambda m: cto.linear_quantize_weights(kinds["pruned"](m), of(eight), joint_compression=True)
        plain = cto.OpPalettizerConfig(mode="uniform", nbits=bits, **small)
        kinds["pruned and palettised"] = lambda m: cto.palettize_weights(kinds["pruned"](m), of(plain), joint_compression=True)
    name = str(rng.choice(list(kinds)))
    with np.errstate(all="ignore"):
        return kinds[name](model), name


# --- packages


def function(rng, opset, dtype, kind):
    """A random function, and the types of flexible inputs."""
    kinds = {np.float16: types.fp16, np.float32: types.fp32}
    lead = get_new_symbol() if kind == "flexible" else None
    width = int(rng.choice([4, 6, 8, 12, 16]))
    shapes = [(1, lead, width)] if lead is not None else [tuple(int(d) for d in rng.integers(1, 7, r)) for r in rng.choice([2, 3, 4], 2)] + [(1, width, 4, 1)]
    inputs = {f"x{i}": mb.placeholder(shape, dtype=kinds[dtype]) for i, shape in enumerate(shapes)}
    inputs["ids"] = mb.placeholder((2, 3), dtype=types.int32)
    cache = (1, 2, 8, 4)
    if kind == "stateful":
        inputs["cache"] = mb.state_tensor_placeholder(cache, dtype=types.fp16)
    with Function(inputs, opset_version=OPSETS[opset]) as f:
        g = Graph(rng, opset, dtype)
        g.floats += [f.inputs[f"x{i}"] for i in range(len(shapes))]
        g.ints.append(f.inputs["ids"])
        if kind == "stateful":
            old = mb.read_state(input=f.inputs["cache"])
            own = lambda v: v if dtype is np.float16 else mb.cast(x=v, dtype="fp32")
            g.add(own(old))
            at = int(rng.integers(0, 7))
            new = mb.cast(x=mb.mul(x=g.random(1, 2, 1, 4), y=reduced(g)), dtype="fp16")
            changed = mb.slice_update(x=mb.mul(x=old, y=np.float16(0.75)), update=new, begin=[0, 0, at, 0], end=[1, 2, at + 1, 4])
            g.add(own(mb.coreml_update_state(state=f.inputs["cache"], value=changed)))
        made = 0
        for _ in range(200):
            if made >= rng.integers(12, 28):
                break
            ops = ANY_SHAPE if kind == "flexible" else FIXED_SHAPE
            try:
                result = ops[rng.integers(len(ops))](g)
            except (ValueError, AssertionError, TypeError, IndexError):
                continue  # PyMIL refuses a combination; its half-made operands are swept out with all that nobody uses
            results = [] if result is None else result if isinstance(result, (list, tuple)) else [result]
            if any(r.rank > 5 or (fixed(r) and np.prod(r.shape) > LIMIT) for r in results):
                continue
            g.add(results)
            made += bool(results)
        if kind == "stateful" and g.flip():
            g.add(own(mb.coreml_update_state(state=f.inputs["cache"], value=mb.mul(x=changed, y=np.float16(-0.5)))))
        ends = [v for v in g.floats + g.ints if v not in g.used and v.op is not None and v.rank > 0 and v.dtype in (types.fp16, types.fp32, types.int32)]
        if not ends:
            ends = [mb.identity(x=g.floats[0])]
        inside = f.inputs.values()
        f.set_outputs([mb.identity(x=v) if v in inside else v for v in ends])
    flexible = None
    if lead is not None:
        shape = ct.EnumeratedShapes([(1, n, width) for n in (4, 1, 9)], default=(1, 4, width)) if rng.random() < 0.5 else ct.Shape((1, ct.RangeDim(1, 40, default=5), width))
        flexible = [ct.TensorType(name="x0", shape=shape, dtype=dtype), ct.TensorType(name="ids", shape=(2, 3), dtype=np.int32)]
    return f, flexible


def convert(rng, opset, dtype, kind):
    f, flexible = function(rng, opset, dtype, kind)
    program = Program()
    program.add_function("main", f)
    # Some as coremltools would make them of a user's model, passes and all, some as they are.
    plain = rng.random() < 0.5
    pipeline = ct.PassPipeline.EMPTY if plain else ct.PassPipeline.DEFAULT
    if not plain and rng.random() < 0.5:
        precision = ct.precision.FLOAT16
    else:
        precision = ct.precision.FLOAT32
    if plain:
        pipeline = ct.PassPipeline(["common::dead_code_elimination", "common::const_deduplication"], "swept")
    more = {"inputs": flexible} if flexible else {}
    more |= {} if plain else {"compute_precision": precision}
    return ct.convert(
        program, convert_to="mlprogram", minimum_deployment_target=OPSETS[opset], pass_pipeline=pipeline, skip_model_load=True,
        compute_units=ct.ComputeUnit.CPU_ONLY, **more,
    )


def make(seed, path):
    """Writes the package of a seed; says what it is."""
    rng = np.random.default_rng(seed)
    opset = int(rng.choice([15, 16, 17, 18, 18, 18]))
    kind = str(rng.choice(["plain", "plain", "flexible"] + (["stateful", "stateful", "functions"] if opset >= 18 else [])))
    dtype = np.float16 if opset > 15 and rng.random() < 0.75 else np.float32
    models, encodings = [], []
    while len(models) < (2 if kind == "functions" else 1):
        try:
            model = convert(rng, opset, dtype, kind)
            encoding = "as they are"
            if opset > 15 and rng.random() < 0.6:
                model, encoding = compressed(rng, model, opset)
        except Exception:  # a pass of coremltools stumbles now and then over a legal program; the next one will do
            continue
        models.append(model)
        encodings.append(encoding)
    shutil.rmtree(path, ignore_errors=True)
    if kind != "functions":
        models[0].save(str(path))
    else:
        with tempfile.TemporaryDirectory(prefix="functions-") as work:
            several = ct.utils.MultiFunctionDescriptor()
            for i, model in enumerate(models):
                part = str(pathlib.Path(work, f"{i}.mlpackage"))
                model.save(part)
                several.add_function(part, "main", f"f{i}")
            several.default_function_name = "f1"
            ct.utils.save_multifunction(several, str(path))
    return f"iOS{opset}, {np.dtype(dtype).name}, {kind}, weights {' and '.join(encodings)}"

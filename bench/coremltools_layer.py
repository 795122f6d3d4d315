#!/usr/bin/env python3
"""Makes one shard of a phi3 GGUF the usual way: a torch module, traced, converted and quantised by coremltools.

    bench/coremltools_layer.py MODEL.gguf --layers N -o SHARD.mlpackage [--context 2048]

This is what `bench/build` measures ours against: layers [0, N) with the shard interface of docs/architecture.md, fp16, then int8
with one scale for each output channel. Nothing is done slower than it has to be: dequantisation is vectorised (the gguf
package over numpy), each matrix goes from the map to torch once, tracing needs no forward of the real size, and norms are
left in fp16. One line of JSON on standard output says what it cost: user and system seconds, wall seconds, peak memory.

Needs coremltools, torch and gguf importable by the interpreter that runs it; `bench/build` sees to that.
"""

import argparse
import json
import resource
import time

import coremltools as ct
import gguf
import numpy as np
import torch
from coremltools.optimize.coreml import OpLinearQuantizerConfig, OptimizationConfig, linear_quantize_weights
from torch import nn


class Source:
    """A GGUF: keys by name, tensors as torch, dequantised when they are asked for."""

    def __init__(self, path):
        self.reader = gguf.GGUFReader(path)
        self.tensors = {t.name: t for t in self.reader.tensors}

    def key(self, name):
        return self.reader.get_field(f"phi3.{name}").contents()

    def tensor(self, name):
        t = self.tensors[name]
        return torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32, copy=False))


class Shape:
    """The sizes of a layer, from the keys."""

    def __init__(self, source, context):
        self.width = source.key("embedding_length")
        self.ffn = source.key("feed_forward_length")
        self.heads = source.key("attention.head_count")
        self.kv = source.key("attention.head_count_kv")
        self.dim = self.width // self.heads
        self.rope = source.key("rope.dimension_count")
        self.eps = source.key("attention.layer_norm_rms_epsilon")
        self.context = context


def conv(weight):
    """A projection as a 1x1 convolution without bias."""
    rows, columns = weight.shape
    # On "meta" until the weight is there: no time goes into initialising what is replaced.
    layer = nn.Conv2d(columns, rows, 1, bias=False, device="meta")
    layer.weight = nn.Parameter(weight.reshape(rows, columns, 1, 1), requires_grad=False)
    return layer


class RmsNorm(nn.Module):
    def __init__(self, weight, eps):
        super().__init__()
        self.weight = nn.Parameter(weight.reshape(1, -1, 1, 1), requires_grad=False)
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt((x * x).mean(dim=1, keepdim=True) + self.eps) * self.weight


class Layer(nn.Module):
    def __init__(self, source, index, shape):
        super().__init__()
        self.shape = shape
        part = lambda name: source.tensor(f"blk.{index}.{name}.weight")
        self.attn_norm, self.ffn_norm = RmsNorm(part("attn_norm"), shape.eps), RmsNorm(part("ffn_norm"), shape.eps)
        self.qkv, self.output = conv(part("attn_qkv")), conv(part("attn_output"))
        self.up, self.down = conv(part("ffn_up")), conv(part("ffn_down"))

    def rotate(self, x, cos, sin):
        """The first `rope` dims of each head, in half-split pairs."""
        half = self.shape.rope // 2
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)

    def forward(self, x, cos, sin, mask, write, k_cache, v_cache):
        s = self.shape
        qkv = self.qkv(self.attn_norm(x))
        q, k, v = torch.split(qkv, [s.heads * s.dim, s.kv * s.dim, s.kv * s.dim], dim=1)
        q = self.rotate(q.reshape(1, s.heads, 1, s.dim), cos, sin)
        k = self.rotate(k.reshape(1, s.kv, 1, s.dim), cos, sin)
        v = v.reshape(1, s.kv, 1, s.dim)
        # The state is written as a whole: one-hot column for the new row, the rest as it was.
        keep = 1 - write
        k_cache[:, :, :, :] = k_cache * keep + k * write
        v_cache[:, :, :, :] = v_cache * keep + v * write
        group = s.heads // s.kv
        q = q.reshape(1, s.kv, group, s.dim) * s.dim**-0.5
        scores = torch.matmul(q, k_cache.transpose(2, 3)) + mask
        attended = torch.matmul(torch.softmax(scores, dim=-1), v_cache)
        x = x + self.output(attended.reshape(1, s.heads * s.dim, 1, 1))
        gate, up = torch.split(self.up(self.ffn_norm(x)), s.ffn, dim=1)
        return x + self.down(nn.functional.silu(gate) * up)


class Shard(nn.Module):
    def __init__(self, source, layers, shape):
        super().__init__()
        self.layers = nn.ModuleList(Layer(source, i, shape) for i in range(layers))
        for i in range(layers):
            for name in (f"k_cache_{i}", f"v_cache_{i}"):
                self.register_buffer(name, torch.zeros(1, shape.kv, shape.context, shape.dim))

    def forward(self, x, rope_cos, rope_sin, attn_mask, kv_write_mask):
        for i, layer in enumerate(self.layers):
            caches = getattr(self, f"k_cache_{i}"), getattr(self, f"v_cache_{i}")
            x = layer(x, rope_cos, rope_sin, attn_mask, kv_write_mask, *caches)
        return x


def convert(path, layers, context, output):
    source = Source(path)
    shape = Shape(source, context)
    shard = Shard(source, layers, shape).eval()
    inputs = {
        "x": (1, shape.width, 1, 1),
        "rope_cos": (1, shape.rope // 2),
        "rope_sin": (1, shape.rope // 2),
        "attn_mask": (1, 1, 1, context),
        "kv_write_mask": (1, 1, context, 1),
    }
    with torch.no_grad():
        traced = torch.jit.trace(shard, tuple(torch.zeros(s) for s in inputs.values()), check_trace=False)
    cache = lambda name: ct.StateType(ct.TensorType(shape=(1, shape.kv, context, shape.dim), dtype=np.float16), name=name)
    model = ct.convert(
        traced,
        inputs=[ct.TensorType(name=name, shape=s, dtype=np.float16) for name, s in inputs.items()],
        outputs=[ct.TensorType(name="hidden", dtype=np.float16)],
        states=[cache(f"{kind}_cache_{i}") for i in range(layers) for kind in "kv"],
        minimum_deployment_target=ct.target.iOS18,
        compute_precision=ct.precision.FLOAT16,
        skip_model_load=True,
    )
    # The threshold leaves norms and masks alone: every projection is larger than the widest of them.
    config = OpLinearQuantizerConfig(
        mode="linear_symmetric", dtype="int8", granularity="per_channel", weight_threshold=shape.ffn + 1
    )
    linear_quantize_weights(model, OptimizationConfig(global_config=config)).save(output)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("-o", "--output", required=True)
    args = parser.parse_args()
    start = time.monotonic()
    convert(args.model, args.layers, args.context, args.output)
    wall = time.monotonic() - start
    used = resource.getrusage(resource.RUSAGE_SELF)
    cost = {"user": used.ru_utime, "system": used.ru_stime, "wall": wall, "peak_bytes": used.ru_maxrss * 1024}
    print(json.dumps({"layers": args.layers, **cost}))


if __name__ == "__main__":
    main()

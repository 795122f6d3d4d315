"""Judges the weights of a bundle: `python weights.py BUNDLE --mode fp16|int8-channel|int8 [--fp16-bundle B] [--source GGUF]`

It opens every package with coremltools and looks at what each convolution of each function multiplies by.

  --mode fp16           every weight is an fp16 constant, and nothing in the program is compressed
  --mode int8-channel   every weight is int8 with an fp16 scale of shape [Cout,1,1,1]
  --mode int8           every weight is int8 with one fp16 scale, of shape [1,1,1,1]

For the int8 modes `--fp16-bundle`, the same model built with fp16 weights, holds the tensors before quantisation: coremltools'
own `linear_quantize_weights` quantises them, and data and scales must be equal to the bit. Nothing but convolution weights may
be compressed. With `--source`, the rows of every convolution weight of the fp16 bundle must be rows of the GGUF's matrices
(as the gguf package dequantises them, rounded to fp16), and every row of every matrix must be in use; this holds for any
permutation, fusing, splitting and slicing of rows, but not for a model whose attention factor is folded into them. The
bundle's embedding.f16 must be the source's embedding.

One line for each package; exit 0 when all pass, 1 otherwise.
"""

import argparse
import pathlib
import sys

import gguf
import numpy as np
from judge import Refused, load, model_of, packages_of, types, verdicts

GRANULARITY = {"int8-channel": "per_channel", "int8": "per_tensor"}


def convolutions(program):
    """`(function, convolution)` in program order."""
    found = [(name, op) for name, f in program.functions.items() for op in f.operations if op.op_type == "conv"]
    if not found:
        raise Refused("no convolution in it")
    return found


def check_nothing_else_compressed(program, may_compress):
    """Every constexpr op feeds the weight of a convolution, or there is none."""
    for name, function in program.functions.items():
        for op in function.operations:
            if not op.op_type.startswith("constexpr"):
                continue
            users = [(u.op_type, u.inputs.get("weight")) for u in op.outputs[0].child_ops]
            if not may_compress or not users or any(kind != "conv" or weight is not op.outputs[0] for kind, weight in users):
                raise Refused(f"function {name}: {op.name} compresses something it should not ({op.op_type})")


def plain_weights(program):
    """The fp16 constants that convolutions multiply by, in program order."""
    check_nothing_else_compressed(program, may_compress=False)
    weights = []
    for name, conv in convolutions(program):
        value = conv.weight.val
        if conv.weight.op is None or conv.weight.op.op_type != "const" or value.dtype != np.float16:
            raise Refused(f"function {name}: the weight of {conv.name} is not an fp16 constant")
        weights.append(value)
    return weights


def quantised_weights(program, mode):
    """`(data, scale)` of each convolution's weight, in program order, once type and shapes are what the mode says."""
    check_nothing_else_compressed(program, may_compress=True)
    weights = []
    for name, conv in convolutions(program):
        op, where = conv.weight.op, f"function {name}: the weight of {conv.name}"
        if op is None or op.op_type != "constexpr_blockwise_shift_scale":
            raise Refused(f"{where} is not quantised")
        if op.data.dtype != types.int8:
            raise Refused(f"{where} is kept as {types.builtin_to_string(op.data.dtype)}")
        if op.offset is not None:
            raise Refused(f"{where} has an offset: not symmetric")
        shape = (op.data.shape[0], 1, 1, 1) if mode == "int8-channel" else (1, 1, 1, 1)
        if op.scale.val.dtype != np.float16 or op.scale.val.shape != shape:
            raise Refused(f"{where} has scales {op.scale.val.dtype}{list(op.scale.val.shape)}, {mode} means float16{list(shape)}")
        weights.append((op.data.val, op.scale.val))
    return weights


def unique(weights):
    """Those arrays once each: functions of one package share their weights. Gives them and each one's index among them."""
    seen, index = {}, []
    for w in weights:
        index.append(seen.setdefault((w.shape, w.tobytes()), (len(seen), w))[0])
    return [w for _, w in seen.values()], index


class Rows:
    """The rows of a GGUF's matrices, and which of them have been met."""

    def __init__(self, path):
        self.owners, self.unmet, self.embedding = {}, {}, None
        for tensor in gguf.GGUFReader(path).tensors:
            if len(tensor.shape) != 2:
                continue
            matrix = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float16)
            if tensor.name == "token_embd.weight":
                self.embedding = matrix.tobytes()
            self.unmet[tensor.name] = set(range(len(matrix)))
            for i, row in enumerate(matrix):
                self.owners.setdefault(row.tobytes(), []).append((tensor.name, i))

    def meet(self, weight):
        for i, row in enumerate(weight.reshape(len(weight), -1)):
            owners = self.owners.get(row.tobytes())
            if owners is None:
                raise Refused(f"row {i} of a weight {list(weight.shape)} is no row of any matrix of the source")
            for name, j in owners:
                self.unmet[name].discard(j)

    def missing(self):
        return {name: len(rows) for name, rows in self.unmet.items() if rows}


def judge_fp16(rows):
    def judge(path):
        weights = plain_weights(load(path)[1])
        if rows:
            for weight in unique(weights)[0]:
                rows.meet(weight)
        return f"{len(weights)} fp16 weights" + (", every row from the source" if rows else "")

    return judge


def judge_int8(bundle, fp16_bundle, mode):
    def judge(path):
        source = fp16_bundle / path.relative_to(bundle)
        found = quantised_weights(load(path)[1], mode)
        before, index = unique(plain_weights(load(source)[1]))
        if len(found) != len(index):
            raise Refused(f"{len(found)} convolutions, but {len(index)} in {source}")
        expected = quantised_weights(model_of(before, granularity=GRANULARITY[mode])._mil_program, mode)
        for i, ((data, scale), which) in enumerate(zip(found, index)):
            right_data, right_scale = expected[which]
            if data.shape != right_data.shape:
                raise Refused(f"weight {i} has shape {list(data.shape)}, with fp16 weights it has {list(right_data.shape)}")
            if data.tobytes() != right_data.tobytes() or scale.tobytes() != right_scale.tobytes():
                wrong = int((data != right_data).sum()), int((scale.view(np.uint16) != right_scale.view(np.uint16)).sum())
                raise Refused(f"weight {i} {list(data.shape)}: {wrong[0]} values and {wrong[1]} scales differ from coremltools'")
        values = sum(data.size for data, _ in expected)
        return f"{len(found)} int8 weights, {values} distinct values and their scales equal to coremltools'"

    return judge


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=pathlib.Path)
    parser.add_argument("--mode", required=True, choices=("fp16", *GRANULARITY))
    parser.add_argument("--fp16-bundle", type=pathlib.Path, help="the same build with --weights fp16 (int8 modes need it)")
    parser.add_argument("--source", type=pathlib.Path, help="the GGUF (fp16 mode only)")
    args = parser.parse_args()
    try:
        packages = packages_of(args.bundle)
    except Refused as refusal:
        sys.exit(f"WRONG {refusal}")
    if args.mode == "fp16":
        rows = Rows(args.source) if args.source else None
        status = verdicts(packages, judge_fp16(rows))
        if rows and (args.bundle / "embedding.f16").read_bytes() != rows.embedding:
            print(f"WRONG {args.bundle}/embedding.f16: not the source's token_embd.weight in fp16")
            status = 1
        if rows and rows.missing():
            print(f"WRONG {args.bundle}: rows of the source in no package: {rows.missing()}")
            status = 1
    elif args.fp16_bundle is None or args.source is not None:
        parser.error("the int8 modes take --fp16-bundle, and --source goes with --mode fp16")
    else:
        status = verdicts(packages, judge_int8(args.bundle, args.fp16_bundle, args.mode))
    sys.exit(status)


if __name__ == "__main__":
    main()

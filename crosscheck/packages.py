"""Judges packages by coremltools' own loader: `python packages.py PACKAGE_OR_BUNDLE...`

A package passes when libmodelpackage calls it valid, its specification parses, every function of its program loads (each op
against coremltools' type inference, each constant against its blob), and each function's description names the inputs,
states and outputs that the function has, with their shapes and types. No compiler of Apple's takes part: that needs a Mac.

One line for each package; exit 0 when all pass, 1 otherwise.
"""

import argparse
import pathlib
import sys

from judge import Refused, load, packages_of, types, verdicts
from coremltools.proto import FeatureTypes_pb2

ARRAY_TYPES = {
    FeatureTypes_pb2.ArrayFeatureType.FLOAT16: "fp16",
    FeatureTypes_pb2.ArrayFeatureType.FLOAT32: "fp32",
    FeatureTypes_pb2.ArrayFeatureType.INT32: "int32",
    FeatureTypes_pb2.ArrayFeatureType.INT8: "int8",
}


def described(features):
    """`{name: (type, shape)}` of feature descriptions; the shape is None where flexible or unsaid."""
    out = {}
    for feature in features:
        kind = feature.type.WhichOneof("Type")
        array = feature.type.stateType.arrayType if kind == "stateType" else feature.type.multiArrayType
        flexible = array.WhichOneof("ShapeFlexibility") is not None or not array.shape
        out[feature.name] = (ARRAY_TYPES.get(array.dataType, str(array.dataType)), None if flexible else tuple(array.shape))
    return out


def typed(variable):
    kind = variable._sym_type
    if types.is_state(kind):
        kind = kind.wrapped_type()
    return types.builtin_to_string(kind.get_primitive()), tuple(kind.get_shape())


def compare(function, what, described_features, variables):
    actual = {v.name: typed(v) for v in variables}
    if set(actual) != set(described_features):
        raise Refused(f"function {function}: described {what} {sorted(described_features)}, the program has {sorted(actual)}")
    for name, (kind, shape) in described_features.items():
        if kind != actual[name][0] or shape is not None and shape != actual[name][1]:
            raise Refused(f"function {function}: {what} {name} is described as {kind}{shape}, the program says {actual[name]}")


def judge(path):
    spec, program = load(path)
    description = spec.description
    if description.functions:
        functions = {f.name: f for f in description.functions}
        if description.defaultFunctionName not in functions:
            raise Refused(f"its default function {description.defaultFunctionName!r} is not described")
    else:
        functions = {"main": description}
    if set(functions) != set(program.functions):
        raise Refused(f"describes the functions {sorted(functions)}, its program has {sorted(program.functions)}")
    operations = []
    for name, about in functions.items():
        function = program.functions[name]
        states = [v for v in function.inputs.values() if types.is_state(v._sym_type)]
        inputs = [v for v in function.inputs.values() if not types.is_state(v._sym_type)]
        compare(name, "inputs", described(about.input), inputs)
        compare(name, "states", described(about.state), states)
        compare(name, "outputs", described(about.output), function.outputs)
        operations.append(f"{name} {len(function.operations)} ops")
    return f"loads, {', '.join(operations)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PACKAGE_OR_BUNDLE", type=pathlib.Path)
    paths = []
    for path in parser.parse_args().paths:
        try:
            paths += [path] if path.suffix == ".mlpackage" else packages_of(path)
        except Refused as refusal:
            sys.exit(f"WRONG {refusal}")
    sys.exit(verdicts(paths, judge))


if __name__ == "__main__":
    main()

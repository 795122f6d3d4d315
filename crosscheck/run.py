"""Packages that coremltools wrote, executed by `anemone run`, and every value judged.

    python run.py ANEMONE [--count 100] [--seed N] [--keep DIR]
    python run.py ANEMONE --packages DIR

The first makes random packages (`run_cases.py`); the second takes those of a folder. Each is run in `exact` and in `ane`, once
for every shape it allows of a few, with several calls where it has state.

A graph's result differs from the exact one by what all of its ops together may, which is no tolerance anybody states. So each
op is judged by itself: in a copy of the package every value that may be an output is made one, and each op's result is
compared with what `run_ops.py` makes of the very operands the runtime computed. The package as it was must give the same
bits for its own outputs as the copy.
"""

import argparse
import collections
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np

from judge import Refused, copy_of, ct, load, types, verdicts
from run_ops import decode, evaluate, tolerance, widened

from coremltools.converters.mil.backend.mil.helper import create_scalar_value, create_tensor_value
from coremltools.proto import MIL_pb2 as MIL

DTYPES = {65568: np.float32, 65552: np.float16, 131104: np.int32}
CODES = {"fp32": 65568, "fp16": 65552, "int32": 131104}
MIL_TYPES = {name: getattr(MIL, name.upper().replace("FP", "FLOAT")) for name in CODES}
MIL_INT32 = MIL.INT32
# Between a value's name and that of the op that carries it out.
SEEN = "__"
MODEL = pathlib.Path("Data", "com.apple.CoreML", "model.mlmodel")
CALLS = 3
# How often each op was judged, for the last line.
JUDGED = collections.Counter()
UNSEEN = collections.Counter()


def descriptions(spec):
    """Function name to what the package says of its inputs, outputs and states."""
    functions = {f.name: f for f in spec.description.functions}
    return functions or {next(iter(spec.mlProgram.functions)): spec.description}


def expose(spec, program):
    """Adds every value to its function's outputs, by way of another op where it cannot cross a package's border itself."""
    # Programs of iOS 15 take and give no fp16; nothing else hangs on the number.
    spec.specificationVersion = max(spec.specificationVersion, 7)
    for name, description in descriptions(spec).items():
        function = spec.mlProgram.functions[name]
        block = function.block_specializations[function.opset]
        known = set(block.outputs) | {i.name for i in function.inputs}
        # The loader names what a written state would read as, and no op of the package gives it.
        defined = {out.name: out.type for op in block.operations for out in op.outputs}
        for op in program.functions[name].operations:
            for out in op.outputs:
                if op.op_type == "const" or op.op_type.startswith("constexpr_") or out.name not in defined:
                    continue
                source, dtype, shape = out.name, types.builtin_to_string(out.dtype), list(out.shape)
                if dtype not in CODES:
                    source = follow_with(block, "cast", "dtype", "int32", source, defined[source], MIL_INT32)
                    dtype = "int32"
                if not shape:
                    vector = MIL.TensorType(dataType=MIL_TYPES[dtype], rank=1)
                    vector.dimensions.add().constant.size = 1
                    source = follow_with(block, "expand_dims", "axes", np.array([0], np.int32), source, vector)
                    shape = [1]
                if source in known:
                    continue
                block.outputs.append(source)
                feature = description.output.add(name=source)
                feature.type.multiArrayType.dataType = CODES[dtype]
                if all(isinstance(d, (int, np.integer)) for d in shape):
                    feature.type.multiArrayType.shape.extend(int(d) for d in shape)


def follow_with(block, kind, parameter, value, source, of, dtype=None):
    """Appends an op of one operand and one constant; gives its result's name. `of`: the result's type, but for `dtype`."""
    name = f"{source}{SEEN}{kind}"
    constant = block.operations.add(type="const")
    constant.attributes["name"].CopyFrom(create_scalar_value(f"{name}_{parameter}"))
    constant.attributes["val"].CopyFrom(create_scalar_value(value) if isinstance(value, str) else create_tensor_value(value))
    constant.outputs.add(name=f"{name}_{parameter}", type=constant.attributes["val"].type)
    op = block.operations.add(type=kind)
    op.attributes["name"].CopyFrom(create_scalar_value(name))
    op.inputs["x"].arguments.add(name=source)
    op.inputs[parameter].arguments.add(name=f"{name}_{parameter}")
    result = op.outputs.add(name=name)
    if isinstance(of, MIL.TensorType):
        result.type.tensorType.CopyFrom(of)
    else:
        result.type.CopyFrom(of)
    if dtype is not None:
        result.type.tensorType.dataType = dtype
    return name


def seen(found, out):
    """What the runtime computed for a value of the program."""
    path = out.name
    dtype = types.builtin_to_string(out.dtype)
    if dtype not in CODES:
        path += f"{SEEN}cast"
    if not out.shape:
        path += f"{SEEN}expand_dims"
    value = found.get(path)
    if value is None:
        return None
    own = value.dtype if dtype in CODES else types.nptype_from_builtin(out.dtype)
    return (value if out.shape else value.reshape(())).astype(own)


def shapes(description):
    """For a few runs, the shape of each input."""
    runs = []
    for run in range(4):
        given = {}
        for feature in description.input:
            array = feature.type.multiArrayType
            kind = array.WhichOneof("ShapeFlexibility")
            shape = tuple(array.shape)
            if kind == "enumeratedShapes":
                options = [tuple(s.shape) for s in array.enumeratedShapes.shapes]
                shape = options[run % len(options)]
            elif kind == "shapeRange":
                ranges = [(int(r.lowerBound), int(r.upperBound)) for r in array.shapeRange.sizeRanges]
                top = [high if high >= 0 else low + 40 for low, high in ranges]
                pick = [lambda low, high, d: d, lambda low, high, d: low, lambda low, high, d: high, lambda low, high, d: (low + high) // 2][run]
                shape = tuple(pick(low, high, d) for (low, _), high, d in zip(ranges, top, shape))
            given[feature.name] = shape
        if given not in runs:
            runs.append(given)
    return runs


def feed(rng, description, given):
    """Random inputs. Integers are small and not negative: they may index."""
    inputs = {}
    for feature in description.input:
        dtype, shape = DTYPES[feature.type.multiArrayType.dataType], given[feature.name]
        values = rng.integers(0, 4, shape) if dtype is np.int32 else np.clip(rng.standard_normal(shape), -3, 3)
        inputs[feature.name] = np.asarray(values).astype(dtype)
    return inputs


def execute(anemone, package, function, numerics, calls, folder):
    """The outputs of each call."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = []
    for i, inputs in enumerate(calls):
        files.append(str(folder / f"in{i}.npz"))
        np.savez(files[-1], **inputs)
    command = [anemone, "run", str(package), "--quiet", "--threads", "2", "--numerics", numerics, "--outputs", str(folder / "out")]
    command += ["--function", function, "--inputs", *files]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise Refused(f"anemone run ({numerics}, {function}): {result.stderr.strip() or result.returncode}")
    return [dict(np.load(folder / "out" / f"{i}.npz")) for i in range(len(calls))]


def follow(function, numerics, inputs, found, state, constants):
    """Judges each op of one call by the runtime's own operands. `state` is changed as the program says."""
    exact = numerics == "exact"
    env = dict(inputs)
    value_of = lambda v: env[v.name] if v.name in env else constants.get(v.name, v.val)
    for op in function.operations:
        kind = op.op_type
        if kind == "const":
            continue
        if kind.startswith("constexpr_"):
            if op.outputs[0].name not in constants:
                decoded(op, lambda v: constants.get(v.name, v.val), constants)
            continue
        if kind == "read_state":
            operands, results = {}, [state[op.input.name]]
        elif kind == "coreml_update_state":
            operands, results = {}, [value_of(op.value)]
            state[op.state.name] = results[0]
        else:
            of = lambda x: [value_of(v) for v in x] if isinstance(x, (list, tuple)) else value_of(x)
            operands = {k: of(x) for k, x in op.inputs.items() if x is not None}
            operands = {k: x for k, x in operands.items() if x is not None}
            results = evaluate(op, operands, function.opset_version, exact)
        for out, expected in zip(op.outputs, results, strict=True):
            where = f"{numerics}: {kind} `{out.name}`"
            result = seen(found, out)
            if result is None:
                UNSEEN[kind] += 1
                half = expected.dtype.kind == "f" and not exact and types.builtin_to_string(out.dtype) == "fp16"
                env[out.name] = expected.astype(np.float16) if half else expected
                continue
            JUDGED[kind] += 1
            env[out.name] = result
            compare(where, op, operands, expected, result)


def decoded(op, value_of, constants):
    """Puts a compressed weight's value into `constants`, after two opinions where coremltools has one."""
    results = decode(op, value_of)
    results = results if isinstance(results, tuple) else (results,)
    try:
        theirs = op.materialized_val_inference()
    except Exception:  # it has none for those whose operand is another's result
        theirs = None
    if theirs is not None:
        theirs = theirs if isinstance(theirs, tuple) else (theirs,)
        for ours, other in zip(results, theirs, strict=True):
            if ours.dtype != other.dtype and ours.dtype.kind == "f" or not np.array_equal(ours, other, equal_nan=True):
                raise Refused(f"{op.op_type} `{op.name}`: the judges disagree by {np.abs(widened(ours) - widened(other)).max()}")
    JUDGED[op.op_type] += 1
    constants.update((out.name, result) for out, result in zip(op.outputs, results, strict=True))


def compare(where, op, operands, expected, found):
    if expected.shape != found.shape:
        raise Refused(f"{where}: shape {found.shape}, expected {expected.shape}")
    if (found.dtype.kind == "f") != (expected.dtype.kind == "f"):
        raise Refused(f"{where}: {found.dtype}, expected {expected.dtype}")
    if found.dtype.kind != "f":  # whole numbers of any width, and truths
        if not np.array_equal(found, expected):
            raise Refused(f"{where}: {found.ravel()[:8]}, expected {expected.ravel()[:8]}")
        return
    half = found.dtype == np.float16
    with np.errstate(all="ignore"):
        nearest = expected.astype(found.dtype)
        allowed = np.broadcast_to(tolerance(op, operands, expected, half), expected.shape)
        off = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        good = (found == nearest) | (np.isnan(found) & np.isnan(nearest)) | (off <= allowed)
    if not good.all():
        i = np.unravel_index(np.argmin(good), good.shape)
        inner = {k: x[i] if not isinstance(x, list) and np.shape(x) == good.shape else np.shape(x) for k, x in operands.items()}
        raise Refused(
            f"{where}: {(~good).sum()} of {good.size} wrong; at {[int(n) for n in i]} {found[i]!r}, expected {expected[i]!r} "
            f"within {allowed[i]:.3e}, of {inner}"
        )


def nudged(*arguments):
    """As `execute`, but the last value of each call has one element off by a hundredth."""
    results = execute(*arguments)
    for outputs in results:
        value = outputs[sorted(outputs)[-1]]
        value.flat[-1] = value.flat[-1] * 1.01 + 1
    return results


def judge_package(anemone, package, seed=0, execute=execute):
    """Runs a package in every way and judges it; says in a line what was done."""
    spec, program = load(package)
    rng = np.random.default_rng(seed)
    done = collections.Counter()
    with copy_of(package) as probe, tempfile.TemporaryDirectory(prefix="run-") as work:
        exposed = ct.models.utils.load_spec(str(probe))
        expose(exposed, program)
        probe.joinpath(MODEL).unlink()
        probe.joinpath(MODEL).write_bytes(exposed.SerializeToString())
        for name, description in descriptions(spec).items():
            function = program.functions[name]
            constants = {}
            states = {s.name: tuple(s.type.stateType.arrayType.shape) for s in description.state}
            for given in shapes(description):
                calls = [feed(rng, description, given) for _ in range(CALLS if states else 1)]
                for numerics in ("exact", "ane"):
                    plain = execute(anemone, package, name, numerics, calls, pathlib.Path(work, "plain"))
                    found = execute(anemone, probe, name, numerics, calls, pathlib.Path(work, "probe"))
                    state = {s: np.zeros(shape, np.float16) for s, shape in states.items()}
                    for inputs, a, b in zip(calls, plain, found, strict=True):
                        for output, value in a.items():
                            if not np.array_equal(value, b[output], equal_nan=value.dtype.kind == "f"):
                                raise Refused(f"{numerics}: output `{output}` changes when other values are outputs too")
                        follow(function, numerics, inputs, b, state, constants)
                        done["calls"] += 1
            done["functions"] += 1
            done["ops"] += sum(op.op_type != "const" for op in function.operations)
    return ", ".join(f"{n} {what}" for what, n in done.items())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("anemone")
    parser.add_argument("--packages", type=pathlib.Path, help="a folder of packages, instead of random ones")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="the first package's; the others follow")
    parser.add_argument("--keep", type=pathlib.Path, help="where random packages are left")
    arguments = parser.parse_args()
    if arguments.packages:
        paths = sorted(arguments.packages.glob("*.mlpackage"))
        status = verdicts(paths, lambda path: judge_package(arguments.anemone, path))
    else:
        from run_cases import make

        with tempfile.TemporaryDirectory(prefix="packages-") as work:
            folder = arguments.keep or pathlib.Path(work)
            folder.mkdir(parents=True, exist_ok=True)

            def judge(seed):
                path = folder / f"{seed}.mlpackage"
                about = make(seed, path)
                try:
                    return f"{about}: {judge_package(arguments.anemone, path, seed)}"
                except Refused as refusal:
                    raise Refused(f"{about}: {refusal}") from refusal
                finally:
                    if not arguments.keep:
                        shutil.rmtree(path, ignore_errors=True)

            # A judge that cannot refuse proves nothing.
            make(arguments.seed, folder / "judge.mlpackage")
            try:
                judge_package(arguments.anemone, folder / "judge.mlpackage", execute=nudged)
                sys.exit("WRONG: the judge overlooks a wrong value")
            except Refused:
                pass
            shutil.rmtree(folder / "judge.mlpackage")
            status = verdicts(range(arguments.seed, arguments.seed + arguments.count), judge)
    print("judged:", ", ".join(f"{n} {kind}" for kind, n in sorted(JUDGED.items())))
    print("seen only by what follows them:", ", ".join(f"{n} {kind}" for kind, n in sorted(UNSEEN.items())) or "none")
    return status


if __name__ == "__main__":
    sys.exit(main())

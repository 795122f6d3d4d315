"""What the judges share: coremltools without its noise, and packages opened on a copy.

coremltools rewrites a package's Manifest.json whenever it opens one, so a judge never opens the original: it works on a copy
whose weights are hard links where the filesystem allows.
"""

import contextlib
import logging
import os
import pathlib
import shutil
import sys
import tempfile
import warnings

import numpy as np

# Off a Mac, coremltools reports every Apple library it cannot load; none of them is wanted here.
logging.disable(logging.WARNING)
warnings.filterwarnings("ignore")
os.environ.setdefault("TQDM_DISABLE", "1")

import coremltools as ct  # noqa: E402
from coremltools.converters.mil.frontend.milproto import load as milproto  # noqa: E402
from coremltools.converters.mil.mil import Builder as mb  # noqa: E402
from coremltools.converters.mil.mil import Function, Program, types  # noqa: E402
from coremltools.libmodelpackage import ModelPackage  # noqa: E402
from coremltools.optimize.coreml import OpLinearQuantizerConfig, OptimizationConfig, linear_quantize_weights  # noqa: E402

WEIGHTS = pathlib.Path("Data", "com.apple.CoreML", "weights")


class Refused(Exception):
    """The file under judgement is wrong; the message says how."""


@contextlib.contextmanager
def copy_of(package):
    """A copy of a package that may be written to."""

    def copy(source, target):
        if pathlib.Path(source).name == "weight.bin":
            try:
                return os.link(source, target)
            except OSError:
                pass
        shutil.copyfile(source, target)

    with tempfile.TemporaryDirectory(prefix="judge-") as work:
        target = pathlib.Path(work, pathlib.Path(package).name)
        shutil.copytree(package, target, copy_function=copy)
        yield target


def load(package):
    """`(spec, program)` as coremltools reads them: every function, each value checked against its blob."""
    package = pathlib.Path(package)
    if not package.is_dir():
        raise Refused("no such package")
    with copy_of(package) as copy:
        if not ModelPackage.isValid(str(copy)):
            raise Refused("coremltools' libmodelpackage calls it invalid")
        try:
            spec = ct.models.utils.load_spec(str(copy))
            program = milproto.load(spec, spec.specificationVersion, str(copy / WEIGHTS))
        except Exception as error:  # coremltools raises whatever comes to hand
            raise Refused(f"coremltools cannot load it: {type(error).__name__}: {error}") from error
    return spec, program


def model_of(weights, tokens=1, granularity=None):
    """coremltools' model of one 1x1 convolution for each fp16 `[Cout, Cin, 1, 1]`, `tokens` wide.

    With a granularity (`per_channel`, `per_tensor`) coremltools quantises each weight to int8, symmetrically.
    """
    widths = sorted({w.shape[1] for w in weights})
    inputs = {f"x{width}": mb.placeholder((1, width, tokens, 1), dtype=types.fp16) for width in widths}
    with Function(inputs, opset_version=ct.target.iOS18) as function:
        sources = function.inputs
        function.set_outputs([mb.conv(x=sources[f"x{w.shape[1]}"], weight=w, name=f"y{i}") for i, w in enumerate(weights)])
    program = Program()
    program.add_function("main", function)
    model = ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS18,
        pass_pipeline=ct.PassPipeline.EMPTY,  # equal weights stay apart, in order
        compute_units=ct.ComputeUnit.CPU_ONLY,
        skip_model_load=True,
    )
    if granularity is None:
        return model
    # The threshold says which tensors are worth quantising, not how it is done.
    one = OpLinearQuantizerConfig(mode="linear_symmetric", dtype="int8", granularity=granularity, weight_threshold=0)
    with np.errstate(all="ignore"):
        return linear_quantize_weights(model, OptimizationConfig(global_config=one))


def packages_of(bundle):
    """The packages of a bundle, sorted."""
    bundle = pathlib.Path(bundle)
    found = sorted(bundle.glob("layers/*.mlpackage")) + sorted(bundle.glob("head/*.mlpackage"))
    if not found:
        raise Refused(f"{bundle}: no layers/*.mlpackage and no head/*.mlpackage")
    return found


def verdicts(paths, judge):
    """Calls `judge(path)` for each path, prints one line for each, and gives the exit status: 1 if any was refused."""
    status = 0
    for path in paths:
        try:
            print(f"ok    {path}: {judge(path)}", flush=True)
        except Refused as refusal:
            print(f"WRONG {path}: {refusal}", flush=True)
            status = 1
    if not paths:
        print("WRONG: nothing to judge", file=sys.stderr)
    return status if paths else 1

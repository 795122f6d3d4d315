"""Judges the judges: `python selftest.py`

A judge that cannot refuse proves nothing. coremltools itself writes a small two-function bundle from the miniature's weights
in each weight mode; the judges must pass it, and must refuse it once each of these is done to it: a value off by one, a scale
off by one, per-tensor scales where per-channel ones are meant, a row of the source left out, a blob cut short, a description
that disagrees with the program, a shifted embedding. A stand-in for the binary answers from the goldens, rightly and not.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile

import gguf
import numpy as np
from judge import WEIGHTS, ct, model_of

HERE = pathlib.Path(__file__).resolve().parent
SOURCE = HERE.parent / "fixtures" / "miniature" / "miniature-f16.gguf"
PROMPTS = SOURCE.parent / "prompts.jsonl"
MODEL = pathlib.Path("Data", "com.apple.CoreML", "model.mlmodel")


def matrices():
    return [np.array(t.data)[:, :, None, None] for t in gguf.GGUFReader(SOURCE).tensors if len(t.shape) == 2]


def embedding():
    return next(t.data.tobytes() for t in gguf.GGUFReader(SOURCE).tensors if t.name == "token_embd.weight")


def write_bundle(folder, weights, granularity=None):
    """One package with the functions `main` and `prefill`, quantised by coremltools where a granularity is given."""
    package = folder / "layers" / "00-04.mlpackage"
    package.parent.mkdir(parents=True)
    (folder / "embedding.f16").write_bytes(embedding())
    about = ct.utils.MultiFunctionDescriptor()
    for name, tokens in (("main", 1), ("prefill", 4)):
        part = folder / f"{name}.mlpackage"
        model_of(weights, tokens, granularity).save(str(part))
        about.add_function(str(part), src_function_name="main", target_function_name=name)
    about.default_function_name = "main"
    ct.utils.save_multifunction(about, str(package))
    return folder


def nudge(package, dtype, at):
    """Changes by one the value at index `at` of the first blob of that type code."""
    path = package / WEIGHTS / "weight.bin"
    content = bytearray(path.read_bytes())
    code = {"fp16": 1, "int8": 4}[dtype]
    record = 64
    while record < len(content):
        words = np.frombuffer(content, "<u4", 2, record)
        size, offset = np.frombuffer(content, "<u8", 2, record + 8)
        if words[1] == code:
            content[int(offset) + at] ^= 1
            path.write_bytes(content)
            return
        record = (int(offset) + int(size) + 63) // 64 * 64
    raise LookupError(f"no {dtype} blob in {path}")


def cut_short(package):
    path = package / WEIGHTS / "weight.bin"
    path.write_bytes(path.read_bytes()[:-1000])


def shift_embedding(package):
    path = package.parent.parent / "embedding.f16"
    path.write_bytes(path.read_bytes()[2:] + b"\0\0")


def describe_wrongly(package):
    spec = ct.proto.Model_pb2.Model()
    spec.ParseFromString((package / MODEL).read_bytes())
    spec.description.functions[0].input[0].type.multiArrayType.shape[1] += 1
    (package / MODEL).write_bytes(spec.SerializeToString())


ANSWERING = """#!{python}
import json, sys
golden = [json.loads(line) for line in open({golden!r}, encoding="utf-8")]
for record in golden:
    ids = record["expected_ids"]
    if record["id"] == {wrong}:
        ids = ids[:2] + [ids[2] + 1]
    print(json.dumps({{"id": record["id"], "prompt_ids": record["prompt_ids"], "ids": ids}}))
"""


def answering(path, wrong):
    """A program in the binary's place whose answer to the prompt of that id is wrong."""
    path.write_text(ANSWERING.format(python=sys.executable, golden=str(PROMPTS), wrong=wrong))
    path.chmod(0o755)
    return path


def main():
    failures = []

    def expect(status, what, *command):
        run = subprocess.run([sys.executable, HERE / command[0], *map(str, command[1:])], capture_output=True, text=True)
        verdict = "as expected" if run.returncode == status else f"exit {run.returncode} instead of {status}\n{run.stdout}{run.stderr}"
        # A refusal counts only as a verdict: a judge that crashes exits with 1 as well.
        if run.returncode == status == 1 and "WRONG" not in run.stdout:
            verdict = f"crashed\n{run.stderr}"
        print(f"{what}: {verdict}", flush=True)
        if verdict != "as expected":
            failures.append(what)

    with tempfile.TemporaryDirectory(prefix="selftest-") as work:
        work = pathlib.Path(work)
        weights = matrices()
        fp16 = write_bundle(work / "fp16", weights)
        channel = write_bundle(work / "int8-channel", weights, "per_channel")
        tensor = write_bundle(work / "int8", weights, "per_tensor")
        less = write_bundle(work / "less", weights[:-1])

        def damaged(bundle, damage, *args):
            copy = work / f"{bundle.name}-{damage.__name__}{''.join(map(str, args))}"
            shutil.copytree(bundle, copy)
            damage(copy / "layers" / "00-04.mlpackage", *args)
            return copy

        expect(0, "sound packages load", "packages.py", fp16, channel, tensor)
        expect(1, "a blob cut short", "packages.py", damaged(fp16, cut_short))
        expect(1, "a wrong description", "packages.py", damaged(fp16, describe_wrongly))
        expect(0, "fp16 weights are the source's", "weights.py", fp16, "--mode", "fp16", "--source", SOURCE)
        expect(1, "an fp16 value off by one", "weights.py", damaged(fp16, nudge, "fp16", 0), "--mode", "fp16", "--source", SOURCE)
        expect(1, "an embedding shifted by one element", "weights.py", damaged(fp16, shift_embedding), "--mode", "fp16", "--source", SOURCE)
        expect(1, "a matrix left out", "weights.py", less, "--mode", "fp16", "--source", SOURCE)
        expect(1, "int8 where fp16 is meant", "weights.py", channel, "--mode", "fp16")
        against = ("--fp16-bundle", fp16)
        expect(0, "int8-channel is coremltools'", "weights.py", channel, "--mode", "int8-channel", *against)
        expect(0, "int8 is coremltools'", "weights.py", tensor, "--mode", "int8", *against)
        expect(1, "per tensor where per channel is meant", "weights.py", tensor, "--mode", "int8-channel", *against)
        expect(1, "per channel where per tensor is meant", "weights.py", channel, "--mode", "int8", *against)
        expect(1, "fp16 where int8 is meant", "weights.py", fp16, "--mode", "int8", *against)
        expect(1, "an int8 value off by one", "weights.py", damaged(channel, nudge, "int8", 7), "--mode", "int8-channel", *against)
        expect(1, "a scale off by one", "weights.py", damaged(channel, nudge, "fp16", 0), "--mode", "int8-channel", *against)
        right, wrong = answering(work / "right", None), answering(work / "wrong", 5)
        expect(0, "right answers", "answers.py", right, fp16, PROMPTS, "--from", "ids")
        expect(1, "one wrong token in forty answers", "answers.py", wrong, fp16, PROMPTS, "--from", "messages")
    if failures:
        sys.exit(f"the judges are wrong about: {', '.join(failures)}")


if __name__ == "__main__":
    main()

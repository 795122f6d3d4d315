#!/usr/bin/env python3
"""Kills a build at every write, rename, fsync and removal it makes, and resumes it.

    kills.py ANEMONE MODEL [--every N] [-- BUILD OPTIONS...]

A build of MODEL is traced once to count its calls. Then, for each kind of call and each k, a build is killed with SIGKILL at
its k-th call of that kind (strace's injection; a thread counts its own calls), and three things must hold:

- the target is absent, or it is whole: byte for byte the undisturbed bundle;
- a build with --resume then succeeds, and its bytes are those of the undisturbed bundle;
- nothing but the bundle is left beside it.

Needs strace. Prints a line a kind, exits 1 on the first violation.
"""
import argparse
import collections
import hashlib
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

CALLS = ["write", "pwrite64", "rename", "renameat", "renameat2", "fsync", "unlink", "unlinkat", "mkdir", "ftruncate"]


def digest(folder: pathlib.Path) -> dict[str, str]:
    """Every file below a folder, by name, with its hash."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def counted(log: str) -> collections.Counter:
    """The largest number of calls that one thread made, by kind: what the injection counts."""
    by_thread = collections.Counter(re.findall(r"^(\d+) +(\w+)\(", log, re.MULTILINE))
    most: collections.Counter = collections.Counter()
    for (_, call), count in by_thread.items():
        most[call] = max(most[call], count)
    return most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("anemone")
    parser.add_argument("model")
    parser.add_argument("--every", type=int, default=1, help="only each N-th call")
    parser.add_argument("options", nargs="*", help="options of the build, after --")
    arguments = parser.parse_args()

    folder = pathlib.Path(tempfile.mkdtemp(prefix="kills-"))
    target, log = folder / "work" / "bundle", folder / "log"

    def build(*more: str, trace: list[str] | None = None) -> int:
        command = [arguments.anemone, "build", arguments.model, "-o", str(target), "--quiet", *arguments.options, *more]
        prefix = ["strace", "-f", "-qq", "-o", str(log), *trace] if trace else []
        return subprocess.run([*prefix, *command], stderr=subprocess.DEVNULL).returncode

    try:
        assert build(trace=["-e", "trace=" + ",".join(CALLS)]) == 0, "the undisturbed build failed"
        expected = digest(target)
        counts = counted(log.read_text())
        for call in CALLS:
            killed = 0
            for k in range(1, counts[call] + 1, arguments.every):
                shutil.rmtree(target.parent)
                inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={k}"]
                killed += build("--resume", trace=inject) != 0
                if target.exists() and digest(target) != expected:
                    print(f"FAILED {call} {k}: a bundle that is not whole")
                    return 1
                if not target.exists() and build("--resume") != 0:
                    print(f"FAILED {call} {k}: the build cannot be resumed")
                    return 1
                if digest(target) != expected:
                    print(f"FAILED {call} {k}: the resumed bundle differs")
                    return 1
                left = [path.name for path in target.parent.iterdir()]
                if left != ["bundle"]:
                    print(f"FAILED {call} {k}: left behind {left}")
                    return 1
            if counts[call]:
                print(f"ok {call}: killed {killed} times, whole or absent each time, resumed to the same bytes")
        return 0
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())

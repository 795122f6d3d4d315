#!/usr/bin/env python3
"""Kills a build and resumes it: at every write, rename, fsync and removal it makes, or at random moments.

    kills.py ANEMONE MODEL [--every N | --random N [--seed S]] [-- BUILD OPTIONS...]

Without --random, a build of MODEL is traced once to count its calls. Then, for each kind of call and each k, a build is killed
with SIGKILL at its k-th call of that kind (strace's injection; a thread counts its own calls). With --random, a build is timed
once, and N builds are killed at moments drawn from that time: for models whose builds make too many calls to visit each.

Each time three things must hold:

- the target is absent, or it is whole: byte for byte the undisturbed bundle;
- a build with --resume then succeeds, and its bytes are those of the undisturbed bundle;
- nothing but the bundle is left beside it.

Needs strace, but for --random. Files go where TMPDIR says. Prints a line a kind, exits 1 on the first violation.
"""
import argparse
import collections
import hashlib
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time

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


class Violation(Exception):
    """What did not hold."""


class Builds:
    """Builds of one model to one target."""

    def __init__(self, anemone: str, model: str, options: list[str], folder: pathlib.Path):
        self.command = [anemone, "build", model, "--quiet", *options]
        self.target, self.log = folder / "work" / "bundle", folder / "log"
        self.expected: dict[str, str] = {}

    def start(self, *more: str, trace: list[str] | None = None) -> subprocess.Popen:
        prefix = ["strace", "-f", "-qq", "-o", str(self.log), *trace] if trace else []
        return subprocess.Popen([*prefix, *self.command, "-o", str(self.target), *more], stderr=subprocess.DEVNULL)

    def undisturbed(self, trace: list[str] | None = None) -> float:
        """Makes the bundle that all others must equal; seconds it took."""
        began = time.monotonic()
        if self.start(trace=trace).wait() != 0:
            raise Violation("the undisturbed build failed")
        took = time.monotonic() - began
        self.expected = digest(self.target)
        return took

    def clear(self) -> None:
        shutil.rmtree(self.target.parent)

    def check(self, name: str) -> None:
        """What must hold after a kill."""
        if self.target.exists() and digest(self.target) != self.expected:
            raise Violation(f"{name}: a bundle that is not whole")
        if not self.target.exists():
            if self.start("--resume").wait() != 0:
                raise Violation(f"{name}: the build cannot be resumed")
            if digest(self.target) != self.expected:
                raise Violation(f"{name}: the resumed bundle differs")
        if (left := [path.name for path in self.target.parent.iterdir()]) != ["bundle"]:
            raise Violation(f"{name}: left behind {left}")


def at_calls(builds: Builds, every: int) -> None:
    builds.undisturbed(trace=["-e", "trace=" + ",".join(CALLS)])
    counts = counted(builds.log.read_text())
    for call in CALLS:
        killed = 0
        for k in range(1, counts[call] + 1, every):
            builds.clear()
            inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={k}"]
            killed += builds.start("--resume", trace=inject).wait() != 0
            builds.check(f"{call} {k}")
        if counts[call]:
            print(f"ok {call}: killed {killed} times, whole or absent each time, resumed to the same bytes")


def at_random(builds: Builds, count: int, seed: int) -> None:
    took = builds.undisturbed()
    moments = random.Random(seed)
    killed = 0
    for i in range(count):
        builds.clear()
        moment = moments.uniform(0, took)
        build = builds.start("--resume")
        time.sleep(moment)
        build.kill()
        killed += build.wait() != 0
        builds.check(f"kill {i + 1} after {moment:.2f} s")
    print(f"ok random: {count} builds of {took:.1f} s, {killed} killed before they ended, whole or absent each time, resumed to the same bytes")


def main() -> int:
    # Everything after -- is for the build, whatever it looks like.
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    own, options = words[:end], words[end + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("anemone")
    parser.add_argument("model")
    parser.add_argument("--every", type=int, default=1, help="only each N-th call")
    parser.add_argument("--random", type=int, metavar="N", help="kill N builds at random moments instead")
    parser.add_argument("--seed", type=int, default=1, help="of those moments")
    arguments = parser.parse_args(own)
    folder = pathlib.Path(tempfile.mkdtemp(prefix="kills-"))
    try:
        builds = Builds(arguments.anemone, arguments.model, options, folder)
        if arguments.random:
            at_random(builds, arguments.random, arguments.seed)
        else:
            at_calls(builds, arguments.every)
        return 0
    except Violation as violation:
        print(f"FAILED {violation}")
        return 1
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())

"""What the benchmarks share: where the repository and its binaries are, and what they run on."""

import os
import pathlib
import platform
import subprocess

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))


def build_release(*packages):
    """Builds the release binaries of these packages, so that what is measured is what the sources say."""
    command = ["cargo", "build", "--release", "--locked", "--quiet", *(word for name in packages for word in ("-p", name))]
    subprocess.run(command, cwd=REPOSITORY, check=True)


def processor():
    """The processor's name."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()

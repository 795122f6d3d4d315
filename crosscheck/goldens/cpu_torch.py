"""Makes an installed `torch` wheel importable on a machine without CUDA.

    python cpu_torch.py SITE_PACKAGES

The Linux x86-64 wheel links NVIDIA's libraries, gigabytes of them, only to start up. Goldens need the CPU kernels alone, so
the wheel is installed without its dependencies and every library it lacks is stood in for by one whose functions do nothing
but answer `cudaErrorNoDevice`: `torch.cuda.is_available()` is then False and nothing else ever calls them. Needs a C compiler
and binutils. Does nothing where the wheel is a CPU build.
"""

import collections
import pathlib
import re
import subprocess
import sys
import tempfile

NO_DEVICE = 100  # cudaErrorNoDevice, which is also CUDA_ERROR_NO_DEVICE
VENDOR_LIBRARY = re.compile(r"lib(cu|nv|nccl)")
VENDOR_SYMBOL = re.compile(r"(cu|nccl|nv)[A-Za-z_]")


def output_of(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def missing(folder):
    """The sonames no file of the wheel provides, and the undefined symbols by the version they are wanted at."""
    needed, symbols = set(), collections.defaultdict(set)
    for library in sorted(folder.glob("lib*.so*")):
        needed |= set(re.findall(r"\(NEEDED\).*\[(.*)\]", output_of("readelf", "-d", str(library))))
        for line in output_of("nm", "-D", "--undefined-only", str(library)).splitlines():
            name, _, version = line.split()[-1].partition("@")
            if name:
                symbols[version.lstrip("@")].add(name)
    absent = {n for n in needed if VENDOR_LIBRARY.match(n) and not (folder / n).exists()}
    return absent, symbols


def stand_in(folder, soname, symbols, version):
    """Compiles a library of that soname which defines `symbols`, at `version` if they are wanted at one."""
    bodies = []
    for symbol in sorted(symbols):
        if "ErrorString" in symbol or "ErrorName" in symbol:
            bodies.append(f'const char *{symbol}(void) {{ return "no CUDA on this machine"; }}')
        else:
            bodies.append(f"int {symbol}(void) {{ return {NO_DEVICE}; }}")
    with tempfile.TemporaryDirectory() as work:
        source, script = pathlib.Path(work, "stand_in.c"), pathlib.Path(work, "version")
        source.write_text("\n".join(bodies) + "\n")
        script.write_text(f"{version} {{ global: *; }};\n")
        command = ["cc", "-shared", "-fPIC", "-fno-builtin", "-w", str(source), "-o", str(folder / soname), f"-Wl,-soname,{soname}"]
        if version:
            command.append(f"-Wl,--version-script={script}")
        subprocess.run(command, check=True)


def main():
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1], "torch", "lib")
    if not folder.is_dir():
        sys.exit(f"{folder}: no such folder; install torch there first")
    absent, symbols = missing(folder)
    # A symbol wanted at no version may come from any loaded library: every stand-in without versions of its own has them all.
    unversioned = {s for s in symbols[""] if VENDOR_SYMBOL.match(s)}
    for soname in sorted(absent):
        version = "NVSHMEM" if "nvshmem" in soname else soname
        if symbols.get(version, set()) - {""}:
            stand_in(folder, soname, symbols[version], version)
        else:
            stand_in(folder, soname, unversioned, None)
    print(f"{len(absent)} stand-in libraries in {folder}")


if __name__ == "__main__":
    main()

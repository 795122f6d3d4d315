"""Says what a Mach-O file is, and fails unless it is an arm64 executable for the given macOS: macho.py FILE MAJOR.MINOR.

The header and its load commands are as <mach-o/loader.h> has them.
"""

import struct
import sys

MAGIC_64, ARM64, EXECUTE = 0xFEEDFACF, 0x0100000C, 2
LOAD_DYLIB, BUILD_VERSION, CODE_SIGNATURE, MACOS = 0xC, 0x32, 0x1D, 1


def main(path, minimum):
    with open(path, "rb") as file:
        data = file.read()
    magic, cpu, _, kind, commands = struct.unpack_from("<5I", data)
    if (magic, cpu, kind) != (MAGIC_64, ARM64, EXECUTE):
        sys.exit(f"{path}: not an arm64 Mach-O executable: magic {magic:#x}, cpu {cpu:#x}, type {kind}")
    at, found, libraries, signed = 32, None, [], False
    for _ in range(commands):
        command, size = struct.unpack_from("<2I", data, at)
        if command == BUILD_VERSION:
            platform, version = struct.unpack_from("<2I", data, at + 8)
            found = (platform, f"{version >> 16}.{version >> 8 & 0xFF}")
        elif command == LOAD_DYLIB:
            (name,) = struct.unpack_from("<I", data, at + 8)
            libraries.append(data[at + name : at + size].split(b"\0")[0].decode())
        elif command == CODE_SIGNATURE:
            signed = True
        at += size
    if found != (MACOS, minimum):
        sys.exit(f"{path}: built for platform and version {found}, expected macOS {minimum}")
    if not any(name.endswith("/CoreML") for name in libraries):
        sys.exit(f"{path}: does not load CoreML, only {', '.join(libraries)}")
    # arm64 refuses what is not signed at all; an ad hoc signature of the linker's is enough to run.
    if not signed:
        sys.exit(f"{path}: not signed, not even ad hoc")
    print(f"check-macos: arm64 Mach-O for macOS {minimum}, {len(data)} bytes, loads {', '.join(libraries)}")


if __name__ == "__main__":
    main(*sys.argv[1:])

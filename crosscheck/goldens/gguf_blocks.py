"""Expected values of every block type the `gguf` package can dequantise, as the package itself gives them.

    python gguf_blocks.py OUT_DIR [BLOCKS_PER_TYPE]

Writes `OUT_DIR/<TYPE>.bin` for each type, all little-endian:

    u32 number of blocks, u32 bytes per block, u32 elements per block, the blocks, the elements as f32

The first blocks are adversarial: all bytes equal (0x00, 0xff, ...), every interesting pattern in the bytes where a scale
may be. The rest are random, half of them with scales of ordinary size so that the elements are not mostly infinite.
The committed set is `gguf_blocks.py crates/gguf/tests/data 24`; needs `gguf==0.19.0` and `numpy`.
"""

import sys
from pathlib import Path

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

# Half-precision patterns: zeros, subnormals, one, extremes, infinities, NaNs quiet and signalling.
HALVES = [0x0000, 0x8000, 0x0001, 0x83FF, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFE55]


def adversarial(size: int, rng: np.random.Generator) -> list[np.ndarray]:
    blocks = [np.full(size, byte, np.uint8) for byte in (0x00, 0xFF, 0x80, 0x7F, 0x01, 0xAA)]
    # Scales sit in the first or the last four bytes, whichever the type.
    for n, half in enumerate(HALVES):
        for at in {0, max(size - 2, 0), max(size - 4, 0)}:
            if at + 2 <= size and (n + at) % 2 == 0:
                block = rng.integers(0, 256, size, np.uint8)
                block[at : at + 2] = [half & 255, half >> 8]
                blocks.append(block)
    return blocks


def ordinary(size: int, rng: np.random.Generator) -> np.ndarray:
    block = rng.integers(0, 256, size, np.uint8)
    for at in {0, max(size - 2, 0), max(size - 4, 0)}:
        if at + 2 <= size:
            half = np.float16(rng.normal(0, 0.1)).view(np.uint16)
            block[at : at + 2] = [half & 255, half >> 8]
    return block


def main() -> None:
    out = Path(sys.argv[1])
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 20000
    out.mkdir(parents=True, exist_ok=True)
    for ty in T:
        rng = np.random.default_rng(int(ty))
        length, size = GGML_QUANT_SIZES[ty]
        blocks = adversarial(size, rng)
        while len(blocks) < count:
            blocks.append(ordinary(size, rng) if len(blocks) % 2 else rng.integers(0, 256, size, np.uint8))
        if length == 1 and size <= 2:
            # Few enough to have them all, in a large set.
            blocks += [np.frombuffer(int(i).to_bytes(2, "little"), np.uint8)[:size] for i in range(min(count, 1 << 8 * size))]
        data = np.stack(blocks)
        try:
            with np.errstate(all="ignore"):
                values = dequantize(data, ty)
        except NotImplementedError:
            print(f"{ty.name}: the package does not dequantise it")
            continue
        header = np.array([len(blocks), size, length], "<u4")
        path = out / f"{ty.name}.bin"
        path.write_bytes(header.tobytes() + data.tobytes() + values.astype("<f4", copy=False).tobytes())
        print(f"{ty.name}: {len(blocks)} blocks")


if __name__ == "__main__":
    main()

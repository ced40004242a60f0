"""Writes what random blocks of each tensor type stand for, as the `gguf` package reads them.

    python golden_tensors.py OUTPUT.json
"""

import argparse

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type
from gguf.quants import dequantize

from common import versions, write_json

SEED = 7
N_BLOCKS = 3
TYPES = ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4",
         "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"]
# Where a block has its numbers in half precision.
HALVES = {"F16": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "IQ4_NL": [0],
          "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_XS": [0]}


def random_blocks(name, random):
    """Any bits, but for half-precision numbers, which are finite; the first block has every bit set."""
    _, n_bytes = GGML_QUANT_SIZES[Type[name]]
    blocks = random.integers(0, 256, (N_BLOCKS, n_bytes), dtype=np.uint8)
    blocks[0] = 255
    for at in HALVES.get(name, []):
        halves = random.standard_normal(N_BLOCKS).astype(np.float16)
        blocks[:, at : at + 2] = halves.view(np.uint8).reshape(N_BLOCKS, 2)
    if name == "BF16":
        floats = random.standard_normal(N_BLOCKS).astype(np.float32)
        blocks[:] = floats.view(np.uint8).reshape(N_BLOCKS, 4)[:, 2:]
    if name == "MXFP4":
        blocks[:, 0] = [0, 1, 130]
    return blocks


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output")
    output = parser.parse_args().output
    random = np.random.default_rng(SEED)
    types = []
    for name in TYPES:
        blocks = random_blocks(name, random)
        values = dequantize(blocks.reshape(-1), Type[name]).astype(np.float32)
        bits = values.reshape(-1).view(np.uint32).tolist()
        types.append({"name": name, "bytes": blocks.tobytes().hex(), "bits": bits})
    write_json(output, {"script": "reference/golden_tensors.py", "versions": versions("numpy", "gguf"), "seed": SEED,
                        "tolerance": "none: `bits` are those of the float32 values", "types": types})


if __name__ == "__main__":
    main()

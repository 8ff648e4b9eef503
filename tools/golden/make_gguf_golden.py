#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/gguf/formats.gguf, a tensor of random blocks in every supported format and a metadata
key of every type, and formats.safetensors, what gguf.quants.dequantize makes of the tensors.

Needs gguf, numpy and safetensors (versions and seed are in the metadata of both files). Run from the
repository root: python3 tools/golden/make_gguf_golden.py
"""

from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as Value
from safetensors.numpy import save_file

FOLDER = Path("tests/golden/gguf")
SEED = 7
SHAPE = (3, 512)  # rows of two super-blocks, 16 blocks

# Where the f16 scales of a block stand; all other bytes of a block may be anything.
SCALES = {
    Type.F32: None, Type.F16: None, Type.BF16: None, Type.Q8_0: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2],
    Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
}


def random_blocks(kind, rng):
    """Bytes [rows, bytes of a row] of a tensor, every bit pattern of a code possible."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    if SCALES[kind] is None:
        # Wide exponents, subnormals of f16 among them.
        numbers = (rng.standard_normal(SHAPE) * 2.0 ** rng.integers(-24, 10, SHAPE)).astype(np.float32)
        return gguf.quants.quantize(numbers, kind).view(np.uint8).reshape(SHAPE[0], -1)
    blocks = rng.integers(0, 256, (SHAPE[0] * SHAPE[1] // values, size), dtype=np.uint8)
    for place in SCALES[kind]:
        scales = (rng.standard_normal(len(blocks)) * 2.0 ** rng.integers(-20, 3, len(blocks)))
        blocks[:, place:place + 2] = scales.astype(np.float16).view(np.uint8).reshape(-1, 2)
    return blocks.reshape(SHAPE[0], -1)


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    made_by = f"tools/golden/make_gguf_golden.py seed {SEED} gguf {version('gguf')} numpy {version('numpy')}"
    writer = gguf.GGUFWriter(FOLDER / "formats.gguf", "golden")
    writer.add_string("golden.made_by", made_by)
    numbers = {
        Value.UINT8: 200, Value.INT8: -100, Value.UINT16: 60000, Value.INT16: -30000, Value.UINT32: 4000000000,
        Value.INT32: -2000000000, Value.FLOAT32: 1e-05, Value.BOOL: True, Value.STRING: "caf\u00e9",
        Value.UINT64: 2**63 - 1, Value.INT64: -(2**63), Value.FLOAT64: 1e-300,
    }
    for kind, number in numbers.items():
        writer.add_key_value(f"golden.{kind.name.lower()}", number, kind)
    writer.add_array("golden.integers", [3, -1, 2])
    writer.add_array("golden.numbers", [0.5, -1.25])
    writer.add_array("golden.texts", ["", "a b", "\u20ac"])
    writer.add_uint32("general.alignment", 64)
    writer.data_alignment = 64

    expected = {}
    for kind in SCALES:
        blocks = random_blocks(kind, rng)
        values = gguf.quants.dequantize(blocks, kind).reshape(SHAPE).astype(np.float32)
        assert np.isfinite(values).all(), kind
        expected[kind.name] = values
        if kind == Type.F32:
            writer.add_tensor(kind.name, values)
        else:
            writer.add_tensor(kind.name, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, FOLDER / "formats.safetensors", metadata={"made_by": made_by})
    for path in sorted(FOLDER.iterdir()):
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()

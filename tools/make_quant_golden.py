"""Writes tests/golden/quant_blocks.json: blocks of every GGUF format with the values that the gguf package gives.

Blocks are random bytes with scales of ordinary size, so that every bit of a block matters. Values are recorded
as the bits of an f32. Needs the packages gguf and numpy.
"""

import importlib.metadata
import json
import pathlib

import gguf
import numpy as np

# Positions of the f16 scales in a block.
SCALES = dict(
    Q4_0=[0], Q4_1=[0, 2], Q5_0=[0], Q5_1=[0, 2], Q8_0=[0], Q4_K=[0, 2], Q5_K=[0, 2], Q6_K=[208], BF16=[], F16=[0]
)


def main():
    random = np.random.default_rng(20240607)
    formats = []
    for name, scales in SCALES.items():
        quant_type = gguf.GGMLQuantizationType[name]
        block_len, block_bytes = gguf.GGML_QUANT_SIZES[quant_type]
        num_blocks = 3 if block_len > 1 else 16
        blocks = random.integers(0, 256, size=(num_blocks, block_bytes), dtype=np.uint8)
        if name == "BF16":
            blocks = random.standard_normal(num_blocks).astype(np.float32).view(np.uint8).reshape(-1, 4)[:, 2:].copy()
        for at in scales:
            values = (random.standard_normal(num_blocks) * 0.1).astype(np.float16)
            blocks[:, at : at + 2] = values.view(np.uint8).reshape(num_blocks, 2)
        values = gguf.quants.dequantize(blocks.reshape(-1), quant_type).astype(np.float32).reshape(-1)
        assert np.isfinite(values).all() and len(values) == num_blocks * block_len
        formats.append(
            dict(name=name, blocks=blocks.tobytes().hex(), value_bits=values.astype("<f4").tobytes().hex())
        )
    golden = dict(
        command="python tools/make_quant_golden.py",
        versions=dict(gguf=importlib.metadata.version("gguf"), numpy=np.__version__),
        formats=formats,
    )
    pathlib.Path("tests/golden/quant_blocks.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()

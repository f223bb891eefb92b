"""Writes a model directory of random bf16 weights: make_random_llama.py SPEC.json DIRECTORY

SPEC.json is a model_spec.json of the Llama block without biases, such as benches/specs/llama_3_8b.json. The directory
gets weights in shards, their index, model_spec.json and a tokenizer of single letters: enough to time loading, and
nothing that makes sense. Shards are written side by side, since filling the page cache keeps a core busy. Needs Python
alone.
"""

import json
import os
import shutil
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK_ELEMENTS = 8 << 20
SHARD_BYTES = 1 << 30
TOKENIZER = Path(__file__).resolve().parent.parent / "fuzz/src/tokenizer.json"


def tensors(spec):
    """Names and shapes, in the order of the file."""
    names, hidden, inner = spec["weights"], spec["hidden_size"], spec["intermediate_size"]
    heads = spec["heads"]
    query, kv = (heads[count] * heads["head_dim"] for count in ("num_heads", "num_kv_heads"))
    yield names["embedding"], [spec["vocab_size"], hidden]
    for layer in range(spec["num_layers"]):
        for template, shape in [
            (names["attention_norm"], [hidden]),
            (names["qkv"]["query"], [query, hidden]),
            (names["qkv"]["key"], [kv, hidden]),
            (names["qkv"]["value"], [kv, hidden]),
            (names["attention_output"], [hidden, query]),
            (names["mlp_norm"], [hidden]),
            (names["mlp"]["gate"], [inner, hidden]),
            (names["mlp"]["up"], [inner, hidden]),
            (names["mlp"]["down"], [hidden, inner]),
        ]:
            yield template.replace("{layer}", str(layer)), shape
    yield names["final_norm"], [hidden]
    if spec["output"] == "untied":
        yield names["head"], [spec["vocab_size"], hidden]


def random_block():
    """Values of magnitude 2^-7 to 2^-5 and either sign: random low bytes below two possible high ones."""
    block = bytearray(2 * BLOCK_ELEMENTS)
    block[0::2] = os.urandom(BLOCK_ELEMENTS)
    block[1::2] = os.urandom(BLOCK_ELEMENTS).translate(bytes([0x3C] * 128 + [0xBC] * 128))
    return bytes(block)


def shards(spec):
    """Headers of files of about SHARD_BYTES, and how many bytes follow each."""
    header, position = {}, 0
    for name, shape in tensors(spec):
        num_bytes = 2
        for size in shape:
            num_bytes *= size
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, position + num_bytes]}
        position += num_bytes
        if position >= SHARD_BYTES:
            yield header, position
            header, position = {}, 0
    if header:
        yield header, position


def write_shard(path, header, num_bytes, block):
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb", buffering=0) as file:
        write_all(file, struct.pack("<Q", len(text)) + text)
        for start in range(0, num_bytes, len(block)):
            write_all(file, memoryview(block)[: num_bytes - start])


def write_all(file, piece):
    """An unbuffered file may take less than it is given."""
    while piece:
        piece = piece[file.write(piece) :]


def main():
    spec_path, directory = Path(sys.argv[1]), Path(sys.argv[2])
    spec = json.loads(spec_path.read_text())
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(spec_path, directory / "model_spec.json")
    shutil.copy(TOKENIZER, directory / "tokenizer.json")
    block, parts = random_block(), list(shards(spec))
    names = [f"model-{index:05}-of-{len(parts):05}.safetensors" for index in range(1, len(parts) + 1)]
    weight_map = {tensor: name for name, (header, _) in zip(names, parts) for tensor in header}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        written = [threads.submit(write_shard, directory / name, *part, block) for name, part in zip(names, parts)]
    for shard in written:
        shard.result()


main()

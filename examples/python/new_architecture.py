#!/usr/bin/env python3
"""Defines an architecture that Inflight has no file for, runs it, and compares it with NumPy's model of the same.

The model has random weights, and what no published family has together: ALiBi, norms before and after each block,
norms of queries and keys over their whole width, squared ReLU, and a soft cap on the logits of a tied head.

    PYTHONPATH=bindings/python/src INFLIGHT_LIBRARY=target/release/libinflight.so \\
        python3 examples/python/new_architecture.py
"""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path
from typing import Any

import inflight
import numpy as np
from inflight import Dtype, spec

LAYERS, HIDDEN, WIDTH, HEADS, HEAD_DIM, VOCAB, CAP, EPSILON = 2, 40, 72, 5, 8, 256, 4.0, 1e-5
PROMPT = [7, 201, 33, 90, 5, 148, 66]
NUM_TOKENS = 8

Tensors = dict[str, Any]


def describe() -> spec.ModelSpec:
    layer = "layers.{layer}."
    return spec.ModelSpec(
        family="example",
        num_layers=LAYERS,
        hidden_size=HIDDEN,
        intermediate_size=WIDTH,
        vocab_size=VOCAB,
        max_positions=128,
        positions=spec.alibi(),
        norm=spec.norm("rms", EPSILON),
        block="sandwich",
        heads=spec.heads(HEADS, HEADS, HEAD_DIM),
        attention=spec.attention(qk_norm="width"),
        mlp=spec.mlp("plain", "relu_squared"),
        output="tied",
        logits=spec.logits(soft_cap=CAP),
        weights=spec.weights(
            embedding="embedding",
            attention_norm=layer + "norm_1",
            qkv=spec.separate(layer + "q", layer + "k", layer + "v"),
            query_norm=layer + "q_norm",
            key_norm=layer + "k_norm",
            attention_output=layer + "o",
            post_attention_norm=layer + "norm_2",
            mlp_norm=layer + "norm_3",
            mlp=spec.plain(layer + "up", layer + "down"),
            post_mlp_norm=layer + "norm_4",
            final_norm="norm",
        ),
    )


def random_tensors() -> Tensors:
    random = np.random.default_rng(5)
    tensors = {"embedding": random.standard_normal((VOCAB, HIDDEN)), "norm": 1 + 0.3 * random.standard_normal(HIDDEN)}
    shapes = dict(q=(HIDDEN, HIDDEN), k=(HIDDEN, HIDDEN), v=(HIDDEN, HIDDEN), o=(HIDDEN, HIDDEN), up=(WIDTH, HIDDEN))
    for layer in range(LAYERS):
        for name, shape in (shapes | dict(down=(HIDDEN, WIDTH))).items():
            tensors[f"layers.{layer}.{name}"] = random.standard_normal(shape) / shape[1] ** 0.5
        for name in ("norm_1", "norm_2", "norm_3", "norm_4", "q_norm", "k_norm"):
            tensors[f"layers.{layer}.{name}"] = 1 + 0.3 * random.standard_normal(HIDDEN)
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def write_safetensors(path: Path, tensors: Tensors) -> None:
    header, offset = {}, 0
    for name, tensor in tensors.items():
        header[name] = dict(dtype="F32", shape=tensor.shape, data_offsets=[offset, offset + tensor.nbytes])
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensor.tobytes() for tensor in tensors.values()))


def write_tokenizer(path: Path) -> None:
    """A token for each byte, by the characters that byte-level tokenizers write for them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + at) for at, byte in enumerate(others)}
    byte_level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=False, use_regex=False)
    model = dict(type="BPE", vocab={letters[byte]: byte for byte in range(256)}, merges=[])
    tokenizer = dict(version="1.0", added_tokens=[], pre_tokenizer=byte_level, decoder=byte_level, model=model)
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def log_probabilities(tensors: Tensors, tokens: list[int]) -> Any:
    """What NumPy thinks of the token after `tokens`."""

    def norm(x: Any, name: str) -> Any:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON) * tensors[name]

    def attention(x: Any, layer: str) -> Any:
        q, k = norm(x @ tensors[layer + "q"].T, layer + "q_norm"), norm(x @ tensors[layer + "k"].T, layer + "k_norm")
        q, k, v = (part.reshape(-1, HEADS, HEAD_DIM).swapaxes(0, 1) for part in (q, k, x @ tensors[layer + "v"].T))
        distances = np.arange(len(x))[:, None] - np.arange(len(x))[None, :]
        # Four heads have the slopes for four; the fifth has the first of those for eight.
        slopes = 2.0 ** -np.array([2, 4, 6, 8, 1])
        scores = q @ k.swapaxes(1, 2) / HEAD_DIM**0.5 - slopes[:, None, None] * distances
        scores = np.where(distances < 0, -np.inf, scores)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        return (scores @ v).swapaxes(0, 1).reshape(len(x), HIDDEN) @ tensors[layer + "o"].T

    x = tensors["embedding"][tokens]
    for layer in (f"layers.{index}." for index in range(LAYERS)):
        x = x + norm(attention(norm(x, layer + "norm_1"), layer), layer + "norm_2")
        up = np.maximum(norm(x, layer + "norm_3") @ tensors[layer + "up"].T, 0) ** 2
        x = x + norm(up @ tensors[layer + "down"].T, layer + "norm_4")
    logits = CAP * np.tanh(norm(x[-1], "norm") @ tensors["embedding"].T / CAP)
    return logits - np.log(np.exp(logits).sum())


def main() -> None:
    tensors = random_tensors()
    with tempfile.TemporaryDirectory() as folder:
        describe().write(folder)
        write_safetensors(Path(folder) / "model.safetensors", tensors)
        write_tokenizer(Path(folder) / "tokenizer.json")
        tokens, worst = list(PROMPT), 0.0
        with inflight.Engine(folder, device="cpu", dtype=Dtype.F32) as engine:
            for chunk in engine.generate(PROMPT, max_tokens=NUM_TOKENS, temperature=0, logprobs=20):
                for token, alternatives in zip(chunk.tokens, chunk.logprobs or []):
                    expected = log_probabilities(tensors, tokens)
                    worst = max(worst, *(abs(each.logprob - expected[each.token]) for each in alternatives))
                    tokens.append(token)
    if len(tokens) != len(PROMPT) + NUM_TOKENS or worst > 2e-4:
        raise SystemExit(f"{len(tokens) - len(PROMPT)} tokens; the largest difference is {worst:.1e}")
    print(f"{NUM_TOKENS} tokens, 20 log-probabilities each; the largest difference from NumPy's is {worst:.1e}")


if __name__ == "__main__":
    main()

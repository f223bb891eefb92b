"""Writes tests/golden/rope.json: RoPE frequencies by transformers' ROPE_INIT_FUNCTIONS for config.json snippets.

Needs the packages torch and transformers.
"""

import json
import pathlib

import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

BASE = dict(hidden_size=512, num_attention_heads=4, intermediate_size=8, num_hidden_layers=1, vocab_size=8)
# Old files write rope_theta and rope_scaling, new ones rope_parameters; both are in use.
CASES = {
    "plain": dict(rope_theta=10000.0, max_position_embeddings=2048),
    "plain, large base, new style": dict(
        rope_parameters=dict(rope_type="default", rope_theta=500000.0), max_position_embeddings=8192
    ),
    "linear, old style": dict(rope_scaling=dict(type="linear", factor=4.0), max_position_embeddings=4096),
    "dynamic": dict(rope_scaling=dict(type="dynamic", factor=2.0), max_position_embeddings=4096),
    "llama 3.1": dict(
        rope_theta=500000.0,
        rope_scaling=dict(
            rope_type="llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
        max_position_embeddings=131072,
    ),
    "llama 3.2": dict(
        rope_parameters=dict(
            rope_type="llama3",
            rope_theta=500000.0,
            factor=32.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=8192,
        ),
        max_position_embeddings=131072,
        head_dim=64,
    ),
    "yarn": dict(
        rope_scaling=dict(type="yarn", factor=16.0, original_max_position_embeddings=4096),
        max_position_embeddings=65536,
    ),
    "yarn, all options": dict(
        rope_parameters=dict(
            rope_type="yarn",
            rope_theta=1000000.0,
            factor=4.0,
            original_max_position_embeddings=32768,
            beta_fast=24.0,
            beta_slow=2.0,
            mscale=0.707,
            mscale_all_dim=1.0,
        ),
        max_position_embeddings=131072,
    ),
    "yarn, attention factor": dict(
        rope_parameters=dict(
            rope_type="yarn",
            rope_theta=10000.0,
            factor=8.0,
            original_max_position_embeddings=2048,
            attention_factor=0.75,
        ),
        max_position_embeddings=16384,
    ),
}
# Contexts for the scaling that depends on it.
CONTEXTS = {"dynamic": [1000, 4096, 6000, 8192]}


def main():
    cases = []
    for name, changes in CASES.items():
        for context in CONTEXTS.get(name, [64]):
            fields = BASE | changes
            config = transformers.LlamaConfig(**json.loads(json.dumps(fields)))
            compute = ROPE_INIT_FUNCTIONS.get(
                config.rope_parameters["rope_type"], LlamaRotaryEmbedding.compute_default_rope_parameters
            )
            frequencies, attention_factor = compute(config, torch.device("cpu"), seq_len=context)
            cases.append(
                dict(
                    name=name,
                    config=fields | dict(architectures=["LlamaForCausalLM"]),
                    max_model_len=context,
                    attention_factor=float(attention_factor),
                    inverse_frequencies=[float(f) for f in frequencies],
                )
            )
    golden = dict(
        command="python tools/make_rope_golden.py",
        versions=dict(torch=torch.__version__, transformers=transformers.__version__),
        cases=cases,
    )
    pathlib.Path("tests/golden/rope.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()

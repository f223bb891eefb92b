"""Writes tests/golden/llama_tiny_*: tiny random Llama checkpoints with logits by transformers in float32.

Sizes are odd on purpose: head counts that are no powers of two, a vocabulary and widths that no tile divides.
Most files are in half widths; the reference computes in float32 with the same, rounded weights. golden.json has
the prompt, logits.bin the logits of each of its positions. Needs the packages torch, transformers and
safetensors; for the one GGUF case also gguf.
"""

import json
import pathlib

import gguf
import numpy as np
import torch
import transformers

PROMPT_LEN = 33
BASE = dict(
    vocab_size=89,
    hidden_size=36,
    intermediate_size=53,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=10,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
)
# Element types of the files; bfloat16 where a case is not named.
DTYPES = dict(mha_untied=torch.float32, linear=torch.float16)
CASES = dict(
    mha_untied=dict(num_key_value_heads=6, tie_word_embeddings=False),
    gqa_tied=dict(tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=500.0)),
    mqa_wide_heads=dict(num_key_value_heads=1, head_dim=14, tie_word_embeddings=False),
    linear=dict(rope_parameters=dict(rope_type="linear", rope_theta=100.0, factor=2.5)),
    # The prompt is longer than what the model was trained for, so that the scaling takes effect.
    dynamic=dict(
        max_position_embeddings=16, rope_parameters=dict(rope_type="dynamic", rope_theta=100.0, factor=2.0625)
    ),
    llama3=dict(
        rope_parameters=dict(
            rope_type="llama3",
            rope_theta=100.0,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=24,
        )
    ),
    yarn=dict(
        rope_parameters=dict(
            rope_type="yarn", rope_theta=100.0, factor=4.0, original_max_position_embeddings=16, beta_fast=4.0
        )
    ),
)


def randomise(model, dtype):
    """Weights, exact in `dtype`, large enough that attention is far from uniform and norms are far from one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1.0 + 0.3 * torch.randn_like(parameter))
            elif "embed" in name:
                parameter.copy_(torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) * 1.5 / parameter.shape[-1] ** 0.5)
            parameter.copy_(parameter.to(dtype).float())


def write_golden(directory, model, prompt):
    with torch.inference_mode():
        logits = model(torch.tensor([prompt])).logits[0]
    golden = dict(
        command="python tools/make_llama_golden.py",
        versions=dict(torch=torch.__version__, transformers=transformers.__version__),
        prompt_ids=prompt,
    )
    (directory / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    # f32, little-endian, [prompt position][vocabulary].
    (directory / "logits.bin").write_bytes(logits.numpy().astype("<f4").tobytes())


def permuted(weight, num_heads):
    """Rows of a query or key projection in GGUF's order, in which RoPE's pairs are neighbours."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, 2, rows // num_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path, model):
    """The same model as a GGUF file, converted as llama.cpp does it, in F32."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    names = dict(
        embed_tokens="token_embd", norm="output_norm", input_layernorm="attn_norm", q_proj="attn_q",
        k_proj="attn_k", v_proj="attn_v", o_proj="attn_output", post_attention_layernorm="ffn_norm",
        gate_proj="ffn_gate", up_proj="ffn_up", down_proj="ffn_down",
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        weight = parameter.detach().numpy()
        if parts[-2] == "q_proj":
            weight = permuted(weight, config.num_attention_heads)
        if parts[-2] == "k_proj":
            weight = permuted(weight, config.num_key_value_heads)
        prefix = f"blk.{parts[2]}." if "layers" in parts else ""
        writer.add_tensor(f"{prefix}{names[parts[-2]]}.weight", np.ascontiguousarray(weight))
    # What llama.cpp writes for Llama 3.1's scaling: one divisor per frequency.
    factors = model.model.rotary_emb.compute_default_rope_parameters(config, None)[0]
    factors = factors / model.model.rotary_emb.inv_freq
    writer.add_tensor("rope_freqs.weight", factors.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    for index, (name, changes) in enumerate(CASES.items()):
        torch.manual_seed(index)
        config = transformers.LlamaConfig(**(BASE | changes), attn_implementation="eager")
        model = transformers.LlamaForCausalLM(config).eval()
        dtype = DTYPES.get(name, torch.bfloat16)
        randomise(model, dtype)
        directory = pathlib.Path("tests/golden") / f"llama_tiny_{name}"
        directory.mkdir(exist_ok=True)
        prompt = torch.randint(0, config.vocab_size, (PROMPT_LEN,)).tolist()
        write_golden(directory, model, prompt)
        model.to(dtype).save_pretrained(directory)
        (directory / "generation_config.json").unlink(missing_ok=True)

    torch.manual_seed(100)
    config = transformers.LlamaConfig(**(BASE | CASES["llama3"]), tie_word_embeddings=True)
    model = transformers.LlamaForCausalLM(config).eval()
    randomise(model, torch.float32)
    directory = pathlib.Path("tests/golden/llama_tiny_gguf")
    directory.mkdir(exist_ok=True)
    write_gguf(directory / "model.gguf", model)
    write_golden(directory, model, torch.randint(0, config.vocab_size, (PROMPT_LEN,)).tolist())


if __name__ == "__main__":
    main()

"""Writes tests/golden/gguf/<case>/: tiny random models as GGUF files, converted as llama.cpp does it, and their logits.

Models, prompts and logits are made as tools/make_tiny_checkpoints.py makes them. Matrices are BF16, the rest F32.

usage: make_tiny_ggufs.py [CASE ...]; needs the packages torch, transformers, safetensors and gguf.
"""

import dataclasses
import importlib.metadata
import json
import pathlib
import sys
import tempfile

import gguf
import make_tiny_checkpoints as tiny
import safetensors.torch
import torch
import transformers

OUTPUT = pathlib.Path("tests/golden/gguf")
BF16 = gguf.GGMLQuantizationType.BF16
F32 = gguf.GGMLQuantizationType.F32
# Case: the architecture, the family that the model is made as, and changes of its settings.
CASES = {
    "mistral": ("llama", "mistral", dict(sliding_window=None)),
    "mixtral": ("llama", "mixtral", {}),
    "qwen2": ("qwen2", "qwen2", {}),
    "qwen2moe": ("qwen2moe", "qwen2_moe", {}),
    "qwen3": ("qwen3", "qwen3", {}),
    "qwen3moe": ("qwen3moe", "qwen3_moe", {}),
    "gemma": ("gemma", "gemma", {}),
    "gemma2": ("gemma2", "gemma2", dict(query_pre_attn_scalar=12)),
    # A pattern of six layers, of which the last sees everything, is the only one that files can have.
    "gemma3": (
        "gemma3",
        "gemma3",
        dict(
            num_hidden_layers=7,
            query_pre_attn_scalar=12,
            layer_types=None,
            rope_parameters=dict(
                sliding_attention=tiny.rope(10000.0), full_attention=tiny.rope(1000.0, rope_type="linear", factor=8.0)
            ),
        ),
    ),
    "phi2": ("phi2", "phi", {}),
    "phi3": ("phi3", "phi3_long", {}),
    "gpt2": ("gpt2", "gpt2", {}),
    "starcoder": ("starcoder", "gpt_bigcode", {}),
    "starcoder2": ("starcoder2", "starcoder2", dict(sliding_window=None)),
    "falcon_7b": ("falcon", "falcon_7b", {}),
    "falcon_40b": ("falcon", "falcon_40b", {}),
    "gptneox": ("gptneox", "gpt_neox", {}),
    "bloom": ("bloom", "bloom", {}),
}
# Families whose keys and values follow the queries of their group, which files have in blocks.
GROUPED = ("falcon_40b", "gpt_neox", "bloom")


def first(config, *names):
    """The first of several attributes that the configuration has."""
    return next(value for name in names if (value := getattr(config, name, None)) is not None)


def write_keys(writer, config, case):
    width, heads = first(config, "hidden_size", "n_embd"), first(config, "num_attention_heads", "n_head")
    head_dim = getattr(config, "head_dim", None) or width // heads
    kv_heads = getattr(config, "num_kv_heads", None) or getattr(config, "num_key_value_heads", None) or heads
    writer.add_context_length(first(config, "max_position_embeddings", "n_positions") if case != "bloom" else 64)
    writer.add_embedding_length(width)
    writer.add_block_count(first(config, "num_hidden_layers", "n_layer"))
    sizes = ("ffn_hidden_size", "intermediate_size", "n_inner")
    writer.add_feed_forward_length(next((size for name in sizes if (size := getattr(config, name, None))), 4 * width))
    writer.add_head_count(heads)
    writer.add_head_count_kv(1 if case == "falcon_7b" else kv_heads)
    if head_dim * heads != width or case.startswith("gemma"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(first(config, "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon"))
    write_rope(writer, config, head_dim)
    if experts := getattr(config, "num_local_experts", getattr(config, "num_experts", None)):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        if hasattr(config, "moe_intermediate_size"):
            writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        if hasattr(config, "shared_expert_intermediate_size"):
            writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    if case in ("gemma2", "gemma3"):
        writer.add_sliding_window(config.sliding_window)
    if case == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if case == "gptneox":
        writer.add_parallel_residual(config.use_parallel_residual)


def write_rope(writer, config, head_dim):
    parameters = getattr(config, "rope_parameters", None)
    if not parameters:
        return
    parameters = parameters.get("full_attention", parameters)
    rotary_dim = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
    writer.add_rope_dimension_count(rotary_dim)
    writer.add_rope_freq_base(parameters["rope_theta"])
    if parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(parameters["factor"])
    if parameters["rope_type"] == "longrope":
        writer.add_rope_scaling_orig_ctx_len(parameters["original_max_position_embeddings"])
        for kind in ("long", "short"):
            factors = torch.tensor(parameters[f"{kind}_factor"])
            writer.add_tensor(f"rope_factors_{kind}.weight", factors.numpy(), raw_dtype=F32)


def in_blocks(tensor, config):
    """All queries, all keys, all values, from rows that have them group by group."""
    heads = first(config, "num_attention_heads", "n_head")
    groups = getattr(config, "num_kv_heads", None) or heads
    rows = tensor.reshape(groups, heads // groups + 2, -1, *tensor.shape[1:])
    parts = rows[:, :-2], rows[:, -2], rows[:, -1]
    return torch.cat([part.reshape(-1, *tensor.shape[1:]) for part in parts])


def neighbours(tensor, num_heads):
    """Rows of queries or keys in the order that makes RoPE's pairs neighbours."""
    rows = tensor.reshape(num_heads, 2, tensor.shape[0] // num_heads // 2, *tensor.shape[1:])
    return rows.swapaxes(1, 2).reshape(tensor.shape)


def convert(tensors, config, case):
    """Tensors by their old names, changed as the architecture's files have them."""
    architecture, family, _ = CASES[case]
    result, experts = {}, {}
    for name, tensor in sorted(tensors.items()):
        if family in GROUPED and "query_key_value" in name:
            tensor = in_blocks(tensor, config)
        if architecture == "llama" and name.endswith("q_proj.weight"):
            tensor = neighbours(tensor, config.num_attention_heads)
        if architecture == "llama" and name.endswith("k_proj.weight"):
            tensor = neighbours(tensor, config.num_key_value_heads)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            tensor = tensor + 1
        if architecture == "gpt2" and name.endswith(("attn.weight", "proj.weight", "fc.weight")):
            tensor = tensor.T
        prefix, is_expert, rest = name.partition(".experts.")
        if is_expert:
            index, _, part = rest.partition(".")
            experts.setdefault(f"{prefix}.experts.{part}", {})[int(index)] = tensor
        else:
            result[name] = tensor
    stacks = {name: torch.stack([parts[index] for index in sorted(parts)]) for name, parts in experts.items()}
    return result | stacks


def make(case):
    architecture, family_name, changes = CASES[case]
    family = tiny.FAMILIES[family_name]
    family = dataclasses.replace(family, settings=family.settings | changes)
    model, prompt = tiny.make_model(f"gguf/{case}", family)
    directory = OUTPUT / case
    directory.mkdir(parents=True, exist_ok=True)
    tiny.write_golden(directory, model, family, prompt)
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        tensors = safetensors.torch.load_file(pathlib.Path(saved) / "model.safetensors")
    config = model.config
    writer = gguf.GGUFWriter(str(directory / "model.gguf"), architecture)
    write_keys(writer, config, case)
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(arch, first(config, "num_hidden_layers", "n_layer"))
    for name, tensor in convert(tensors, config, case).items():
        old_names = (name, name.removeprefix("transformer."))
        new = next(filter(None, (names.get_name(old, try_suffixes=(".weight", ".bias")) for old in old_names)), None)
        assert new, f"{case}: {name} has no name in GGUF"
        is_matrix = tensor.ndim > 1 and "ffn_gate_inp" not in new and "position_embd" not in new
        dtype = BF16 if is_matrix else F32
        data = gguf.quants.quantize(tensor.float().contiguous().numpy(), dtype)
        writer.add_tensor(new, data, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    golden = json.loads((directory / "golden.json").read_text())
    golden["command"] = "python tools/make_tiny_ggufs.py"
    golden["versions"]["gguf"] = importlib.metadata.version("gguf")
    (directory / "golden.json").write_text(json.dumps(golden) + "\n")
    print(f"{case}: {(directory / 'model.gguf').stat().st_size} bytes")


def main():
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for case in sys.argv[1:] or CASES:
        make(case)


if __name__ == "__main__":
    main()

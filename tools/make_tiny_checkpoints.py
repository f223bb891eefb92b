"""Writes tests/golden/families/<family>/: a tiny random checkpoint of every family of models, and its logits.

A directory has config.json and model.safetensors as the family's published checkpoints have them (keys and tensor
names of the time of their release, where transformers writes others today), golden.json with a prompt and its greedy
continuation, and logits.bin with the logits of each prompt position (f32, little-endian, [position][vocabulary]), by
transformers in float32 with eager attention on the CPU. Weights are random and exact in bfloat16, biases and norms
too, so that a tensor that is left out changes the logits. golden.json also has `bf16_error`, how far transformers' own
logits are off when it computes the same in bfloat16.

transformers has no class for some families that are published with code of their own. They are computed as what they
equal: InternLM2, DeepSeek's dense models and Baichuan with rotary positions are Llama with fused or renamed tensors;
Baichuan 2's head is Llama's with rows of length one; ChatGLM 2 and 3 are GLM with fused and renamed tensors; Baichuan
13B is Llama without rotation and with ALiBi's bias in the mask.

usage: make_tiny_checkpoints.py [FAMILY ...]; needs the packages torch, transformers and safetensors.
"""

import copy
import dataclasses
import json
import math
import pathlib
import sys
import zlib
from dataclasses import dataclass
from typing import Callable

import safetensors.torch
import torch
import transformers

OUTPUT = pathlib.Path("tests/golden/families")
VOCAB_SIZE = 61
PROMPT_LEN = 33
CONTINUATION_LEN = 8
# Smallest distance between the logits of the last expert chosen and the first left out: below it, bfloat16 may
# choose another expert than float32, and its logits say nothing about the rest.
MIN_ROUTER_GAP = 0.1
# Keys of config.json that say nothing about the architecture.
NOISE = ("transformers_version", "dtype", "chunk_size_feed_forward", "output_attentions", "output_hidden_states",
         "return_dict", "is_encoder_decoder", "problem_type", "id2label", "label2id")  # fmt: skip


@dataclass
class Family:
    """How a checkpoint is made."""

    # transformers' class of the model, by name.
    model: str
    # Arguments of its configuration.
    settings: dict
    # Turns the saved config.json and tensors into what the published checkpoints have.
    edit: Callable = lambda config, tensors: (config, tensors)
    # Changes the model after its weights are drawn.
    prepare: Callable = lambda model: None
    # The bias that is added to attention scores, [heads, queries, keys], where the class knows none.
    mask: Callable | None = None
    # Whether norms multiply by one plus their weight.
    unit_offset_norm: bool = False
    # Implementation of attention.
    attention: str = "eager"


def llama_sizes(num_heads=6, width_per_head=8, **changes):
    """Sizes by the keys that most families use."""
    return dict(
        vocab_size=VOCAB_SIZE,
        hidden_size=num_heads * width_per_head,
        intermediate_size=36,
        num_hidden_layers=2,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads if num_heads % 2 else 2,
        max_position_embeddings=64,
        pad_token_id=0,
    ) | changes


def gpt_sizes(**changes):
    return dict(vocab_size=VOCAB_SIZE, n_positions=64, n_embd=40, n_layer=2, n_head=5) | changes


def rope(theta, **changes):
    return dict(rope_type="default", rope_theta=theta) | changes


def renamed(tensors, *rules):
    """Tensors under new names: each rule replaces one text by another."""
    result = {}
    for name, tensor in tensors.items():
        for old, new in rules:
            name = name.replace(old, new)
        result[name] = tensor
    return result


def without_prefix(config, tensors, prefix="transformer."):
    """As checkpoints of the bare model are published: no head, no prefix."""
    tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    return config, tensors


def old_rope(config):
    """RoPE's parameters under the keys that configs had before `rope_parameters`."""
    parameters = dict(config.pop("rope_parameters"))
    config["rope_theta"] = parameters.pop("rope_theta")
    if "partial_rotary_factor" in parameters:
        config["partial_rotary_factor"] = parameters.pop("partial_rotary_factor")
    config["rope_scaling"] = parameters if parameters.get("rope_type", "default") != "default" else None
    return config


def published_with_old_rope(config, tensors):
    return old_rope(config), tensors


def add_causal_masks(tensors, layer, key, size):
    """The buffers that old checkpoints of the GPT line carry along."""
    for index in range(2):
        prefix = layer.format(index)
        tensors[f"{prefix}.{key}"] = torch.ones(size, size, dtype=torch.bool).tril()[None, None]
        tensors[f"{prefix}.masked_bias"] = torch.tensor(-1e9)


def publish_gpt2(config, tensors):
    config, tensors = without_prefix(config, tensors)
    add_causal_masks(tensors, "h.{}.attn", "bias", 64)
    config["n_ctx"] = config["n_positions"]
    return config, tensors


def publish_gptj(config, tensors):
    add_causal_masks(tensors, "transformer.h.{}.attn", "bias", 64)
    return config | dict(rotary=True, tie_word_embeddings=False), tensors


def publish_gpt_neox(config, tensors):
    config = old_rope(config)
    config["rotary_emb_base"] = config.pop("rope_theta")
    config["rotary_pct"] = config.pop("partial_rotary_factor")
    add_causal_masks(tensors, "gpt_neox.layers.{}.attention", "bias", 64)
    for layer in range(2):
        tensors[f"gpt_neox.layers.{layer}.attention.rotary_emb.inv_freq"] = torch.ones(2)
    return config, renamed(tensors, ("lm_head.", "embed_out."))


def publish_falcon(config, tensors):
    """The keys of the first Falcon release."""
    config = old_rope(config) if "rope_parameters" in config else config
    config["n_head"] = config.pop("num_attention_heads")
    config["n_layer"] = config.pop("num_hidden_layers")
    if config["new_decoder_architecture"]:
        config["n_head_kv"] = config.pop("num_kv_heads")
        config["model_type"] = "RefinedWeb"
    else:
        config.pop("num_kv_heads")
        config.pop("num_ln_in_parallel_attn")
        config["model_type"] = "RefinedWebModel"
    config["architectures"] = ["RWForCausalLM"]
    for key in ("ffn_hidden_size", "activation", "max_position_embeddings", "rope_scaling", "rope_theta"):
        config.pop(key, None)
    tensors["lm_head.weight"] = tensors["transformer.word_embeddings.weight"].clone()
    return config, tensors


def publish_mpt(config, tensors):
    config["architectures"] = ["MPTForCausalLM"]
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM"}
    return config, tensors


def publish_bloom(config, tensors):
    config, tensors = without_prefix(config, tensors)
    config["n_embed"] = config.pop("hidden_size")
    config["num_attention_heads"] = config.pop("n_head")
    config["seq_length"] = 64
    return config, tensors


def publish_opt(config, tensors):
    return config, {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name != "lm_head.weight"}


def stack(tensors, new, *olds):
    """Replaces tensors by one that has their rows."""
    tensors[new] = torch.cat([tensors.pop(old) for old in olds])


def publish_baichuan(config, tensors):
    for layer in range(2):
        attention = f"model.layers.{layer}.self_attn"
        stack(tensors, f"{attention}.W_pack.weight", *(f"{attention}.{part}_proj.weight" for part in "qkv"))
    for key in ("num_key_value_heads", "head_dim", "attention_bias", "mlp_bias", "rope_theta", "rope_scaling",
                "rope_parameters", "pretraining_tp"):  # fmt: skip
        config.pop(key, None)
    config |= dict(
        model_type="baichuan",
        architectures=["BaichuanForCausalLM"],
        auto_map={"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"},
    )
    return config, tensors


def publish_baichuan_7b(config, tensors):
    config, tensors = publish_baichuan(config, tensors)
    config["architectures"] = ["BaiChuanForCausalLM"]
    for layer in range(2):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    return config, tensors


def publish_baichuan_13b(config, tensors):
    config, tensors = publish_baichuan(config, tensors)
    config["model_max_length"] = config.pop("max_position_embeddings")
    return config, tensors


def publish_baichuan2(publish):
    def edit(config, tensors):
        config, tensors = publish(config, tensors)
        config |= dict(z_loss_weight=0, architectures=["BaichuanForCausalLM"])
        tensors["lm_head.weight"] *= 2.0 ** torch.randint(-2, 3, (VOCAB_SIZE, 1))
        return config, tensors

    return edit


def normalise_head(model):
    """Rows of length one."""
    weight = model.lm_head.weight
    weight.copy_(torch.nn.functional.normalize(weight))


class NoRotation(torch.nn.Module):
    def forward(self, hidden, position_ids):
        size = (1, hidden.shape[1], 8)
        return torch.ones(size, dtype=hidden.dtype), torch.zeros(size, dtype=hidden.dtype)


def without_rotation(model):
    model.model.rotary_emb = NoRotation()


def alibi(num_heads):
    """Press et al. 2022: a slope for each head times the distance from query to key."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2 ** (-8 * (index + 1) / power) for index in range(power)]
    slopes += [2 ** (-4 * (index + 1) / power) for index in range(0, 2 * (num_heads - power), 2)]
    slopes = torch.tensor(slopes)

    def mask(length):
        positions = torch.arange(length)
        distances = positions[None, :] - positions[:, None]
        bias = slopes[:, None, None] * distances
        return bias.masked_fill(distances > 0, torch.finfo(torch.float32).min)

    return mask


def publish_chatglm(config, tensors):
    for layer in range(2):
        attention = f"model.layers.{layer}.self_attn"
        for kind in ("weight", "bias"):
            parts = (f"{attention}.{part}_proj.{kind}" for part in "qkv")
            stack(tensors, f"{attention}.query_key_value.{kind}", *parts)
    tensors = renamed(
        tensors,
        ("model.embed_tokens.", "transformer.embedding.word_embeddings."),
        ("model.layers.", "transformer.encoder.layers."),
        ("model.norm.", "transformer.encoder.final_layernorm."),
        ("lm_head.", "transformer.output_layer."),
        (".self_attn.o_proj.", ".self_attention.dense."),
        (".self_attn.", ".self_attention."),
        (".mlp.gate_up_proj.", ".mlp.dense_h_to_4h."),
        (".mlp.down_proj.", ".mlp.dense_4h_to_h."),
    )
    tensors["transformer.rotary_pos_emb.inv_freq"] = torch.ones(4)
    config = dict(
        model_type="chatglm",
        architectures=["ChatGLMModel"],
        auto_map={"AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration"},
        add_bias_linear=False,
        add_qkv_bias=True,
        apply_query_key_layer_scaling=True,
        apply_residual_connection_post_layernorm=False,
        ffn_hidden_size=config["intermediate_size"],
        hidden_size=config["hidden_size"],
        kv_channels=config["head_dim"],
        layernorm_epsilon=config["rms_norm_eps"],
        multi_query_attention=True,
        multi_query_group_num=config["num_key_value_heads"],
        num_attention_heads=config["num_attention_heads"],
        num_layers=config["num_hidden_layers"],
        original_rope=True,
        padded_vocab_size=config["vocab_size"],
        post_layer_norm=True,
        rmsnorm=True,
        rope_ratio=config["rope_parameters"]["rope_theta"] / 10000,
        seq_length=config["max_position_embeddings"],
        tie_word_embeddings=False,
    )
    return config, tensors


def publish_internlm2(config, tensors):
    """Keys and values follow the queries of their group: [groups, queries of a group + 2, head_dim, hidden]."""
    groups, head_dim = config["num_key_value_heads"], config["hidden_size"] // config["num_attention_heads"]
    for layer in range(2):
        attention = f"model.layers.{layer}.self_attn"
        parts = [tensors.pop(f"{attention}.{part}_proj.weight") for part in "qkv"]
        grouped = [part.reshape(groups, -1, head_dim, part.shape[1]) for part in parts]
        tensors[f"model.layers.{layer}.attention.wqkv.weight"] = torch.cat(grouped, 1).reshape(-1, parts[0].shape[1])
    tensors = renamed(
        tensors,
        ("embed_tokens", "tok_embeddings"),
        ("self_attn.o_proj", "attention.wo"),
        ("input_layernorm", "attention_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "feed_forward.w1"),
        ("mlp.up_proj", "feed_forward.w3"),
        ("mlp.down_proj", "feed_forward.w2"),
        ("lm_head.", "output."),
    )
    config = old_rope(config)
    config |= dict(
        model_type="internlm2",
        architectures=["InternLM2ForCausalLM"],
        auto_map={"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"},
        bias=False,
        attn_implementation="eager",
    )
    for key in ("attention_bias", "mlp_bias", "head_dim", "pretraining_tp"):
        config.pop(key)
    return config, tensors


def publish_deepseek(config, tensors):
    config = old_rope(config) | dict(
        model_type="deepseek",
        architectures=["DeepseekForCausalLM"],
        auto_map={"AutoModelForCausalLM": "modeling_deepseek.DeepseekForCausalLM"},
        n_routed_experts=None,
    )
    return config, tensors


def publish_phi3_long(config, tensors):
    config = old_rope(config)
    scaling = config["rope_scaling"]
    config["rope_scaling"] = dict(
        type="longrope", long_factor=scaling["long_factor"], short_factor=scaling["short_factor"]
    )
    return config, tensors


def publish_gemma(config, tensors):
    """Gemma 1 says gelu and means its tanh approximation."""
    return old_rope(config) | dict(hidden_act="gelu"), tensors


def publish_gemma3(config, tensors):
    parameters = config.pop("rope_parameters")
    config |= dict(
        rope_theta=parameters["full_attention"]["rope_theta"],
        rope_local_base_freq=parameters["sliding_attention"]["rope_theta"],
        rope_scaling=dict(rope_type="linear", factor=parameters["full_attention"]["factor"]),
        sliding_window_pattern=2,
    )
    for key in ("layer_types", "_sliding_window_pattern"):
        config.pop(key, None)
    return config, tensors


def publish_gemma3_multimodal(config, tensors):
    config, tensors = publish_gemma3(config, tensors)
    config.pop("architectures")
    tensors = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
    tensors["vision_tower.vision_model.embeddings.patch_embedding.bias"] = torch.ones(5)
    tensors["multi_modal_projector.mm_soft_emb_norm.weight"] = torch.ones(5)
    config = dict(
        architectures=["Gemma3ForConditionalGeneration"],
        model_type="gemma3",
        text_config=config,
        vision_config=dict(model_type="siglip_vision_model", hidden_size=5),
        image_token_index=60,
    )
    return config, tensors


GEMMA = dict(
    model="GemmaForCausalLM",
    unit_offset_norm=True,
)
LONG_FACTORS = dict(
    short_factor=[1.0, 1.05, 1.1, 1.3], long_factor=[1.0, 1.7, 2.9, 4.3], original_max_position_embeddings=16
)
MOE = dict(num_experts_per_tok=2)

FAMILIES = {
    "llama": Family("LlamaForCausalLM", llama_sizes(head_dim=10, rope_parameters=rope(500.0)), published_with_old_rope),
    "llama_bias": Family(
        "LlamaForCausalLM",
        llama_sizes(
            head_dim=8,
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=True,
            rope_parameters=rope(
                100.0,
                rope_type="llama3",
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=24,
            ),
        ),
    ),
    "gpt2": Family("GPT2LMHeadModel", gpt_sizes()),
    "gpt2_published": Family("GPT2LMHeadModel", gpt_sizes(), publish_gpt2),
    "cerebras_gpt": Family("GPT2LMHeadModel", gpt_sizes(activation_function="gelu", n_inner=68)),
    "gptj": Family("GPTJForCausalLM", gpt_sizes(n_embd=56, n_head=4, n_inner=68, rotary_dim=4), publish_gptj),
    "gpt_neox": Family(
        "GPTNeoXForCausalLM",
        llama_sizes(
            num_heads=5, rope_parameters=rope(300.0, partial_rotary_factor=0.5)
        ),
        publish_gpt_neox,
    ),
    "gpt_neox_sequential": Family(
        "GPTNeoXForCausalLM",
        llama_sizes(
            num_heads=5,
            use_parallel_residual=False,
            rope_parameters=rope(300.0, partial_rotary_factor=1.0),
        ),
    ),
    "falcon_7b": Family(
        "FalconForCausalLM",
        llama_sizes(num_heads=5, rope_parameters=rope(10000.0), bias=False),
        publish_falcon,
    ),
    "falcon_40b": Family(
        "FalconForCausalLM",
        llama_sizes(
            num_kv_heads=2, rope_parameters=rope(10000.0), new_decoder_architecture=True, bias=False
        ),
        publish_falcon,
    ),
    "falcon_11b": Family(
        "FalconForCausalLM",
        llama_sizes(
            num_kv_heads=2,
            rope_parameters=rope(500.0),
            new_decoder_architecture=True,
            num_ln_in_parallel_attn=1,
            ffn_hidden_size=68,
        ),
        published_with_old_rope,
    ),
    # Falcon computes ALiBi in bfloat16, whatever the model's type; with four heads that is exact. Its eager attention
    # adds ALiBi to the scores that the mask has it in already, so the other implementation speaks.
    "falcon_rw": Family(
        "FalconForCausalLM",
        llama_sizes(
            num_heads=4, num_kv_heads=4, alibi=True, multi_query=False, parallel_attn=False, bias=True
        ),
        attention="sdpa",
    ),
    "mpt": Family(
        "MptForCausalLM", dict(d_model=40, n_heads=5, n_layers=2, max_seq_len=64, vocab_size=VOCAB_SIZE), publish_mpt
    ),
    "bloom": Family("BloomForCausalLM", dict(hidden_size=40, n_layer=2, n_head=5, vocab_size=VOCAB_SIZE), publish_bloom),
    "opt": Family("OPTForCausalLM", llama_sizes(num_heads=5, ffn_dim=68, word_embed_proj_dim=40)),
    "opt_published": Family(
        "OPTForCausalLM", llama_sizes(num_heads=5, ffn_dim=68, word_embed_proj_dim=40), publish_opt
    ),
    "gpt_bigcode": Family("GPTBigCodeForCausalLM", gpt_sizes(n_inner=68)),
    "gpt_bigcode_multi_head": Family("GPTBigCodeForCausalLM", gpt_sizes(n_inner=68, multi_query=False)),
    "starcoder2": Family(
        "Starcoder2ForCausalLM", llama_sizes(rope_parameters=rope(500.0), sliding_window=11)
    ),
    "baichuan_7b": Family("LlamaForCausalLM", llama_sizes(num_heads=5), publish_baichuan_7b),
    "baichuan_13b": Family(
        "LlamaForCausalLM", llama_sizes(num_heads=5), publish_baichuan_13b, without_rotation, alibi(5)
    ),
    "baichuan2_7b": Family(
        "LlamaForCausalLM", llama_sizes(num_heads=5), publish_baichuan2(publish_baichuan), normalise_head
    ),
    "chatglm": Family(
        "GlmForCausalLM", llama_sizes(head_dim=16, rope_parameters=rope(500000.0)), publish_chatglm
    ),
    "glm": Family("GlmForCausalLM", llama_sizes(head_dim=8, rope_parameters=rope(500.0))),
    "glm4": Family(
        "Glm4ForCausalLM",
        llama_sizes(head_dim=8, attention_bias=True, rope_parameters=rope(500.0)),
        published_with_old_rope,
    ),
    "mistral": Family(
        "MistralForCausalLM",
        llama_sizes(hidden_size=40, head_dim=8, sliding_window=7, rope_parameters=rope(500.0)),
        published_with_old_rope,
    ),
    "mixtral": Family(
        "MixtralForCausalLM",
        llama_sizes(intermediate_size=28, num_local_experts=3, **MOE, rope_parameters=rope(500.0)),
        published_with_old_rope,
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM", llama_sizes(rope_parameters=rope(500.0)), published_with_old_rope
    ),
    "qwen2_window": Family(
        "Qwen2ForCausalLM",
        llama_sizes(
            tie_word_embeddings=True,
            rope_parameters=rope(500.0),
            use_sliding_window=True,
            sliding_window=7,
            max_window_layers=1,
        ),
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM", llama_sizes(head_dim=10, rope_parameters=rope(500.0)), published_with_old_rope
    ),
    "qwen2_moe": Family(
        "Qwen2MoeForCausalLM",
        llama_sizes(
            num_experts=5,
            moe_intermediate_size=28,
            shared_expert_intermediate_size=36,
            norm_topk_prob=False,
            rope_parameters=rope(500.0),
            **MOE,
        ),
        published_with_old_rope,
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        llama_sizes(
            head_dim=8,
            num_experts=5,
            moe_intermediate_size=28,
            norm_topk_prob=True,
            rope_parameters=rope(500.0),
            **MOE,
        ),
    ),
    "gemma": Family(
        **GEMMA,
        settings=llama_sizes(num_heads=5, num_key_value_heads=1, head_dim=12, rope_parameters=rope(500.0)),
        edit=publish_gemma,
    ),
    "gemma2": Family(
        **(GEMMA | dict(model="Gemma2ForCausalLM")),
        settings=llama_sizes(
            head_dim=12,
            sliding_window=7,
            query_pre_attn_scalar=17,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=5.0,
            rope_parameters=rope(500.0),
        ),
        edit=published_with_old_rope,
    ),
    "gemma3": Family(
        **(GEMMA | dict(model="Gemma3ForCausalLM")),
        settings=llama_sizes(
            head_dim=12,
            sliding_window=7,
            query_pre_attn_scalar=17,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters=dict(
                sliding_attention=rope(100.0), full_attention=rope(1000.0, rope_type="linear", factor=8.0)
            ),
        ),
        edit=publish_gemma3,
    ),
    "gemma3_multimodal": Family(
        **(GEMMA | dict(model="Gemma3ForCausalLM")),
        settings=llama_sizes(
            head_dim=12,
            sliding_window=7,
            query_pre_attn_scalar=17,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters=dict(
                sliding_attention=rope(100.0), full_attention=rope(1000.0, rope_type="linear", factor=8.0)
            ),
        ),
        edit=publish_gemma3_multimodal,
    ),
    "phi": Family(
        "PhiForCausalLM",
        llama_sizes(
            num_heads=5, rope_parameters=rope(500.0, partial_rotary_factor=0.5)
        ),
        published_with_old_rope,
    ),  # fmt: skip
    "phi3": Family(
        "Phi3ForCausalLM",
        llama_sizes(sliding_window=11, rope_parameters=rope(500.0)),
        published_with_old_rope,
    ),
    "phi3_long": Family(
        "Phi3ForCausalLM",
        llama_sizes(
            original_max_position_embeddings=16,
            rope_parameters=rope(500.0, rope_type="longrope", **LONG_FACTORS),
        ),
        publish_phi3_long,
    ),
    "phi4_mini": Family(
        "Phi3ForCausalLM",
        llama_sizes(
            num_heads=4,
            width_per_head=10,
            tie_word_embeddings=True,
            original_max_position_embeddings=16,
            rope_parameters=rope(500.0, rope_type="longrope", partial_rotary_factor=0.8, **LONG_FACTORS),
        ),
        publish_phi3_long,
    ),
    "stablelm": Family(
        "StableLmForCausalLM",
        llama_sizes(
            use_qkv_bias=True,
            rope_parameters=rope(500.0, partial_rotary_factor=0.5),
        ),
        published_with_old_rope,
    ),  # fmt: skip
    "stablelm_parallel": Family(
        "StableLmForCausalLM",
        llama_sizes(
            use_parallel_residual=True, qk_layernorm=True,
            rope_parameters=rope(500.0, partial_rotary_factor=0.5),
        ),
    ),  # fmt: skip
    "internlm2": Family(
        "LlamaForCausalLM", llama_sizes(rope_parameters=rope(500.0)), publish_internlm2
    ),
    "olmo": Family(
        "OlmoForCausalLM",
        llama_sizes(rope_parameters=rope(500.0), clip_qkv=None),
        published_with_old_rope,
    ),
    "olmo_clip": Family("OlmoForCausalLM", llama_sizes(rope_parameters=rope(500.0), clip_qkv=1.25)),
    "olmo2": Family("Olmo2ForCausalLM", llama_sizes(rope_parameters=rope(500.0))),
    "deepseek": Family(
        "LlamaForCausalLM",
        llama_sizes(
            num_heads=3, width_per_head=16,
            rope_parameters=rope(500.0, rope_type="linear", factor=4.0),
        ),
        publish_deepseek,
    ),  # fmt: skip
}


def randomise(model, family):
    """Weights large enough that attention is far from uniform and norms are far from one."""
    for name, parameter in model.named_parameters():
        random = torch.randn_like(parameter)
        is_norm = parameter.ndim == 1 and name.endswith("weight")
        if is_norm:
            parameter.copy_((0.0 if family.unit_offset_norm else 1.0) + 0.3 * random)
        elif parameter.ndim == 1:
            parameter.copy_(0.3 * random)
        elif "embed" in name or "wte" in name or "wpe" in name:
            # Some embeddings are scaled by the root of the width, and the tied head is a matrix.
            parameter.copy_(random * (0.2 if family.unit_offset_norm else 0.6))
        else:
            is_transposed = "Conv1D" in type(model.get_submodule(name.rpartition(".")[0])).__name__
            inputs = parameter.shape[0 if is_transposed else -1]
            parameter.copy_(random * (3.0 if name.endswith("mlp.gate.weight") else 1.2) / inputs**0.5)
        parameter.copy_(parameter.bfloat16().float())


def logits_of(model, family, token_ids):
    mask = None if family.mask is None else family.mask(len(token_ids))[None].to(model.dtype)
    return model(torch.tensor([token_ids]), attention_mask=mask, use_cache=False).logits[0]


def bf16_error(model, family, prompt, logits):
    """The worst error of a logit in bfloat16 over the largest one of its position, to two digits.

    Only parameters are rounded, as when transformers loads a checkpoint in bfloat16: rounded frequencies of RoPE, which
    `model.bfloat16()` leaves, are no part of it.
    """
    model = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    # Products over all experts at once, the default, ask for rows of multiples of 16 bytes.
    model.set_experts_implementation("eager")
    differences = (logits_of(model, family, prompt).float() - logits).abs()
    return float(f"{(differences.amax(-1) / logits.abs().amax(-1)).max():.1e}")


def router_gap(model, family, prompt):
    """The smallest distance between the last expert chosen and the first left out; infinite without experts."""
    gaps = [math.inf]

    def record(module, arguments, output):
        logits = torch.nn.functional.linear(arguments[0].reshape(-1, module.weight.shape[1]), module.weight)
        best = logits.topk(family.settings["num_experts_per_tok"] + 1).values
        gaps.append(float((best[:, -2] - best[:, -1]).min()))

    routers = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    hooks = [router.register_forward_hook(record) for router in routers]
    logits_of(model, family, prompt)
    for hook in hooks:
        hook.remove()
    return min(gaps)


def known_settings(config_class, settings):
    """The settings without what `llama_sizes` has and the class does not know."""
    known = {field.name for field in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    return {key: value for key, value in settings.items() if key in known or key not in llama_sizes()}


def make_model(name, family):
    """A model and a prompt; drawn again while a router's choice is close."""
    config_class = getattr(transformers, family.model).config_class
    for attempt in range(1000):
        torch.manual_seed(zlib.crc32(name.encode()) + attempt)
        config = config_class(**known_settings(config_class, family.settings))
        config._attn_implementation = family.attention
        model = getattr(transformers, family.model)(config).eval()
        randomise(model, family)
        prompt = torch.randint(1, VOCAB_SIZE, (PROMPT_LEN,)).tolist()
        if router_gap(model, family, prompt) >= MIN_ROUTER_GAP:
            return model, prompt
    raise RuntimeError(f"{name}: no draw has clear router choices")


def write_golden(directory, model, family, prompt):
    logits = logits_of(model, family, prompt)
    token_ids, gaps = list(prompt), []
    for _ in range(CONTINUATION_LEN):
        values, indexes = logits_of(model, family, token_ids)[-1].topk(2)
        token_ids.append(int(indexes[0]))
        gaps.append(round(float(values[0] - values[1]), 6))
    golden = dict(
        command="python tools/make_tiny_checkpoints.py",
        versions=dict(torch=torch.__version__, transformers=transformers.__version__),
        model=family.model,
        prompt_ids=prompt,
        continuation_ids=token_ids[PROMPT_LEN:],
        continuation_gaps=gaps,
        bf16_error=bf16_error(model, family, prompt, logits),
    )
    (directory / "golden.json").write_text(json.dumps(golden) + "\n")
    (directory / "logits.bin").write_bytes(logits.numpy().astype("<f4").tobytes())


def write_checkpoint(directory, model, family):
    """The saved files, edited to be those of the published checkpoints."""
    model.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    file = directory / "model.safetensors"
    tensors = {name: tensor.float() for name, tensor in safetensors.torch.load_file(file).items()}
    return family.edit({key: value for key, value in config.items() if key not in NOISE}, tensors)


def make(name, family):
    directory = OUTPUT / name
    directory.mkdir(parents=True, exist_ok=True)
    model, prompt = make_model(name, family)
    config, tensors = write_checkpoint(directory, model, family)
    family.prepare(model)
    write_golden(directory, model, family, prompt)
    (directory / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    (directory / "generation_config.json").unlink(missing_ok=True)
    for tensor_name, tensor in tensors.items():
        exact = tensor.float().bfloat16()
        assert torch.equal(exact.float(), tensor.float()) or tensor.numel() == 1, f"{name}: {tensor_name} is rounded"
        tensors[tensor_name] = exact.contiguous()
    safetensors.torch.save_file(tensors, directory / "model.safetensors", dict(format="pt"))
    print(f"{name}: {(directory / 'model.safetensors').stat().st_size} bytes, {sorted(tensors)[:3]}")


def main():
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    names = sys.argv[1:] or FAMILIES
    for name in names:
        make(name, FAMILIES[name])


if __name__ == "__main__":
    main()

//! What families make of keys that are absent or unusual, and what they refuse by name.

use serde_json::{Value, json};

use super::cases::{CASES, golden};
use crate::error::{Result, Status};
use crate::format::Checkpoint;
use crate::model::families::load_spec;
use crate::model::spec::{
    Activation, BlockShape, LayerSet, Mlp, ModelSpec, OutputHead, Positions, QkvNames, QkvOrder, RopeScaling,
};

/// The spec of a family's tiny checkpoint whose config has other values; null removes a key.
fn spec_with(family: &str, changes: Value) -> Result<ModelSpec> {
    let config = std::fs::read(golden("families").join(family).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        let fields = config.as_object_mut().unwrap();
        match value {
            Value::Null => drop(fields.remove(key)),
            value => drop(fields.insert(key.clone(), value.clone())),
        }
    }
    let copy = tempfile::tempdir().unwrap();
    std::fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    load_spec(&Checkpoint::open(copy.path()).unwrap())
}

fn rope_of(spec: &ModelSpec) -> (f64, usize) {
    match spec.positions {
        Positions::Rope { theta, rotary_dim, .. } => (theta, rotary_dim),
        _ => panic!("{} has no rotation", spec.family),
    }
}

#[test]
fn what_is_refused_is_named() {
    let cases = [
        ("opt", json!({"do_layer_norm_before": false}), "do_layer_norm_before"),
        ("opt", json!({"word_embed_proj_dim": 20}), "word_embed_proj_dim"),
        ("gpt2", json!({"scale_attn_by_inverse_layer_idx": true}), "scale_attn_by_inverse_layer_idx"),
        ("gpt2", json!({"add_cross_attention": true}), "add_cross_attention"),
        ("bloom", json!({"apply_residual_connection_post_layernorm": true}), "post_layernorm"),
        ("mpt", json!({"no_bias": false}), "no_bias"),
        ("mpt", json!({"attn_config": {"alibi": false}}), "attn_config.alibi"),
        ("mpt", json!({"attn_config": {"attn_type": "multiquery_attention"}}), "attn_config.attn_type"),
        ("mpt", json!({"logit_scale": "twice"}), "logit_scale"),
        ("chatglm", json!({"rmsnorm": false}), "rmsnorm"),
        ("chatglm", json!({"position_encoding_2d": true}), "position_encoding_2d"),
        ("deepseek", json!({"n_routed_experts": 64}), "n_routed_experts"),
        ("qwen2_moe", json!({"use_sliding_window": true}), "use_sliding_window"),
        ("gemma2", json!({"layer_types": ["full_attention", "linear_attention"]}), "layer_types"),
        ("qwen2", json!({"quantization_config": {"quant_method": "gptq"}}), "quantization_config"),
        ("starcoder2", json!({"hidden_act": "tanh"}), "hidden_act"),
        ("phi3", json!({"rope_scaling": {"type": "xpos"}}), "rope_scaling.type"),
        ("phi3", json!({"rope_scaling": {"rope_type": "xpos"}}), "rope_scaling.rope_type"),
        ("gemma3", json!({"use_bidirectional_attention": true}), "use_bidirectional_attention"),
        ("chatglm", json!({"padded_vocab_size": 65_024}), "rope_ratio"),
    ];
    for (family, changes, named) in cases {
        let error = spec_with(family, changes.clone()).expect_err(named);
        assert_eq!(error.status(), Status::ModelUnsupported, "{family} {changes}: {error}");
        assert!(error.message().contains(named), "{family} {changes}: {error}");
    }
}

#[test]
fn contradictions_are_named() {
    let cases = [
        ("gemma2", json!({"layer_types": ["full_attention"]}), "layer_types"),
        ("qwen3_moe", json!({"mlp_only_layers": [2]}), "mlp_only_layers"),
        ("qwen3_moe", json!({"num_experts_per_tok": 6}), "num_chosen"),
        ("gpt_neox", json!({"rotary_pct": 0.01}), "rotary_dim"),
        ("falcon_40b", json!({"n_head_kv": 4}), "num_kv_heads"),
        ("gemma2", json!({"query_pre_attn_scalar": 0}), "query_pre_attn_scalar"),
        ("chatglm", json!({"rope_ratio": 0}), "rope_ratio"),
        ("gpt_neox", json!({"rotary_pct": -1}), "rotary_pct"),
        (
            "phi3_long",
            json!({"rope_scaling": {"type": "longrope", "short_factor": [1, 1, 1, 1]}}),
            "long_factor",
        ),
        ("baichuan_13b", json!({"model_max_length": null}), "max_position_embeddings"),
        ("gptj", json!({"rotary_dim": 7}), "rotary_dim"),
        ("gemma3", json!({"sliding_window_pattern": 5_000_000}), "sliding_window_pattern"),
    ];
    for (family, changes, named) in cases {
        let error = spec_with(family, changes.clone()).expect_err(named);
        assert_eq!(error.status(), Status::ModelInvalid, "{family} {changes}: {error}");
        assert!(error.message().contains(named), "{family} {changes}: {error}");
    }
}

#[test]
fn unknown_architectures_learn_what_is_known() {
    for changes in [
        json!({"architectures": ["MambaForCausalLM"]}),
        json!({"architectures": null, "model_type": "mamba"}),
        // Code is not run, whatever the type says.
        json!({"architectures": ["EvilForCausalLM"], "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}),
    ] {
        let error = spec_with("llama", changes).unwrap_err();
        assert_eq!(error.status(), Status::ModelUnsupported);
        for word in ["model_spec.json", "llama", "mistral", "bloom", "opt"] {
            assert!(error.message().contains(word), "{error}");
        }
    }
    let error = spec_with("llama", json!({"architectures": [], "model_type": "mamba"})).unwrap_err();
    assert!(error.message().contains("model_type: \"mamba\""), "{error}");
    let error = spec_with("llama", json!({"architectures": null, "model_type": null})).unwrap_err();
    assert_eq!(error.status(), Status::ModelInvalid);
}

#[test]
fn a_printed_spec_stands_for_its_config() {
    for name in CASES {
        let spec = spec_with(name, json!({})).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let printed = serde_json::to_string_pretty(&spec).unwrap();
        std::fs::write(directory.path().join("model_spec.json"), printed).unwrap();
        let read = load_spec(&Checkpoint::open(directory.path()).unwrap()).unwrap();
        assert_eq!(read, spec, "{name}");
    }
}

/// The spec of a family's tiny checkpoint whose config lacks `keys`.
fn without(family: &str, keys: &[&str]) -> ModelSpec {
    let changes: Value = keys.iter().map(|key| ((*key).to_owned(), Value::Null)).collect();
    spec_with(family, changes).unwrap_or_else(|error| panic!("{family} without {keys:?}: {error}"))
}

#[test]
fn absent_keys_have_their_defaults() {
    assert_eq!(without("gpt2", &["n_inner"]).intermediate_size, 160);
    assert_eq!(without("gpt2", &["tie_word_embeddings"]).output, OutputHead::Tied);
    let gelu_tanh = Mlp::Plain { activation: Activation::GeluTanh };
    assert_eq!(without("gpt2", &["activation_function"]).mlp, gelu_tanh);
    assert_eq!(without("gptj", &["tie_word_embeddings"]).output, OutputHead::Untied);
    assert_eq!(rope_of(&without("gpt_neox", &["rotary_emb_base"])).0, 10_000.0);
    assert_eq!(without("gpt_neox", &["use_parallel_residual"]).block, BlockShape::ParallelTwoNorms);
    let falcon = without("falcon_7b", &["multi_query", "parallel_attn", "bias", "alibi"]);
    assert_eq!((falcon.heads.num_kv_heads, falcon.max_positions), (1, 2048));
    assert_eq!(falcon.block, BlockShape::Parallel);
    assert_eq!(without("bloom", &["seq_length"]).max_positions, 2048);
    assert_eq!(
        without("starcoder2", &["tie_word_embeddings", "sliding_window"]).attention.sliding_window,
        None
    );
    assert_eq!(without("phi", &["partial_rotary_factor"]).heads.head_dim, 8);
    assert_eq!(rope_of(&without("phi", &["partial_rotary_factor"])).1, 4);
    assert_eq!(rope_of(&without("stablelm", &["partial_rotary_factor"])).1, 2);
    assert_eq!(rope_of(&without("glm4", &["partial_rotary_factor"])).1, 4);
    assert_eq!(rope_of(&without("chatglm", &["rope_ratio"])).0, 10_000.0);
    let gemma2 = without("gemma2", &["attn_logit_softcapping", "final_logit_softcapping", "layer_types"]);
    assert_eq!((gemma2.attention.score_soft_cap, gemma2.logits.soft_cap), (Some(50.0), Some(30.0)));
    let window = gemma2.attention.sliding_window.unwrap();
    assert_eq!(window.layers, LayerSet::Periodic { period: 2, remainders: vec![0] });
    let gemma3 = without("gemma3", &["sliding_window_pattern", "rope_local_base_freq"]);
    let window = gemma3.attention.sliding_window.unwrap();
    assert_eq!(window.layers, LayerSet::Periodic { period: 6, remainders: vec![0, 1, 2, 3, 4] });
    // The published default reaches farther than the tiny model does.
    assert_eq!(without("mistral", &["sliding_window"]).attention.sliding_window, None);
    let long =
        spec_with("mistral", json!({"sliding_window": null, "max_position_embeddings": 9000})).unwrap();
    assert_eq!(long.attention.sliding_window.map(|window| window.size), Some(4096));
}

#[test]
fn generations_of_a_family_are_told_apart() {
    let baichuan = |changes: Value| spec_with("baichuan_7b", changes).unwrap();
    assert_eq!(baichuan(json!({})).output, OutputHead::Untied);
    assert_eq!(baichuan(json!({"vocab_size": 125_696})).output, OutputHead::UntiedUnitRows);
    let large = baichuan(json!({"max_position_embeddings": null, "model_max_length": 4096}));
    assert!(matches!(large.positions, Positions::Alibi { .. }) && large.max_positions == 4096);

    let order = |family: &str, changes: Value| match spec_with(family, changes).unwrap().weights.qkv {
        QkvNames::Fused { order, .. } => order,
        QkvNames::Separate { .. } => panic!("{family} is fused"),
    };
    assert_eq!(order("falcon_7b", json!({})), QkvOrder::Blocks);
    assert_eq!(order("falcon_7b", json!({"multi_query": false})), QkvOrder::Groups);
    assert_eq!(order("gpt_bigcode", json!({"multi_query": false})), QkvOrder::Groups);

    let sparse = |changes: Value| spec_with("qwen3_moe", changes).unwrap().experts.unwrap().layers;
    assert_eq!(sparse(json!({"decoder_sparse_step": 2})), LayerSet::Listed { layers: vec![1] });
    assert_eq!(sparse(json!({"mlp_only_layers": [1]})), LayerSet::Listed { layers: vec![0] });

    let long = spec_with("phi3_long", json!({})).unwrap().positions;
    let Positions::Rope { scaling: RopeScaling::LongRope { attention_factor, .. }, .. } = long else {
        panic!("{long:?} is not LongRoPE")
    };
    assert!((attention_factor - (1.0 + 4f64.ln() / 16f64.ln()).sqrt()).abs() < 1e-12);
}

/// Values that transformers' configuration classes have for keys that are absent; null is another matter for some.
#[test]
fn absent_heads_and_bases_are_those_of_the_class() {
    for (family, num_heads, num_kv_heads) in [
        ("llama", 24, 24),
        ("mistral", 24, 8),
        ("mixtral", 24, 8),
        ("qwen2", 32, 32),
        ("qwen2_moe", 16, 16),
        ("qwen3", 32, 32),
        ("qwen3_moe", 8, 4),
        ("gemma", 16, 16),
        ("gemma2", 8, 4),
        ("gemma3", 8, 4),
        ("glm", 6, 2),
        ("glm4", 6, 2),
        ("starcoder2", 6, 2),
        ("stablelm", 32, 32),
    ] {
        let changes = json!({"num_attention_heads": num_heads, "num_key_value_heads": null, "head_dim": 16});
        let spec = spec_with(family, changes).unwrap_or_else(|error| panic!("{family}: {error}"));
        assert_eq!(spec.heads.num_kv_heads, num_kv_heads, "{family}");
    }
    for (family, head_dim) in [("qwen3", 128), ("gemma", 256), ("gemma2", 256), ("glm", 128), ("glm4", 128)] {
        assert_eq!(without(family, &["head_dim"]).heads.head_dim, head_dim, "{family}");
    }
    let falcon = without("falcon_40b", &["n_head_kv", "num_kv_heads"]);
    assert_eq!(falcon.heads.num_kv_heads, falcon.heads.num_heads);
    assert_eq!(without("mpt", &["attn_config"]).positions, Positions::Alibi { max_bias: 8.0, scale: 1.0 });
    let keys = ["rope_theta", "rope_scaling", "rope_parameters"];
    assert_eq!(rope_of(&without("mixtral", &keys)).0, 1e6);
    for family in ["llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "glm", "phi3", "starcoder2"] {
        assert_eq!(rope_of(&without(family, &keys)).0, 1e4, "{family}");
    }
}

#[test]
fn first_files_of_a_family_have_keys_of_their_own() {
    let llama = json!({
        "architectures": ["LLaMAForCausalLM"], "max_position_embeddings": null, "max_sequence_length": 2048
    });
    assert_eq!(spec_with("llama", llama).unwrap().max_positions, 2048);
    let scaling = json!({"type": "linear", "factor": 4});
    let vicuna = json!({
        "max_position_embeddings": 4096, "max_sequence_length": 16_384, "rope_scaling": scaling
    });
    assert_eq!(spec_with("llama", vicuna).unwrap().max_positions, 16_384);

    let falcon_40b = spec_with("falcon_40b", json!({"model_type": "falcon"})).unwrap();
    let first_40b = without("falcon_40b", &["new_decoder_architecture", "num_ln_in_parallel_attn"]);
    assert_eq!((first_40b.block, first_40b.heads.num_kv_heads), (BlockShape::ParallelTwoNorms, 2));
    assert_eq!(first_40b, falcon_40b);
    let first_7b = spec_with("falcon_7b", json!({"model_type": "RefinedWebModel"})).unwrap();
    assert_eq!((first_7b.block, first_7b.heads.num_kv_heads), (BlockShape::Parallel, 1));
}

#[test]
fn a_chatglm_of_long_contexts_must_tell_its_generation() {
    let rope = |name: &str, ratio: f64| {
        let changes = json!({"padded_vocab_size": 65_024, "_name_or_path": name, "rope_ratio": ratio});
        match spec_with("chatglm", changes).unwrap().positions {
            Positions::Rope { theta, scaling, .. } => (theta, scaling),
            positions => panic!("{positions:?} is no rotation"),
        }
    };
    assert_eq!(rope("THUDM/chatglm2-6b-32k", 50.0), (1e4, RopeScaling::Linear { factor: 50.0 }));
    assert_eq!(rope("THUDM/chatglm3-6b", 50.0), (5e5, RopeScaling::None));
    assert_eq!(rope("/models/mine", 1.0), (1e4, RopeScaling::None));
}

#[test]
fn gemma_3_has_frequencies_for_either_type_of_layer() {
    let thetas = |parameters: Value| {
        let changes = json!({
            "rope_parameters": parameters, "rope_scaling": null, "rope_theta": null, "rope_local_base_freq": null
        });
        match spec_with("gemma3", changes).unwrap().positions {
            Positions::Rope { theta, local: Some(local), scaling, .. } => (theta, local.theta, scaling),
            positions => panic!("{positions:?} has no two rotations"),
        }
    };
    assert_eq!(thetas(json!({})), (1e6, 1e4, RopeScaling::None));
    let full = json!({"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6}});
    assert_eq!(thetas(full), (2e6, 1e4, RopeScaling::Linear { factor: 8.0 }));
    let sliding = json!({"sliding_attention": {"rope_type": "default", "rope_theta": 3e4}});
    assert_eq!(thetas(sliding), (1e6, 3e4, RopeScaling::None));
    let capped = spec_with("gemma3", json!({"attn_logit_softcapping": 50.0})).unwrap();
    assert_eq!(capped.attention.score_soft_cap, None);
}

#[test]
fn what_a_class_does_not_read_changes_nothing() {
    for family in ["llama", "mistral", "qwen2", "qwen3", "gemma2", "olmo2", "starcoder2", "falcon_40b"] {
        let spec = spec_with(family, json!({"partial_rotary_factor": 0.5})).unwrap();
        assert_eq!(rope_of(&spec).1, spec.heads.head_dim, "{family}");
    }
    let gemma = |changes: Value| spec_with("gemma", changes).unwrap().mlp;
    let gated = |activation| Mlp::Gated { activation };
    for (changes, activation) in [
        (json!({"hidden_act": "gelu", "hidden_activation": null}), Activation::GeluTanh),
        (json!({"hidden_act": null, "hidden_activation": "gelu"}), Activation::GeluTanh),
        (json!({"hidden_act": "relu", "hidden_activation": "gelu"}), Activation::Relu),
    ] {
        assert_eq!(gemma(changes), gated(activation));
    }
}

#[test]
fn a_yarn_may_leave_out_its_factor() {
    let yarn = |scaling: Value| {
        let changes = json!({"max_position_embeddings": 4096, "rope_scaling": scaling});
        let spec = spec_with("llama", changes).unwrap();
        match spec.positions {
            Positions::Rope { scaling: RopeScaling::Yarn { factor, beta_slow, .. }, .. } => {
                (factor, beta_slow, spec.max_positions)
            }
            positions => panic!("{positions:?} is no YaRN"),
        }
    };
    let scaling = json!({"rope_type": "yarn", "factor": null, "original_max_position_embeddings": 1024});
    assert_eq!(yarn(scaling), (4.0, 1.0, 4096));
    let scaling = json!({"rope_type": "yarn", "factor": 2.0, "beta_slow": 0});
    assert_eq!(yarn(scaling), (2.0, 1.0, 8192));
}

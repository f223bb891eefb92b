//! Descriptions of models: what is read from them, and what is refused.

use std::path::Path;

use serde_json::{Value, json};

use super::golden::golden;
use crate::error::{Result, Status};
use crate::format::Checkpoint;
use crate::model::families::load_spec;
use crate::model::spec::{ModelSpec, Names, OutputHead, Positions, RopePairing, RopeScaling};

fn base_config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 100, "max_position_embeddings": 1000, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "auto_map": {"AutoModel": "modeling_evil.EvilModel"}
    })
}

fn spec_of(config: &str) -> Result<ModelSpec> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("config.json"), config).unwrap();
    load_spec(&Checkpoint::open(directory.path()).unwrap())
}

/// The spec of an ordinary config whose `field` is `value`, given as JSON; `<absent>` removes it.
pub(super) fn spec_with(field: &str, value: &str) -> Result<ModelSpec> {
    let mut config = base_config();
    match value {
        "<absent>" => drop(config.as_object_mut().unwrap().remove(field)),
        value => config[field] = serde_json::from_str(value).unwrap(),
    }
    spec_of(&config.to_string())
}

#[test]
fn llama_config_becomes_a_spec() {
    let spec = spec_of(&base_config().to_string()).unwrap();
    assert_eq!((spec.num_layers, spec.hidden_size, spec.intermediate_size), (2, 64, 96));
    assert_eq!((spec.vocab_size, spec.max_positions), (100, 1000));
    assert_eq!((spec.heads.num_heads, spec.heads.num_kv_heads, spec.heads.head_dim), (4, 2, 16));
    assert_eq!(spec.heads.score_scale(), 0.25);
    assert_eq!(spec.output, OutputHead::Untied);
    let rope = Positions::Rope {
        theta: 10000.0,
        rotary_dim: 16,
        pairing: RopePairing::Half,
        scaling: RopeScaling::None,
        local: None,
    };
    assert_eq!(spec.positions, rope);
    assert_eq!(spec_with("num_key_value_heads", "<absent>").unwrap().heads.num_kv_heads, 4);
    assert_eq!(spec_with("num_key_value_heads", "null").unwrap().heads.num_kv_heads, 4);
    assert_eq!(spec_with("head_dim", "32").unwrap().heads.head_dim, 32);
    assert_eq!(spec_with("vocab_size", "100.0").unwrap().vocab_size, 100);
    assert_eq!(spec_with("tie_word_embeddings", "true").unwrap().output, OutputHead::Tied);
    assert_eq!(spec_with("architectures", "null").unwrap().family, "llama");
    assert_eq!(spec_with("architectures", "[]").unwrap().family, "llama");
    let marked = format!("\u{feff}{}", base_config());
    assert_eq!(spec_of(&marked).unwrap(), spec);
}

#[test]
fn bad_values_are_errors_that_name_file_and_field() {
    let sizes = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "max_position_embeddings",
    ];
    let bad =
        ["0", "-1", "1.5", "1e30", "18446744073709551615", "281474976710656", "\"64\"", "[]", "{}", "true"];
    for field in sizes {
        let absent = (field != "num_key_value_heads").then_some("<absent>");
        for value in bad.into_iter().chain(absent) {
            let error = spec_with(field, value).expect_err(value);
            assert_eq!(error.status(), Status::ModelInvalid, "{field} {value}: {error}");
            assert!(error.message().contains("config.json") || value == "281474976710656", "{error}");
        }
    }
    for (field, value, named) in [
        ("hidden_size", "\"64\"", "hidden_size"),
        ("vocab_size", "281474976710656", "vocab_size"),
        ("num_attention_heads", "7", "num_attention_heads"),
        ("num_key_value_heads", "3", "num_kv_heads"),
        ("head_dim", "15", "rotary_dim"),
        ("rms_norm_eps", "-1", "rms_norm_eps"),
        ("rms_norm_eps", "1e-60", "rms_norm_eps"),
        ("hidden_size", "1e15", "2^48"),
        ("num_hidden_layers", "9999", "num_layers (in the specification made from this configuration)"),
        ("rms_norm_eps", "\"1e-5\"", "rms_norm_eps"),
        ("rope_theta", "0", "rope_theta"),
        ("rope_theta", "1e300", "theta"),
        ("rope_scaling", "[]", "rope_scaling"),
        ("rope_scaling", r#"{"type": "linear"}"#, "rope_scaling.factor"),
        ("rope_scaling", r#"{"type": "linear", "factor": 0}"#, "rope_scaling.factor"),
        ("rope_scaling", r#"{"type": "linear", "factor": 1e18}"#, "scaling.factor"),
        ("rope_scaling", r#"{"type": "dynamic", "factor": 1e18}"#, "max_positions"),
        ("rope_scaling", r#"{"type": "yarn"}"#, "rope_scaling.factor"),
        ("rope_scaling", r#"{"type": "dynamic", "factor": 0.5}"#, "factor"),
        ("rope_scaling", r#"{"type": "yarn", "factor": 2, "beta_slow": 99}"#, "beta_fast"),
        ("rope_scaling", r#"{"type": 7}"#, "rope_scaling.type"),
        ("architectures", "[7]", "architectures"),
        ("attention_bias", "\"no\"", "attention_bias"),
    ] {
        let error = spec_with(field, value).unwrap_err();
        assert_eq!(error.status(), Status::ModelInvalid, "{error}");
        assert!(error.message().contains(named), "{field} {value}: {error}");
        assert!(error.message().contains("config.json"), "{field} {value}: {error}");
    }
}

#[test]
fn what_is_not_supported_is_named() {
    for (field, value, named) in [
        ("architectures", r#"["EvilForCausalLM"]"#, "EvilForCausalLM"),
        ("hidden_act", "\"tanh\"", "tanh"),
        ("quantization_config", r#"{"quant_method": "awq"}"#, "quantization_config"),
        ("rope_scaling", r#"{"type": "yarn", "factor": 2, "truncate": false}"#, "truncate"),
    ] {
        let error = spec_with(field, value).unwrap_err();
        assert_eq!(error.status(), Status::ModelUnsupported, "{error}");
        assert!(error.message().contains(named), "{field} {value}: {error}");
    }
    for field in ["hidden_act", "model_type", "vocab_size"] {
        let mut config = base_config();
        config["architectures"] = Value::Null;
        config[field] = "x".repeat(1 << 20).into();
        assert!(spec_of(&config.to_string()).unwrap_err().message().len() < 600, "{field}");
    }
}

#[test]
fn malformed_json_is_an_error() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let huge = format!("{{\"a\": \"{}\"}}", "x".repeat(5 << 20));
    for config in ["", "{", "[]", "null", "{\"hidden_size\": 1e999}", &deep, &huge, "\u{1}"] {
        let error = spec_of(config).unwrap_err();
        assert_eq!(error.status(), Status::ModelInvalid, "{error}");
        assert!(error.message().contains("config.json"), "{error}");
    }
    let directory = tempfile::tempdir().unwrap();
    let error = load_spec(&Checkpoint::open(directory.path()).unwrap()).unwrap_err();
    assert_eq!(error.status(), Status::ModelNotFound);
}

#[test]
fn a_spec_in_the_directory_goes_before_the_config() {
    let mut spec = spec_of(&base_config().to_string()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    let open = || load_spec(&Checkpoint::open(directory.path()).unwrap());
    write("config.json", "{}");
    spec.vocab_size = 77;
    write("model_spec.json", &serde_json::to_string(&spec).unwrap());
    assert_eq!(open().unwrap(), spec);

    spec.vocab_size = 0;
    write("model_spec.json", &serde_json::to_string(&spec).unwrap());
    assert!(open().unwrap_err().message().contains("vocab_size"));
    write("model_spec.json", "{\"family\": \"x\", \"surprise\": 1}");
    let error = open().unwrap_err();
    assert_eq!(error.status(), Status::ModelInvalid);
    assert!(error.message().contains("model_spec.json") && error.message().contains("surprise"), "{error}");
}

#[test]
fn weight_names_must_tell_weights_and_layers_apart() {
    let spec = spec_of(&base_config().to_string()).unwrap();
    let check = |change: fn(&mut ModelSpec), field: &str| {
        let mut spec = spec.clone();
        change(&mut spec);
        let error = spec.validate().unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    };
    check(|spec| spec.weights.attention_output = Names::weight("o"), "weights.attention_output");
    check(|spec| spec.weights.final_norm = Some(Names::weight("norm.{layer}")), "weights.final_norm");
    check(|spec| spec.weights.head = Some(Names::weight("")), "weights.head");
    check(|spec| spec.weights.embedding = "{layer}".to_owned(), "weights.embedding");
    check(|spec| spec.weights.mlp_norm = spec.weights.attention_norm.clone(), "weights.mlp_norm");
    check(|spec| spec.weights.embedding = "model.{expert}".to_owned(), "weights.embedding");
}

#[test]
fn gguf_metadata_becomes_a_spec() {
    let checkpoint = Checkpoint::open(&golden("llama_tiny_gguf")).unwrap();
    assert!(matches!(checkpoint, Checkpoint::Gguf(_)), "a directory with one GGUF file stands for it");
    let spec = load_spec(&checkpoint).unwrap();
    assert_eq!((spec.num_layers, spec.hidden_size, spec.vocab_size), (2, 36, 89));
    assert_eq!((spec.heads.num_heads, spec.heads.num_kv_heads, spec.heads.head_dim), (6, 2, 10));
    assert_eq!(spec.output, OutputHead::Tied);
    let Positions::Rope { pairing, scaling, .. } = spec.positions else { panic!("{:?}", spec.positions) };
    assert_eq!(pairing, RopePairing::Interleaved);
    assert!(matches!(scaling, RopeScaling::PerFrequency { factors } if factors.len() == 5));
}

#[test]
fn a_missing_path_is_named() {
    let error = Checkpoint::open(Path::new("/nonexistent/model")).unwrap_err();
    assert_eq!(error.status(), Status::ModelNotFound);
    assert!(error.message().contains("/nonexistent/model"));
}

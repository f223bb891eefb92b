//! Specs as files: errors that name the field, the form against the types, and where a spec is looked for.

use std::path::Path;

use serde_json::{Value, json};

use super::cases::{CASES, golden};
use crate::error::{Error, Status};
use crate::format::Checkpoint;
use crate::model::families::{load_spec, load_spec_from};
use crate::model::form;
use crate::model::load::check_weights;
use crate::model::spec::ModelSpec;
use crate::model::spec_file::parse;

/// A spec that has every field which no family's spec has.
fn rich() -> Value {
    json!({
        "family": "rich", "num_layers": 4, "hidden_size": 48, "intermediate_size": 36, "vocab_size": 61,
        "max_positions": 64, "embedding": {"scale": 2.0, "norm": "normalized"},
        "positions": {"kind": "rope", "theta": 500.0, "rotary_dim": 8, "pairing": "interleaved",
            "scaling": {"kind": "yarn", "factor": 2.0, "original_max_positions": 32, "beta_fast": 32.0,
                "beta_slow": 1.0, "attention_factor": 1.0},
            "local": {"theta": 100.0, "scaling": {"kind": "linear", "factor": 2.0}}},
        "norm": {"kind": "rms", "epsilon": 1e-5, "weight": "one_plus"},
        "block": "sandwich",
        "heads": {"num_heads": 6, "num_kv_heads": 2, "head_dim": 8, "scale": 0.5},
        "attention": {"qkv_clamp": 8.0, "qk_norm": "head", "score_soft_cap": 50.0,
            "sliding_window": {"size": 4, "layers": {"kind": "periodic", "period": 2, "remainders": [0]}}},
        "mlp": {"kind": "gated", "activation": "silu"},
        "experts": {"num_experts": 4, "num_chosen": 2, "intermediate_size": 12, "scoring": "sigmoid",
            "weighting": "normalized", "scale": 2.0,
            "shared": {"intermediate_size": 24, "gate": "sigmoid"},
            "layers": {"kind": "from", "first": 1}},
        "output": "untied", "logits": {"scale": 0.5, "soft_cap": 30.0},
        "weights": {
            "orientation": "out_in", "embedding": "embedding", "embedding_norm": "embedding_norm",
            "attention_norm": "{layer}.norm_1",
            "qkv": {"kind": "separate", "query": "{layer}.q", "key": "{layer}.k", "value": "{layer}.v"},
            "query_norm": "{layer}.q_norm", "key_norm": "{layer}.k_norm",
            "attention_output": {"weight": "{layer}.o", "bias": "{layer}.o_bias"},
            "post_attention_norm": "{layer}.norm_2", "mlp_norm": "{layer}.norm_3",
            "mlp": {"kind": "fused_gated", "gate_up": "{layer}.gate_up", "down": "{layer}.down"},
            "experts": {"router": "{layer}.router",
                "experts": {"kind": "gated", "gate": "{layer}.{expert}.w1", "up": "{layer}.{expert}.w2",
                    "down": "{layer}.{expert}.w3"},
                "shared": {"kind": "gated", "gate": "{layer}.s.w1", "up": "{layer}.s.w2", "down": "{layer}.s.w3"},
                "shared_gate": "{layer}.s.gate"},
            "post_mlp_norm": "{layer}.norm_4", "final_norm": "norm", "head": "head"
        }
    })
}

/// `rich` with another value at `pointer`.
fn changed(pointer: &str, value: Value) -> Value {
    let mut spec = rich();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    spec.pointer_mut(parent).unwrap()[field] = value;
    spec
}

/// Specs that between them have every field and kind.
fn examples() -> Vec<Value> {
    let mut specs: Vec<Value> = CASES
        .iter()
        .map(|case| load_spec(&Checkpoint::open(&golden("families").join(case)).unwrap()).unwrap())
        .map(|spec| serde_json::to_value(spec).unwrap())
        .collect();
    specs.push(rich());
    for scaling in [
        json!({"kind": "none"}),
        json!({"kind": "dynamic_ntk", "factor": 2.0, "original_max_positions": 32}),
        json!({"kind": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_positions": 32}),
        json!({"kind": "per_frequency", "factors": [1.0, 1.0, 2.0, 2.0]}),
        json!({"kind": "long_rope", "short_factors": [1.0, 1.0, 1.0, 1.0], "long_factors": [1.0, 1.0, 1.0, 2.0],
            "original_max_positions": 32, "attention_factor": 1.0}),
    ] {
        specs.push(changed("/positions/scaling", scaling));
    }
    specs.push(changed("/positions", json!({"kind": "none"})));
    specs.push(changed("/positions", json!({"kind": "learned", "offset": 2})));
    specs.push(changed("/positions", json!({"kind": "alibi", "max_bias": 4.0, "scale": 0.5})));
    specs.push(changed("/attention/sliding_window/layers", json!({"kind": "all"})));
    specs.push(changed("/attention/sliding_window/layers", json!({"kind": "listed", "layers": [1, 2]})));
    specs
}

/// Pointers to every value in `value`.
fn pointers(at: &str, value: &Value, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(object) => {
            object.iter().for_each(|(key, value)| pointers(&format!("{at}/{key}"), value, found));
        }
        Value::Array(list) => {
            list.iter()
                .enumerate()
                .for_each(|(index, value)| pointers(&format!("{at}/{index}"), value, found));
        }
        _ => {}
    }
}

#[test]
fn the_form_and_the_types_agree() {
    let values = [
        json!(null),
        json!("x"),
        json!(""),
        json!(5),
        json!(-1),
        json!(8.5),
        json!(8.0),
        json!(true),
        json!([]),
        json!([1.5]),
        json!({}),
        json!({"kind": "none"}),
        json!({"kind": 3}),
        json!({"weight": "x"}),
        json!({"surprise": 1}),
    ];
    let accepts = |spec: &Value| serde_json::from_value::<ModelSpec>(spec.clone()).is_ok();
    let agree = |spec: &Value, is_loose: bool, what: &str| {
        let (by_form, by_types) = (form::check(spec), accepts(spec));
        // The types take lists for objects, by the order of the fields, and the number of a kind for it; the form
        // does not.
        let is_right = if is_loose { by_types || by_form.is_err() } else { by_form.is_ok() == by_types };
        assert!(is_right, "{what}: the form {by_form:?}, the types {by_types}");
    };
    let examples = examples();
    for example in &examples {
        assert_eq!(form::check(example), Ok(()));
        assert!(accepts(example));
        let mut found = Vec::new();
        pointers("", example, &mut found);
        for pointer in found {
            for value in &values {
                let mut spec = example.clone();
                *spec.pointer_mut(&pointer).unwrap() = value.clone();
                let is_number = value.is_number() && pointer.ends_with("/kind");
                agree(&spec, value.is_array() || is_number, &format!("{pointer} {value}"));
            }
            let Some((parent, key)) = pointer.rsplit_once('/') else { continue };
            let mut spec = example.clone();
            let Value::Object(object) = spec.pointer_mut(parent).unwrap() else { continue };
            object.remove(key);
            agree(&spec, false, &format!("{pointer} removed"));
            let Value::Object(object) = spec.pointer_mut(parent).unwrap() else { continue };
            object.insert("surprise".to_owned(), 1.into());
            assert!(form::check(&spec).is_err() && !accepts(&spec), "{parent}/surprise");
        }
    }
}

#[test]
fn errors_of_type_name_the_field_in_words_of_json() {
    let cases = [
        ("/positions/theta", json!("x"), "positions.theta: must be a number, but is \"x\""),
        ("/positions/rotary_dim", json!(8.0), "positions.rotary_dim: must be a whole number, but is 8.0"),
        ("/num_layers", json!("2"), "num_layers: must be a whole number, but is \"2\""),
        ("/heads/num_heads", json!("6"), "heads.num_heads: must be a whole number"),
        ("/norm/epsilon", json!(null), "norm.epsilon: must be a number, but is null"),
        ("/mlp/activation", json!("zork"), "mlp.activation: unknown variant `zork`, expected one of `silu`"),
        ("/attention/qk_norm", json!("zork"), "attention.qk_norm: unknown variant `zork`"),
        ("/attention/sliding_window", json!(4), "attention.sliding_window: must be an object, but is 4"),
        ("/positions", json!("rope"), "positions: must be an object with a field \"kind\", but is \"rope\""),
        ("/attention", json!(null), "attention: must be an object, but is null"),
        ("/positions/scaling/kind", json!("longrope"), "positions.scaling.kind: must be one of none, linear"),
        ("/positions/local/scaling", json!({}), "positions.local.scaling.kind: is missing"),
        ("/weights/head", json!({}), "weights.head.weight: is missing"),
        ("/weights/qkv/query", json!(5), "weights.qkv.query: must be a tensor's name, or an object"),
        (
            "/weights/mlp/gate",
            json!("x"),
            "weights.mlp.gate: is not a field that is known here; known are kind,",
        ),
        ("/heads", json!([6, 2, 8]), "heads: must be an object, but is a list"),
        (
            "/attention/sliding_window/layers/remainders/0",
            json!("0"),
            "remainders[0]: must be a whole number",
        ),
    ];
    for (pointer, value, expected) in cases {
        let mut spec = rich();
        match spec.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => spec = changed(pointer, value),
        }
        let error = parse(spec.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("struct") && !error.contains("usize") && !error.contains("f64"), "{error}");
    }
    let error = parse(b"[]").unwrap_err().to_string();
    assert!(error.contains("must be an object, but is a list"), "{error}");
    let twice = rich().to_string().replacen("\"family\"", "\"num_layers\":4,\"family\"", 1);
    assert!(parse(twice.as_bytes()).unwrap_err().to_string().contains("duplicate field `num_layers`"));
}

#[test]
fn an_empty_file_is_told_apart() {
    for text in ["", " \n"] {
        let error = parse(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("the file is empty") && error.contains("--output"), "{error}");
    }
}

#[test]
fn a_byte_order_mark_is_passed_over() {
    let text = rich().to_string();
    assert_eq!(parse(format!("\u{feff}{text}").as_bytes()).unwrap(), parse(text.as_bytes()).unwrap());
}

#[test]
fn names_are_apart_with_every_index() {
    let refused = |pointer: &str, name: &str, named: &str| {
        let mut spec = rich();
        *spec.pointer_mut(pointer).unwrap() = name.into();
        let spec: ModelSpec = serde_json::from_value(spec).unwrap();
        let error = spec.validate().unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    };
    serde_json::from_value::<ModelSpec>(rich()).unwrap().validate().unwrap();
    refused("/weights/final_norm", "2.norm_1", "\"2.norm_1\" stands for another weight too");
    refused(
        "/weights/mlp_norm",
        "{Layer}.norm_3",
        "weights.mlp_norm: \"{Layer}.norm_3\" must contain {layer}",
    );
    refused(
        "/weights/mlp_norm",
        "{layer}.{Layer}",
        "weights.mlp_norm: \"{layer}.{Layer}\": braces stand for",
    );
    refused("/weights/final_norm", "norm}", "weights.final_norm");
    refused("/weights/experts/shared/gate", "{layer}.3.w1", "\"0.3.w1\" stands for another weight too");
    // With few layers these differ, and nothing is wrong with them.
    let mut spec = rich();
    *spec.pointer_mut("/weights/mlp_norm").unwrap() = "{layer}1.norm_1".into();
    let mut spec: ModelSpec = serde_json::from_value(spec).unwrap();
    spec.validate().unwrap();
    spec.num_layers = 12;
    assert!(spec.validate().unwrap_err().to_string().contains("\"11.norm_1\" stands for another weight too"));
}

fn message(error: &Error) -> &str {
    assert_eq!(error.status(), Status::ModelInvalid, "{error}");
    error.message()
}

#[test]
fn a_description_is_told_by_its_fields() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("some.json");
    let load = |text: &str| {
        std::fs::write(&path, text).unwrap();
        load_spec(&Checkpoint::random(&path, 0))
    };
    let config = std::fs::read_to_string(golden("families").join("llama").join("config.json")).unwrap();
    assert_eq!(load(&config.replacen('{', "{\"family\": \"llama\",", 1)).unwrap().family, "llama");
    let error = load("{\"architectures\": [\"Zebra\"], \"family\": \"zebra\"}").unwrap_err();
    assert!(
        error.message().contains("\"Zebra\" is not known") && error.message().contains("in the options"),
        "{error}"
    );
    let error = load("{\"family\": null}").unwrap_err();
    assert!(message(&error).contains("family: must be a text, but is null"), "{error}");
    assert_eq!(Checkpoint::open_description(&path).unwrap().path(), path);
    let error = Checkpoint::open(&path).unwrap_err();
    assert!(error.message().contains("has no weights") && error.message().contains("inspect"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_link_that_leads_nowhere_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let config = golden("families").join("llama").join("config.json");
    std::fs::copy(config, folder.path().join("config.json")).unwrap();
    std::os::unix::fs::symlink("nowhere", folder.path().join("model_spec.json")).unwrap();
    let error = load_spec(&Checkpoint::open(folder.path()).unwrap()).unwrap_err();
    assert!(error.message().contains("model_spec.json"), "{error}");
}

#[test]
fn a_named_spec_goes_before_every_description() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("any_name");
    for model in ["families/llama", "llama_tiny_gguf"] {
        let checkpoint = Checkpoint::open(&golden(model)).unwrap();
        let own = load_spec(&checkpoint).unwrap();
        let mut spec = own.clone();
        "renamed".clone_into(&mut spec.family);
        std::fs::write(&path, serde_json::to_string(&spec).unwrap()).unwrap();
        let read = |path: &Path| load_spec_from(&checkpoint, Some(path));
        assert_eq!(read(&path).unwrap(), spec);
        check_weights(&spec, &checkpoint).unwrap();

        spec.vocab_size -= 1;
        let error = check_weights(&spec, &checkpoint).unwrap_err();
        assert!(message(&error).contains(&spec.weights.embedding), "{error}");
        spec.vocab_size = 0;
        std::fs::write(&path, serde_json::to_string(&spec).unwrap()).unwrap();
        let error = read(&path).unwrap_err();
        assert!(message(&error).contains("any_name: vocab_size"), "{error}");
        assert_eq!(read(&folder.path().join("none")).unwrap_err().status(), Status::ModelNotFound);
    }
}

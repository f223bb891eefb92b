//! RoPE frequencies against transformers', and the table's layout.

use serde_json::Value;

use super::golden::golden;
use crate::error::Status;
use crate::format::Checkpoint;
use crate::model::families::load_spec;
use crate::model::rope::{Rope, choice, default_context, tables};
use crate::model::spec::RopeScaling;

#[test]
fn frequencies_equal_those_of_transformers() {
    let golden: Value = serde_json::from_slice(&std::fs::read(golden("rope.json")).unwrap()).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 12);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("config.json"), case["config"].to_string()).unwrap();
        let spec = load_spec(&Checkpoint::open(directory.path()).unwrap()).unwrap();
        let tables = tables(&spec, case["max_model_len"].as_u64().unwrap() as usize);
        let [rope] = &tables[..] else { panic!("{name} has {} tables", tables.len()) };
        let expected: Vec<f64> = serde_json::from_value(case["inverse_frequencies"].clone()).unwrap();
        assert_eq!(rope.inverse_frequencies.len(), expected.len(), "{name}");
        for (pair, (actual, expected)) in rope.inverse_frequencies.iter().zip(&expected).enumerate() {
            // The reference computes in single precision.
            let error = (actual / expected - 1.0).abs();
            assert!(error < 2e-6, "{name}, pair {pair}: {actual}, not {expected}");
        }
        let attention_factor = case["attention_factor"].as_f64().unwrap();
        assert!((rope.magnitude - attention_factor).abs() < 1e-12, "{name}");
    }
}

#[test]
fn supported_contexts_follow_the_scaling() {
    let contexts = [
        (r#"null"#, 1000),
        (r#"{"rope_type": "default"}"#, 1000),
        (r#"{"type": "linear", "factor": 2.5}"#, 1000),
        (r#"{"type": "dynamic", "factor": 4}"#, 4000),
        (r#"{"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 500}"#, 4000),
        (
            r#"{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 500}"#,
            1000,
        ),
    ];
    for (scaling, expected) in contexts {
        let spec = super::families::spec_with("rope_scaling", scaling).unwrap();
        assert_eq!(spec.max_positions, expected, "{scaling}");
    }
    let error = super::families::spec_with("rope_scaling", r#"{"type": "xpos", "factor": 2}"#).unwrap_err();
    assert_eq!(error.status(), Status::ModelUnsupported);
    assert!(error.message().contains("rope_scaling.type") && error.message().contains("xpos"), "{error}");
}

#[test]
fn rows_hold_cosines_then_sines() {
    let scaling = RopeScaling::PerFrequency { factors: vec![1.0, 4.0] };
    let rope = Rope::new(100.0, 4, &scaling, 10);
    let mut rows = [f32::NAN; 8];
    rope.fill_rows(3, &mut rows);
    for (row, position) in rows.chunks_exact(4).zip([3.0f64, 4.0]) {
        let slow = position * 0.1 / 4.0;
        let expected = [position.cos(), slow.cos(), position.sin(), slow.sin()];
        assert_eq!(row, expected.map(|value| value as f32));
    }
}

#[test]
fn contexts_are_stretched_only_where_that_is_asked_for() {
    let spec = |scaling: &str| super::families::spec_with("rope_scaling", scaling).unwrap();
    let dynamic = spec(r#"{"type": "dynamic", "factor": 4}"#);
    assert_eq!((default_context(&dynamic), dynamic.max_positions), (1000, 4000));
    let plain = tables(&spec("null"), 1000);
    assert_eq!(tables(&dynamic, default_context(&dynamic)), plain);
    assert_ne!(tables(&dynamic, 1001), plain);
    assert_eq!(choice(&dynamic, 1000), None);
    assert!(choice(&dynamic, 1001).unwrap().contains("at most 1000"));

    let factors = [2.0; 8];
    let long = format!(
        r#"{{"type": "longrope", "short_factor": {factors:?}, "long_factor": {factors:?},
             "original_max_position_embeddings": 250}}"#
    );
    let long = spec(&long);
    assert_eq!(default_context(&long), 1000);
    assert!(choice(&long, 1000).unwrap().contains("the long factors"));
    let short = choice(&long, 250).unwrap();
    assert!(short.contains("the short factors") && short.contains("more than 250"), "{short}");
    assert_eq!(choice(&spec("null"), 1000), None);
}

//! The real model: loading, and the first tokens of a golden continuation.

use std::path::PathBuf;

use serde_json::Value;

use super::golden::{config, golden, single};
use super::naive::Naive;
use crate::backend::DType;
use crate::format::Checkpoint;
use crate::model::decoder::{Decoder, DecoderConfig};
use crate::model::families::load_spec;
use crate::model::load::LoadOptions;
use crate::model::memory::memory_plan;

/// The model that `INFLIGHT_TEST_MODEL` names, or the one that set-up fetches.
fn model_path() -> PathBuf {
    let fetched = concat!(env!("CARGO_MANIFEST_DIR"), "/.cache/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::env::var_os("INFLIGHT_TEST_MODEL").map_or_else(|| fetched.into(), PathBuf::from);
    assert!(path.exists(), "{}: no model; run scripts/setup.sh or set INFLIGHT_TEST_MODEL", path.display());
    path
}

#[test]
fn first_tokens_equal_those_of_transformers() {
    let golden: Value =
        serde_json::from_slice(&std::fs::read(golden("smollm2_greedy.json")).unwrap()).unwrap();
    let tokens =
        |case: &Value, field: &str| -> Vec<u32> { serde_json::from_value(case[field].clone()).unwrap() };
    let case = &golden["cases"][0];
    let (mut input, expected) = (tokens(case, "prompt_ids"), tokens(case, "token_ids"));

    let checkpoint = Checkpoint::open(&model_path()).unwrap();
    let spec = load_spec(&checkpoint).unwrap();
    let config = DecoderConfig { num_kv_blocks: 4, ..config(&spec, DType::F32, input.len()) };
    let plan = memory_plan(&Naive::default(), &spec, &config).unwrap();
    assert_eq!(plan.weights_bytes, 4 * 134_515_008);
    let mut decoder =
        Decoder::load(Naive::default(), &spec, &checkpoint, &config, &LoadOptions::default()).unwrap();
    assert_eq!(decoder.backend().allocated_bytes, plan.total_bytes());

    let mut num_cached = 0;
    for &expected in &expected[..4] {
        decoder.forward(&single(&input, num_cached, config.num_kv_blocks as u32)).unwrap();
        num_cached += input.len();
        let token = decoder.collect().unwrap()[0].token.unwrap();
        assert_eq!(token, expected, "after {num_cached} tokens");
        input = vec![token];
    }
}

//! Logits of tiny random checkpoints, and what the real model's loading takes.

use serde_json::Value;

pub(super) use super::cases::golden;
use super::naive::Naive;
use crate::backend::{BackendLimits, Batch, DType};
use crate::format::Checkpoint;
use crate::model::decoder::{Decoder, DecoderConfig};
use crate::model::families::load_spec;
use crate::model::load::LoadOptions;
use crate::model::spec::ModelSpec;
use crate::quant::decode_f32;

/// Tokens in a KV block: small and odd, so that the prompt spans many blocks and ends inside one.
const BLOCK_SIZE: usize = 5;

pub(super) fn config(spec: &ModelSpec, weight_dtype: DType, max_tokens: usize) -> DecoderConfig {
    DecoderConfig {
        weight_dtype,
        kv_dtype: DType::F32,
        num_kv_blocks: 16,
        kv_block_size: BLOCK_SIZE,
        max_model_len: spec.max_positions,
        limits: BackendLimits { max_tokens, max_slots: 3, vocab_size: spec.vocab_size },
    }
}

/// A batch of one row: `tokens` after `num_cached` others, blocks from the end of the pool backwards.
pub(super) fn single(tokens: &[u32], num_cached: usize, num_blocks: u32) -> Batch {
    let context_len = num_cached + tokens.len();
    let block_tables: Vec<u32> = (0..num_blocks).rev().take(context_len.div_ceil(BLOCK_SIZE)).collect();
    Batch {
        slots: vec![1],
        query_starts: vec![0, tokens.len() as u32],
        context_lens: vec![context_len as u32],
        tokens: tokens.to_vec(),
        block_starts: vec![0, block_tables.len() as u32],
        block_tables,
        sampled_rows: vec![0],
    }
}

/// Runs the golden prompt of a checkpoint in chunks and compares the logits at the end of each; with padding too.
fn check_logits(directory: &str, model: &str) {
    check_logits_on(Naive::default(), directory, model);
    check_logits_on(Naive::padded(6, 7), directory, model);
}

fn check_logits_on(backend: Naive, directory: &str, model: &str) {
    let directory = golden(directory);
    let golden: Value =
        serde_json::from_str(&std::fs::read_to_string(directory.join("golden.json")).unwrap()).unwrap();
    let prompt: Vec<u32> = serde_json::from_value(golden["prompt_ids"].clone()).unwrap();
    assert_eq!(prompt.len(), 33);
    let checkpoint = Checkpoint::open(&directory.join(model)).unwrap();
    let spec = load_spec(&checkpoint).unwrap();
    let mut expected = vec![f32::NAN; prompt.len() * spec.vocab_size];
    decode_f32(&std::fs::read(directory.join("logits.bin")).unwrap(), &mut expected);

    let config = config(&spec, DType::F32, 17);
    let mut decoder = Decoder::load(backend, &spec, &checkpoint, &config, &LoadOptions::default()).unwrap();
    let mut num_cached = 0;
    for chunk_len in [1, 4, 17, 1, 1, 9] {
        let chunk = &prompt[num_cached..][..chunk_len];
        decoder.forward(&single(chunk, num_cached, config.num_kv_blocks as u32)).unwrap();
        num_cached += chunk_len;
        let expected = &expected[(num_cached - 1) * spec.vocab_size..][..spec.vocab_size];
        let logits = decoder.read_logits(1).unwrap();
        let largest = expected.iter().fold(0.0f32, |max, value| max.max(value.abs()));
        for (token, (actual, expected)) in logits.iter().zip(expected).enumerate() {
            let error = (actual - expected).abs() / largest;
            assert!(error <= 2e-4, "position {num_cached}, token {token}: {actual}, not {expected}");
        }
        assert_eq!(decoder.collect().unwrap()[0].slot, 1);
    }
    assert_eq!(num_cached, prompt.len());
}

#[test]
fn multi_head_untied_in_f32() {
    check_logits("llama_tiny_mha_untied", "");
}

#[test]
fn grouped_query_tied_in_bf16() {
    check_logits("llama_tiny_gqa_tied", "");
}

#[test]
fn multi_query_with_heads_wider_than_the_residual() {
    check_logits("llama_tiny_mqa_wide_heads", "");
}

#[test]
fn linear_scaling_in_f16() {
    check_logits("llama_tiny_linear", "");
}

#[test]
fn dynamic_scaling() {
    check_logits("llama_tiny_dynamic", "");
}

#[test]
fn llama3_scaling() {
    check_logits("llama_tiny_llama3", "");
}

#[test]
fn yarn_scaling() {
    check_logits("llama_tiny_yarn", "");
}

#[test]
fn gguf_with_interleaved_pairs_and_frequency_factors() {
    check_logits("llama_tiny_gguf", "model.gguf");
}

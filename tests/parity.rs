//! The decoder on the CPU against transformers: greedy continuations of the real model, all prompts in flight
//! together, prompts in chunks, KV blocks scattered.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use inflight::backend::cpu::Cpu;
use inflight::backend::{BackendLimits, Batch, DType, SlotState, TOKEN_FROM_SLOT};
use inflight::format::Checkpoint;
use inflight::model::{Decoder, DecoderConfig, load_spec};

/// Tokens in a KV block.
const BLOCK_SIZE: usize = 16;
/// Tokens of a prompt in one step; odd, so that chunks end inside blocks.
const CHUNK: usize = 7;
/// Rounding of weights and activations to bf16 moves logits of this model by less than this.
const BF16_NEAR_TIE: f32 = 0.15;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: String,
    prompt_ids: Vec<u32>,
    token_ids: Vec<u32>,
    top2_gaps: Vec<f32>,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smollm2_greedy.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The model that `INFLIGHT_TEST_MODEL` names, or the one that set-up fetches.
fn model_path() -> PathBuf {
    let fetched = concat!(env!("CARGO_MANIFEST_DIR"), "/.cache/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    let path = std::env::var_os("INFLIGHT_TEST_MODEL").map_or_else(|| fetched.into(), PathBuf::from);
    assert!(path.exists(), "{}: no model; run scripts/setup.sh or set INFLIGHT_TEST_MODEL", path.display());
    path
}

fn greedy(prompt: &[u32]) -> SlotState {
    SlotState {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        logit_bias: Vec::new(),
        suppressed_tokens: Vec::new(),
        min_tokens: 0,
        seed: 0,
        num_logprobs: None,
        prompt: prompt.to_vec(),
        output: Vec::new(),
    }
}

/// A step of all sequences: the next chunk of a prompt, or the token that the slot sampled last.
fn step(cases: &[Case], num_cached: &[usize]) -> Batch {
    let mut batch = Batch::new();
    for (slot, (case, &cached)) in cases.iter().zip(num_cached).enumerate() {
        let rest = case.prompt_ids.get(cached..).unwrap_or_default();
        let chunk = &rest[..rest.len().min(CHUNK)];
        let tokens = if chunk.is_empty() { &[TOKEN_FROM_SLOT] } else { chunk };
        let context_len = cached + tokens.len();
        if context_len >= case.prompt_ids.len() {
            batch.sampled_rows.push(slot as u32);
        }
        batch.slots.push(slot as u32);
        batch.tokens.extend(tokens);
        batch.query_starts.push(batch.tokens.len() as u32);
        batch.context_lens.push(context_len as u32);
        let blocks = 0..context_len.div_ceil(BLOCK_SIZE);
        batch.block_tables.extend(blocks.map(|block| (block * cases.len() + slot) as u32));
        batch.block_starts.push(batch.block_tables.len() as u32);
    }
    batch
}

/// Greedy continuations of all cases, as long as the golden ones.
fn continuations(cases: &[Case], weight_dtype: DType, kv_dtype: DType) -> Vec<Vec<u32>> {
    let checkpoint = Checkpoint::open(&model_path()).unwrap();
    let spec = load_spec(&checkpoint).unwrap();
    let limits = BackendLimits {
        max_tokens: CHUNK * cases.len(),
        max_slots: cases.len(),
        vocab_size: spec.vocab_size,
    };
    let max_model_len =
        cases.iter().map(|case| case.prompt_ids.len() + case.token_ids.len() + 1).max().unwrap();
    let config = DecoderConfig {
        weight_dtype,
        kv_dtype,
        num_kv_blocks: max_model_len.div_ceil(BLOCK_SIZE) * cases.len(),
        kv_block_size: BLOCK_SIZE,
        max_model_len,
        limits,
    };
    let mut decoder = Decoder::load(Cpu::new(0).unwrap(), &spec, &checkpoint, &config, None).unwrap();
    for (slot, case) in cases.iter().enumerate() {
        decoder.reset_slot(slot as u32, &greedy(&case.prompt_ids)).unwrap();
    }
    let mut num_cached = vec![0; cases.len()];
    let mut outputs = vec![Vec::new(); cases.len()];
    while outputs.iter().zip(cases).any(|(output, case)| output.len() < case.token_ids.len()) {
        let batch = step(cases, &num_cached);
        decoder.forward(&batch).unwrap();
        for sampled in decoder.collect().unwrap() {
            outputs[sampled.slot as usize].push(sampled.token.expect("finite logits"));
        }
        num_cached = batch.context_lens.iter().map(|&length| length as usize).collect();
        // A sequence that is done runs on in its last block, so that every batch keeps all rows.
        for (cached, case) in num_cached.iter_mut().zip(cases) {
            *cached = (*cached).min(case.prompt_ids.len() + case.token_ids.len());
        }
    }
    for (output, case) in outputs.iter_mut().zip(cases) {
        output.truncate(case.token_ids.len());
    }
    outputs
}

#[test]
fn greedy_tokens_in_f32_equal_those_of_transformers() {
    let cases = golden().cases;
    assert!(cases.len() >= 6 && cases.iter().all(|case| case.token_ids.len() == 64));
    for (case, output) in cases.iter().zip(continuations(&cases, DType::F32, DType::F32)) {
        assert_eq!(output, case.token_ids, "{:?}", case.prompt);
    }
}

#[test]
fn greedy_tokens_in_bf16_differ_first_at_a_near_tie() {
    let cases = golden().cases;
    for (case, output) in cases.iter().zip(continuations(&cases, DType::Bf16, DType::Bf16)) {
        let first = output.iter().zip(&case.token_ids).position(|(actual, expected)| actual != expected);
        if let Some(index) = first {
            let gap = case.top2_gaps[index];
            println!("{:?}: token {index} differs, where the top two logits are {gap} apart", case.prompt);
            assert!(gap < BF16_NEAR_TIE, "{:?}: token {index} differs at a gap of {gap}", case.prompt);
        }
    }
}

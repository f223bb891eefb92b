//! A tiny checkpoint of every family: its logits are those of transformers, however its tokens are batched.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::golden::golden;
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, BackendLimits, Batch, DType};
use crate::format::Checkpoint;
use crate::model::decoder::{Decoder, DecoderConfig};
use crate::model::families::load_spec;
use crate::model::load::LoadOptions;
use crate::model::spec::ModelSpec;
use crate::quant::decode_f32;

/// Tokens in a KV block: small and odd, so that the prompt spans many blocks and ends inside one.
const BLOCK_SIZE: usize = 5;
/// Blocks of a sequence.
const NUM_BLOCKS: usize = 13;
const MAX_ROWS: usize = 8;
const PROMPT_LEN: usize = 33;
/// Error of a logit over the largest one: what is asked for in each type, and what another order of the same sums
/// may make of f32.
pub(super) const F32_TOLERANCE: f32 = 2e-4;
pub(super) const BF16_TOLERANCE: f32 = 2e-2;
const ORDER_TOLERANCE: f32 = 2e-5;

/// Directories of `tests/golden/families`.
pub(super) const CASES: [&str; 47] = [
    "baichuan2_7b",
    "baichuan_13b",
    "baichuan_7b",
    "bloom",
    "cerebras_gpt",
    "chatglm",
    "deepseek",
    "falcon_11b",
    "falcon_40b",
    "falcon_7b",
    "falcon_rw",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_multimodal",
    "glm",
    "glm4",
    "gpt2",
    "gpt2_published",
    "gpt_bigcode",
    "gpt_bigcode_multi_head",
    "gpt_neox",
    "gpt_neox_sequential",
    "gptj",
    "internlm2",
    "llama",
    "llama_bias",
    "mistral",
    "mixtral",
    "mpt",
    "olmo",
    "olmo2",
    "olmo_clip",
    "opt",
    "opt_published",
    "phi",
    "phi3",
    "phi3_long",
    "phi4_mini",
    "qwen2",
    "qwen2_moe",
    "qwen2_window",
    "qwen3",
    "qwen3_moe",
    "stablelm",
    "stablelm_parallel",
    "starcoder2",
];

/// A checkpoint with what transformers computes of it.
pub(super) struct Case {
    pub(super) checkpoint: Checkpoint,
    pub(super) spec: ModelSpec,
    prompt: Vec<u32>,
    /// Logits of each prompt position, `[PROMPT_LEN, vocab_size]`.
    logits: Vec<f32>,
    continuation: Vec<u32>,
    /// Distance of each continuation token's logit to the next best.
    gaps: Vec<f32>,
}

pub(super) fn directory(name: &str) -> PathBuf {
    golden("families").join(name)
}

impl Case {
    pub(super) fn open(name: &str) -> Result<Self, String> {
        let directory = directory(name);
        Self::open_file(&directory, &directory)
    }

    /// The case of `directory`, whose weights are `model`.
    pub(super) fn open_file(directory: &Path, model: &Path) -> Result<Self, String> {
        let golden = std::fs::read(directory.join("golden.json")).unwrap();
        let golden: Value = serde_json::from_slice(&golden).unwrap();
        let checkpoint = Checkpoint::open(model).unwrap();
        let spec = load_spec(&checkpoint).map_err(|error| error.to_string())?;
        let mut logits = vec![f32::NAN; PROMPT_LEN * spec.vocab_size];
        decode_f32(&std::fs::read(directory.join("logits.bin")).unwrap(), &mut logits);
        let tokens = |field: &str| serde_json::from_value(golden[field].clone()).unwrap();
        let case = Self {
            checkpoint,
            spec,
            prompt: tokens("prompt_ids"),
            logits,
            continuation: tokens("continuation_ids"),
            gaps: serde_json::from_value(golden["continuation_gaps"].clone()).unwrap(),
        };
        assert_eq!(case.prompt.len(), PROMPT_LEN);
        Ok(case)
    }

    fn decoder(&self, weight_dtype: DType) -> Result<Decoder<Cpu>, String> {
        let config = DecoderConfig {
            weight_dtype,
            kv_dtype: weight_dtype,
            num_kv_blocks: MAX_ROWS * NUM_BLOCKS,
            kv_block_size: BLOCK_SIZE,
            max_model_len: self.spec.max_positions.min(BLOCK_SIZE * NUM_BLOCKS),
            limits: BackendLimits {
                max_tokens: MAX_ROWS * PROMPT_LEN,
                max_slots: MAX_ROWS,
                vocab_size: self.spec.vocab_size,
            },
        };
        let decoder = Decoder::load(
            Cpu::new(1).unwrap(),
            &self.spec,
            &self.checkpoint,
            &config,
            &LoadOptions::default(),
        );
        decoder.map_err(|error| error.to_string())
    }

    /// Golden logits after `num_tokens` tokens of the prompt.
    fn golden_logits(&self, num_tokens: usize) -> &[f32] {
        &self.logits[(num_tokens - 1) * self.spec.vocab_size..][..self.spec.vocab_size]
    }
}

/// Compares logits; the error says how far they are apart.
fn compare(what: &str, actual: &[f32], expected: &[f32], tolerance: f32) -> Result<(), String> {
    assert_eq!(actual.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    let differences = actual.iter().zip(expected).map(|(actual, expected)| (actual - expected).abs());
    // A difference that is no number is larger than any other.
    let worst = differences.fold(0.0f32, |max, error| if error <= max { max } else { error }) / largest;
    if worst <= tolerance { Ok(()) } else { Err(format!("{what}: {worst:e} of the largest logit")) }
}

/// Runs `check` on every case and reports all failures together.
fn check_all(check: impl Fn(&Case) -> Result<(), String>) {
    report(&CASES, |name| check(&Case::open(name)?));
}

/// Runs `check` on every name and reports all failures together.
pub(super) fn report(names: &[&str], check: impl Fn(&str) -> Result<(), String>) {
    let failure = |name: &&str| check(name).err().map(|error| format!("{name}: {error}"));
    let failures: Vec<String> = names.iter().filter_map(failure).collect();
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), names.len(), failures.join("\n"));
}

/// A sequence's tokens in a step.
struct Row<'a> {
    slot: usize,
    tokens: &'a [u32],
    num_cached: usize,
}

/// A step of `rows`. Every slot has its own blocks, from the end of the pool backwards.
fn batch(rows: &[Row]) -> Batch {
    let mut batch = Batch::new();
    for (index, row) in rows.iter().enumerate() {
        let context_len = row.num_cached + row.tokens.len();
        let first_block = (MAX_ROWS - row.slot) * NUM_BLOCKS - 1;
        let blocks = (0..context_len.div_ceil(BLOCK_SIZE)).map(|block| (first_block - block) as u32);
        batch.slots.push(row.slot as u32);
        batch.tokens.extend_from_slice(row.tokens);
        batch.query_starts.push(batch.tokens.len() as u32);
        batch.context_lens.push(context_len as u32);
        batch.block_tables.extend(blocks);
        batch.block_starts.push(batch.block_tables.len() as u32);
        batch.sampled_rows.push(index as u32);
    }
    batch
}

/// Runs a step and gives its logits, `[rows.len(), vocab_size]`.
fn step<B: Backend>(decoder: &mut Decoder<B>, rows: &[Row]) -> Vec<f32> {
    decoder.forward(&batch(rows)).unwrap();
    let logits = decoder.read_logits(rows.len()).unwrap();
    decoder.collect().unwrap();
    logits
}

/// Runs `tokens` in chunks of `chunk_len`: the number of tokens after each chunk, and its logits.
fn chunks<B: Backend>(decoder: &mut Decoder<B>, tokens: &[u32], chunk_len: usize) -> Vec<(usize, Vec<f32>)> {
    let mut results = Vec::new();
    for (index, chunk) in tokens.chunks(chunk_len).enumerate() {
        let num_cached = index * chunk_len;
        let logits = step(decoder, &[Row { slot: 3, tokens: chunk, num_cached }]);
        results.push((num_cached + chunk.len(), logits));
    }
    results
}

pub(super) fn check_logits(case: &Case, dtype: DType, tolerance: f32) -> Result<(), String> {
    let mut decoder = case.decoder(dtype)?;
    for chunk_len in [1, 7, PROMPT_LEN] {
        for (num_tokens, logits) in chunks(&mut decoder, &case.prompt, chunk_len) {
            let what = format!("chunks of {chunk_len}, {num_tokens} tokens");
            compare(&what, &logits, case.golden_logits(num_tokens), tolerance)?;
        }
    }
    Ok(())
}

#[test]
fn every_directory_is_a_case() {
    let entries = std::fs::read_dir(golden("families")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, CASES);
}

#[test]
fn logits_in_f32_are_those_of_transformers() {
    check_all(|case| check_logits(case, DType::F32, F32_TOLERANCE));
}

#[test]
fn logits_in_bf16_are_close_to_those_of_transformers() {
    check_all(|case| check_logits(case, DType::Bf16, BF16_TOLERANCE));
}

#[test]
fn greedy_continuations_are_those_of_transformers() {
    const MIN_GAP: f32 = 1e-2;
    check_all(|case| {
        let mut decoder = case.decoder(DType::F32)?;
        let mut tokens = case.prompt.clone();
        let mut num_cached = 0;
        for (&expected, &gap) in case.continuation.iter().zip(&case.gaps) {
            let logits = step(&mut decoder, &[Row { slot: 0, tokens: &tokens[num_cached..], num_cached }]);
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            if best != expected as usize && gap >= MIN_GAP {
                return Err(format!("{best}, not {expected}, after {} tokens", tokens.len()));
            }
            num_cached = tokens.len();
            tokens.push(expected);
        }
        Ok(())
    });
}

#[test]
fn prompts_of_every_length_agree_with_decoding_and_with_chunks() {
    check_all(|case| {
        let mut decoder = case.decoder(DType::F32)?;
        let decoded = chunks(&mut decoder, &case.prompt, 1);
        for (num_tokens, decoded) in &decoded {
            let whole =
                step(&mut decoder, &[Row { slot: 5, tokens: &case.prompt[..*num_tokens], num_cached: 0 }]);
            let what = format!("{num_tokens} tokens, one by one");
            compare(&what, decoded, &whole, ORDER_TOLERANCE)?;
        }
        for (num_tokens, chunked) in chunks(&mut decoder, &case.prompt, 7) {
            let what = format!("{num_tokens} tokens in chunks of 7");
            compare(&what, &chunked, &decoded[num_tokens - 1].1, ORDER_TOLERANCE)?;
        }
        Ok(())
    });
}

#[test]
fn sequences_of_one_batch_agree_with_each_alone() {
    /// Tokens that each sequence takes in each step: prompts of several lengths, then decoding.
    const STEPS: [[usize; MAX_ROWS]; 4] =
        [[1, 4, 9, 17, 2, 26, 5, 13], [3, 1, 7, 1, 1, 1, 20, 1], [1; MAX_ROWS], [1; MAX_ROWS]];
    check_all(|case| {
        let mut decoder = case.decoder(DType::F32)?;
        let sequences: Vec<Vec<u32>> = (0..MAX_ROWS)
            .map(|rotation| [&case.prompt[rotation..], &case.prompt[..rotation]].concat())
            .collect();
        let mut lengths = [0; MAX_ROWS];
        let mut together = Vec::new();
        for counts in STEPS {
            let row = |slot: usize| Row {
                slot,
                tokens: &sequences[slot][lengths[slot]..][..counts[slot]],
                num_cached: lengths[slot],
            };
            let rows: Vec<Row> = (0..MAX_ROWS).rev().map(row).collect();
            let logits = step(&mut decoder, &rows);
            for (row, logits) in rows.iter().zip(logits.chunks(case.spec.vocab_size)) {
                together.push((row.slot, row.num_cached + row.tokens.len(), logits.to_vec()));
            }
            for (length, count) in lengths.iter_mut().zip(counts) {
                *length += count;
            }
        }
        for (slot, num_tokens, logits) in together {
            let alone =
                step(&mut decoder, &[Row { slot: 2, tokens: &sequences[slot][..num_tokens], num_cached: 0 }]);
            let what = format!("sequence {slot}, {num_tokens} tokens");
            compare(&what, &logits, &alone, ORDER_TOLERANCE)?;
        }
        Ok(())
    });
}

//! The tiny checkpoints of all families, and what is compared of them with transformers and among themselves. The
//! library's own tests take this file in too.

use std::path::{Path, PathBuf};

use inflight::backend::{Backend, BackendLimits, Batch, DType, SlotState};
use inflight::format::Checkpoint;
use inflight::model::decoder::{Decoder, DecoderConfig};
use inflight::model::families::load_spec;
use inflight::model::load::LoadOptions;
use inflight::model::spec::ModelSpec;
use inflight::quant::decode_f32;
use serde_json::Value;

/// Sequences of a batch.
pub const MAX_ROWS: usize = 8;
/// Tokens of a case's prompt.
pub const PROMPT_LEN: usize = 33;
/// Error of a logit over the largest one that is asked for in bf16.
pub const BF16_TOLERANCE: f32 = 2e-2;
/// Tokens that a sequence may have.
const CONTEXT_LEN: usize = 65;

/// Directories of `tests/golden/families`.
pub const CASES: [&str; 47] = [
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

/// Directories of `tests/golden/gguf`.
pub const GGUF_CASES: [&str; 18] = [
    "bloom",
    "falcon_40b",
    "falcon_7b",
    "gemma",
    "gemma2",
    "gemma3",
    "gpt2",
    "gptneox",
    "mistral",
    "mixtral",
    "phi2",
    "phi3",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "starcoder",
    "starcoder2",
];

/// A folder of `tests/golden`: where the tests were built or, for a binary that was moved, where it runs.
pub fn golden(name: &str) -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = if built.is_dir() { built } else { Path::new("") };
    root.join("tests/golden").join(name)
}

/// A checkpoint with what transformers computes of it.
pub struct Case {
    pub checkpoint: Checkpoint,
    pub spec: ModelSpec,
    prompt: Vec<u32>,
    /// Logits of each prompt position, `[PROMPT_LEN, vocab_size]`.
    logits: Vec<f32>,
    continuation: Vec<u32>,
    /// Distance of each continuation token's logit to the next best.
    gaps: Vec<f32>,
    /// The worst error of a prompt's logit over the largest one that transformers itself makes in bf16.
    bf16_error: f32,
}

impl Case {
    /// One of [`CASES`].
    pub fn open(name: &str) -> Result<Self, String> {
        let directory = golden("families").join(name);
        Self::open_file(&directory, &directory)
    }

    /// One of [`GGUF_CASES`].
    pub fn open_gguf(name: &str) -> Result<Self, String> {
        let directory = golden("gguf").join(name);
        Self::open_file(&directory, &directory.join("model.gguf"))
    }

    /// The case of `directory`, whose weights are `model`.
    fn open_file(directory: &Path, model: &Path) -> Result<Self, String> {
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
            bf16_error: serde_json::from_value(golden["bf16_error"].clone()).unwrap(),
        };
        assert_eq!(case.prompt.len(), PROMPT_LEN);
        Ok(case)
    }

    /// Error of a logit over the largest one that is allowed where activations are bf16 too: what is asked for or,
    /// where that is more, a tenth more than what transformers makes in bf16, since sums in another order round
    /// otherwise. That has in it what its routers choose otherwise by rounding.
    pub fn bf16_tolerance(&self) -> f32 {
        BF16_TOLERANCE.max(1.1 * self.bf16_error)
    }

    /// Golden logits after `num_tokens` tokens of the prompt.
    fn golden_logits(&self, num_tokens: usize) -> &[f32] {
        &self.logits[(num_tokens - 1) * self.spec.vocab_size..][..self.spec.vocab_size]
    }
}

/// The largest difference of logits over the largest logit; above `tolerance` an error that says so.
fn compare(what: &str, actual: &[f32], expected: &[f32], tolerance: f32) -> Result<f32, String> {
    assert_eq!(actual.len(), expected.len());
    let largest = expected.iter().fold(0.0f32, |max, value| max.max(value.abs()));
    let differences = actual.iter().zip(expected).map(|(actual, expected)| (actual - expected).abs());
    // A difference that is no number is larger than any other.
    let worst = differences.fold(0.0f32, |max, error| if error <= max { max } else { error }) / largest;
    if worst <= tolerance { Ok(worst) } else { Err(format!("{what}: {worst:e} of the largest logit")) }
}

/// Runs `check` on every name and reports all failures together.
pub fn report(names: &[&str], check: impl Fn(&str) -> Result<(), String>) {
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

/// A case on a backend. Checks give the largest error that they find, or an error.
pub struct Runner<'a, B: Backend> {
    case: &'a Case,
    decoder: Decoder<B>,
    /// Tokens in a KV block.
    block_size: usize,
}

impl<'a, B: Backend> Runner<'a, B> {
    pub fn load(case: &'a Case, backend: B, dtype: DType, block_size: usize) -> Result<Self, String> {
        let spec = &case.spec;
        let config = DecoderConfig {
            weight_dtype: dtype,
            kv_dtype: dtype,
            num_kv_blocks: MAX_ROWS * CONTEXT_LEN.div_ceil(block_size),
            kv_block_size: block_size,
            max_model_len: spec.max_positions.min(CONTEXT_LEN),
            limits: BackendLimits {
                max_tokens: MAX_ROWS * PROMPT_LEN,
                max_slots: MAX_ROWS,
                vocab_size: spec.vocab_size,
            },
        };
        let decoder = Decoder::load(backend, spec, &case.checkpoint, &config, &LoadOptions::default());
        Ok(Self { case, decoder: decoder.map_err(|error| error.to_string())?, block_size })
    }

    /// A step of `rows`. Every slot has its own blocks, from the end of the pool backwards.
    fn batch(&self, rows: &[Row]) -> Batch {
        let blocks_per_slot = CONTEXT_LEN.div_ceil(self.block_size);
        let mut batch = Batch::new();
        for (index, row) in rows.iter().enumerate() {
            let context_len = row.num_cached + row.tokens.len();
            let first_block = (MAX_ROWS - row.slot) * blocks_per_slot - 1;
            let blocks = (0..context_len.div_ceil(self.block_size)).map(|block| (first_block - block) as u32);
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
    fn step(&mut self, rows: &[Row]) -> Vec<f32> {
        for row in rows.iter().filter(|row| row.num_cached == 0) {
            self.decoder.reset_slot(row.slot as u32, &SlotState::GREEDY).unwrap();
        }
        self.decoder.forward(&self.batch(rows)).unwrap();
        let logits = self.decoder.read_logits(rows.len()).unwrap();
        self.decoder.collect().unwrap();
        logits
    }

    /// Runs the prompt in chunks of `chunk_len`: the number of tokens after each chunk, and its logits.
    fn chunks(&mut self, chunk_len: usize) -> Vec<(usize, Vec<f32>)> {
        let case = self.case;
        let mut results = Vec::new();
        for (index, tokens) in case.prompt.chunks(chunk_len).enumerate() {
            let num_cached = index * chunk_len;
            let logits = self.step(&[Row { slot: 3, tokens, num_cached }]);
            results.push((num_cached + tokens.len(), logits));
        }
        results
    }

    /// Logits of the prompt token by token, in chunks and whole are those of transformers.
    pub fn check_logits(&mut self, tolerance: f32) -> Result<f32, String> {
        let mut worst = 0.0f32;
        for chunk_len in [1, 7, PROMPT_LEN] {
            for (num_tokens, logits) in self.chunks(chunk_len) {
                let what = format!("chunks of {chunk_len}, {num_tokens} tokens");
                let golden = self.case.golden_logits(num_tokens);
                worst = worst.max(compare(&what, &logits, golden, tolerance)?);
            }
        }
        Ok(worst)
    }

    /// The greedy continuation is that of transformers wherever its logit leads by more than two errors of
    /// `tolerance`.
    pub fn check_continuation(&mut self, tolerance: f32) -> Result<(), String> {
        let case = self.case;
        let largest = case.logits.iter().fold(0.0f32, |max, value| max.max(value.abs()));
        let min_gap = 2.0 * tolerance * largest;
        let mut tokens = case.prompt.clone();
        let mut num_cached = 0;
        for (&expected, &gap) in case.continuation.iter().zip(&case.gaps) {
            let logits = self.step(&[Row { slot: 0, tokens: &tokens[num_cached..], num_cached }]);
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            if best != expected as usize && gap >= min_gap {
                return Err(format!("{best}, not {expected}, after {} tokens", tokens.len()));
            }
            num_cached = tokens.len();
            tokens.push(expected);
        }
        Ok(())
    }

    /// Prompts of every length give the same as their tokens one by one and in chunks.
    pub fn check_lengths(&mut self, tolerance: f32) -> Result<f32, String> {
        let (case, mut worst) = (self.case, 0.0f32);
        let decoded = self.chunks(1);
        for (num_tokens, decoded) in &decoded {
            let whole = self.step(&[Row { slot: 5, tokens: &case.prompt[..*num_tokens], num_cached: 0 }]);
            let what = format!("{num_tokens} tokens, one by one");
            worst = worst.max(compare(&what, decoded, &whole, tolerance)?);
        }
        for (num_tokens, chunked) in self.chunks(7) {
            let what = format!("{num_tokens} tokens in chunks of 7");
            worst = worst.max(compare(&what, &chunked, &decoded[num_tokens - 1].1, tolerance)?);
        }
        Ok(worst)
    }

    /// Eight sequences in one batch give what each gives alone. They are the prompt, or where `must_differ` its
    /// rotations.
    pub fn check_batches(&mut self, must_differ: bool, tolerance: f32) -> Result<f32, String> {
        /// Tokens that each sequence takes in each step: prompts of several lengths, then decoding.
        const STEPS: [[usize; MAX_ROWS]; 4] =
            [[1, 4, 9, 17, 2, 26, 5, 13], [3, 1, 7, 1, 1, 1, 20, 1], [1; MAX_ROWS], [1; MAX_ROWS]];
        let prompt = &self.case.prompt;
        let rotations = (0..MAX_ROWS).map(|slot| if must_differ { slot } else { 0 });
        let sequences: Vec<Vec<u32>> =
            rotations.map(|rotation| [&prompt[rotation..], &prompt[..rotation]].concat()).collect();
        let mut lengths = [0; MAX_ROWS];
        let mut together = Vec::new();
        for counts in STEPS {
            let row = |slot: usize| Row {
                slot,
                tokens: &sequences[slot][lengths[slot]..][..counts[slot]],
                num_cached: lengths[slot],
            };
            let rows: Vec<Row> = (0..MAX_ROWS).rev().map(row).collect();
            let logits = self.step(&rows);
            for (row, logits) in rows.iter().zip(logits.chunks(self.case.spec.vocab_size)) {
                together.push((row.slot, row.num_cached + row.tokens.len(), logits.to_vec()));
            }
            for (length, count) in lengths.iter_mut().zip(counts) {
                *length += count;
            }
        }
        let mut worst = 0.0f32;
        for (slot, num_tokens, logits) in together {
            let alone = self.step(&[Row { slot: 2, tokens: &sequences[slot][..num_tokens], num_cached: 0 }]);
            let what = format!("sequence {slot}, {num_tokens} tokens");
            worst = worst.max(compare(&what, &logits, &alone, tolerance)?);
        }
        Ok(worst)
    }
}

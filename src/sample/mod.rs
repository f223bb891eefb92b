//! Sampling parameters of a request: validation, and resolution against the model's own defaults.

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};

use crate::backend::SlotState;
use crate::error::{Error, Result};

/// Most entries of [`SamplingParams::logit_bias`].
pub const MAX_LOGIT_BIASES: usize = 1024;

/// Most alternatives that [`SamplingParams::num_logprobs`] may ask for.
pub const MAX_LOGPROBS: u32 = 20;

/// Sampling parameters as a caller gives them. `None` takes the model's default (`generation_config.json`) or, where
/// it has none, as every GGUF file, greedy decoding.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SamplingParams {
    /// 0: greedy. In [0, 100]. The model's default is 0 unless `generation_config.json` says `do_sample`.
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
    /// Added to logits of single tokens; finite, ids below the vocabulary's size, no id twice, at most
    /// [`MAX_LOGIT_BIASES`] entries.
    pub logit_bias: Vec<(u32, f32)>,
    /// `None`: a fresh seed per request.
    pub seed: Option<u64>,
    /// Alternatives to report with each token, at most [`MAX_LOGPROBS`]; `None`: no log-probabilities.
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
    /// Checks every value and fills what is open.
    ///
    /// The caller fills `suppressed_tokens`, `min_tokens` and the history. Fails with
    /// [`crate::Status::InvalidArgument`] and a message that names the field, its value and the allowed range, also
    /// where the value is one of the model's defaults: the caller can overrule it.
    pub fn resolve(&self, defaults: &GenerationDefaults, vocab_size: usize) -> Result<SlotState> {
        self.check_logit_bias(vocab_size)?;
        if let Some(num_logprobs) = self.num_logprobs.filter(|&num| num > MAX_LOGPROBS) {
            return Err(out_of_range("num_logprobs", num_logprobs, &format!("[0, {MAX_LOGPROBS}]")));
        }
        let temperature = self.temperature.or(Some(defaults.temperature));
        let top_p = self.top_p.or(defaults.top_p);
        let repetition_penalty = self.repetition_penalty.or(defaults.repetition_penalty);
        Ok(SlotState {
            temperature: Range::closed(0.0, 100.0).check("temperature", temperature.unwrap_or(0.0))?,
            top_k: self.top_k.unwrap_or(defaults.top_k),
            top_p: Range::above(0.0, 1.0).check("top_p", top_p.unwrap_or(1.0))?,
            min_p: Range::closed(0.0, 1.0).check("min_p", self.min_p)?,
            repetition_penalty: Range::above(0.0, 100.0)
                .check("repetition_penalty", repetition_penalty.unwrap_or(1.0))?,
            presence_penalty: Range::closed(-100.0, 100.0)
                .check("presence_penalty", self.presence_penalty)?,
            frequency_penalty: Range::closed(-100.0, 100.0)
                .check("frequency_penalty", self.frequency_penalty)?,
            logit_bias: self.logit_bias.clone(),
            suppressed_tokens: Vec::new(),
            min_tokens: 0,
            seed: self.seed.unwrap_or_else(fresh_seed),
            num_logprobs: self.num_logprobs,
            prompt: Vec::new(),
            output: Vec::new(),
        })
    }

    fn check_logit_bias(&self, vocab_size: usize) -> Result<()> {
        let biases = &self.logit_bias;
        if biases.len() > MAX_LOGIT_BIASES {
            return Err(Error::invalid_argument(format!(
                "logit_bias has {} entries; at most {MAX_LOGIT_BIASES} are allowed",
                biases.len()
            )));
        }
        check_tokens("logit_bias", biases.iter().map(|&(token, _)| token), vocab_size)?;
        let mut tokens = HashSet::with_capacity(biases.len());
        for (index, &(token, bias)) in biases.iter().enumerate() {
            if !bias.is_finite() {
                return Err(Error::invalid_argument(format!(
                    "logit_bias[{index}] is {bias}; it must be finite"
                )));
            }
            if !tokens.insert(token) {
                return Err(Error::invalid_argument(format!(
                    "logit_bias[{index}]: token {token} has a bias already; give each token once"
                )));
            }
        }
        Ok(())
    }
}

/// Checks that token ids are below the vocabulary's size.
fn check_tokens(field: &str, tokens: impl Iterator<Item = u32>, vocab_size: usize) -> Result<()> {
    for (index, token) in tokens.enumerate() {
        if token as usize >= vocab_size {
            return Err(Error::invalid_argument(format!(
                "{field}[{index}]: token {token} is outside the vocabulary; ids must be below {vocab_size}"
            )));
        }
    }
    Ok(())
}

/// An interval of allowed values that includes its end.
struct Range {
    start: f32,
    end: f32,
    includes_start: bool,
}

impl Range {
    fn closed(start: f32, end: f32) -> Self {
        Self { start, end, includes_start: true }
    }

    /// The interval without its start.
    fn above(start: f32, end: f32) -> Self {
        Self { start, end, includes_start: false }
    }

    /// `value` where it lies in the range, which NaN does not.
    fn check(&self, field: &str, value: f32) -> Result<f32> {
        let is_past_start = value > self.start || (self.includes_start && value == self.start);
        if is_past_start && value <= self.end { Ok(value) } else { Err(out_of_range(field, value, self)) }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bracket = if self.includes_start { '[' } else { '(' };
        write!(f, "{bracket}{}, {}]", self.start, self.end)
    }
}

fn out_of_range(field: &str, value: impl fmt::Display, range: &dyn fmt::Display) -> Error {
    Error::invalid_argument(format!("{field} is {value}; it must be in {range}"))
}

/// A seed that differs from call to call and from process to process. The standard library draws the keys of
/// its hashers from the operating system and gives each hasher other ones.
fn fresh_seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

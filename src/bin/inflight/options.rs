//! Options that several commands share, and what the library makes of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use inflight::config::{LogLevel, Logger};
use inflight::{DTypeChoice, EngineOptions, Prompt, Request, SamplingParams};
use serde::{Deserialize, Deserializer};

use crate::failure::Failure;
use crate::units::parse_bytes;

/// Where a model runs, and how much it may take.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// Architecture: a model_spec.json under any name, in place of what MODEL says of itself
    #[arg(long, value_name = "FILE", alias = "spec-file")]
    pub spec: Option<PathBuf>,

    /// Device: auto, cpu, cuda, cuda:0, or echo (no weights: gives the prompt back)
    #[arg(long, default_value = "auto")]
    pub device: String,

    /// Type that weights and KV cache are kept in; auto is bf16. f32 is of the CPU alone, which --device auto then
    /// takes
    #[arg(long, value_enum, default_value_t = DTypeArg::Auto)]
    pub dtype: DTypeArg,

    /// Compute threads of the CPU backend; 0: one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,

    /// Longest prompt plus output in tokens; 0: what the model was trained for. A KV cache of fewer tokens lowers
    /// it. Where RoPE depends on the context's length (dynamic NTK, LongRoPE), it is that of this length for every
    /// request
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub max_model_len: usize,

    /// Sequences that may run in one step; 0: 64, on CUDA 256
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub max_sequences: usize,

    /// Tokens in one step, which go by priority and, of equal priority, one to each running sequence before chunks
    /// of prompts; 0: 512, on CUDA 8192, and at least twice --max-sequences
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub max_batched_tokens: usize,

    /// Memory of the KV cache, such as 512MiB; 0: enough for --max-sequences full contexts, but at most a quarter of
    /// the host's available memory, or what weights and workspace leave of nine tenths of a CUDA device's free
    /// memory. --memory-limit lowers that further
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = parse_bytes)]
    pub kv_cache: u64,

    /// Tokens in a block of the KV cache, a multiple of 16; 0: the default
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub kv_block_size: usize,

    /// Limit on weights, KV cache and workspace together, such as 4GiB; 0: none
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = parse_bytes)]
    pub memory_limit: u64,

    /// Print log lines of this severity and worse on standard error
    #[arg(long, value_enum, value_name = "LEVEL")]
    pub log: Option<LogArg>,
}

impl EngineArgs {
    /// The engine's options for a model.
    pub fn to_options(&self, model: &Path) -> EngineOptions {
        let mut options = EngineOptions::new(model);
        options.spec_path = self.spec.clone();
        options.device = self.device.clone();
        options.dtype = self.dtype.into();
        options.num_threads = self.threads;
        options.max_model_len = self.max_model_len;
        options.max_num_sequences = self.max_sequences;
        options.max_batched_tokens = self.max_batched_tokens;
        options.kv_cache_bytes = self.kv_cache;
        options.kv_block_size = self.kv_block_size;
        options.memory_limit_bytes = self.memory_limit;
        if let Some(level) = self.log {
            options.logger =
                Logger::new(level.into(), Arc::new(|level, line| eprintln!("{level:?}: {line}")));
        }
        options
    }
}

/// `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DTypeArg {
    Auto,
    F32,
    Bf16,
    F16,
}

impl DTypeArg {
    /// The value as it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            DTypeArg::Auto => "auto",
            DTypeArg::F32 => "f32",
            DTypeArg::Bf16 => "bf16",
            DTypeArg::F16 => "f16",
        }
    }
}

impl From<DTypeArg> for DTypeChoice {
    fn from(dtype: DTypeArg) -> Self {
        match dtype {
            DTypeArg::Auto => DTypeChoice::Auto,
            DTypeArg::F32 => DTypeChoice::F32,
            DTypeArg::Bf16 => DTypeChoice::Bf16,
            DTypeArg::F16 => DTypeChoice::F16,
        }
    }
}

/// `--log`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogArg {
    Error,
    Warn,
    Info,
    Debug,
}

impl From<LogArg> for LogLevel {
    fn from(level: LogArg) -> Self {
        match level {
            LogArg::Error => LogLevel::Error,
            LogArg::Warn => LogLevel::Warn,
            LogArg::Info => LogLevel::Info,
            LogArg::Debug => LogLevel::Debug,
        }
    }
}

/// How to sample and when to end: options on the command line, and fields of a line of a prompts file under
/// the same names with `_` for `-`. What is not given takes the model's own default.
#[derive(Debug, Clone, Default, PartialEq, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RequestArgs {
    /// Most tokens to produce; 0: until the context is full
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub max_tokens: Option<u32>,

    /// Tokens before which only --max-tokens ends the output
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub min_tokens: Option<u32>,

    /// Do not stop at the model's end-of-sequence tokens
    #[arg(long, num_args = 0, default_missing_value = "true", help_heading = "Limits")]
    pub ignore_eos: Option<bool>,

    /// String that ends the output, which stops before it; may be repeated
    #[arg(long, value_name = "TEXT", help_heading = "Limits")]
    pub stop: Vec<String>,

    /// Token ids that end the output
    #[arg(long, value_name = "ID,...", value_delimiter = ',', help_heading = "Limits")]
    pub stop_tokens: Vec<u32>,

    /// End the request after this long, such as 2.5
    #[arg(long, value_name = "SECONDS", value_parser = parse_timeout, help_heading = "Limits")]
    #[serde(rename = "timeout_seconds", deserialize_with = "timeout_from_json")]
    pub timeout: Option<Duration>,

    /// Higher runs first
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Limits")]
    pub priority: Option<i32>,

    /// 0: always the most probable token; higher: more varied [default: what generation_config.json recommends where
    /// it says do_sample, else 0]
    #[arg(long, value_name = "T", help_heading = "Sampling")]
    pub temperature: Option<f32>,

    /// Sample from the most probable tokens that together have this probability; 1: off
    #[arg(long, value_name = "P", help_heading = "Sampling")]
    pub top_p: Option<f32>,

    /// Sample from this many most probable tokens; 0: off
    #[arg(long, value_name = "K", help_heading = "Sampling")]
    pub top_k: Option<u32>,

    /// Leave out tokens less probable than this part of the most probable one; 0: off
    #[arg(long, value_name = "P", help_heading = "Sampling")]
    pub min_p: Option<f32>,

    /// Same seed, model and device: same tokens, on CUDA only where the same requests run beside it; without a seed
    /// every run differs
    #[arg(long, value_name = "S", help_heading = "Sampling")]
    pub seed: Option<u64>,

    /// Make tokens of prompt and output less probable; 1: off
    #[arg(long, value_name = "X", help_heading = "Sampling")]
    pub repetition_penalty: Option<f32>,

    /// Subtract this from the logits of tokens in the output; 0: off
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Sampling")]
    pub presence_penalty: Option<f32>,

    /// Subtract this, times their count, from the logits of tokens in the output; 0: off
    #[arg(long, value_name = "X", allow_negative_numbers = true, help_heading = "Sampling")]
    pub frequency_penalty: Option<f32>,

    /// Add a number to the logit of a token, such as 42=-100; may be repeated
    #[arg(long, value_name = "ID=X", value_parser = parse_bias, help_heading = "Sampling")]
    pub logit_bias: Vec<(u32, f32)>,

    /// Report the log-probability of each token and of this many alternatives (with --json)
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub logprobs: Option<u32>,
}

impl RequestArgs {
    /// These values, with those of `defaults` where nothing is given.
    pub fn or(self, defaults: &RequestArgs) -> Self {
        let or_list =
            |given: Vec<u32>, default: &Vec<u32>| if given.is_empty() { default.clone() } else { given };
        Self {
            max_tokens: self.max_tokens.or(defaults.max_tokens),
            min_tokens: self.min_tokens.or(defaults.min_tokens),
            ignore_eos: self.ignore_eos.or(defaults.ignore_eos),
            stop: if self.stop.is_empty() { defaults.stop.clone() } else { self.stop },
            stop_tokens: or_list(self.stop_tokens, &defaults.stop_tokens),
            timeout: self.timeout.or(defaults.timeout),
            priority: self.priority.or(defaults.priority),
            temperature: self.temperature.or(defaults.temperature),
            top_p: self.top_p.or(defaults.top_p),
            top_k: self.top_k.or(defaults.top_k),
            min_p: self.min_p.or(defaults.min_p),
            seed: self.seed.or(defaults.seed),
            repetition_penalty: self.repetition_penalty.or(defaults.repetition_penalty),
            presence_penalty: self.presence_penalty.or(defaults.presence_penalty),
            frequency_penalty: self.frequency_penalty.or(defaults.frequency_penalty),
            logit_bias: if self.logit_bias.is_empty() {
                defaults.logit_bias.clone()
            } else {
                self.logit_bias
            },
            logprobs: self.logprobs.or(defaults.logprobs),
        }
    }

    /// A request for `prompt`. `default_max_tokens` holds where no limit is given.
    pub fn to_request(&self, prompt: Prompt, default_max_tokens: u32) -> Request {
        let mut request = Request::new(prompt);
        request.sampling = SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            logit_bias: self.logit_bias.clone(),
            seed: self.seed,
            num_logprobs: self.logprobs,
        };
        request.max_tokens = self.max_tokens.unwrap_or(default_max_tokens);
        request.min_tokens = self.min_tokens.unwrap_or(0);
        request.ignore_eos = self.ignore_eos.unwrap_or(false);
        request.stop_tokens = self.stop_tokens.clone();
        request.stop_strings = self.stop.clone();
        request.priority = self.priority.unwrap_or(0);
        request.timeout = self.timeout;
        request
    }
}

/// A JSON array of chat messages, from texts.
pub fn chat_messages(system: Option<&str>, user: &str) -> String {
    let mut messages = Vec::new();
    if let Some(system) = system {
        messages.push(serde_json::json!({"role": "system", "content": system}));
    }
    messages.push(serde_json::json!({"role": "user", "content": user}));
    serde_json::Value::Array(messages).to_string()
}

/// How messages call an input: its path, or `standard input` for `-`.
pub fn input_name(path: &Path) -> String {
    if path.as_os_str() == "-" { "standard input".to_owned() } else { path.display().to_string() }
}

/// Reads a file, or standard input for `-`.
pub fn read_input(path: &Path) -> Result<String, Failure> {
    let read = match path.as_os_str() == "-" {
        true => std::io::read_to_string(std::io::stdin()),
        false => std::fs::read_to_string(path),
    };
    read.map_err(|error| Failure::Usage(format!("cannot read {}: {error}", input_name(path))))
}

fn seconds(value: f64) -> Result<Duration, String> {
    Duration::try_from_secs_f64(value)
        .ok()
        .filter(|timeout| !timeout.is_zero())
        .ok_or_else(|| format!("{value} is not a number of seconds above 0"))
}

fn parse_timeout(text: &str) -> Result<Duration, String> {
    seconds(text.parse().map_err(|_| format!("{text:?} is not a number of seconds"))?)
}

fn timeout_from_json<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    Option::<f64>::deserialize(deserializer)?.map(seconds).transpose().map_err(serde::de::Error::custom)
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text.split_once('=').and_then(|(id, bias)| Some((id.parse().ok()?, bias.parse().ok()?)));
    parsed.ok_or_else(|| format!("{text:?} is not a token id and a number, such as 42=-100"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_wins_over_the_command_line() {
        let defaults = RequestArgs {
            max_tokens: Some(8),
            temperature: Some(0.5),
            stop: vec!["\n".to_owned()],
            ..RequestArgs::default()
        };
        let line: RequestArgs =
            serde_json::from_str(r#"{"max_tokens": 3, "stop_tokens": [2], "timeout_seconds": 1.5}"#).unwrap();
        let merged = line.or(&defaults);
        assert_eq!(merged.max_tokens, Some(3));
        assert_eq!(merged.temperature, Some(0.5));
        assert_eq!(merged.stop, ["\n"]);
        let request = merged.to_request(Prompt::Tokens(vec![1]), 256);
        assert_eq!((request.max_tokens, request.stop_tokens), (3, vec![2]));
        assert_eq!(request.timeout, Some(Duration::from_millis(1500)));
    }

    #[test]
    fn fields_that_do_not_exist_or_fit_are_refused() {
        for bad in [
            r#"{"max_token": 3}"#,
            r#"{"max_tokens": -3}"#,
            r#"{"timeout_seconds": -1}"#,
            r#"{"timeout_seconds": 1e300}"#,
            r#"{"stop": 3}"#,
        ] {
            assert!(serde_json::from_str::<RequestArgs>(bad).is_err(), "{bad}");
        }
        assert!(parse_timeout("inf").is_err() && parse_timeout("0").is_err());
        assert!(parse_bias("42").is_err() && parse_bias("x=1").is_err());
        assert_eq!(parse_bias("42=-1.5"), Ok((42, -1.5)));
    }

    #[test]
    fn messages_are_json() {
        let messages = chat_messages(Some("Be \"brief\"."), "Hi\n");
        let parsed: serde_json::Value = serde_json::from_str(&messages).unwrap();
        assert_eq!(parsed[0]["content"], "Be \"brief\".");
        assert_eq!(parsed[1]["role"], "user");
    }
}

//! Options of an engine, and the callbacks that a host may hang on them.

use std::fmt;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

/// Weight dtype that the caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DTypeChoice {
    /// bfloat16, on the CPU and on CUDA.
    #[default]
    Auto,
    /// IEEE single precision, which only the CPU has: the device `auto` then takes the CPU, and `cuda` is
    /// [`crate::Status::InvalidArgument`].
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
}

/// How far loading has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of weights in place.
    pub bytes_done: u64,
    /// Bytes of weights in all.
    pub bytes_total: u64,
}

/// Called on the creating thread while weights load, at least every 64 MiB; `Break` aborts the load with
/// [`crate::Status::Aborted`].
pub type ProgressCallback = Arc<dyn Fn(Progress) -> ControlFlow<()> + Send + Sync>;

/// Severity of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i32)]
pub enum LogLevel {
    /// Something failed.
    Error = 1,
    /// Something is off but goes on.
    Warn = 2,
    /// Milestones of an engine's life.
    Info = 3,
    /// Per-request detail.
    Debug = 4,
}

/// Per-engine log sink; silent by default. Called on engine threads, never under a lock.
#[derive(Clone, Default)]
pub struct Logger {
    sink: Option<(LogLevel, LogSink)>,
}

/// Receives one line without a newline.
pub type LogSink = Arc<dyn Fn(LogLevel, &str) + Send + Sync>;

impl Logger {
    /// Sends lines up to and including `level` to `sink`.
    pub fn new(level: LogLevel, sink: LogSink) -> Self {
        Self { sink: Some((level, sink)) }
    }

    /// Logs `message` where the level is enabled; formats nothing otherwise. A sink that panics loses the line and
    /// nothing else: the threads that log have requests to end.
    pub fn log(&self, level: LogLevel, message: fmt::Arguments<'_>) {
        if let Some((enabled, sink)) = &self.sink
            && level <= *enabled
        {
            let message = message.to_string();
            let _ = catch_unwind(AssertUnwindSafe(|| sink(level, &message)));
        }
    }
}

impl fmt::Debug for Logger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logger").field("level", &self.sink.as_ref().map(|sink| sink.0)).finish()
    }
}

/// Options of [`crate::Engine::create`]. Zero means "choose for me" where a field says so.
#[derive(Clone)]
pub struct EngineOptions {
    /// Model directory in Hugging Face layout, or a GGUF file; with `random_weights` a `config.json` or
    /// `model_spec.json` under any name.
    pub model: PathBuf,
    /// A `model_spec.json` under any name, which takes the place of every description in `model`; its names of
    /// weights are those of the tensors in `model`, of a GGUF file GGUF's.
    pub spec_path: Option<PathBuf>,
    /// Make the weights up from this seed instead of reading them, with bytes for a tokenizer: for benchmarks.
    pub random_weights: Option<u64>,
    /// `auto` (CUDA device 0, or where it cannot be used the CPU), `cpu`, `cuda`, `cuda:0`, `cuda:0,1`, or
    /// `echo` (no weights: returns the prompt).
    pub device: String,
    /// Dtype of weights and KV cache.
    pub dtype: DTypeChoice,
    /// Sequences that can be in one step, at most 65,536; 0: 64, on CUDA 256.
    pub max_num_sequences: usize,
    /// Token budget of one step, which goes by priority and, of equal priority, to decodes before chunks of prompts.
    /// Above `max_num_sequences`, at most 1,048,576; 0: 512, on CUDA 8192, and at least twice `max_num_sequences`.
    pub max_batched_tokens: usize,
    /// Longest prompt plus output, in tokens, at most 16,777,216 and what the model supports; 0: what it was trained
    /// for. A KV cache of fewer tokens lowers it, with a warning in the log: [`crate::engine::MemoryPlan`] and
    /// [`crate::engine::ModelInfo`] tell what it has become. Where RoPE depends on the context's length (dynamic
    /// NTK, LongRoPE), it is that of this length for every request, however short.
    pub max_model_len: usize,
    /// Tokens in a KV block, a multiple of 16, at most 4096; 0: the default, 64.
    pub kv_block_size: usize,
    /// Bytes for the KV cache, per device: as many whole blocks as they hold, at least one, at most 4,194,304. 0:
    /// enough for `max_num_sequences` full contexts, but at most a quarter of the memory that the host has
    /// available, or what weights and workspace leave of nine tenths of a CUDA device's free memory.
    /// `memory_limit_bytes` lowers that further and never raises it.
    pub kv_cache_bytes: u64,
    /// Hard limit in bytes on weights, KV cache and workspace together, per device; 0: none. See
    /// [`crate::engine::MemoryPlan`] for what is not counted.
    pub memory_limit_bytes: u64,
    /// Compute threads of the CPU backend, and threads that load weights, at most 1024; 0: one per core.
    pub num_threads: usize,
    /// Requests accepted and not yet polled to their last event; one more is [`crate::Status::Busy`].
    pub max_queued_requests: usize,
    /// Tokens of one request that may wait for its consumer before the request is paused.
    pub max_unread_tokens: usize,
    /// Progress of loading.
    pub progress: Option<ProgressCallback>,
    /// Log sink.
    pub logger: Logger,
}

impl EngineOptions {
    /// Defaults for a model path.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            spec_path: None,
            random_weights: None,
            device: "auto".to_owned(),
            dtype: DTypeChoice::Auto,
            max_num_sequences: 0,
            max_batched_tokens: 0,
            max_model_len: 0,
            kv_block_size: 0,
            kv_cache_bytes: 0,
            memory_limit_bytes: 0,
            num_threads: 0,
            max_queued_requests: 4096,
            max_unread_tokens: 1024,
            progress: None,
            logger: Logger::default(),
        }
    }
}

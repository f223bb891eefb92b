//! The engine: accepts requests from any thread, runs them in flight together, hands back events.

pub mod event;
pub mod queue;
pub mod request;

use std::sync::Arc;
use std::time::Duration;

pub use event::{Event, EventKind, FinishReason, Finished, Output, RequestId, Timings};
pub use queue::Queue;
pub use request::{Prompt, Request};

use crate::config::EngineOptions;
use crate::error::{Error, Result};

/// A loaded model and the threads that run it. Cheap to clone; all methods may be called from any thread.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<()>,
}

/// Exact bytes that an engine with the same options would reserve.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemoryPlan {
    /// Weights.
    pub weights_bytes: u64,
    /// KV cache.
    pub kv_cache_bytes: u64,
    /// Activations and the backend's workspace.
    pub workspace_bytes: u64,
    /// Blocks in the KV cache.
    pub num_kv_blocks: u64,
    /// Tokens in a KV block.
    pub kv_block_size: u64,
    /// Longest prompt plus output of one request, in tokens.
    pub max_model_len: u64,
    /// Memory that the device has free now; 0 where unknown.
    pub available_bytes: u64,
    /// Whether the total fits the limit and the memory that is free.
    pub fits: bool,
}

impl MemoryPlan {
    /// Everything together.
    pub fn total_bytes(&self) -> u64 {
        self.weights_bytes + self.kv_cache_bytes + self.workspace_bytes
    }
}

/// A snapshot of counters and gauges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Steps run.
    pub num_steps: u64,
    /// Prompt tokens run, again after a preemption included.
    pub num_prompt_tokens: u64,
    /// Tokens produced.
    pub num_output_tokens: u64,
    /// Requests accepted.
    pub num_accepted: u64,
    /// Requests ended.
    pub num_finished: u64,
    /// Sequences put back to the waiting line for want of KV blocks.
    pub num_preemptions: u64,
    /// Requests that wait for their first step or to run again.
    pub num_waiting: u64,
    /// Requests in the running batch.
    pub num_running: u64,
    /// Requests paused until their consumer polls.
    pub num_paused: u64,
    /// KV blocks in use.
    pub num_kv_blocks_used: u64,
    /// KV blocks free.
    pub num_kv_blocks_free: u64,
    /// Bytes of weights.
    pub weights_bytes: u64,
    /// Bytes of the KV cache.
    pub kv_cache_bytes: u64,
    /// Bytes of activations and workspace.
    pub workspace_bytes: u64,
}

/// What a loaded model is; see [`Engine::model_info`].
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// Size of the vocabulary.
    pub vocab_size: u32,
    /// Longest prompt plus output, in tokens.
    pub max_model_len: u32,
    /// End-of-sequence tokens.
    pub eos_tokens: Vec<u32>,
    /// Whether there is a chat template.
    pub has_chat_template: bool,
    /// Device in use: `cpu` or `echo`.
    pub device: String,
}

impl Engine {
    /// Loads the model and starts the threads.
    pub fn create(options: &EngineOptions) -> Result<Engine> {
        let _ = options;
        Err(Error::internal("not there yet"))
    }

    /// What [`Engine::create`] would reserve with the same options; loads no weights.
    pub fn plan(options: &EngineOptions) -> Result<MemoryPlan> {
        let _ = options;
        Err(Error::internal("not there yet"))
    }

    /// Accepts a request and returns its id, or fails at once: [`crate::Status::Busy`] where the queue is full,
    /// an argument error where a value is not allowed. Tokenises in the calling thread.
    pub fn enqueue(&self, request: Request) -> Result<RequestId> {
        let _ = request;
        Err(Error::internal("not there yet"))
    }

    /// Asks for a request's end within one step; its terminal event says [`FinishReason::Cancelled`]. A request
    /// that has ended, or never was, is not an error.
    pub fn cancel(&self, request: RequestId) -> Result<()> {
        let _ = request;
        Ok(())
    }

    /// Events of the engine's own queue; see [`Queue::poll`].
    pub fn poll(&self, timeout: Option<Duration>) -> Result<Vec<Event>> {
        let _ = timeout;
        Ok(Vec::new())
    }

    /// A further queue; it may outlive the engine.
    pub fn create_queue(&self) -> Result<Queue> {
        Err(Error::internal("not there yet"))
    }

    /// A snapshot of counters and gauges.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// What the loaded model is.
    pub fn model_info(&self) -> ModelInfo {
        unreachable!()
    }

    /// Token ids of `text`.
    pub fn tokenize(&self, text: &str, add_special_tokens: bool, parse_special: bool) -> Result<Vec<u32>> {
        let _ = (text, add_special_tokens, parse_special);
        Err(Error::internal("not there yet"))
    }

    /// Text of `tokens`; bytes that are not UTF-8 become U+FFFD.
    pub fn detokenize(&self, tokens: &[u32], skip_special: bool) -> Result<String> {
        let _ = (tokens, skip_special);
        Err(Error::internal("not there yet"))
    }

    /// The text that the model's chat template makes of a JSON array of messages.
    pub fn apply_chat_template(&self, messages: &str, add_generation_prompt: bool) -> Result<String> {
        let _ = (messages, add_generation_prompt);
        Err(Error::internal("not there yet"))
    }

    /// Ends every request with [`crate::Status::Closed`], accepts no more, and stops the threads. Queues can
    /// still be drained. Idempotent; returns within 2 seconds.
    pub fn close(&self) {
        let _ = &self.inner;
    }
}

//! What an engine tells about itself.

/// Exact bytes that an engine with the same options would reserve. Not counted: the tokenizer and what waits to be
/// polled, and with CUDA the driver's context, loaded kernels, recorded graphs and buffers in the host's memory.
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
    /// Longest prompt plus output of one request, in tokens: what the options say or the model was trained for, or
    /// fewer where the KV cache holds fewer.
    pub max_model_len: u64,
    /// Memory that the device has free now; 0 where unknown.
    pub available_bytes: u64,
    /// Whether the total fits the limit and the memory that is free.
    pub fits: bool,
}

impl MemoryPlan {
    /// Everything together.
    pub fn total_bytes(&self) -> u64 {
        self.weights_bytes.saturating_add(self.kv_cache_bytes).saturating_add(self.workspace_bytes)
    }
}

/// A snapshot of counters and gauges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Steps planned.
    pub num_steps: u64,
    /// Prompt tokens run, again after a preemption included.
    pub num_prompt_tokens: u64,
    /// Tokens sampled, discarded ones included.
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

/// What a loaded model is.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelInfo {
    /// Size of the vocabulary.
    pub vocab_size: u32,
    /// Longest prompt plus output, in tokens; see [`MemoryPlan::max_model_len`].
    pub max_model_len: u32,
    /// End-of-sequence tokens.
    pub eos_tokens: Vec<u32>,
    /// Whether there is a chat template that can be used.
    pub has_chat_template: bool,
    /// Device in use: `cpu`, `echo`, or `cuda:0 (NVIDIA H100)`. Up to the first space it is what
    /// [`crate::EngineOptions::device`] takes; the name in brackets is for people.
    pub device: String,
}

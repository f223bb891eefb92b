//! What a device can do: a few fused operations over typed buffers.
//!
//! A backend speaks of tensors and of the rows of a [`Batch`], never of models or requests. A row of a batch is what
//! one sequence runs in a step; a row of a tensor is one token of the step or, after the last layer, one that is
//! sampled. Operations may return before the device has finished; [`Backend::collect`] is the only one that waits.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod faulty;
mod ops;

pub use ops::{
    Activate, Activation, Alibi, AttentionShape, Delta, Embedding, ExpertLimits, ExpertWeighting, Feature,
    Gating, Head, Mixture, Norm, NormExtent, NormKind, Projection, QkNorm, QkvProjection, QkvTransform, Rope,
    RopePairing, RouterScoring, Scoring, SharedResult,
};
use thiserror::Error;

use crate::error::{Error, Result, Status};

/// Backends of this build, by the names of their devices.
pub const BACKENDS: &[&str] = if cfg!(feature = "cuda") { &["cpu", "cuda"] } else { &["cpu"] };

/// Element type of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl DType {
    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F16 | DType::Bf16 => 2,
        }
    }
}

/// A failed operation of a backend.
#[derive(Debug, Clone, Error)]
pub enum BackendError {
    /// An allocation did not fit the memory of the device.
    #[error("{what}: {bytes} bytes do not fit the device's memory")]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// Bytes asked for.
        bytes: u64,
    },
    /// The device's driver had no memory left for something that has no size of its own here.
    #[error("the device has no memory left for {operation}: {message}")]
    DeviceFull {
        /// The operation that reported it.
        operation: &'static str,
        /// The driver's words.
        message: String,
    },
    /// An allocation did not fit the host's memory, which is also the CPU backend's.
    #[error("{what}: {bytes} bytes do not fit the host's memory")]
    HostOutOfMemory {
        /// What the memory was for.
        what: String,
        /// Bytes asked for.
        bytes: u64,
    },
    /// The device is gone; nothing on it can be used again.
    #[error("the device was lost in {operation}: {message}")]
    DeviceLost {
        /// The operation that reported it.
        operation: &'static str,
        /// The driver's words.
        message: String,
    },
    /// Arguments that the operation does not take; a defect in the caller.
    #[error("{operation}: {message}")]
    InvalidArgument {
        /// The operation.
        operation: &'static str,
        /// What is wrong.
        message: String,
    },
}

impl From<BackendError> for Error {
    fn from(error: BackendError) -> Self {
        let status = match &error {
            BackendError::OutOfMemory { .. } | BackendError::DeviceFull { .. } => Status::DeviceOutOfMemory,
            BackendError::HostOutOfMemory { .. } => Status::OutOfMemory,
            BackendError::DeviceLost { .. } => Status::DeviceLost,
            BackendError::InvalidArgument { .. } => Status::Internal,
        };
        Error::new(status, error.to_string())
    }
}

/// Result of a backend operation.
pub type BackendResult<T> = Result<T, BackendError>;

/// Stands in [`Batch::tokens`] for "the token that the slot sampled last", which the host may not know yet.
pub const TOKEN_FROM_SLOT: u32 = u32::MAX;

/// One step's rows, as flat arrays that mean the same on every rank.
///
/// Row `r` runs tokens `query_starts[r]..query_starts[r + 1]` of one sequence, which after the step has
/// `context_lens[r]` tokens in the KV cache; the row's first token therefore has position
/// `context_lens[r] - (query_starts[r + 1] - query_starts[r])`. Its KV blocks in order are
/// `block_tables[block_starts[r]..block_starts[r + 1]]` and cover at least `context_lens[r]` tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// Slot of each row, `[num_rows]`; a slot stands at most once.
    pub slots: Vec<u32>,
    /// Where each row's tokens start, `[num_rows + 1]`.
    pub query_starts: Vec<u32>,
    /// Tokens in the cache after the step, `[num_rows]`.
    pub context_lens: Vec<u32>,
    /// Token ids, `[num_tokens]`; [`TOKEN_FROM_SLOT`] reads the row's slot.
    pub tokens: Vec<u32>,
    /// Where each row's blocks start, `[num_rows + 1]`.
    pub block_starts: Vec<u32>,
    /// KV block indexes of all rows.
    pub block_tables: Vec<u32>,
    /// Rows whose last token's logits are sampled, ascending.
    pub sampled_rows: Vec<u32>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self { query_starts: vec![0], block_starts: vec![0], ..Self::default() }
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.slots.len()
    }

    /// Number of tokens over all rows.
    pub fn num_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Number of rows that sample.
    pub fn num_sampled(&self) -> usize {
        self.sampled_rows.len()
    }

    /// Token range of row `row`.
    pub fn query_range(&self, row: usize) -> std::ops::Range<usize> {
        self.query_starts[row] as usize..self.query_starts[row + 1] as usize
    }

    /// KV blocks of row `row`.
    pub fn blocks(&self, row: usize) -> &[u32] {
        &self.block_tables[self.block_starts[row] as usize..self.block_starts[row + 1] as usize]
    }

    /// Position of row `row`'s first token.
    pub fn first_position(&self, row: usize) -> usize {
        self.context_lens[row] as usize - self.query_range(row).len()
    }
}

/// What a slot needs to sample for the sequence that takes it over. All values are validated and finite.
#[derive(Debug, Clone, PartialEq)]
pub struct SlotState {
    /// 0: greedy.
    pub temperature: f32,
    /// 0: off.
    pub top_k: u32,
    /// In (0, 1]; 1: off.
    pub top_p: f32,
    /// In [0, 1]; 0: off.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; 1: off.
    pub repetition_penalty: f32,
    /// Subtracted once from logits of tokens in the output; 0: off.
    pub presence_penalty: f32,
    /// Subtracted from logits of tokens in the output, times their count there; 0: off.
    pub frequency_penalty: f32,
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Tokens that cannot be sampled before `min_tokens` outputs.
    pub suppressed_tokens: Vec<u32>,
    /// Outputs before `suppressed_tokens` are allowed.
    pub min_tokens: u32,
    /// Key of the random numbers; the counter is the index of the output token, so that a sequence draws the
    /// same numbers whatever else is in the batch and however often it is preempted.
    pub seed: u64,
    /// Alternatives to report beside the chosen token; `None`: no log-probabilities at all.
    pub num_logprobs: Option<u32>,
    /// The prompt, for the repetition penalty.
    pub prompt: Vec<u32>,
    /// Tokens sampled so far (not empty after a preemption). The next output's index is its length.
    pub output: Vec<u32>,
}

impl SlotState {
    /// Greedy, nothing else asked for; the state of a slot that no sequence has taken over yet.
    pub const GREEDY: SlotState = SlotState {
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
        prompt: Vec::new(),
        output: Vec::new(),
    };
}

/// Log-probability of one token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogprob {
    /// Token id.
    pub token: u32,
    /// Natural logarithm of its probability under the model: softmax of the raw logits, before penalties,
    /// bias and temperature.
    pub logprob: f32,
}

/// One sampled row.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The row's slot.
    pub slot: u32,
    /// The token, or `None` where the logits held NaN or an infinity.
    pub token: Option<u32>,
    /// The chosen token first, then the most probable ones in falling order; empty where not asked for.
    pub logprobs: Vec<TokenLogprob>,
}

/// Shape of the paged KV cache: per layer `[block][k|v][kv_head][token][head_dim]`, so that one head's part of
/// one block is contiguous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLayout {
    /// Decoder layers.
    pub num_layers: usize,
    /// Blocks per layer.
    pub num_blocks: usize,
    /// Tokens in a block.
    pub block_size: usize,
    /// Key-value heads.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Element type.
    pub dtype: DType,
}

impl KvLayout {
    /// Bytes of one block in all layers, or `None` on overflow.
    pub fn block_bytes(&self) -> Option<u64> {
        [self.num_layers, 2, self.num_kv_heads, self.block_size, self.head_dim, self.dtype.size_bytes()]
            .iter()
            .try_fold(1u64, |product, &factor| product.checked_mul(factor as u64))
    }
}

/// Sizes that a backend reserves for when it is created; the step loop allocates nothing after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackendLimits {
    /// Largest number of tokens in a batch.
    pub max_tokens: usize,
    /// Number of slots, and the largest number of rows in a batch.
    pub max_slots: usize,
    /// Size of the vocabulary.
    pub vocab_size: usize,
}

/// A device's fused operations. Tensors are row-major `[rows, columns]`; `rows` arguments say how many leading
/// rows an operation works on. Widths that do not match are [`BackendError::InvalidArgument`].
pub trait Backend: Send + 'static {
    /// A typed two-dimensional buffer.
    type Tensor: Send;
    /// The paged cache of all layers.
    type KvCache: Send;

    /// Element type of activations and residuals for weights of `weights`.
    fn activation_dtype(&self, weights: DType) -> DType;

    /// Whether operations take what `feature` names. A decoder is not loaded where a model needs more.
    fn supports(&self, _feature: Feature) -> bool {
        true
    }

    /// Elements that a head of `head_dim` has on the device, at least as many. Weights are padded with zeros, so
    /// that operations see heads of this size alone.
    fn stored_head_dim(&self, head_dim: usize) -> usize {
        head_dim
    }

    /// The same for a row of `width` elements inside an MLP.
    fn stored_width(&self, width: usize) -> usize {
        width
    }

    /// Bytes of memory that are free on the device now, where that can be known.
    fn available_bytes(&self) -> Option<u64> {
        None
    }

    /// Tokens that fill the device evenly in products with `width` columns: above a multiple of them, the next few
    /// cost as much as as many again. 1: every token costs the same.
    fn token_quantum(&self, _width: usize) -> usize {
        1
    }

    /// Bytes of memory that allocations of `sizes` bytes, made one after the other, take; `None`: more than 64 bits
    /// count.
    fn allocated_bytes(&self, sizes: &[u64]) -> Option<u64> {
        sizes.iter().try_fold(0u64, |sum, &size| sum.checked_add(size))
    }

    /// Bytes of each allocation of [`Backend::reserve`], in their order: what the backend keeps for `limits` and a
    /// cache of so many blocks, beside tensors and cache.
    fn workspace_sizes(&self, limits: &BackendLimits, num_kv_blocks: usize) -> Vec<u64>;

    /// Reserves the workspace and the slots. Called once, before the first batch.
    fn reserve(&mut self, limits: &BackendLimits) -> BackendResult<()>;

    /// Bytes that [`Backend::reserve_experts`] takes.
    fn expert_workspace_bytes(&self, _limits: &ExpertLimits) -> u64 {
        0
    }

    /// Reserves what [`Backend::mix_experts`] needs beside its arguments. Called once, after [`Backend::reserve`], for
    /// models that have experts.
    fn reserve_experts(&mut self, _limits: &ExpertLimits) -> BackendResult<()> {
        Ok(())
    }

    /// A tensor of `rows` by `columns` zeros.
    fn alloc(&mut self, dtype: DType, rows: usize, columns: usize) -> BackendResult<Self::Tensor>;

    /// Writes whole rows, given as the dtype's little-endian bytes, starting at row `first_row`.
    fn write_rows(&mut self, tensor: &mut Self::Tensor, first_row: usize, bytes: &[u8]) -> BackendResult<()>;

    /// Has `fill` write `num_bytes` bytes of whole rows, starting at row `first_row`, where the device takes them
    /// from; the memory holds any bytes before. What `fill` fails with is passed on, and leaves any values in the
    /// rows.
    fn fill_rows(
        &mut self,
        tensor: &mut Self::Tensor,
        first_row: usize,
        num_bytes: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(num_bytes).map_err(|_| {
            let message = format!("{num_bytes} bytes of rows could not be allocated");
            Error::new(Status::OutOfMemory, message)
        })?;
        bytes.resize(num_bytes, 0);
        fill(&mut bytes)?;
        Ok(self.write_rows(tensor, first_row, &bytes)?)
    }

    /// Reads `rows` leading rows as f32, waiting for the device; for tests and tools.
    fn read_rows(&mut self, tensor: &Self::Tensor, rows: usize) -> BackendResult<Vec<f32>>;

    /// The KV cache.
    fn alloc_kv_cache(&mut self, layout: &KvLayout) -> BackendResult<Self::KvCache>;

    /// Hands slot `slot` to a sequence.
    fn reset_slot(&mut self, slot: u32, state: &SlotState) -> BackendResult<()>;

    /// Makes `batch` the one that the operations below run on, and resolves [`TOKEN_FROM_SLOT`].
    fn load_batch(&mut self, batch: &Batch) -> BackendResult<()>;

    /// Loads `batch` and runs a step's `operations` on it, which end with [`Backend::sample`]. Their argument is
    /// the number of rows to work on: the batch's tokens, or more where the backend pads it to the size of a step
    /// that it has recorded. Rows past the batch's hold anything.
    ///
    /// A backend may record the operations once per size and replay them later instead of calling them, so they
    /// must be the same for every batch.
    fn run_step(
        &mut self,
        batch: &Batch,
        operations: &mut dyn FnMut(&mut Self, usize) -> BackendResult<()>,
    ) -> BackendResult<()>
    where
        Self: Sized,
    {
        self.load_batch(batch)?;
        operations(self, batch.num_tokens())
    }

    /// Sizes of steps that [`Backend::warm_up`] should have recorded and could not, since the host's use of the
    /// device came between; they take longer.
    fn num_unrecorded(&self) -> usize {
        0
    }

    /// Prepares for steps of `operations` whose contexts reach up to `max_context_len` tokens: records them,
    /// chooses algorithms. Called once, after everything was allocated and before the first step.
    fn warm_up(
        &mut self,
        _max_context_len: usize,
        _operations: &mut dyn FnMut(&mut Self, usize) -> BackendResult<()>,
    ) -> BackendResult<()>
    where
        Self: Sized,
    {
        Ok(())
    }

    /// The operations from here up to [`Backend::next_branch`] and those from there up to [`Backend::join`] do not
    /// depend on each other, and a backend may run them at the same time; returns whether it does. In the last layer
    /// that holds for steps alone in which every token is sampled: otherwise [`Backend::keep_sampled`], in the first
    /// branch, moves rows that the second one reads.
    fn fork(&mut self) -> BackendResult<bool> {
        Ok(false)
    }

    /// See [`Backend::fork`].
    fn next_branch(&mut self) -> BackendResult<()> {
        Ok(())
    }

    /// See [`Backend::fork`].
    fn join(&mut self) -> BackendResult<()> {
        Ok(())
    }

    /// `out[t] = table[tokens[t]] * scale + positions[position of t]` for the batch's tokens.
    fn embed(&mut self, embedding: &Embedding<'_, Self::Tensor>, out: &mut Self::Tensor)
    -> BackendResult<()>;

    /// Adds `deltas` with their biases to `residual`, then `out = norm(residual)`, per row.
    fn add_norm(
        &mut self,
        residual: &mut Self::Tensor,
        deltas: [Option<Delta<'_, Self::Tensor>>; 2],
        norm: &Norm<'_, Self::Tensor>,
        out: &mut Self::Tensor,
        rows: usize,
    ) -> BackendResult<()>;

    /// `residual += norm(delta)`, per row.
    fn norm_add(
        &mut self,
        delta: Delta<'_, Self::Tensor>,
        norm: &Norm<'_, Self::Tensor>,
        residual: &mut Self::Tensor,
        rows: usize,
    ) -> BackendResult<()>;

    /// `out[r] = weight · input[r]`. `weight` is `[out_features, in_features]`; sums are in f32, and `out` may be in
    /// f32 where other activations are not. A bias is added by the operation that follows.
    fn linear(
        &mut self,
        input: &Self::Tensor,
        weight: &Self::Tensor,
        out: &mut Self::Tensor,
        rows: usize,
    ) -> BackendResult<()>;

    /// Adds `weight · input + bias` of each projection to `residual`, per row, and returns true; their deltas hold
    /// anything then. Or leaves that to the operation that follows: every delta becomes `weight · input`, and false
    /// is returned.
    fn project(
        &mut self,
        projections: [Option<Projection<'_, Self::Tensor>>; 2],
        _residual: &mut Self::Tensor,
        rows: usize,
    ) -> BackendResult<bool> {
        for Projection { input, weight, delta, .. } in projections.into_iter().flatten() {
            self.linear(input, weight, delta, rows)?;
        }
        Ok(false)
    }

    /// Transforms the queries, keys and values of the batch's tokens in place and writes keys and values to their
    /// places in layer `layer` of the cache; values' and unrotated elements' new values need not stand in `qkv`
    /// afterwards, those of queries do.
    fn rope_and_write_kv(
        &mut self,
        qkv: &mut Self::Tensor,
        transform: &QkvTransform<'_, Self::Tensor>,
        shape: &AttentionShape,
        cache: &mut Self::KvCache,
        layer: usize,
    ) -> BackendResult<()>;

    /// [`Backend::linear`] and then [`Backend::rope_and_write_kv`]: `qkv = weight · input` for `rows` rows, no fewer
    /// than the batch's tokens, whose queries are transformed in place and whose keys and values go to their places in
    /// layer `layer` of the cache. Only those queries need stand in `qkv` afterwards.
    fn linear_qkv(
        &mut self,
        input: &Self::Tensor,
        projection: &QkvProjection<'_, Self::Tensor>,
        qkv: &mut Self::Tensor,
        cache: &mut Self::KvCache,
        layer: usize,
        rows: usize,
    ) -> BackendResult<()> {
        self.linear(input, projection.weight, qkv, rows)?;
        self.rope_and_write_kv(qkv, &projection.transform, projection.shape, cache, layer)
    }

    /// Causal attention of the batch's query heads over layer `layer` of the cache.
    /// `out` is `[tokens, num_heads * head_dim]`.
    #[allow(clippy::too_many_arguments)]
    fn attention(
        &mut self,
        qkv: &Self::Tensor,
        shape: &AttentionShape,
        scoring: &Scoring,
        cache: &Self::KvCache,
        layer: usize,
        out: &mut Self::Tensor,
    ) -> BackendResult<()>;

    /// From here to the end of the step, only tokens whose logits are sampled matter: moves their rows to the front of
    /// `tensors`, in their order, and returns their number, the rows to work on from here on. A backend may instead
    /// keep all `rows`, and does where every token is sampled. Comes after the step's last attention.
    fn keep_sampled(&mut self, _tensors: &mut [&mut Self::Tensor], rows: usize) -> BackendResult<usize> {
        Ok(rows)
    }

    /// Adds the bias to `input` and applies the activation, per row.
    fn activate(
        &mut self,
        input: &Self::Tensor,
        activate: &Activate<'_, Self::Tensor>,
        out: &mut Self::Tensor,
        rows: usize,
    ) -> BackendResult<()>;

    /// [`Backend::linear`] and then [`Backend::activate`]: `projected = weight · input`, which the operation may
    /// leave as it was, then `out = activation(projected + bias)`.
    fn linear_activate(
        &mut self,
        input: &Self::Tensor,
        weight: &Self::Tensor,
        activate: &Activate<'_, Self::Tensor>,
        (projected, out): (&mut Self::Tensor, &mut Self::Tensor),
        rows: usize,
    ) -> BackendResult<()> {
        self.linear(input, weight, projected, rows)?;
        self.activate(projected, activate, out, rows)
    }

    /// `out[r]` = the sum of `weight(e) * expert_e(input[r])` over the experts that row `r` of `products`, the
    /// router's `[rows, num_experts]` in f32, chooses, plus the shared expert's result.
    /// A backend that denies every [`Feature::Experts`] need not have it.
    fn mix_experts(
        &mut self,
        _input: &Self::Tensor,
        _products: &Self::Tensor,
        _mixture: &Mixture<'_, Self::Tensor>,
        _out: &mut Self::Tensor,
        _rows: usize,
    ) -> BackendResult<()> {
        let message = "mixtures of experts are not supported".to_owned();
        Err(BackendError::InvalidArgument { operation: "mix_experts", message })
    }

    /// `out[i] = head · hidden[last token of sampled row i]`, in f32, then bias, scale and soft cap; after
    /// [`Backend::keep_sampled`] has moved rows, `hidden[i]`.
    fn logits(
        &mut self,
        hidden: &Self::Tensor,
        head: &Head<'_, Self::Tensor>,
        out: &mut Self::Tensor,
    ) -> BackendResult<()>;

    /// Samples the batch's sampled rows from `logits` with their slots' states, advances the slots, and keeps
    /// the results for [`Backend::collect`].
    fn sample(&mut self, logits: &Self::Tensor) -> BackendResult<()>;

    /// Waits for the oldest [`Backend::sample`] not yet collected and returns one entry per sampled row.
    fn collect(&mut self) -> BackendResult<Vec<Sampled>>;
}

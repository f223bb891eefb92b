//! What a decoder takes from its backend, by arithmetic alone.

use std::convert::Infallible;

use crate::backend::{Backend, BackendLimits, DType, ExpertLimits, KvLayout};
use crate::error::{Error, Result};
use crate::model::decoder::DecoderConfig;
use crate::model::spec::{BlockShape, ModelSpec, Positions, SharedExpertGate};
use crate::model::weights::Weights;

/// Exact bytes that [`crate::model::Decoder::load`] takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DecoderMemory {
    /// Weights.
    pub weights_bytes: u64,
    /// KV cache.
    pub kv_cache_bytes: u64,
    /// Activations and logits.
    pub activations_bytes: u64,
    /// Cosines and sines of all positions.
    pub rope_table_bytes: u64,
    /// The backend's own.
    pub workspace_bytes: u64,
}

impl DecoderMemory {
    /// Everything together.
    pub fn total_bytes(&self) -> u64 {
        let Self { weights_bytes, kv_cache_bytes, activations_bytes, rope_table_bytes, workspace_bytes } =
            self;
        weights_bytes + kv_cache_bytes + activations_bytes + rope_table_bytes + workspace_bytes
    }
}

/// Bytes that a decoder of a validated spec takes; fails where a size in `config` is out of range.
pub fn memory_plan<B: Backend>(
    backend: &B,
    spec: &ModelSpec,
    config: &DecoderConfig,
) -> Result<DecoderMemory> {
    let too_large = |what: &str| Error::invalid_argument(format!("{what} overflows the size of memory"));
    config.check(spec)?;
    let stored = spec.stored_by(backend);
    let kv_layout = config.kv_layout(&stored);
    let kv_cache_size =
        kv_layout.block_bytes().and_then(|bytes| bytes.checked_mul(kv_layout.num_blocks as u64));
    let rope_table_sizes: Option<Vec<u64>> =
        rope_tables(spec, config).iter().map(BufferShape::num_bytes).collect();
    let dtype = backend.activation_dtype(config.weight_dtype);
    let activation_sizes = Activations::plan(&stored, &config.limits, dtype).sizes();
    let mut workspace_sizes = backend.workspace_sizes(&config.limits, kv_layout.num_blocks);
    workspace_sizes
        .extend(expert_limits(&stored, &config.limits).map(|limits| backend.expert_workspace_bytes(&limits)));
    let mut buffers = Buffers { backend, sizes: Vec::new(), bytes: 0 };
    let mut taken = |what: &str, sizes: Option<Vec<u64>>| {
        sizes.and_then(|sizes| buffers.take(sizes)).ok_or_else(|| too_large(what))
    };
    // In the order in which they are allocated.
    Ok(DecoderMemory {
        weights_bytes: taken(
            "the model",
            Some(Weights::plan_stored(spec, &stored, config.weight_dtype).sizes()),
        )?,
        rope_table_bytes: taken("the longest context", rope_table_sizes)?,
        kv_cache_bytes: taken("the number of KV blocks", kv_cache_size.map(|size| vec![size]))?,
        activations_bytes: taken("the number of tokens or sequences in a batch", activation_sizes)?,
        workspace_bytes: taken("the total", Some(workspace_sizes))?,
    })
}

/// Buffers that are allocated on `backend` one after the other.
struct Buffers<'a, B> {
    backend: &'a B,
    sizes: Vec<u64>,
    /// What they take.
    bytes: u64,
}

impl<B: Backend> Buffers<'_, B> {
    /// Bytes that buffers of `sizes` take beside those that are there.
    fn take(&mut self, sizes: Vec<u64>) -> Option<u64> {
        self.sizes.extend(sizes);
        let before = self.bytes;
        self.bytes = self.backend.allocated_bytes(&self.sizes)?;
        Some(self.bytes - before)
    }
}

/// Shape of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BufferShape {
    pub(super) dtype: DType,
    pub(super) rows: usize,
    pub(super) columns: usize,
}

impl BufferShape {
    fn num_bytes(&self) -> Option<u64> {
        let elements = (self.rows as u64).checked_mul(self.columns as u64)?;
        elements.checked_mul(self.dtype.size_bytes() as u64)
    }
}

/// The tables of cosines and sines, `[max_model_len, rotary_dim]`; see [`crate::model::rope::tables`].
pub(super) fn rope_tables(spec: &ModelSpec, config: &DecoderConfig) -> Vec<BufferShape> {
    let Positions::Rope { rotary_dim, local, .. } = &spec.positions else { return Vec::new() };
    let table = BufferShape { dtype: DType::F32, rows: config.max_model_len, columns: *rotary_dim };
    vec![table; 1 + usize::from(local.is_some())]
}

/// What a backend reserves for the experts of `spec`, where it has some.
pub(super) fn expert_limits(spec: &ModelSpec, limits: &BackendLimits) -> Option<ExpertLimits> {
    spec.experts.as_ref().map(|experts| ExpertLimits {
        max_tokens: limits.max_tokens,
        num_experts: experts.num_experts,
        num_chosen: experts.num_chosen,
        hidden: spec.hidden_size,
        width: experts.intermediate_size,
    })
}

/// Buffers between operations, one row per token: shapes before loading, tensors after it.
#[derive(Debug)]
pub(super) struct Activations<T> {
    /// Residual stream, `[tokens, hidden_size]`.
    pub(super) residual: T,
    /// Normalised residual, `[tokens, hidden_size]`.
    pub(super) normed: T,
    /// Fused queries, keys and values, `[tokens, (num_heads + 2 * num_kv_heads) * head_dim]`.
    pub(super) qkv: T,
    /// Output of attention before its projection, `[tokens, num_heads * head_dim]`.
    pub(super) attention: T,
    /// Of layers with an MLP for all tokens.
    pub(super) mlp: Option<MlpBuffers<T>>,
    /// Of layers with a mixture of experts.
    pub(super) experts: Option<ExpertBuffers<T>>,
    /// What a block adds to the residual, `[tokens, hidden_size]`.
    pub(super) attention_delta: T,
    /// The same of MLPs, where both wait at the same time.
    pub(super) mlp_delta: Option<T>,
    /// Logits in f32, `[slots, vocab_size]`.
    pub(super) logits: T,
}

/// Inside an MLP.
#[derive(Debug)]
pub(super) struct MlpBuffers<T> {
    /// Input of the activation, `[tokens, width]`, or gate and up, twice as wide.
    pub(super) up: T,
    /// Result of the activation, `[tokens, width]`.
    pub(super) activated: T,
}

/// Around a mixture of experts.
#[derive(Debug)]
pub(super) struct ExpertBuffers<T> {
    /// The router's products, `[tokens, num_experts]`, in f32: which experts are near does not hang on rounding.
    pub(super) products: T,
    /// Of the expert that all tokens pass.
    pub(super) shared: Option<SharedBuffers<T>>,
}

/// Of an expert that all tokens pass.
#[derive(Debug)]
pub(super) struct SharedBuffers<T> {
    pub(super) mlp: MlpBuffers<T>,
    /// Its result, `[tokens, hidden_size]`.
    pub(super) result: T,
    /// Its gate, `[tokens, 1]`, in f32.
    pub(super) gate: Option<T>,
}

impl<T> MlpBuffers<T> {
    fn try_map<U, E>(self, alloc: &mut impl FnMut(T) -> Result<U, E>) -> Result<MlpBuffers<U>, E> {
        Ok(MlpBuffers { up: alloc(self.up)?, activated: alloc(self.activated)? })
    }
}

impl<T> ExpertBuffers<T> {
    fn try_map<U, E>(self, alloc: &mut impl FnMut(T) -> Result<U, E>) -> Result<ExpertBuffers<U>, E> {
        let products = alloc(self.products)?;
        let shared = match self.shared {
            None => None,
            Some(SharedBuffers { mlp, result, gate }) => Some(SharedBuffers {
                mlp: mlp.try_map(alloc)?,
                result: alloc(result)?,
                gate: gate.map(alloc).transpose()?,
            }),
        };
        Ok(ExpertBuffers { products, shared })
    }
}

impl Activations<BufferShape> {
    pub(super) fn plan(spec: &ModelSpec, limits: &BackendLimits, dtype: DType) -> Self {
        let tokens = |columns| BufferShape { dtype, rows: limits.max_tokens, columns };
        let single = |columns| BufferShape { dtype: DType::F32, ..tokens(columns) };
        let mlp =
            |width| MlpBuffers { up: tokens(spec.mlp.gating().input_width(width)), activated: tokens(width) };
        let is_parallel = matches!(spec.block, BlockShape::Parallel | BlockShape::ParallelTwoNorms);
        Self {
            residual: tokens(spec.hidden_size),
            normed: tokens(spec.hidden_size),
            qkv: tokens(spec.heads.qkv_width()),
            attention: tokens(spec.heads.query_width()),
            mlp: spec.weights.mlp.as_ref().map(|_| mlp(spec.intermediate_size)),
            experts: spec.experts.as_ref().map(|experts| ExpertBuffers {
                products: single(experts.num_experts),
                shared: experts.shared.map(|shared| SharedBuffers {
                    mlp: mlp(shared.intermediate_size),
                    result: tokens(spec.hidden_size),
                    gate: (shared.gate == SharedExpertGate::Sigmoid).then(|| single(1)),
                }),
            }),
            attention_delta: tokens(spec.hidden_size),
            mlp_delta: is_parallel.then(|| tokens(spec.hidden_size)),
            logits: BufferShape { dtype: DType::F32, rows: limits.max_slots, columns: spec.vocab_size },
        }
    }

    /// Bytes of the buffers, in the order of [`Activations::try_map`].
    fn sizes(self) -> Option<Vec<u64>> {
        let mut sizes = Vec::new();
        let note = |shape: BufferShape| -> Result<(), Infallible> {
            sizes.push(shape.num_bytes());
            Ok(())
        };
        let Ok(_) = self.try_map(note);
        sizes.into_iter().collect()
    }
}

impl<T> Activations<T> {
    /// The buffers that `alloc` makes of the shapes.
    pub(super) fn try_map<U, E>(self, mut alloc: impl FnMut(T) -> Result<U, E>) -> Result<Activations<U>, E> {
        Ok(Activations {
            residual: alloc(self.residual)?,
            normed: alloc(self.normed)?,
            qkv: alloc(self.qkv)?,
            attention: alloc(self.attention)?,
            mlp: self.mlp.map(|mlp| mlp.try_map(&mut alloc)).transpose()?,
            experts: self.experts.map(|experts| experts.try_map(&mut alloc)).transpose()?,
            attention_delta: alloc(self.attention_delta)?,
            mlp_delta: self.mlp_delta.map(&mut alloc).transpose()?,
            logits: alloc(self.logits)?,
        })
    }
}

impl DecoderConfig {
    /// Shape of the KV cache for a spec in the backend's sizes.
    pub fn kv_layout(&self, spec: &ModelSpec) -> KvLayout {
        KvLayout {
            num_layers: spec.num_layers,
            num_blocks: self.num_kv_blocks,
            block_size: self.kv_block_size,
            num_kv_heads: spec.heads.num_kv_heads,
            head_dim: spec.heads.head_dim,
            dtype: self.kv_dtype,
        }
    }

    /// Refuses sizes of zero and a vocabulary that is not the model's.
    pub(super) fn check(&self, spec: &ModelSpec) -> Result<()> {
        let sizes = [
            ("the number of KV blocks", self.num_kv_blocks),
            ("the size of a KV block", self.kv_block_size),
            ("the longest context", self.max_model_len),
            ("the number of tokens in a batch", self.limits.max_tokens),
            ("the number of sequences in a batch", self.limits.max_slots),
        ];
        if let Some((what, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(Error::invalid_argument(format!("{what} must be at least 1")));
        }
        if self.limits.vocab_size != spec.vocab_size {
            let (limit, vocab) = (self.limits.vocab_size, spec.vocab_size);
            return Err(Error::internal(format!("limits for {limit} tokens, but the model has {vocab}")));
        }
        Ok(())
    }
}

//! The one decoder: runs every [`ModelSpec`] on every [`Backend`].

use crate::backend::{
    Activation, AttentionShape, Backend, BackendLimits, BackendResult, Batch, DType, RopePairing, Sampled,
    SlotState,
};
use crate::config::ProgressCallback;
use crate::error::Result;
use crate::format::Checkpoint;
use crate::model::memory::{self, Activations, BufferShape};
use crate::model::rope::Rope;
use crate::model::spec::{Mlp, ModelSpec, Norm, Positions};
use crate::model::weights::{self, Weights};

/// Sizes and types that a decoder is loaded with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecoderConfig {
    /// Element type of matrices.
    pub weight_dtype: DType,
    /// Element type of the KV cache.
    pub kv_dtype: DType,
    /// Blocks of the KV cache.
    pub num_kv_blocks: usize,
    /// Tokens in a KV block.
    pub kv_block_size: usize,
    /// Longest context, in tokens.
    pub max_model_len: usize,
    /// Sizes of a batch.
    pub limits: BackendLimits,
}

/// A loaded model on its backend. Everything it needs on the device is allocated by [`Decoder::load`].
pub struct Decoder<B: Backend> {
    backend: B,
    model: LoadedModel<B>,
}

/// What a step works with.
struct LoadedModel<B: Backend> {
    weights: Weights<B::Tensor>,
    /// `[max_model_len, rotary_dim]`: cosines, then sines.
    rope_table: B::Tensor,
    kv_cache: B::KvCache,
    activations: Activations<B::Tensor>,
    heads: AttentionShape,
    rope_pairing: RopePairing,
    activation: Activation,
    norm_epsilon: f32,
}

impl<B: Backend> Decoder<B> {
    /// Loads the weights of `spec` from `checkpoint` and reserves everything else.
    pub fn load(
        mut backend: B,
        spec: &ModelSpec,
        checkpoint: &Checkpoint,
        config: &DecoderConfig,
        progress: Option<&ProgressCallback>,
    ) -> Result<Self> {
        spec.validate()?;
        memory::memory_plan(&backend, spec, config)?;
        let weights = weights::load(&mut backend, spec, checkpoint, config.weight_dtype, progress)?;
        let rope_table = load_rope_table(&mut backend, spec, config)?;
        let kv_cache = backend.alloc_kv_cache(&config.kv_layout(spec))?;
        let activation_dtype = backend.activation_dtype(config.weight_dtype);
        let activations = Activations::plan(spec, &config.limits, activation_dtype)
            .try_map(|BufferShape { dtype, rows, columns }| backend.alloc(dtype, rows, columns))?;
        backend.reserve(&config.limits)?;
        let Positions::Rope { pairing, .. } = spec.positions;
        let Mlp::Gated { activation } = spec.mlp;
        let Norm::Rms { epsilon } = spec.norm;
        let model = LoadedModel {
            weights,
            rope_table,
            kv_cache,
            activations,
            heads: spec.heads.into(),
            rope_pairing: pairing.into(),
            activation: activation.into(),
            norm_epsilon: epsilon,
        };
        let mut decoder = Self { backend, model };
        let Self { backend, model } = &mut decoder;
        backend.warm_up(config.max_model_len, &mut |backend, rows| model.run(backend, rows))?;
        Ok(decoder)
    }

    /// Runs one step: every token of `batch` through every layer, and a sample for each sampled row.
    pub fn forward(&mut self, batch: &Batch) -> BackendResult<()> {
        let Self { backend, model } = self;
        backend.run_step(batch, &mut |backend, rows| model.run(backend, rows))
    }

    /// Waits for the oldest [`Decoder::forward`] not yet collected: one entry per sampled row.
    pub fn collect(&mut self) -> BackendResult<Vec<Sampled>> {
        self.backend.collect()
    }

    /// Hands slot `slot` to a sequence.
    pub fn reset_slot(&mut self, slot: u32, state: &SlotState) -> BackendResult<()> {
        self.backend.reset_slot(slot, state)
    }

    /// Logits of the first `num_rows` sampled rows of the last step, `[num_rows, vocab_size]`, waiting for
    /// the device; for tests and tools.
    pub fn read_logits(&mut self, num_rows: usize) -> BackendResult<Vec<f32>> {
        self.backend.read_rows(&self.model.activations.logits, num_rows)
    }

    /// The backend it runs on.
    pub fn backend(&self) -> &B {
        &self.backend
    }
}

impl<B: Backend> LoadedModel<B> {
    /// The operations of a step on the backend's batch, `rows` rows of it.
    fn run(&mut self, backend: &mut B, rows: usize) -> BackendResult<()> {
        let Self { weights, rope_table, kv_cache, heads, norm_epsilon: epsilon, .. } = self;
        let Activations { residual, normed, qkv, attention, gate_up, gated, delta, logits } =
            &mut self.activations;

        backend.embed(&weights.embedding, residual)?;
        for (index, layer) in weights.layers.iter().enumerate() {
            // What a block adds to the residual is added by the norm that follows it.
            let added = (index > 0).then_some(&*delta);
            backend.add_rms_norm(residual, added, &layer.attention_norm, *epsilon, normed, rows)?;
            backend.linear(normed, &layer.qkv, qkv, rows)?;
            backend.rope_and_write_kv(qkv, rope_table, self.rope_pairing, heads, kv_cache, index)?;
            backend.attention(qkv, heads, kv_cache, index, attention)?;
            backend.linear(attention, &layer.attention_output, delta, rows)?;

            backend.add_rms_norm(residual, Some(delta), &layer.mlp_norm, *epsilon, normed, rows)?;
            backend.linear(normed, &layer.gate_up, gate_up, rows)?;
            backend.gated_activation(gate_up, self.activation, gated, rows)?;
            backend.linear(gated, &layer.down, delta, rows)?;
        }
        backend.add_rms_norm(residual, Some(delta), &weights.final_norm, *epsilon, normed, rows)?;
        backend.logits(normed, weights.head.as_ref().unwrap_or(&weights.embedding), logits)?;
        backend.sample(logits)
    }
}

fn load_rope_table<B: Backend>(
    backend: &mut B,
    spec: &ModelSpec,
    config: &DecoderConfig,
) -> BackendResult<B::Tensor> {
    const CHUNK_ROWS: usize = 1024;
    let BufferShape { dtype, rows, columns } = memory::rope_table(spec, config);
    let rope = Rope::new(&spec.positions, config.max_model_len);
    let mut table = backend.alloc(dtype, rows, columns)?;
    let mut values = vec![0.0f32; CHUNK_ROWS.min(rows) * columns];
    for first_row in (0..rows).step_by(CHUNK_ROWS) {
        let values = &mut values[..CHUNK_ROWS.min(rows - first_row) * columns];
        rope.fill_rows(first_row, values);
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        backend.write_rows(&mut table, first_row, &bytes)?;
    }
    Ok(table)
}

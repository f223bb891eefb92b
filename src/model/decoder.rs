//! The one decoder: runs every [`ModelSpec`] on every [`Backend`].

use crate::backend::{
    Activate, AttentionShape, Backend, BackendLimits, BackendResult, Batch, DType, Delta, Embedding, Head,
    Mixture, Norm, NormExtent, Projection, QkNorm, QkvProjection, QkvTransform, Rope, RopePairing, Sampled,
    Scoring, SharedResult, SlotState,
};
use crate::error::Result;
use crate::format::Checkpoint;
use crate::model::load::{self, LoadOptions};
use crate::model::memory::{self, Activations, BufferShape, ExpertBuffers, MlpBuffers, SharedBuffers};
use crate::model::rope;
use crate::model::spec::{self, BlockShape, Experts, LogitExtras, Mlp, ModelSpec, Positions};
use crate::model::weights::{ExpertWeights, LayerMlp, LayerWeights, MlpWeights, Parameters, Weights};

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
    /// `[max_model_len, rotary_dim]` each: cosines, then sines.
    rope_tables: Vec<B::Tensor>,
    kv_cache: B::KvCache,
    activations: Activations<B::Tensor>,
    axes: Axes,
}

/// What [`Decoder::forward`] needs of the spec.
struct Axes {
    embedding_scale: f32,
    norm: spec::Norm,
    block: BlockShape,
    heads: AttentionShape,
    /// Elements of a head without its padding.
    head_len: usize,
    qkv_clamp: Option<f32>,
    qk_norm: Option<NormExtent>,
    /// What each layer's scores pass, and the table that its heads rotate by.
    layers: Vec<(Scoring, Option<usize>)>,
    rope_pairing: RopePairing,
    mlp: Mlp,
    experts: Option<Experts>,
    logits: LogitExtras,
}

/// A block whose result has not been added to the residual yet.
///
/// | blocks | who projects | who adds to the residual | where results wait |
/// | --- | --- | --- | --- |
/// | `Sequential` | `project`, after each | it, or the next `add_norm` | `attention_delta` |
/// | `Parallel`, `ParallelTwoNorms` | `project`, both at once | it, or the next `add_norm` | `*_delta` of each |
/// | `Parallel`, forked | `project_apart`, in each branch | the next `add_norm`, both | `*_delta` of each |
/// | `Sandwich`, `PostNorm` | `norm_add`, after each | it, through a norm | `attention_delta`, within it |
///
/// Experts have no projection: `mlp_block` itself leaves their result where it waits, and a norm adds it.
#[derive(Clone, Copy)]
enum Waiting {
    Attention { layer: usize },
    Mlp { layer: usize },
}

/// Nothing waits.
const NOTHING: [Option<Waiting>; 2] = [None; 2];

/// A place of a norm whose result the next block takes.
#[derive(Clone, Copy)]
enum NormPlace {
    Attention { layer: usize },
    Mlp { layer: usize },
    Final,
}

impl<B: Backend> Decoder<B> {
    /// Loads the weights of `spec` from `checkpoint` and reserves everything else.
    pub fn load(
        mut backend: B,
        spec: &ModelSpec,
        checkpoint: &Checkpoint,
        config: &DecoderConfig,
        loading: &LoadOptions<'_>,
    ) -> Result<Self> {
        spec.validate()?;
        spec.check_support(&backend)?;
        memory::memory_plan(&backend, spec, config)?;
        let stored = spec.stored_by(&backend);
        let weights = load::load(&mut backend, spec, checkpoint, config.weight_dtype, loading)?;
        let rope_tables = load_rope_tables(&mut backend, spec, config)?;
        let kv_cache = backend.alloc_kv_cache(&config.kv_layout(&stored))?;
        let activation_dtype = backend.activation_dtype(config.weight_dtype);
        let activations = Activations::plan(&stored, &config.limits, activation_dtype)
            .try_map(|BufferShape { dtype, rows, columns }| backend.alloc(dtype, rows, columns))?;
        backend.reserve(&config.limits)?;
        if let Some(limits) = memory::expert_limits(&stored, &config.limits) {
            backend.reserve_experts(&limits)?;
        }
        let model =
            LoadedModel { weights, rope_tables, kv_cache, activations, axes: Axes::new(spec, &stored) };
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
    /// The operations of a step on the backend's batch, on `rows` rows. Rows here are tensors' rows, one per token,
    /// not the batch's. What follows the last layer's attention works on the rows that are sampled alone.
    fn run(&mut self, backend: &mut B, mut rows: usize) -> BackendResult<()> {
        self.embed(backend, rows)?;
        // What a block adds to the residual is added by its last projection, or by the norm that follows it.
        let mut waiting = NOTHING;
        for layer in 0..self.weights.layers.len() {
            match self.axes.block {
                BlockShape::Sequential => {
                    self.add_norm(backend, waiting, NormPlace::Attention { layer }, rows)?;
                    let attention = self.attention_block(backend, layer, &mut rows)?;
                    waiting = self.project(backend, [Some(attention), None], rows)?;
                    self.add_norm(backend, waiting, NormPlace::Mlp { layer }, rows)?;
                    let mlp = self.mlp_block(backend, layer, rows)?;
                    waiting = self.project(backend, [Some(mlp), None], rows)?;
                }
                BlockShape::Parallel => {
                    self.add_norm(backend, waiting, NormPlace::Attention { layer }, rows)?;
                    waiting = self.parallel_blocks(backend, layer, &mut rows)?;
                }
                BlockShape::ParallelTwoNorms => {
                    self.add_norm(backend, waiting, NormPlace::Attention { layer }, rows)?;
                    let attention = self.attention_block(backend, layer, &mut rows)?;
                    self.add_norm(backend, NOTHING, NormPlace::Mlp { layer }, rows)?;
                    let mlp = self.mlp_block(backend, layer, rows)?;
                    waiting = self.project(backend, [Some(attention), Some(mlp)], rows)?;
                }
                BlockShape::Sandwich => {
                    self.add_norm(backend, NOTHING, NormPlace::Attention { layer }, rows)?;
                    let attention = self.attention_block(backend, layer, &mut rows)?;
                    self.norm_add(backend, attention, rows)?;
                    self.add_norm(backend, NOTHING, NormPlace::Mlp { layer }, rows)?;
                    let mlp = self.mlp_block(backend, layer, rows)?;
                    self.norm_add(backend, mlp, rows)?;
                }
                BlockShape::PostNorm => {
                    let attention = self.attention_block(backend, layer, &mut rows)?;
                    self.norm_add(backend, attention, rows)?;
                    let mlp = self.mlp_block(backend, layer, rows)?;
                    self.norm_add(backend, mlp, rows)?;
                }
            }
        }
        self.add_norm(backend, waiting, NormPlace::Final, rows)?;
        self.logits(backend)?;
        backend.sample(&self.activations.logits)
    }

    /// Embeds the batch's tokens: `residual = embedding`, normalised where the model wants it.
    fn embed(&mut self, backend: &mut B, rows: usize) -> BackendResult<()> {
        let Self { weights, activations, axes, .. } = self;
        let embedding = Embedding {
            table: &weights.embedding,
            scale: axes.embedding_scale,
            positions: weights.position_embedding.as_ref(),
        };
        let Activations { residual, normed, .. } = activations;
        match &weights.embedding_norm {
            None => backend.embed(&embedding, residual),
            Some(norm) => {
                backend.embed(&embedding, normed)?;
                backend.add_norm(normed, [None, None], &axes.norm(norm), residual, rows)
            }
        }
    }

    /// Adds what waits to the residual: `residual += waiting; normed = norm(residual)`.
    fn add_norm(
        &mut self,
        backend: &mut B,
        waiting: [Option<Waiting>; 2],
        place: NormPlace,
        rows: usize,
    ) -> BackendResult<()> {
        let Self { weights, activations, axes, .. } = self;
        let Activations { residual, normed, attention_delta, mlp_delta, .. } = activations;
        let deltas = waiting.map(|block| Some(weights.delta(block?, attention_delta, mlp_delta.as_ref())));
        backend.add_norm(residual, deltas, &axes.norm(weights.norm(place)), normed, rows)
    }

    /// Adds a block's result to the residual by way of its own norm: `residual += norm(block)`.
    fn norm_add(&mut self, backend: &mut B, block: Waiting, rows: usize) -> BackendResult<()> {
        self.project_apart(backend, block, rows)?;
        let Self { weights, activations, axes, .. } = self;
        let Activations { residual, attention_delta, mlp_delta, .. } = activations;
        let delta = weights.delta(block, attention_delta, mlp_delta.as_ref());
        backend.norm_add(delta, &axes.norm(weights.post_norm(block)), residual, rows)
    }

    /// The last projections of `blocks`: the backend adds them to the residual, or they wait for the norm that
    /// follows, which is returned. Results of experts, which need no projection, always wait.
    fn project(
        &mut self,
        backend: &mut B,
        blocks: [Option<Waiting>; 2],
        rows: usize,
    ) -> BackendResult<[Option<Waiting>; 2]> {
        let Self { weights, activations, .. } = self;
        let (projections, residual) = projections(activations, weights, blocks);
        let is_added = backend.project(projections, residual, rows)?;
        Ok(blocks.map(|block| block.filter(|&block| !is_added || weights.projection(block).is_none())))
    }

    /// The last projection of `block`, whose result waits.
    fn project_apart(&mut self, backend: &mut B, block: Waiting, rows: usize) -> BackendResult<()> {
        let Self { weights, activations, .. } = self;
        let ([projection, _], _) = projections(activations, weights, [Some(block), None]);
        let Some(Projection { input, weight, delta, .. }) = projection else { return Ok(()) };
        backend.linear(input, weight, delta, rows)
    }

    /// Attention and MLP of layer `layer` over one norm, and what waits after them. Where they run at the same time
    /// each has a projection of its own; otherwise both projections are one operation.
    fn parallel_blocks(
        &mut self,
        backend: &mut B,
        layer: usize,
        rows: &mut usize,
    ) -> BackendResult<[Option<Waiting>; 2]> {
        let is_forked = backend.fork()?;
        let attention = self.attention_block(backend, layer, rows)?;
        if is_forked {
            self.project_apart(backend, attention, *rows)?;
        }
        backend.next_branch()?;
        let mlp = self.mlp_block(backend, layer, *rows)?;
        if is_forked {
            self.project_apart(backend, mlp, *rows)?;
        }
        backend.join()?;
        let waiting = [Some(attention), Some(mlp)];
        if is_forked { Ok(waiting) } else { self.project(backend, waiting, *rows) }
    }

    /// Attention of layer `layer` over `normed`, or over the residual where no norm stands before it, up to its
    /// projection. After the last layer's, `rows` are fewer.
    fn attention_block(&mut self, backend: &mut B, layer: usize, rows: &mut usize) -> BackendResult<Waiting> {
        let Self { weights, rope_tables, kv_cache, activations, axes } = self;
        let Activations { residual, normed, qkv, attention, .. } = activations;
        let is_last = layer + 1 == weights.layers.len();
        let weights = &weights.layers[layer];
        let (scoring, rope_table) = &axes.layers[layer];
        let input = if axes.block == BlockShape::PostNorm { &*residual } else { &*normed };
        let transform = QkvTransform {
            bias: weights.qkv.bias.as_ref(),
            clamp: axes.qkv_clamp,
            norm: axes.qk_norm(weights),
            rope: rope_table.map(|index| Rope { table: &rope_tables[index], pairing: axes.rope_pairing }),
        };
        let projection = QkvProjection { weight: &weights.qkv.weight, transform, shape: &axes.heads };
        backend.linear_qkv(input, &projection, qkv, kv_cache, layer, *rows)?;
        backend.attention(qkv, &axes.heads, scoring, kv_cache, layer, attention)?;
        if is_last {
            *rows = backend.keep_sampled(&mut [&mut *attention, residual, normed], *rows)?;
        }
        Ok(Waiting::Attention { layer })
    }

    /// MLP of layer `layer`, up to its last projection, or experts, over `normed`, or over the residual where no norm
    /// stands before them.
    fn mlp_block(&mut self, backend: &mut B, layer: usize, rows: usize) -> BackendResult<Waiting> {
        let Self { weights, activations, axes, .. } = self;
        let Activations { residual, normed, mlp, experts, attention_delta, mlp_delta, .. } = activations;
        let input = if axes.block == BlockShape::PostNorm { residual } else { normed };
        match &weights.layers[layer].mlp {
            LayerMlp::Dense(weights) => {
                let buffers = mlp.as_mut().expect("planned with the weights");
                activate_mlp(backend, axes.mlp, weights, input, buffers, rows)?;
            }
            LayerMlp::Experts(weights) => {
                let out = mlp_delta.as_mut().unwrap_or(attention_delta);
                let buffers = experts.as_mut().expect("planned with the weights");
                expert_mlp(backend, axes, weights, (input, out), buffers, rows)?;
            }
        }
        Ok(Waiting::Mlp { layer })
    }

    /// Logits of the sampled rows, from `normed`.
    fn logits(&mut self, backend: &mut B) -> BackendResult<()> {
        let Self { weights, activations, axes, .. } = self;
        let head = Head {
            weight: weights.head.as_ref().unwrap_or(&weights.embedding),
            bias: weights.head_bias.as_ref(),
            scale: axes.logits.scale,
            soft_cap: axes.logits.soft_cap,
        };
        backend.logits(&activations.normed, &head, &mut activations.logits)
    }
}

/// The last projections of `blocks` that have one, and the residual.
fn projections<'a, T>(
    activations: &'a mut Activations<T>,
    weights: &'a Weights<T>,
    blocks: [Option<Waiting>; 2],
) -> ([Option<Projection<'a, T>>; 2], &'a mut T) {
    let Activations { residual, attention, mlp, attention_delta, mlp_delta, .. } = activations;
    let (mut attention_delta, mut mlp_delta) = (Some(attention_delta), mlp_delta.as_mut());
    let projections = blocks.map(|block| {
        let block = block?;
        let Parameters { weight, bias } = weights.projection(block)?;
        let (input, delta) = match block {
            Waiting::Attention { .. } => (&*attention, attention_delta.take()),
            Waiting::Mlp { .. } => {
                let buffers = mlp.as_ref().expect("planned with the weights");
                (&buffers.activated, mlp_delta.take().or_else(|| attention_delta.take()))
            }
        };
        let delta = delta.expect("results that wait at the same time have buffers of their own");
        Some(Projection { input, weight, bias: bias.as_ref(), delta })
    });
    (projections, residual)
}

/// `activated = activation(up(input))`.
fn activate_mlp<B: Backend>(
    backend: &mut B,
    mlp: Mlp,
    weights: &MlpWeights<B::Tensor>,
    input: &B::Tensor,
    buffers: &mut MlpBuffers<B::Tensor>,
    rows: usize,
) -> BackendResult<()> {
    let MlpBuffers { up, activated } = buffers;
    let bias = weights.up.bias.as_ref();
    let activate = Activate { function: mlp.activation(), gating: mlp.gating(), bias };
    backend.linear_activate(input, &weights.up.weight, &activate, (up, activated), rows)
}

/// The chosen experts of every row, after the expert that all rows pass.
fn expert_mlp<B: Backend>(
    backend: &mut B,
    axes: &Axes,
    weights: &ExpertWeights<B::Tensor>,
    (input, out): (&B::Tensor, &mut B::Tensor),
    buffers: &mut ExpertBuffers<B::Tensor>,
    rows: usize,
) -> BackendResult<()> {
    let ExpertBuffers { products, shared } = buffers;
    backend.linear(input, &weights.router, products, rows)?;
    let shared_result = match (shared, &weights.shared) {
        (Some(SharedBuffers { mlp, result, gate }), Some(shared)) => {
            activate_mlp(backend, axes.mlp, shared, input, mlp, rows)?;
            backend.linear(&mlp.activated, &shared.down.weight, result, rows)?;
            if let (Some(gate), Some(gate_weight)) = (gate.as_mut(), &weights.shared_gate) {
                backend.linear(input, gate_weight, gate, rows)?;
            }
            Some(SharedResult { values: &*result, gate: gate.as_ref() })
        }
        _ => None,
    };
    backend.mix_experts(input, products, &axes.mixture(weights, shared_result), out, rows)
}

impl Axes {
    fn new(spec: &ModelSpec, stored: &ModelSpec) -> Self {
        let rope_pairing = match spec.positions {
            Positions::Rope { pairing, .. } => pairing,
            _ => RopePairing::default(),
        };
        Self {
            embedding_scale: spec.embedding.scale,
            norm: spec.norm,
            block: spec.block,
            heads: stored.heads.into(),
            head_len: spec.heads.head_dim,
            qkv_clamp: spec.attention.qkv_clamp,
            qk_norm: spec.attention.qk_norm,
            layers: (0..spec.num_layers)
                .map(|layer| (spec.scoring(layer), rope::table_of_layer(spec, layer)))
                .collect(),
            rope_pairing,
            mlp: spec.mlp,
            experts: spec.experts.clone(),
            logits: spec.logits,
        }
    }

    fn norm<'a, T>(&self, parameters: &'a Parameters<T>) -> Norm<'a, T> {
        let spec::Norm { kind, epsilon, weight: _ } = self.norm;
        Norm { kind, epsilon, weight: &parameters.weight, bias: parameters.bias.as_ref() }
    }

    /// A layer's mixture of experts, of which a spec with such layers tells.
    fn mixture<'a, T>(
        &self,
        weights: &'a ExpertWeights<T>,
        shared: Option<SharedResult<'a, T>>,
    ) -> Mixture<'a, T> {
        let experts = self.experts.as_ref().expect("planned with the weights");
        Mixture {
            up: &weights.up,
            down: &weights.down,
            num_experts: experts.num_experts,
            num_chosen: experts.num_chosen,
            scoring: experts.scoring,
            weighting: experts.weighting,
            scale: experts.scale,
            function: self.mlp.activation(),
            gating: self.mlp.gating(),
            shared,
        }
    }

    fn qk_norm<'a, T>(&self, weights: &'a LayerWeights<T>) -> Option<QkNorm<'a, T>> {
        let ([query, key], extent) = (weights.qk_norm.as_ref()?, self.qk_norm?);
        Some(QkNorm { query: self.norm(query), key: self.norm(key), extent, head_len: self.head_len })
    }
}

impl<T> Weights<T> {
    /// The norm at `place`, which the block has.
    fn norm(&self, place: NormPlace) -> &Parameters<T> {
        let norm = match place {
            NormPlace::Attention { layer } => self.layers[layer].attention_norm.as_ref(),
            NormPlace::Mlp { layer } => self.layers[layer].mlp_norm.as_ref(),
            NormPlace::Final => Some(&self.final_norm),
        };
        norm.expect("the weights were planned for the block")
    }

    /// The norm of a block's result, which the block has.
    fn post_norm(&self, block: Waiting) -> &Parameters<T> {
        let norm = match block {
            Waiting::Attention { layer } => self.layers[layer].post_attention_norm.as_ref(),
            Waiting::Mlp { layer } => self.layers[layer].post_mlp_norm.as_ref(),
        };
        norm.expect("the weights were planned for the block")
    }

    /// The last projection of a block, which experts do not have.
    fn projection(&self, block: Waiting) -> Option<&Parameters<T>> {
        match block {
            Waiting::Attention { layer } => Some(&self.layers[layer].attention_output),
            Waiting::Mlp { layer } => match &self.layers[layer].mlp {
                LayerMlp::Dense(mlp) => Some(&mlp.down),
                LayerMlp::Experts(_) => None,
            },
        }
    }

    /// The result of a block with the bias of its last projection. Both kinds of block use one buffer where they
    /// do not wait at the same time.
    fn delta<'a>(&'a self, block: Waiting, attention: &'a T, mlp: Option<&'a T>) -> Delta<'a, T> {
        let values = match block {
            Waiting::Attention { .. } => attention,
            Waiting::Mlp { .. } => mlp.unwrap_or(attention),
        };
        Delta { values, bias: self.projection(block).and_then(|projection| projection.bias.as_ref()) }
    }
}

fn load_rope_tables<B: Backend>(
    backend: &mut B,
    spec: &ModelSpec,
    config: &DecoderConfig,
) -> BackendResult<Vec<B::Tensor>> {
    const CHUNK_ROWS: usize = 1024;
    let mut tables = Vec::new();
    for (rope, shape) in
        rope::tables(spec, config.max_model_len).iter().zip(memory::rope_tables(spec, config))
    {
        let BufferShape { dtype, rows, columns } = shape;
        let mut table = backend.alloc(dtype, rows, columns)?;
        let mut values = vec![0.0f32; CHUNK_ROWS.min(rows) * columns];
        for first_row in (0..rows).step_by(CHUNK_ROWS) {
            let values = &mut values[..CHUNK_ROWS.min(rows - first_row) * columns];
            rope.fill_rows(first_row, values);
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            backend.write_rows(&mut table, first_row, &bytes)?;
        }
        tables.push(table);
    }
    Ok(tables)
}

//! The CUDA backend: own kernels and cuBLASLt on one device and one stream.
//!
//! Operations queue work and return; only `collect`, `read_rows` and the slow path of sampling wait for the
//! device. All memory is reserved before the first step. Everything that varies from step to step lies in device
//! arrays at fixed places (`batch.rs`), and a token that was sampled stays on the device for the next step.
//!
//! Weights, activations and the cache are BF16 or F16, sums single precision; norms' weights are F32. A device
//! error loses the backend, unless memory is all that was short: every later call fails at once with
//! [`BackendError::DeviceLost`].

mod activation;
mod attention;
mod batch;
mod boxes;
mod choice;
mod copies;
mod cublas;
mod driver;
mod embed;
mod experts;
mod gaps;
mod graph;
mod history;
mod linear;
mod linear_sm90;
mod logits;
mod memory;
mod modules;
mod norm;
mod plan;
mod presence;
mod projection;
mod prompt_attention;
mod qkv;
mod recording;
mod rope;
mod sample;
mod staging;
mod tensor;
mod warm_up;
mod waves;

use std::sync::atomic::{AtomicU64, Ordering};

pub use tensor::{KvCache, Tensor};

use self::activation::Activations;
use self::attention::{Attention, AttentionCall, DeviceScoring};
use self::batch::StepState;
use self::cublas::CublasLt;
use self::driver::{DevicePtr, Gpu};
use self::embed::Embed;
use self::experts::{Experts, MixExperts};
use self::gaps::Gaps;
use self::graph::Graphs;
use self::linear::Linear;
use self::memory::Arena;
use self::modules::Modules;
use self::norm::Norms;
pub use self::presence::HostContext;
use self::projection::Projections;
use self::qkv::QkvProducts;
use self::rope::{Rope, RopeAndWriteKv, Rotation};
use self::sample::Sampler;
use self::staging::Staging;
use self::tensor::{Checker, to_u32};
use super::{
    Activate, Alibi, AttentionShape, Backend, BackendError, BackendLimits, BackendResult, Batch, DType,
    Delta, Embedding, ExpertLimits, Feature, Head, KvLayout, Mixture, Norm, Projection, QkvProjection,
    QkvTransform, Sampled, Scoring, SlotState,
};
use crate::error::{Error, Result, Status};
use crate::threads::with_signals_blocked;

/// Memory that operations share: partial results of attention, or gathered rows for the logits.
const SCRATCH_BYTES: u64 = 32 << 20;
/// Most that slopes of attention heads take, which are written when they are first used.
const SLOPES_BYTES: u64 = 16 << 10;

/// One device, and everything on it.
pub struct Cuda {
    // Fields are dropped in this order: the device last.
    graphs: Graphs,
    gaps: Gaps,
    state: Option<Reserved>,
    staging: Staging,
    kernels: Kernels,
    modules: Modules,
    arena: Arena,
    kv_layout: Option<KvLayout>,
    slopes: Vec<KnownSlopes>,
    id: u64,
    gpu: Gpu,
}

/// Slopes that lie on the device.
struct KnownSlopes {
    alibi: Alibi,
    num_heads: usize,
    slopes: DevicePtr,
}

/// What [`Backend::reserve`] makes.
struct Reserved {
    step: StepState,
    sampler: Sampler,
    scratch: DevicePtr,
}

struct Kernels {
    embed: Embed,
    norms: Norms,
    rope: Rope,
    qkv: QkvProducts,
    attention: Attention,
    activations: Activations,
    linear: Linear,
    projections: Projections,
    experts: Experts,
}

impl Kernels {
    fn new(gpu: &Gpu, modules: &Modules, cublas: CublasLt) -> BackendResult<Kernels> {
        Ok(Kernels {
            embed: Embed::new(gpu, modules)?,
            norms: Norms::new(gpu, modules)?,
            rope: Rope::new(gpu, modules)?,
            qkv: QkvProducts::new(gpu, modules)?,
            attention: Attention::new(gpu, modules)?,
            activations: Activations::new(gpu, modules)?,
            linear: Linear::new(gpu, modules, cublas)?,
            projections: Projections::new(),
            experts: Experts::new(gpu, modules)?,
        })
    }
}

impl Cuda {
    /// Opens device `ordinal`, in the driver's order, and resolves every kernel.
    pub fn new(ordinal: u32) -> Result<Cuda> {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        // The driver starts threads of its own.
        let gpu = with_signals_blocked(|| Gpu::open(ordinal))?;
        let cublas = CublasLt::open(ordinal)?;
        let fail = |error: BackendError| {
            let message = format!("CUDA device {ordinal} ({}): {error}", gpu.name());
            let status = match Error::from(error).status() {
                short @ (Status::DeviceOutOfMemory | Status::OutOfMemory) => short,
                _ => Status::DeviceUnavailable,
            };
            Error::new(status, message)
        };
        let modules = Modules::load(&gpu).map_err(fail)?;
        let kernels = Kernels::new(&gpu, &modules, cublas).map_err(fail)?;
        let staging = Staging::new(&gpu).map_err(fail)?;
        Ok(Cuda {
            graphs: Graphs::default(),
            gaps: Gaps::default(),
            state: None,
            staging,
            kernels,
            modules,
            arena: Arena::default(),
            kv_layout: None,
            slopes: Vec::new(),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            gpu,
        })
    }

    /// The device's name.
    pub fn device_name(&self) -> String {
        self.gpu.name()
    }

    /// Widths of tiles, in columns, that [`Cuda::force_tiles`] takes; none where the device has no such kernels.
    pub fn tile_columns(&self) -> &'static [usize] {
        if self.gpu.is_hopper() { &linear_sm90::TILE_COLUMNS } else { &[] }
    }

    /// Multiplies many rows in tiles of `columns`, or through cuBLASLt for 0, instead of in the way that is fastest;
    /// for tests and benches.
    pub fn force_tiles(&mut self, columns: usize) {
        self.kernels.linear.force(columns);
    }

    /// Free and total bytes of the device's memory.
    pub fn memory_info(&self) -> BackendResult<(u64, u64)> {
        self.gpu.memory_info()
    }

    /// Bytes that the backend has taken from the device.
    pub fn taken_bytes(&self) -> u64 {
        self.arena.total_bytes()
    }

    fn checker(&self, operation: &'static str) -> Checker {
        Checker { operation, backend_id: self.id }
    }

    /// Where the slopes of `num_heads` heads lie; they are written at their first use, before steps are recorded.
    fn alibi_slopes(&mut self, alibi: &Alibi, num_heads: usize) -> BackendResult<DevicePtr> {
        if let Some(known) =
            self.slopes.iter().find(|known| known.alibi == *alibi && known.num_heads == num_heads)
        {
            return Ok(known.slopes);
        }
        let values: Vec<f32> = (0..num_heads).map(|head| alibi.slope(head, num_heads)).collect();
        let slopes = self.arena.alloc(&self.gpu, 4 * num_heads as u64, "slopes of attention heads")?;
        self.staging.write(&self.gpu, slopes, bytemuck::cast_slice(&values))?;
        self.slopes.push(KnownSlopes { alibi: *alibi, num_heads, slopes });
        Ok(slopes)
    }

    /// Checks of `operation`, and what was reserved.
    fn reserved(
        &mut self,
        operation: &'static str,
    ) -> BackendResult<(Checker, &Gpu, &mut Reserved, &mut Kernels)> {
        let check = self.checker(operation);
        match &mut self.state {
            Some(state) => Ok((check, &self.gpu, state, &mut self.kernels)),
            None => check.fail("nothing was reserved".to_owned()),
        }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // Waits for the stream first, so that pinned memory, kernels and events can go.
        self.arena.free(&self.gpu);
    }
}

impl Backend for Cuda {
    type Tensor = Tensor;
    type KvCache = KvCache;

    fn activation_dtype(&self, weights: DType) -> DType {
        weights
    }

    fn supports(&self, feature: Feature) -> bool {
        match feature {
            Feature::ScoreSoftCap | Feature::Alibi | Feature::Window | Feature::QkNorm => true,
            Feature::Experts { num_experts, num_chosen } => experts::supports(num_experts, num_chosen),
            Feature::HeadDim(head_dim) => attention::HEAD_DIMS.contains(&head_dim),
            Feature::Width(width) => {
                width.is_multiple_of(tensor::VECTOR_ELEMENTS) && width <= norm::WIDTH_MAX
            }
        }
    }

    fn token_quantum(&self, width: usize) -> usize {
        waves::token_quantum(self.gpu.num_multiprocessors() as usize, width)
    }

    fn stored_head_dim(&self, head_dim: usize) -> usize {
        attention::HEAD_DIMS.into_iter().find(|&stored| stored >= head_dim).unwrap_or(head_dim)
    }

    fn stored_width(&self, width: usize) -> usize {
        width.next_multiple_of(tensor::VECTOR_ELEMENTS)
    }

    fn allocated_bytes(&self, sizes: &[u64]) -> Option<u64> {
        memory::packed_bytes(sizes)
    }

    fn workspace_sizes(&self, limits: &BackendLimits, num_kv_blocks: usize) -> Vec<u64> {
        let num_multiprocessors = self.gpu.num_multiprocessors() as usize;
        let step = StepState::device_sizes(limits, num_kv_blocks, num_multiprocessors).into_iter();
        let shared = [SCRATCH_BYTES, cublas::WORKSPACE_BYTES, SLOPES_BYTES];
        step.chain(Sampler::device_sizes(limits)).chain(shared).collect()
    }

    fn available_bytes(&self) -> Option<u64> {
        self.gpu.memory_info().ok().map(|(free, _)| free)
    }

    fn reserve(&mut self, limits: &BackendLimits) -> BackendResult<()> {
        let check = self.checker("reserve");
        for size in [limits.max_tokens, limits.max_slots, limits.vocab_size] {
            check.require(size > 0, || format!("{limits:?} has a size of 0"))?;
            to_u32("reserve", size)?;
        }
        self.gpu.bind()?;
        let Self { gpu, modules, arena, kv_layout, .. } = self;
        let step = StepState::new(gpu, modules, arena, limits, *kv_layout)?;
        let sampler = Sampler::new(gpu, modules, arena, limits)?;
        let scratch = arena.alloc(gpu, SCRATCH_BYTES, "workspace")?;
        let workspace = arena.alloc(gpu, cublas::WORKSPACE_BYTES, "workspace of cuBLASLt")?;
        self.kernels.linear.cublas.set_workspace(workspace);
        self.state = Some(Reserved { step, sampler, scratch });
        Ok(())
    }

    fn expert_workspace_bytes(&self, limits: &ExpertLimits) -> u64 {
        experts::device_bytes(limits)
    }

    fn reserve_experts(&mut self, limits: &ExpertLimits) -> BackendResult<()> {
        let check = self.checker("reserve_experts");
        self.kernels.experts.reserve(&self.gpu, check, &mut self.arena, limits)
    }

    fn alloc(&mut self, dtype: DType, rows: usize, columns: usize) -> BackendResult<Tensor> {
        let what = format!("tensor [{rows}, {columns}] of {dtype:?}");
        let bytes = (rows as u64)
            .checked_mul(columns as u64)
            .and_then(|elements| elements.checked_mul(dtype.size_bytes() as u64));
        let bytes = bytes.ok_or_else(|| BackendError::OutOfMemory { what: what.clone(), bytes: u64::MAX })?;
        self.gpu.bind()?;
        let data = self.arena.alloc(&self.gpu, bytes, &what)?;
        self.gpu.fill(data, 0, bytes)?;
        Ok(Tensor::new(data, self.id, dtype, rows, columns))
    }

    fn write_rows(&mut self, tensor: &mut Tensor, first_row: usize, bytes: &[u8]) -> BackendResult<()> {
        let target = self.checker("write_rows").whole_rows(tensor, first_row, bytes.len())?;
        self.staging.write(&self.gpu, target, bytes)
    }

    fn fill_rows(
        &mut self,
        tensor: &mut Tensor,
        first_row: usize,
        num_bytes: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let target = self.checker("fill_rows").whole_rows(tensor, first_row, num_bytes)?;
        self.staging.fill(&self.gpu, target, num_bytes, fill)
    }

    fn read_rows(&mut self, tensor: &Tensor, rows: usize) -> BackendResult<Vec<f32>> {
        let check = self.checker("read_rows");
        check.tensor("tensor", tensor, tensor.dtype(), rows, tensor.columns())?;
        let num_elements = rows * tensor.columns();
        let out_of_memory = || BackendError::HostOutOfMemory {
            what: "rows to read".to_owned(),
            bytes: num_elements as u64 * 4,
        };
        let mut values = Vec::new();
        values.try_reserve_exact(num_elements).map_err(|_| out_of_memory())?;
        let dtype = tensor.dtype();
        self.staging.read(&self.gpu, tensor.data, num_elements * dtype.size_bytes(), |bytes| {
            tensor::widen(dtype, bytes, &mut values);
        })?;
        Ok(values)
    }

    fn alloc_kv_cache(&mut self, layout: &KvLayout) -> BackendResult<KvCache> {
        let check = self.checker("alloc_kv_cache");
        check.layout(layout, &attention::HEAD_DIMS)?;
        check.require(self.state.is_none(), || "the cache must be allocated before `reserve`".to_owned())?;
        let bytes = layout.block_bytes().and_then(|bytes| bytes.checked_mul(layout.num_blocks as u64));
        let bytes = bytes
            .ok_or_else(|| BackendError::OutOfMemory { what: "KV cache".to_owned(), bytes: u64::MAX })?;
        self.gpu.bind()?;
        let data = self.arena.alloc(&self.gpu, bytes, "KV cache")?;
        self.gpu.fill(data, 0, bytes)?;
        self.kv_layout = Some(*layout);
        Ok(KvCache::new(data, self.id, *layout))
    }

    fn reset_slot(&mut self, slot: u32, state: &SlotState) -> BackendResult<()> {
        let (check, gpu, reserved, _) = self.reserved("reset_slot")?;
        let device_slot = reserved.sampler.reset_slot(gpu, check, slot, state)?;
        reserved.step.reset_slot(slot, device_slot);
        Ok(())
    }

    fn load_batch(&mut self, batch: &Batch) -> BackendResult<()> {
        let (check, gpu, reserved, _) = self.reserved("load_batch")?;
        gpu.bind()?;
        reserved.step.load(gpu, check, batch)?;
        reserved.step.prepare(gpu)
    }

    fn run_step(
        &mut self,
        batch: &Batch,
        operations: &mut dyn FnMut(&mut Self, usize) -> BackendResult<()>,
    ) -> BackendResult<()> {
        let check = self.checker("run_step");
        let Self { graphs, gaps, gpu, state: Some(reserved), .. } = self else {
            return check.fail("nothing was reserved".to_owned());
        };
        gpu.bind()?;
        reserved.step.load(gpu, check, batch)?;
        match graphs.find(&reserved.step.batch) {
            Some(graph) if !reserved.sampler.needs_host(&reserved.step) => {
                gaps.start(gpu)?;
                graph.launch(gpu)?;
                gaps.end(gpu)?;
                reserved.sampler.send_results(gpu, &reserved.step)
            }
            _ => {
                reserved.step.prepare(gpu)?;
                operations(self, batch.num_tokens())
            }
        }
    }

    fn warm_up(
        &mut self,
        max_context_len: usize,
        operations: &mut dyn FnMut(&mut Self, usize) -> BackendResult<()>,
    ) -> BackendResult<()> {
        let check = self.checker("warm_up");
        warm_up::run(self, check, max_context_len, operations)
    }

    fn num_unrecorded(&self) -> usize {
        self.graphs.num_missing
    }

    fn fork(&mut self) -> BackendResult<bool> {
        let (_, gpu, reserved, _) = self.reserved("fork")?;
        // In recorded steps of few rows, products leave the device's bandwidth idle while attention waits for memory,
        // and use nothing that both branches would write. Other launches are too slow to gain anything.
        Ok(Linear::is_skinny(reserved.step.batch.launch.tokens) && gpu.fork())
    }

    fn next_branch(&mut self) -> BackendResult<()> {
        self.gpu.next_branch();
        Ok(())
    }

    fn join(&mut self) -> BackendResult<()> {
        self.gpu.join();
        Ok(())
    }

    fn embed(&mut self, embedding: &Embedding<'_, Tensor>, out: &mut Tensor) -> BackendResult<()> {
        let (check, gpu, reserved, kernels) = self.reserved("embed")?;
        kernels.embed.embed(gpu, check, &reserved.step, embedding, out)
    }

    fn add_norm(
        &mut self,
        residual: &mut Tensor,
        deltas: [Option<Delta<'_, Tensor>>; 2],
        norm: &Norm<'_, Tensor>,
        out: &mut Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        let check = self.checker("add_norm");
        self.kernels.norms.add_norm(&self.gpu, check, (residual, out), deltas, norm, rows)
    }

    fn norm_add(
        &mut self,
        delta: Delta<'_, Tensor>,
        norm: &Norm<'_, Tensor>,
        residual: &mut Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        let check = self.checker("norm_add");
        self.kernels.norms.norm_add(&self.gpu, check, delta, norm, residual, rows)
    }

    fn linear(
        &mut self,
        input: &Tensor,
        weight: &Tensor,
        out: &mut Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        let check = self.checker("linear");
        check.tensor("out", out, out.dtype(), rows, weight.rows())?;
        let (shape, operands) = linear::product(check, (input, weight, out), rows, weight.rows())?;
        self.kernels.linear.run(&self.gpu, check, shape, operands)
    }

    fn project(
        &mut self,
        projections: [Option<Projection<'_, Tensor>>; 2],
        residual: &mut Tensor,
        rows: usize,
    ) -> BackendResult<bool> {
        let check = self.checker("project");
        let Kernels { projections: ways, linear, .. } = &mut self.kernels;
        ways.run(&self.gpu, check, linear, projections, (residual, rows))
    }

    fn rope_and_write_kv(
        &mut self,
        qkv: &mut Tensor,
        transform: &QkvTransform<'_, Tensor>,
        shape: &AttentionShape,
        cache: &mut KvCache,
        layer: usize,
    ) -> BackendResult<()> {
        let (check, gpu, reserved, kernels) = self.reserved("rope_and_write_kv")?;
        let arguments = RopeAndWriteKv { qkv, transform, shape, cache, layer };
        let rotation = Rotation::new(check, &reserved.step, arguments)?;
        kernels.rope.run(gpu, check, &rotation)
    }

    fn linear_qkv(
        &mut self,
        input: &Tensor,
        projection: &QkvProjection<'_, Tensor>,
        qkv: &mut Tensor,
        cache: &mut KvCache,
        layer: usize,
        rows: usize,
    ) -> BackendResult<()> {
        let (check, gpu, reserved, kernels) = self.reserved("linear_qkv")?;
        let QkvProjection { weight, transform, shape } = projection;
        check.tensor("qkv", qkv, qkv.dtype(), rows, weight.rows())?;
        let product = linear::product(check, (input, weight, qkv), rows, weight.rows())?;
        let arguments = RopeAndWriteKv { qkv, transform, shape, cache, layer };
        let rotation = Rotation::new(check, &reserved.step, arguments)?;
        let Kernels { qkv, linear, rope, .. } = kernels;
        qkv.run(gpu, check, (linear, rope), product, &rotation)
    }

    fn attention(
        &mut self,
        qkv: &Tensor,
        shape: &AttentionShape,
        scoring: &Scoring,
        cache: &KvCache,
        layer: usize,
        out: &mut Tensor,
    ) -> BackendResult<()> {
        scoring.check("attention")?;
        let alibi_slopes = match &scoring.alibi {
            Some(alibi) => self.alibi_slopes(alibi, shape.num_heads)?,
            None => 0,
        };
        let (check, gpu, reserved, kernels) = self.reserved("attention")?;
        let scratch = (reserved.scratch, SCRATCH_BYTES);
        let scoring = DeviceScoring { scoring, alibi_slopes };
        let call = AttentionCall { qkv, shape, scoring, cache, layer, out, scratch };
        kernels.attention.run(gpu, check, &mut reserved.step, call)
    }

    fn activate(
        &mut self,
        input: &Tensor,
        activate: &Activate<'_, Tensor>,
        out: &mut Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        let check = self.checker("activate");
        self.kernels.activations.run(&self.gpu, check, activate, (input, out), rows)
    }

    fn linear_activate(
        &mut self,
        input: &Tensor,
        weight: &Tensor,
        activate: &Activate<'_, Tensor>,
        (projected, out): (&mut Tensor, &mut Tensor),
        rows: usize,
    ) -> BackendResult<()> {
        let check = self.checker("linear_activate");
        self.kernels.linear_activate(&self.gpu, check, (input, weight), activate, (projected, out), rows)
    }

    fn keep_sampled(&mut self, tensors: &mut [&mut Tensor], rows: usize) -> BackendResult<usize> {
        let (check, gpu, reserved, kernels) = self.reserved("keep_sampled")?;
        kernels.keep_sampled(gpu, check, reserved, tensors, rows)
    }

    fn mix_experts(
        &mut self,
        input: &Tensor,
        products: &Tensor,
        mixture: &Mixture<'_, Tensor>,
        out: &mut Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        let (check, gpu, reserved, kernels) = self.reserved("mix_experts")?;
        let header = reserved.step.recorded_header();
        kernels.experts.run(gpu, check, MixExperts { input, products, mixture, out, rows, header })
    }

    fn logits(&mut self, hidden: &Tensor, head: &Head<'_, Tensor>, out: &mut Tensor) -> BackendResult<()> {
        let (check, gpu, reserved, kernels) = self.reserved("logits")?;
        kernels.logits(gpu, check, reserved, hidden, (head, out))
    }

    fn sample(&mut self, logits: &Tensor) -> BackendResult<()> {
        let (check, gpu, reserved, _) = self.reserved("sample")?;
        reserved.sampler.sample(gpu, check, &reserved.step, logits)
    }

    fn collect(&mut self) -> BackendResult<Vec<Sampled>> {
        let (check, gpu, reserved, _) = self.reserved("collect")?;
        gpu.bind()?;
        reserved.sampler.collect(gpu, check)
    }
}

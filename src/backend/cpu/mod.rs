//! The CPU backend: every operation of the trait on all cores, with the vector instructions that the processor
//! has. Operations finish before they return.
//!
//! Invariant: a row's results do not depend on the other rows of the batch, on how a prompt is cut into chunks,
//! on the block size or on the number of threads, bit for bit. Each operation says how it keeps that.

mod activation;
mod attention;
mod batch;
mod embed;
mod host_memory;
mod linear;
mod norm;
mod rope;
pub(crate) mod sample;
mod simd;
mod tensor;
#[cfg(test)]
mod tests;
mod threads;

use std::collections::VecDeque;

pub(in crate::backend) use sample::SlotTable;
pub use tensor::{KvCache, Tensor};

use self::attention::Attention;
use self::batch::LoadedBatch;
use self::norm::RmsNorm;
use self::rope::RopeAndWriteKv;
use self::simd::{Element, Isa};
use self::tensor::{Buffer, product};
use self::threads::Threads;
use super::{
    Activation, AttentionShape, Backend, BackendError, BackendLimits, BackendResult, Batch, DType, KvLayout,
    RopePairing, Sampled, SlotState,
};
use crate::error::Result;

/// Widths that [`Backend::workspace_bytes`] plans with, which is asked before a model's widths are known; the
/// workspace itself grows to what the operations need.
const MAX_PLANNED_WIDTH: usize = 4096;
const MAX_PLANNED_HEAD_DIM: usize = 128;

/// A processor's cores and what a batch needs.
pub struct Cpu {
    threads: Threads,
    isa: Isa,
    limits: Option<BackendLimits>,
    slots: Option<SlotTable>,
    /// Shape of the cache allocated last, which batches are checked against.
    kv_layout: Option<KvLayout>,
    batch: LoadedBatch,
    linear_workspace: linear::Workspace,
    attention_workspace: attention::Workspace,
    /// Hidden rows of the sampled tokens.
    gathered: Buffer,
    samples: VecDeque<Vec<Sampled>>,
}

impl Cpu {
    /// A backend with `num_threads` threads, the calling one included; 0: one per core available to the process.
    pub fn new(num_threads: usize) -> Result<Cpu> {
        Ok(Self::with_isa(Threads::new(num_threads)?, Isa::detect()))
    }

    fn with_isa(threads: Threads, isa: Isa) -> Cpu {
        Cpu {
            threads,
            isa,
            limits: None,
            slots: None,
            kv_layout: None,
            batch: LoadedBatch::default(),
            linear_workspace: linear::Workspace::EMPTY,
            attention_workspace: attention::Workspace::EMPTY,
            gathered: Buffer::EMPTY,
            samples: VecDeque::new(),
        }
    }

    /// Number of threads that operations run on.
    pub fn num_threads(&self) -> usize {
        self.threads.num_threads()
    }

    /// Name of the instruction set in use.
    pub fn instruction_set(&self) -> &'static str {
        self.isa.name()
    }

    fn slots(&mut self, operation: &'static str) -> BackendResult<&mut SlotTable> {
        self.slots.as_mut().ok_or_else(|| invalid(operation, "nothing was reserved".to_string()))
    }

    /// Copies the hidden rows of the sampled tokens, as logits need no others.
    fn gather_sampled(&mut self, hidden: &Tensor) -> BackendResult<()> {
        let width = hidden.columns();
        let num_elements = self.batch.sampled_tokens.len() * width;
        self.gathered.grow(product(&[num_elements, size_of::<f32>()]), "sampled rows")?;
        let source = hidden.elements::<f32>();
        let target = self.gathered.elements_mut::<f32>();
        for (i, &token) in self.batch.sampled_tokens.iter().enumerate() {
            target[i * width..(i + 1) * width].copy_from_slice(&source[token * width..(token + 1) * width]);
        }
        Ok(())
    }
}

/// [`BackendError::InvalidArgument`].
fn invalid(operation: &'static str, message: String) -> BackendError {
    BackendError::InvalidArgument { operation, message }
}

/// Checks that `shape` is one, and that tensors of it were not mixed up with a cache of another.
fn check_attention(operation: &'static str, shape: &AttentionShape, cache: &KvCache) -> BackendResult<()> {
    let layout = cache.layout();
    let heads_match = shape.num_kv_heads > 0
        && shape.num_heads > 0
        && shape.num_heads.is_multiple_of(shape.num_kv_heads)
        && (shape.num_kv_heads, shape.head_dim) == (layout.num_kv_heads, layout.head_dim);
    if !heads_match {
        return Err(invalid(operation, format!("{shape:?} does not fit a cache of {layout:?}")));
    }
    Ok(())
}

impl Backend for Cpu {
    type Tensor = Tensor;
    type KvCache = KvCache;

    fn activation_dtype(&self, _weights: DType) -> DType {
        DType::F32
    }

    fn available_bytes(&self) -> Option<u64> {
        host_memory::available_bytes()
    }

    fn workspace_bytes(&self, limits: &BackendLimits) -> u64 {
        let per_thread = linear::PANEL_BYTES + attention::workspace_bytes(MAX_PLANNED_HEAD_DIM);
        let per_token = size_of::<u32>() + MAX_PLANNED_WIDTH * size_of::<half::bf16>();
        let per_slot = MAX_PLANNED_WIDTH * size_of::<f32>();
        [(self.num_threads(), per_thread), (limits.max_tokens, per_token), (limits.max_slots, per_slot)]
            .iter()
            .map(|&(count, bytes)| count as u64 * bytes as u64)
            .sum::<u64>()
            + SlotTable::workspace_bytes(limits.max_slots, limits.vocab_size, self.num_threads())
    }

    fn reserve(&mut self, limits: &BackendLimits) -> BackendResult<()> {
        self.slots = Some(SlotTable::new(limits.max_slots, limits.vocab_size));
        self.limits = Some(*limits);
        Ok(())
    }

    fn alloc(&mut self, dtype: DType, rows: usize, columns: usize) -> BackendResult<Tensor> {
        Tensor::zeroed(dtype, rows, columns)
    }

    fn write_rows(&mut self, tensor: &mut Tensor, first_row: usize, bytes: &[u8]) -> BackendResult<()> {
        tensor.row_bytes_mut(first_row, bytes.len())?.copy_from_slice(bytes);
        Ok(())
    }

    fn read_rows(&mut self, tensor: &Tensor, rows: usize) -> BackendResult<Vec<f32>> {
        tensor.expect_shape("read_rows", "tensor", rows, tensor.columns())?;
        let num_elements = rows * tensor.columns();
        let mut values = Vec::new();
        values.try_reserve_exact(num_elements).map_err(|_| BackendError::OutOfMemory {
            what: "rows to read".to_string(),
            bytes: num_elements as u64 * 4,
        })?;
        match tensor.dtype() {
            DType::F32 => values.extend_from_slice(&tensor.elements::<f32>()[..num_elements]),
            DType::F16 => widen_all(&mut values, &tensor.elements::<half::f16>()[..num_elements]),
            DType::Bf16 => widen_all(&mut values, &tensor.elements::<half::bf16>()[..num_elements]),
        }
        Ok(values)
    }

    fn alloc_kv_cache(&mut self, layout: &KvLayout) -> BackendResult<KvCache> {
        let cache = KvCache::zeroed(layout)?;
        self.kv_layout = Some(*layout);
        Ok(cache)
    }

    fn reset_slot(&mut self, slot: u32, state: &SlotState) -> BackendResult<()> {
        let max_slots = self.limits.map_or(0, |limits| limits.max_slots);
        if slot as usize >= max_slots {
            return Err(invalid("reset_slot", format!("slot {slot} of {max_slots}")));
        }
        self.slots("reset_slot")?.reset(slot, state);
        Ok(())
    }

    fn load_batch(&mut self, batch: &Batch) -> BackendResult<()> {
        let (Some(limits), Some(slots)) = (&self.limits, &self.slots) else {
            return Err(invalid("load_batch", "nothing was reserved".to_string()));
        };
        self.batch.load(batch, limits, self.kv_layout.as_ref(), slots)
    }

    fn embed(&mut self, table: &Tensor, out: &mut Tensor) -> BackendResult<()> {
        let num_tokens = self.batch.num_tokens();
        out.expect("embed", "out", num_tokens, table.columns())?;
        if num_tokens > 0 && self.batch.max_token as usize >= table.rows() {
            let message = format!("token {} of a table of {} rows", self.batch.max_token, table.rows());
            return Err(invalid("embed", message));
        }
        embed::embed(&mut self.threads, self.isa, &self.batch.tokens, table, out);
        Ok(())
    }

    fn add_rms_norm(
        &mut self,
        residual: &mut Tensor,
        delta: Option<&Tensor>,
        weight: &Tensor,
        epsilon: f32,
        out: &mut Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        const OPERATION: &str = "add_rms_norm";
        let width = residual.columns();
        residual.expect(OPERATION, "residual", rows, width)?;
        out.expect(OPERATION, "out", rows, width)?;
        weight.expect_shape(OPERATION, "weight", 1, width)?;
        if let Some(delta) = delta {
            delta.expect(OPERATION, "delta", rows, width)?;
        }
        RmsNorm { residual, delta, weight, epsilon, out, rows }.run(&mut self.threads, self.isa);
        Ok(())
    }

    fn linear(
        &mut self,
        input: &Tensor,
        weight: &Tensor,
        out: &mut Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        input.expect("linear", "input", rows, weight.columns())?;
        out.expect("linear", "out", rows, weight.rows())?;
        let input = &input.elements::<f32>()[..rows * weight.columns()];
        let out = &mut out.elements_mut::<f32>()[..rows * weight.rows()];
        linear::linear(&mut self.threads, self.isa, &mut self.linear_workspace, input, weight, out)
    }

    fn rope_and_write_kv(
        &mut self,
        qkv: &mut Tensor,
        table: &Tensor,
        pairing: RopePairing,
        shape: &AttentionShape,
        cache: &mut KvCache,
        layer: usize,
    ) -> BackendResult<()> {
        const OPERATION: &str = "rope_and_write_kv";
        check_attention(OPERATION, shape, cache)?;
        self.batch.check_cache(OPERATION, cache, layer)?;
        qkv.expect(OPERATION, "qkv", self.batch.num_tokens(), shape.qkv_width())?;
        table.expect(OPERATION, "table", self.batch.max_context_len, table.columns())?;
        if table.columns() > shape.head_dim || !table.columns().is_multiple_of(2) {
            let message = format!("table has {} columns for heads of {}", table.columns(), shape.head_dim);
            return Err(invalid(OPERATION, message));
        }
        RopeAndWriteKv { batch: &self.batch, qkv, table, pairing, shape, cache, layer }
            .run(&mut self.threads, self.isa);
        Ok(())
    }

    fn attention(
        &mut self,
        qkv: &Tensor,
        shape: &AttentionShape,
        cache: &KvCache,
        layer: usize,
        out: &mut Tensor,
    ) -> BackendResult<()> {
        const OPERATION: &str = "attention";
        check_attention(OPERATION, shape, cache)?;
        self.batch.check_cache(OPERATION, cache, layer)?;
        qkv.expect(OPERATION, "qkv", self.batch.num_tokens(), shape.qkv_width())?;
        out.expect(OPERATION, "out", self.batch.num_tokens(), shape.num_heads * shape.head_dim)?;
        Attention { batch: &self.batch, qkv, shape, cache, layer, out }.run(
            &mut self.threads,
            self.isa,
            &mut self.attention_workspace,
        )
    }

    fn gated_activation(
        &mut self,
        gate_up: &Tensor,
        activation: Activation,
        out: &mut Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        out.expect("gated_activation", "out", rows, out.columns())?;
        gate_up.expect("gated_activation", "gate_up", rows, out.columns().saturating_mul(2))?;
        match activation {
            Activation::Silu => activation::gated_silu(&mut self.threads, self.isa, gate_up, out, rows),
        }
        Ok(())
    }

    fn logits(&mut self, hidden: &Tensor, head: &Tensor, out: &mut Tensor) -> BackendResult<()> {
        let rows = self.batch.sampled_tokens.len();
        hidden.expect("logits", "hidden", self.batch.num_tokens(), head.columns())?;
        out.expect("logits", "out", rows, head.rows())?;
        self.gather_sampled(hidden)?;
        let input = &self.gathered.elements::<f32>()[..rows * head.columns()];
        let out = &mut out.elements_mut::<f32>()[..rows * head.rows()];
        linear::linear(&mut self.threads, self.isa, &mut self.linear_workspace, input, head, out)
    }

    fn sample(&mut self, logits: &Tensor) -> BackendResult<()> {
        let vocab_size = self.limits.map_or(0, |limits| limits.vocab_size);
        logits.expect("sample", "logits", self.batch.sampled_slots.len(), vocab_size)?;
        let logits = logits.elements::<f32>().chunks_exact(vocab_size.max(1));
        let rows: Vec<_> = self.batch.sampled_slots.iter().copied().zip(logits).collect();
        let slots =
            self.slots.as_mut().ok_or_else(|| invalid("sample", "nothing was reserved".to_string()))?;
        let sampled = slots.sample_rows(&mut self.threads, &rows);
        self.samples.push_back(sampled);
        Ok(())
    }

    fn collect(&mut self) -> BackendResult<Vec<Sampled>> {
        self.samples.pop_front().ok_or_else(|| invalid("collect", "nothing was sampled".to_string()))
    }
}

fn widen_all<E: Element>(values: &mut Vec<f32>, elements: &[E]) {
    values.extend(elements.iter().map(|element| element.to_f32()));
}

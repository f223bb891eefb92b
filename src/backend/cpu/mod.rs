//! The CPU backend: every operation of the trait on all cores, with the vector instructions that the processor
//! has. Operations finish before they return.
//!
//! Invariant: a row's results do not depend on the other rows of the batch, on how a prompt is cut into chunks,
//! on the block size or on the number of threads, bit for bit. Each operation says how it keeps that.

mod activation;
mod attention;
mod batch;
mod embed;
mod experts;
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
use self::embed::Embed;
use self::experts::MixExperts;
use self::linear::Matrix;
use self::rope::RopeAndWriteKv;
use self::simd::{Element, Isa};
use self::tensor::{Buffer, product};
use self::threads::Threads;
use super::{
    Activate, AttentionShape, Backend, BackendError, BackendLimits, BackendResult, Batch, DType, Delta,
    Embedding, Head, KvLayout, Mixture, Norm, QkvTransform, Sampled, Scoring, SlotState,
};
use crate::error::Result;

/// Widths that [`Backend::workspace_sizes`] plans with, which is asked before a model's widths are known; the
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
    experts_workspace: experts::Workspace,
    /// Hidden rows of the sampled tokens.
    gathered: Buffer,
    samples: VecDeque<Vec<Sampled>>,
    /// Elements of padding behind heads and MLPs; 0 outside of tests.
    padding: [usize; 2],
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
            experts_workspace: experts::Workspace::EMPTY,
            gathered: Buffer::EMPTY,
            samples: VecDeque::new(),
            padding: [0; 2],
        }
    }

    /// The backend with elements of padding behind heads and MLPs.
    #[cfg(test)]
    pub(crate) fn padded(self, head: usize, mlp: usize) -> Cpu {
        Cpu { padding: [head, mlp], ..self }
    }

    /// A backend of one thread for each instruction set that this processor has, the best first.
    #[cfg(test)]
    pub(crate) fn each_instruction_set() -> impl Iterator<Item = Cpu> {
        Isa::supported().into_iter().map(|isa| Self::with_isa(Threads::new(1).unwrap(), isa))
    }

    /// Whether products with bf16 weights round their inputs to bf16 too: some processors multiply such pairs at
    /// twice the rate.
    #[cfg(test)]
    pub(crate) fn rounds_inputs(&self) -> bool {
        self.isa.has_bf16_dot()
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

    fn rows(&mut self, rows: usize, width: usize) -> norm::Rows<'_> {
        norm::Rows { threads: &mut self.threads, isa: self.isa, rows, width }
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

impl Backend for Cpu {
    type Tensor = Tensor;
    type KvCache = KvCache;

    fn activation_dtype(&self, _weights: DType) -> DType {
        DType::F32
    }

    fn stored_head_dim(&self, head_dim: usize) -> usize {
        head_dim + self.padding[0]
    }

    fn stored_width(&self, width: usize) -> usize {
        width + self.padding[1]
    }

    fn available_bytes(&self) -> Option<u64> {
        host_memory::available_bytes()
    }

    fn workspace_sizes(&self, limits: &BackendLimits, _num_kv_blocks: usize) -> Vec<u64> {
        let per_thread = linear::PANEL_BYTES + attention::workspace_bytes(MAX_PLANNED_HEAD_DIM);
        let per_token = size_of::<u32>() + MAX_PLANNED_WIDTH * size_of::<half::bf16>();
        let per_slot = MAX_PLANNED_WIDTH * size_of::<f32>();
        let counted =
            [(self.num_threads(), per_thread), (limits.max_tokens, per_token), (limits.max_slots, per_slot)];
        let slots = SlotTable::workspace_bytes(limits.max_slots, limits.vocab_size, self.num_threads());
        counted.iter().map(|&(count, bytes)| count as u64 * bytes as u64).chain([slots]).collect()
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

    fn fill_rows(
        &mut self,
        tensor: &mut Tensor,
        first_row: usize,
        num_bytes: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        fill(tensor.row_bytes_mut(first_row, num_bytes)?)
    }

    fn read_rows(&mut self, tensor: &Tensor, rows: usize) -> BackendResult<Vec<f32>> {
        tensor.expect_shape("read_rows", "tensor", rows, tensor.columns())?;
        let num_elements = rows * tensor.columns();
        let mut values = Vec::new();
        values.try_reserve_exact(num_elements).map_err(|_| BackendError::HostOutOfMemory {
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

    fn embed(&mut self, embedding: &Embedding<'_, Tensor>, out: &mut Tensor) -> BackendResult<()> {
        let Embedding { table, positions, .. } = *embedding;
        let num_tokens = self.batch.num_tokens();
        out.expect("embed", "out", num_tokens, table.columns())?;
        if num_tokens > 0 && self.batch.max_token as usize >= table.rows() {
            let message = format!("token {} of a table of {} rows", self.batch.max_token, table.rows());
            return Err(invalid("embed", message));
        }
        if let Some(positions) = positions {
            positions.expect_shape("embed", "positions", self.batch.max_context_len, table.columns())?;
            if positions.dtype() != table.dtype() {
                let message = format!("positions are {:?}, the table {:?}", positions.dtype(), table.dtype());
                return Err(invalid("embed", message));
            }
        }
        Embed { batch: &self.batch, embedding, out }.run(&mut self.threads, self.isa);
        Ok(())
    }

    fn add_norm(
        &mut self,
        residual: &mut Tensor,
        deltas: [Option<Delta<'_, Tensor>>; 2],
        norm: &Norm<'_, Tensor>,
        out: &mut Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        const OPERATION: &str = "add_norm";
        let width = residual.columns();
        residual.expect(OPERATION, "residual", rows, width)?;
        out.expect(OPERATION, "out", rows, width)?;
        norm::check_norm(OPERATION, norm, width)?;
        for delta in deltas.iter().flatten() {
            norm::check_delta(OPERATION, delta, rows, width)?;
        }
        self.rows(rows, width).add_norm(residual, deltas, norm, out);
        Ok(())
    }

    fn norm_add(
        &mut self,
        delta: Delta<'_, Tensor>,
        norm: &Norm<'_, Tensor>,
        residual: &mut Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        const OPERATION: &str = "norm_add";
        let width = residual.columns();
        residual.expect(OPERATION, "residual", rows, width)?;
        norm::check_norm(OPERATION, norm, width)?;
        norm::check_delta(OPERATION, &delta, rows, width)?;
        self.rows(rows, width).norm_add(&delta, norm, residual);
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
        let weight = Matrix::all(weight);
        linear::linear(&mut self.threads, self.isa, &mut self.linear_workspace, input, &weight, out)
    }

    fn rope_and_write_kv(
        &mut self,
        qkv: &mut Tensor,
        transform: &QkvTransform<'_, Tensor>,
        shape: &AttentionShape,
        cache: &mut KvCache,
        layer: usize,
    ) -> BackendResult<()> {
        const OPERATION: &str = "rope_and_write_kv";
        shape.check(OPERATION, cache.layout())?;
        self.batch.check_cache(OPERATION, cache, layer)?;
        qkv.expect(OPERATION, "qkv", self.batch.num_tokens(), shape.qkv_width())?;
        rope::check_transform(OPERATION, transform, shape, self.batch.max_context_len)?;
        RopeAndWriteKv { batch: &self.batch, qkv, transform, shape, cache, layer }
            .run(&mut self.threads, self.isa);
        Ok(())
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
        const OPERATION: &str = "attention";
        shape.check(OPERATION, cache.layout())?;
        scoring.check(OPERATION)?;
        self.batch.check_cache(OPERATION, cache, layer)?;
        qkv.expect(OPERATION, "qkv", self.batch.num_tokens(), shape.qkv_width())?;
        out.expect(OPERATION, "out", self.batch.num_tokens(), shape.num_heads * shape.head_dim)?;
        Attention { batch: &self.batch, qkv, shape, scoring, cache, layer, out }.run(
            &mut self.threads,
            self.isa,
            &mut self.attention_workspace,
        )
    }

    fn activate(
        &mut self,
        input: &Tensor,
        activate: &Activate<'_, Tensor>,
        out: &mut Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        const OPERATION: &str = "activate";
        let input_width = activate.gating.input_width(out.columns());
        out.expect(OPERATION, "out", rows, out.columns())?;
        input.expect(OPERATION, "input", rows, input_width)?;
        if let Some(bias) = activate.bias {
            bias.expect(OPERATION, "bias", 1, input_width)?;
        }
        let width = out.columns();
        let rows = activation::Rows {
            input: &input.elements::<f32>()[..rows * input_width],
            bias: activate.bias.map(|bias| &bias.elements::<f32>()[..input_width]),
            gating: activate.gating,
            out: &mut out.elements_mut::<f32>()[..rows * width],
            width,
        };
        rows.activate(&mut self.threads, self.isa, activate.function);
        Ok(())
    }

    fn mix_experts(
        &mut self,
        input: &Tensor,
        products: &Tensor,
        mixture: &Mixture<'_, Tensor>,
        out: &mut Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        const OPERATION: &str = "mix_experts";
        let (hidden, num_experts) = (input.columns(), mixture.num_experts);
        input.expect(OPERATION, "input", rows, hidden)?;
        products.expect(OPERATION, "products", rows, num_experts)?;
        out.expect(OPERATION, "out", rows, hidden)?;
        experts::check(OPERATION, mixture, rows, hidden)?;
        MixExperts {
            input: &input.elements::<f32>()[..rows * hidden],
            products: &products.elements::<f32>()[..rows * num_experts],
            mixture,
            out: &mut out.elements_mut::<f32>()[..rows * hidden],
        }
        .run(&mut self.threads, self.isa, &mut self.linear_workspace, &mut self.experts_workspace)
    }

    fn keep_sampled(&mut self, tensors: &mut [&mut Tensor], _rows: usize) -> BackendResult<usize> {
        let tokens = &mut self.batch.sampled_tokens;
        for tensor in tensors {
            let width = tensor.columns();
            tensor.expect("keep_sampled", "tensor", tokens.last().map_or(0, |token| token + 1), width)?;
            let values = tensor.elements_mut::<f32>();
            // Ascending tokens, so that no row is overwritten before it has moved.
            for (row, &token) in tokens.iter().enumerate() {
                values.copy_within(token * width..(token + 1) * width, row * width);
            }
        }
        tokens.iter_mut().enumerate().for_each(|(row, token)| *token = row);
        Ok(tokens.len())
    }

    fn logits(&mut self, hidden: &Tensor, head: &Head<'_, Tensor>, out: &mut Tensor) -> BackendResult<()> {
        let (rows, weight) = (self.batch.sampled_tokens.len(), head.weight);
        hidden.expect("logits", "hidden", self.batch.num_tokens(), weight.columns())?;
        out.expect("logits", "out", rows, weight.rows())?;
        if let Some(bias) = head.bias {
            bias.expect("logits", "bias", 1, weight.rows())?;
        }
        self.gather_sampled(hidden)?;
        let input = &self.gathered.elements::<f32>()[..rows * weight.columns()];
        let out = &mut out.elements_mut::<f32>()[..rows * weight.rows()];
        let matrix = Matrix::all(weight);
        linear::linear(&mut self.threads, self.isa, &mut self.linear_workspace, input, &matrix, out)?;
        if !head.is_plain() {
            finish_logits(&mut self.threads, head, out);
        }
        Ok(())
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

/// Applies what follows the products, row by row.
fn finish_logits(threads: &mut Threads, head: &Head<'_, Tensor>, logits: &mut [f32]) {
    let width = head.weight.rows();
    let bias = head.bias.map(|bias| &bias.elements::<f32>()[..width]);
    let num_rows = logits.len().checked_div(width).unwrap_or(0);
    let logits = threads::Parts::new(logits);
    threads.run_rows(num_rows, width, |rows| {
        // SAFETY: every row belongs to one task.
        let logits = unsafe { logits.slice(rows.start * width..rows.end * width) };
        for row in logits.chunks_exact_mut(width) {
            if let Some(bias) = bias {
                row.iter_mut().zip(bias).for_each(|(logit, bias)| *logit += bias);
            }
            if head.scale != 1.0 {
                row.iter_mut().for_each(|logit| *logit *= head.scale);
            }
            if let Some(cap) = head.soft_cap {
                row.iter_mut().for_each(|logit| *logit = cap * (*logit / cap).tanh());
            }
        }
    });
}

fn widen_all<E: Element>(values: &mut Vec<f32>, elements: &[E]) {
    values.extend(elements.iter().map(|element| element.to_f32()));
}

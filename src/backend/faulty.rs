//! A backend that wraps another one and fails, delays or corrupts one of its calls, for tests of everything
//! above it.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{
    Activate, AttentionShape, Backend, BackendError, BackendLimits, BackendResult, Batch, DType, Delta,
    Embedding, ExpertLimits, Feature, Head, KvLayout, Mixture, Norm, QkvTransform, Sampled, Scoring,
    SlotState,
};
use crate::error::Result;

/// A call of [`Backend`] that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// [`Backend::reserve`].
    Reserve,
    /// [`Backend::alloc`].
    Alloc,
    /// [`Backend::write_rows`] and [`Backend::fill_rows`].
    WriteRows,
    /// [`Backend::read_rows`].
    ReadRows,
    /// [`Backend::alloc_kv_cache`].
    AllocKvCache,
    /// [`Backend::reset_slot`].
    ResetSlot,
    /// [`Backend::load_batch`].
    LoadBatch,
    /// [`Backend::embed`].
    Embed,
    /// [`Backend::add_norm`].
    AddNorm,
    /// [`Backend::norm_add`].
    NormAdd,
    /// [`Backend::linear`].
    Linear,
    /// [`Backend::rope_and_write_kv`].
    RopeAndWriteKv,
    /// [`Backend::attention`].
    Attention,
    /// [`Backend::keep_sampled`].
    KeepSampled,
    /// [`Backend::activate`].
    Activate,
    /// [`Backend::mix_experts`].
    MixExperts,
    /// [`Backend::logits`].
    Logits,
    /// [`Backend::sample`].
    Sample,
    /// [`Backend::collect`].
    Collect,
}

impl Operation {
    /// Every operation, in the order of the trait.
    pub const ALL: [Operation; 19] = [
        Operation::Reserve,
        Operation::Alloc,
        Operation::WriteRows,
        Operation::ReadRows,
        Operation::AllocKvCache,
        Operation::ResetSlot,
        Operation::LoadBatch,
        Operation::Embed,
        Operation::AddNorm,
        Operation::NormAdd,
        Operation::Linear,
        Operation::RopeAndWriteKv,
        Operation::Attention,
        Operation::KeepSampled,
        Operation::Activate,
        Operation::MixExperts,
        Operation::Logits,
        Operation::Sample,
        Operation::Collect,
    ];

    /// The method's name.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Reserve => "reserve",
            Operation::Alloc => "alloc",
            Operation::WriteRows => "write_rows",
            Operation::ReadRows => "read_rows",
            Operation::AllocKvCache => "alloc_kv_cache",
            Operation::ResetSlot => "reset_slot",
            Operation::LoadBatch => "load_batch",
            Operation::Embed => "embed",
            Operation::AddNorm => "add_norm",
            Operation::NormAdd => "norm_add",
            Operation::Linear => "linear",
            Operation::RopeAndWriteKv => "rope_and_write_kv",
            Operation::Attention => "attention",
            Operation::KeepSampled => "keep_sampled",
            Operation::Activate => "activate",
            Operation::MixExperts => "mix_experts",
            Operation::Logits => "logits",
            Operation::Sample => "sample",
            Operation::Collect => "collect",
        }
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The call fails, and so does every later one, as on a dead device.
    DeviceLost,
    /// The call alone fails.
    OutOfMemory,
    /// The call takes this much longer.
    Delay(Duration),
    /// From the call on, the first [`Backend::logits`] with rows to sample gives NaN for the row of this index,
    /// or for the last where there are not as many.
    CorruptLogits {
        /// Index among the sampled rows.
        row: usize,
    },
    /// The call panics.
    Panic,
}

/// Which call goes wrong, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultPlan {
    /// Number of the call, counted from 1 over the calls that `operation` lets count. 0: none.
    pub at_call: u64,
    /// What happens there.
    pub kind: FaultKind,
    /// Counts the calls of this operation alone; `None`: of all.
    pub operation: Option<Operation>,
}

impl FaultPlan {
    /// Call number `at_call` of all calls.
    pub fn new(at_call: u64, kind: FaultKind) -> Self {
        Self { at_call, kind, operation: None }
    }

    /// No fault: such a backend only counts.
    pub fn none() -> Self {
        Self::new(0, FaultKind::Panic)
    }
}

/// Wraps `B` and carries out a [`FaultPlan`].
#[derive(Debug)]
pub struct Faulty<B: Backend> {
    inner: B,
    plan: FaultPlan,
    num_calls: Arc<AtomicU64>,
    is_lost: bool,
    /// The row that the next logits are to be corrupted in.
    corrupt_row: Option<usize>,
    vocab_size: usize,
    num_sampled: usize,
}

impl<B: Backend> Faulty<B> {
    /// Wraps `inner`.
    pub fn new(inner: B, plan: FaultPlan) -> Self {
        Self {
            inner,
            plan,
            num_calls: Arc::default(),
            is_lost: false,
            corrupt_row: None,
            vocab_size: 0,
            num_sampled: 0,
        }
    }

    /// The counter of the calls that the plan counts, to be read while or after the backend is in use. A run
    /// without a fault says how many calls there are to fail.
    pub fn num_calls(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.num_calls)
    }

    /// Counts a call and lets the planned fault happen.
    fn enter(&mut self, operation: Operation) -> BackendResult<()> {
        let counts = self.plan.operation.is_none_or(|only| only == operation);
        let is_planned = counts && self.num_calls.fetch_add(1, Ordering::Relaxed) + 1 == self.plan.at_call;
        if is_planned {
            match self.plan.kind {
                FaultKind::DeviceLost => self.is_lost = true,
                FaultKind::OutOfMemory => {
                    let what = format!("injected fault in {}", operation.name());
                    return Err(BackendError::OutOfMemory { what, bytes: u64::MAX });
                }
                FaultKind::Delay(duration) => std::thread::sleep(duration),
                FaultKind::CorruptLogits { row } => self.corrupt_row = Some(row),
                FaultKind::Panic => panic!("injected panic in {}", operation.name()),
            }
        }
        if self.is_lost {
            let message = "injected fault".to_owned();
            return Err(BackendError::DeviceLost { operation: operation.name(), message });
        }
        Ok(())
    }
}

impl<B: Backend> Backend for Faulty<B> {
    type Tensor = B::Tensor;
    type KvCache = B::KvCache;

    fn activation_dtype(&self, weights: DType) -> DType {
        self.inner.activation_dtype(weights)
    }

    fn supports(&self, feature: Feature) -> bool {
        self.inner.supports(feature)
    }

    fn stored_head_dim(&self, head_dim: usize) -> usize {
        self.inner.stored_head_dim(head_dim)
    }

    fn stored_width(&self, width: usize) -> usize {
        self.inner.stored_width(width)
    }

    fn available_bytes(&self) -> Option<u64> {
        self.inner.available_bytes()
    }

    fn token_quantum(&self, width: usize) -> usize {
        self.inner.token_quantum(width)
    }

    fn allocated_bytes(&self, sizes: &[u64]) -> Option<u64> {
        self.inner.allocated_bytes(sizes)
    }

    fn workspace_sizes(&self, limits: &BackendLimits, num_kv_blocks: usize) -> Vec<u64> {
        self.inner.workspace_sizes(limits, num_kv_blocks)
    }

    fn num_unrecorded(&self) -> usize {
        self.inner.num_unrecorded()
    }

    fn reserve(&mut self, limits: &BackendLimits) -> BackendResult<()> {
        self.enter(Operation::Reserve)?;
        self.vocab_size = limits.vocab_size;
        self.inner.reserve(limits)
    }

    fn expert_workspace_bytes(&self, limits: &ExpertLimits) -> u64 {
        self.inner.expert_workspace_bytes(limits)
    }

    fn reserve_experts(&mut self, limits: &ExpertLimits) -> BackendResult<()> {
        self.enter(Operation::Reserve)?;
        self.inner.reserve_experts(limits)
    }

    fn alloc(&mut self, dtype: DType, rows: usize, columns: usize) -> BackendResult<Self::Tensor> {
        self.enter(Operation::Alloc)?;
        self.inner.alloc(dtype, rows, columns)
    }

    fn write_rows(&mut self, tensor: &mut Self::Tensor, first_row: usize, bytes: &[u8]) -> BackendResult<()> {
        self.enter(Operation::WriteRows)?;
        self.inner.write_rows(tensor, first_row, bytes)
    }

    fn fill_rows(
        &mut self,
        tensor: &mut Self::Tensor,
        first_row: usize,
        num_bytes: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        self.enter(Operation::WriteRows)?;
        self.inner.fill_rows(tensor, first_row, num_bytes, fill)
    }

    fn read_rows(&mut self, tensor: &Self::Tensor, rows: usize) -> BackendResult<Vec<f32>> {
        self.enter(Operation::ReadRows)?;
        self.inner.read_rows(tensor, rows)
    }

    fn alloc_kv_cache(&mut self, layout: &KvLayout) -> BackendResult<Self::KvCache> {
        self.enter(Operation::AllocKvCache)?;
        self.inner.alloc_kv_cache(layout)
    }

    fn reset_slot(&mut self, slot: u32, state: &SlotState) -> BackendResult<()> {
        self.enter(Operation::ResetSlot)?;
        self.inner.reset_slot(slot, state)
    }

    fn load_batch(&mut self, batch: &Batch) -> BackendResult<()> {
        self.enter(Operation::LoadBatch)?;
        self.num_sampled = batch.num_sampled();
        self.inner.load_batch(batch)
    }

    fn embed(
        &mut self,
        embedding: &Embedding<'_, Self::Tensor>,
        out: &mut Self::Tensor,
    ) -> BackendResult<()> {
        self.enter(Operation::Embed)?;
        self.inner.embed(embedding, out)
    }

    fn add_norm(
        &mut self,
        residual: &mut Self::Tensor,
        deltas: [Option<Delta<'_, Self::Tensor>>; 2],
        norm: &Norm<'_, Self::Tensor>,
        out: &mut Self::Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        self.enter(Operation::AddNorm)?;
        self.inner.add_norm(residual, deltas, norm, out, rows)
    }

    fn norm_add(
        &mut self,
        delta: Delta<'_, Self::Tensor>,
        norm: &Norm<'_, Self::Tensor>,
        residual: &mut Self::Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        self.enter(Operation::NormAdd)?;
        self.inner.norm_add(delta, norm, residual, rows)
    }

    fn linear(
        &mut self,
        input: &Self::Tensor,
        weight: &Self::Tensor,
        out: &mut Self::Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        self.enter(Operation::Linear)?;
        self.inner.linear(input, weight, out, rows)
    }

    fn rope_and_write_kv(
        &mut self,
        qkv: &mut Self::Tensor,
        transform: &QkvTransform<'_, Self::Tensor>,
        shape: &AttentionShape,
        cache: &mut Self::KvCache,
        layer: usize,
    ) -> BackendResult<()> {
        self.enter(Operation::RopeAndWriteKv)?;
        self.inner.rope_and_write_kv(qkv, transform, shape, cache, layer)
    }

    fn attention(
        &mut self,
        qkv: &Self::Tensor,
        shape: &AttentionShape,
        scoring: &Scoring,
        cache: &Self::KvCache,
        layer: usize,
        out: &mut Self::Tensor,
    ) -> BackendResult<()> {
        self.enter(Operation::Attention)?;
        self.inner.attention(qkv, shape, scoring, cache, layer, out)
    }

    fn keep_sampled(&mut self, tensors: &mut [&mut Self::Tensor], rows: usize) -> BackendResult<usize> {
        self.enter(Operation::KeepSampled)?;
        self.inner.keep_sampled(tensors, rows)
    }

    fn activate(
        &mut self,
        input: &Self::Tensor,
        activate: &Activate<'_, Self::Tensor>,
        out: &mut Self::Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        self.enter(Operation::Activate)?;
        self.inner.activate(input, activate, out, rows)
    }

    fn mix_experts(
        &mut self,
        input: &Self::Tensor,
        products: &Self::Tensor,
        mixture: &Mixture<'_, Self::Tensor>,
        out: &mut Self::Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        self.enter(Operation::MixExperts)?;
        self.inner.mix_experts(input, products, mixture, out, rows)
    }

    fn logits(
        &mut self,
        hidden: &Self::Tensor,
        head: &Head<'_, Self::Tensor>,
        out: &mut Self::Tensor,
    ) -> BackendResult<()> {
        self.enter(Operation::Logits)?;
        self.inner.logits(hidden, head, out)?;
        let Some(row) = self.corrupt_row.take_if(|_| self.num_sampled > 0) else {
            return Ok(());
        };
        let nans = f32::NAN.to_le_bytes().repeat(self.vocab_size);
        self.inner.write_rows(out, row.min(self.num_sampled - 1), &nans)
    }

    fn sample(&mut self, logits: &Self::Tensor) -> BackendResult<()> {
        self.enter(Operation::Sample)?;
        self.inner.sample(logits)
    }

    fn collect(&mut self) -> BackendResult<Vec<Sampled>> {
        self.enter(Operation::Collect)?;
        self.inner.collect()
    }
}

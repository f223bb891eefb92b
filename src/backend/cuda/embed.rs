//! Embedding rows, and the gathering of sampled rows (`kernels/embed.cu`).

use super::batch::StepState;
use super::driver::{DevicePtr, Gpu, Kernel, Launch, Params};
use super::modules::Modules;
use super::tensor::{Checker, Tensor, VECTOR_ELEMENTS, to_u32};
use crate::backend::BackendResult;

const THREADS: u32 = 256;

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct EmbedParams {
    header: DevicePtr,
    tokens: DevicePtr,
    table: DevicePtr,
    out: DevicePtr,
    vectors: u32,
    vocab_size: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct GatherSampledParams {
    header: DevicePtr,
    query_starts: DevicePtr,
    sampled_rows: DevicePtr,
    hidden: DevicePtr,
    out: DevicePtr,
    vectors: u32,
    first_sampled: u32,
}

const _: () = assert!(size_of::<EmbedParams>() == 40 && size_of::<GatherSampledParams>() == 48);

// SAFETY: `repr(C)`, mirrors EmbedParams in embed.cu.
unsafe impl Params for EmbedParams {}
// SAFETY: `repr(C)`, mirrors GatherSampledParams in embed.cu.
unsafe impl Params for GatherSampledParams {}

pub(super) struct Embed {
    embed: Kernel<EmbedParams>,
    gather_sampled: Kernel<GatherSampledParams>,
}

impl Embed {
    pub(super) fn new(gpu: &Gpu, modules: &Modules) -> BackendResult<Embed> {
        Ok(Embed {
            embed: modules.kernel(gpu, "embed", "embed")?,
            gather_sampled: modules.kernel(gpu, "embed", "gather_sampled")?,
        })
    }

    /// See [`crate::backend::Backend::embed`].
    pub(super) fn embed(
        &self,
        gpu: &Gpu,
        check: Checker,
        step: &StepState,
        table: &Tensor,
        out: &mut Tensor,
    ) -> BackendResult<()> {
        let num_tokens = step.batch.launch.tokens;
        check.tensor("out", out, table.dtype(), num_tokens, table.columns())?;
        check.tensor("table", table, out.dtype(), step.limits().vocab_size, table.columns())?;
        check.vectors("table", table)?;
        let params = EmbedParams {
            header: step.arrays.header,
            tokens: step.resolved_tokens,
            table: table.data,
            out: out.data,
            vectors: to_u32(check.operation, table.columns() / VECTOR_ELEMENTS)?,
            vocab_size: to_u32(check.operation, table.rows())?,
        };
        gpu.launch(check.operation, &self.embed, Launch::overlapping(num_tokens as u32, THREADS), &params)
    }

    /// Copies the hidden rows of `count` sampled rows from `first` on to `out`, which has room for them.
    pub(super) fn gather_sampled(
        &self,
        gpu: &Gpu,
        step: &StepState,
        hidden: &Tensor,
        out: DevicePtr,
        (first, count): (usize, usize),
    ) -> BackendResult<()> {
        let params = GatherSampledParams {
            header: step.arrays.header,
            query_starts: step.arrays.query_starts,
            sampled_rows: step.sampled_rows,
            hidden: hidden.data,
            out,
            vectors: to_u32("logits", hidden.columns() / VECTOR_ELEMENTS)?,
            first_sampled: first as u32,
        };
        gpu.launch("logits", &self.gather_sampled, Launch::overlapping(count as u32, THREADS), &params)
    }
}

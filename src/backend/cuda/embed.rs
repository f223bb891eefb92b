//! Embedding, the gathering of sampled rows, and what follows the head's products (`kernels/embed.cu`).

use super::batch::StepState;
use super::driver::{DevicePtr, Gpu, Kernel, Launch, Params};
use super::modules::{Modules, PerDType};
use super::tensor::{Checker, Tensor, VECTOR_ELEMENTS, to_u32};
use crate::backend::{BackendResult, Embedding, Head};

const THREADS: u32 = 256;
/// Largest second dimension of a grid; threads stride over more rows.
const MAX_GRID_ROWS: usize = 65_535;

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct EmbedParams {
    header: DevicePtr,
    tokens: DevicePtr,
    positions: DevicePtr,
    table: DevicePtr,
    position_table: DevicePtr,
    out: DevicePtr,
    vectors: u32,
    vocab_size: u32,
    scale: f32,
    reserved: u32,
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

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct FinishLogitsParams {
    bias: DevicePtr,
    logits: DevicePtr,
    vocab_size: u32,
    rows: u32,
    scale: f32,
    soft_cap: f32,
}

const _: () = assert!(size_of::<EmbedParams>() == 64 && size_of::<GatherSampledParams>() == 48);
const _: () = assert!(size_of::<FinishLogitsParams>() == 32);

// SAFETY: `repr(C)`, mirrors EmbedParams in embed.cu.
unsafe impl Params for EmbedParams {}
// SAFETY: `repr(C)`, mirrors FinishLogitsParams in embed.cu.
unsafe impl Params for FinishLogitsParams {}
// SAFETY: `repr(C)`, mirrors GatherSampledParams in embed.cu.
unsafe impl Params for GatherSampledParams {}

pub(super) struct Embed {
    embed: PerDType<Kernel<EmbedParams>>,
    gather_sampled: Kernel<GatherSampledParams>,
    finish_logits: Kernel<FinishLogitsParams>,
}

impl Embed {
    pub(super) fn new(gpu: &Gpu, modules: &Modules) -> BackendResult<Embed> {
        Ok(Embed {
            embed: PerDType::try_new(|dtype| modules.kernel(gpu, "embed", &format!("embed_{dtype}")))?,
            gather_sampled: modules.kernel(gpu, "embed", "gather_sampled")?,
            finish_logits: modules.kernel(gpu, "embed", "finish_logits")?,
        })
    }

    /// See [`crate::backend::Backend::embed`].
    pub(super) fn embed(
        &self,
        gpu: &Gpu,
        check: Checker,
        step: &StepState,
        embedding: &Embedding<'_, Tensor>,
        out: &mut Tensor,
    ) -> BackendResult<()> {
        let Embedding { table, scale, positions } = *embedding;
        let num_tokens = step.batch.launch.tokens;
        check.tensor("out", out, table.dtype(), num_tokens, table.columns())?;
        check.tensor("table", table, out.dtype(), step.limits().vocab_size, table.columns())?;
        check.vectors("table", table)?;
        if let Some(positions) = positions {
            let num_positions = step.batch.max_context_len;
            check.tensor("positions", positions, table.dtype(), num_positions, table.columns())?;
        }
        let params = EmbedParams {
            header: step.arrays.header,
            tokens: step.resolved_tokens,
            positions: step.positions,
            table: table.data,
            position_table: positions.map_or(0, |positions| positions.data),
            out: out.data,
            vectors: to_u32(check.operation, table.columns() / VECTOR_ELEMENTS)?,
            vocab_size: to_u32(check.operation, table.rows())?,
            scale,
            reserved: 0,
        };
        gpu.launch(
            check.operation,
            self.embed.get(table.dtype()),
            Launch::overlapping(num_tokens as u32, THREADS),
            &params,
        )
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

    /// Applies what follows the products of `head` to `rows` rows of logits.
    pub(super) fn finish_logits(
        &self,
        gpu: &Gpu,
        check: Checker,
        head: &Head<'_, Tensor>,
        logits: &mut Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        let vocab_size = to_u32(check.operation, logits.columns())?;
        let params = FinishLogitsParams {
            bias: check.optional_row("bias", head.bias, logits.columns())?,
            logits: logits.data,
            vocab_size,
            rows: to_u32(check.operation, rows)?,
            scale: head.scale,
            soft_cap: head.soft_cap.unwrap_or(0.0),
        };
        let grid = [vocab_size.div_ceil(THREADS), rows.min(MAX_GRID_ROWS) as u32, 1];
        let launch = Launch { grid, threads: THREADS, shared_bytes: 0, overlaps: true };
        gpu.launch(check.operation, &self.finish_logits, launch, &params)
    }
}

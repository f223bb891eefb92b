//! What a step does for its sampled rows alone: bringing them together, and their logits.

use super::batch::LaunchSizes;
use super::cublas::{Operands, ProductShape};
use super::driver::Gpu;
use super::embed::Embed;
use super::tensor::{Checker, Tensor};
use super::{Kernels, Reserved, SCRATCH_BYTES};
use crate::backend::{BackendResult, DType, Head};

impl Kernels {
    /// See [`crate::backend::Backend::keep_sampled`].
    pub(super) fn keep_sampled(
        &self,
        gpu: &Gpu,
        check: Checker,
        reserved: &mut Reserved,
        tensors: &mut [&mut Tensor],
        rows: usize,
    ) -> BackendResult<usize> {
        let batch = &reserved.step.batch;
        if batch.is_all_sampled {
            return Ok(rows);
        }
        let LaunchSizes { tokens, sampled, .. } = batch.launch;
        for tensor in tensors {
            check.vectors("tensor", tensor)?;
            check.tensor("tensor", tensor, tensor.dtype(), tokens, tensor.columns())?;
            let row_bytes = tensor.row_bytes();
            // By way of other memory, since rows move all at once; later ones come from behind those that they replace.
            gather(&self.embed, gpu, check, reserved, tensor, |first, count| {
                gpu.copy(tensor.row(first), reserved.scratch, (count * row_bytes) as u64)
            })?;
        }
        let batch = &mut reserved.step.batch;
        batch.is_all_sampled = true;
        batch.launch.tokens = sampled;
        Ok(sampled)
    }

    /// See [`crate::backend::Backend::logits`].
    pub(super) fn logits(
        &mut self,
        gpu: &Gpu,
        check: Checker,
        reserved: &Reserved,
        hidden: &Tensor,
        (head, out): (&Head<'_, Tensor>, &mut Tensor),
    ) -> BackendResult<()> {
        let batch = &reserved.step.batch;
        let num_sampled = batch.launch.sampled;
        let weight = head.weight;
        check.vectors("head", weight)?;
        check.tensor("head", weight, hidden.dtype(), 0, hidden.columns())?;
        check.tensor("hidden", hidden, weight.dtype(), batch.launch.tokens, weight.columns())?;
        check.tensor("out", out, DType::F32, num_sampled, weight.rows())?;
        let shape = |rows: usize| ProductShape {
            rows,
            out_features: weight.rows(),
            in_features: weight.columns(),
            dtype: weight.dtype(),
            out_dtype: DType::F32,
        };
        if batch.is_all_sampled {
            let operands = Operands { input: hidden.data, weight: weight.data, out: out.data };
            self.linear.run(gpu, check, shape(num_sampled), operands)?;
        } else {
            let Kernels { embed, linear, .. } = self;
            gather(embed, gpu, check, reserved, hidden, |first, rows| {
                let operands = Operands { input: reserved.scratch, weight: weight.data, out: out.row(first) };
                linear.run(gpu, check, shape(rows), operands)
            })?;
        }
        match head.is_plain() {
            true => Ok(()),
            false => self.embed.finish_logits(gpu, check, head, out, num_sampled),
        }
    }
}

/// Copies the sampled rows' last tokens from `source` to the scratch memory, as many at a time as it holds, and hands
/// each part on: its first sampled row, and how many.
fn gather(
    embed: &Embed,
    gpu: &Gpu,
    check: Checker,
    reserved: &Reserved,
    source: &Tensor,
    mut take: impl FnMut(usize, usize) -> BackendResult<()>,
) -> BackendResult<()> {
    let num_sampled = reserved.step.batch.launch.sampled;
    let rows_max = SCRATCH_BYTES as usize / source.row_bytes();
    check.require(rows_max > 0, || format!("a row of {} is too wide", source.columns()))?;
    for first in (0..num_sampled).step_by(rows_max) {
        let count = rows_max.min(num_sampled - first);
        embed.gather_sampled(gpu, &reserved.step, source, reserved.scratch, (first, count))?;
        take(first, count)?;
    }
    Ok(())
}

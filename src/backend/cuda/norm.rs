//! Residual addition and RMS norm (`kernels/norm.cu`).

use super::driver::{DevicePtr, Gpu, Kernel, Launch, Params};
use super::modules::{Modules, PerDType};
use super::tensor::{Checker, Tensor, VECTOR_ELEMENTS, to_u32};
use crate::backend::{BackendResult, DType};

const MAX_THREADS: usize = 1024;
/// Vectors per thread of the kernel for wide rows.
const WIDE_VECTORS: usize = 4;

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct AddRmsNormParams {
    residual: DevicePtr,
    delta: DevicePtr,
    weight: DevicePtr,
    out: DevicePtr,
    vectors: u32,
    epsilon: f32,
}

const _: () = assert!(size_of::<AddRmsNormParams>() == 40);

// SAFETY: `repr(C)`, mirrors AddRmsNormParams in norm.cu.
unsafe impl Params for AddRmsNormParams {}

/// Arguments of one call.
pub(super) struct AddRmsNorm<'a> {
    pub(super) residual: &'a mut Tensor,
    pub(super) delta: Option<&'a Tensor>,
    pub(super) weight: &'a Tensor,
    pub(super) epsilon: f32,
    pub(super) out: &'a mut Tensor,
    pub(super) rows: usize,
}

pub(super) struct Norm {
    narrow: PerDType<Kernel<AddRmsNormParams>>,
    wide: PerDType<Kernel<AddRmsNormParams>>,
}

impl Norm {
    pub(super) fn new(gpu: &Gpu, modules: &Modules) -> BackendResult<Norm> {
        let kernels = |vectors: usize| {
            PerDType::try_new(|dtype| modules.kernel(gpu, "norm", &format!("add_rms_norm_{dtype}_{vectors}")))
        };
        Ok(Norm { narrow: kernels(1)?, wide: kernels(WIDE_VECTORS)? })
    }

    /// See [`crate::backend::Backend::add_rms_norm`].
    pub(super) fn run(&self, gpu: &Gpu, check: Checker, arguments: AddRmsNorm<'_>) -> BackendResult<()> {
        let AddRmsNorm { residual, delta, weight, epsilon, out, rows } = arguments;
        let (dtype, width) = (residual.dtype(), residual.columns());
        check.vectors("residual", residual)?;
        check.tensor("residual", residual, dtype, rows, width)?;
        check.tensor("out", out, dtype, rows, width)?;
        check.tensor("weight", weight, DType::F32, 1, width)?;
        if let Some(delta) = delta {
            check.tensor("delta", delta, dtype, rows, width)?;
        }
        let vectors = width / VECTOR_ELEMENTS;
        let per_thread = if vectors <= MAX_THREADS { 1 } else { WIDE_VECTORS };
        check.require(vectors <= MAX_THREADS * WIDE_VECTORS, || format!("rows of {width} are too wide"))?;
        let kernels = if per_thread == 1 { &self.narrow } else { &self.wide };
        let params = AddRmsNormParams {
            residual: residual.data,
            delta: delta.map_or(0, |delta| delta.data),
            weight: weight.data,
            out: out.data,
            vectors: vectors as u32,
            epsilon,
        };
        let threads = vectors.div_ceil(per_thread).next_multiple_of(32) as u32;
        let launch = Launch::overlapping(to_u32(check.operation, rows)?, threads);
        gpu.launch(check.operation, kernels.get(dtype), launch, &params)
    }
}

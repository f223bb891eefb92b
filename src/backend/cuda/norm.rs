//! Addition to the residual, and norms (`kernels/norm.cu`).

use super::driver::{DevicePtr, Gpu, Kernel, Launch, Params};
use super::modules::{Modules, PerDType};
use super::tensor::{Checker, Tensor, VECTOR_ELEMENTS, to_u32};
use crate::backend::{BackendResult, DType, Delta, Norm, NormKind};

const MAX_THREADS: usize = 1024;
/// Vectors per thread of the kernel for wide rows.
const WIDE_VECTORS: usize = 4;
/// Elements of the widest row.
pub(super) const WIDTH_MAX: usize = MAX_THREADS * WIDE_VECTORS * VECTOR_ELEMENTS;

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct NormParams {
    residual: DevicePtr,
    deltas: [DevicePtr; 2],
    delta_biases: [DevicePtr; 2],
    weight: DevicePtr,
    bias: DevicePtr,
    out: DevicePtr,
    vectors: u32,
    epsilon: f32,
}

const _: () = assert!(size_of::<NormParams>() == 72);

// SAFETY: `repr(C)`, mirrors NormParams in norm.cu.
unsafe impl Params for NormParams {}

/// Kernels of one operation and kind.
struct Widths {
    narrow: PerDType<Kernel<NormParams>>,
    wide: PerDType<Kernel<NormParams>>,
}

/// Kernels of one operation.
struct Kinds {
    rms: Widths,
    layer: Widths,
}

impl Kinds {
    fn new(gpu: &Gpu, modules: &Modules, operation: &str) -> BackendResult<Kinds> {
        let kernels = |kind: &str, vectors: usize| {
            PerDType::try_new(|dtype| {
                modules.kernel(gpu, "norm", &format!("{operation}_{kind}_{dtype}_{vectors}"))
            })
        };
        let widths = |kind| Ok(Widths { narrow: kernels(kind, 1)?, wide: kernels(kind, WIDE_VECTORS)? });
        Ok(Kinds { rms: widths("rms")?, layer: widths("layer")? })
    }

    /// The kernel for rows of `vectors` vectors, and its threads.
    fn kernel(&self, kind: NormKind, dtype: DType, vectors: usize) -> (&Kernel<NormParams>, u32) {
        let widths = match kind {
            NormKind::Rms => &self.rms,
            NormKind::Layer => &self.layer,
        };
        let (kernels, per_thread) = match vectors <= MAX_THREADS {
            true => (&widths.narrow, 1),
            false => (&widths.wide, WIDE_VECTORS),
        };
        (kernels.get(dtype), vectors.div_ceil(per_thread).next_multiple_of(32) as u32)
    }
}

pub(super) struct Norms {
    add_norm: Kinds,
    norm_add: Kinds,
}

impl Norms {
    pub(super) fn new(gpu: &Gpu, modules: &Modules) -> BackendResult<Norms> {
        let kinds = |operation| Kinds::new(gpu, modules, operation);
        Ok(Norms { add_norm: kinds("add_norm")?, norm_add: kinds("norm_add")? })
    }

    /// See [`crate::backend::Backend::add_norm`].
    pub(super) fn add_norm(
        &self,
        gpu: &Gpu,
        check: Checker,
        (residual, out): (&mut Tensor, &mut Tensor),
        deltas: [Option<Delta<'_, Tensor>>; 2],
        norm: &Norm<'_, Tensor>,
        rows: usize,
    ) -> BackendResult<()> {
        check.tensor("out", out, residual.dtype(), rows, residual.columns())?;
        let params = NormParams { out: out.data, ..params(check, residual, deltas, norm, rows)? };
        launch(gpu, check, &self.add_norm, norm.kind, (residual, rows), &params)
    }

    /// See [`crate::backend::Backend::norm_add`].
    pub(super) fn norm_add(
        &self,
        gpu: &Gpu,
        check: Checker,
        delta: Delta<'_, Tensor>,
        norm: &Norm<'_, Tensor>,
        residual: &mut Tensor,
        rows: usize,
    ) -> BackendResult<()> {
        let params = params(check, residual, [Some(delta), None], norm, rows)?;
        launch(gpu, check, &self.norm_add, norm.kind, (residual, rows), &params)
    }
}

/// The parameters without `out`, after their checks.
fn params(
    check: Checker,
    residual: &Tensor,
    deltas: [Option<Delta<'_, Tensor>>; 2],
    norm: &Norm<'_, Tensor>,
    rows: usize,
) -> BackendResult<NormParams> {
    let (dtype, width) = (residual.dtype(), residual.columns());
    check.vectors("residual", residual)?;
    check.tensor("residual", residual, dtype, rows, width)?;
    check.tensor("weight", norm.weight, DType::F32, 1, width)?;
    for delta in deltas.iter().flatten() {
        check.tensor("delta", delta.values, dtype, rows, width)?;
    }
    let vectors = width / VECTOR_ELEMENTS;
    check.require(width <= WIDTH_MAX, || format!("rows of {width} are too wide"))?;
    let bias = |name: &str, bias: Option<&Tensor>| check.optional_row(name, bias, width);
    Ok(NormParams {
        residual: residual.data,
        deltas: deltas.map(|delta| delta.map_or(0, |delta| delta.values.data)),
        delta_biases: [
            bias("bias of the first delta", deltas[0].and_then(|delta| delta.bias))?,
            bias("bias of the second delta", deltas[1].and_then(|delta| delta.bias))?,
        ],
        weight: norm.weight.data,
        bias: bias("bias", norm.bias)?,
        out: 0,
        vectors: vectors as u32,
        epsilon: norm.epsilon,
    })
}

fn launch(
    gpu: &Gpu,
    check: Checker,
    kinds: &Kinds,
    kind: NormKind,
    (residual, rows): (&Tensor, usize),
    params: &NormParams,
) -> BackendResult<()> {
    let (kernel, threads) = kinds.kernel(kind, residual.dtype(), params.vectors as usize);
    gpu.launch(check.operation, kernel, Launch::overlapping(to_u32(check.operation, rows)?, threads), params)
}

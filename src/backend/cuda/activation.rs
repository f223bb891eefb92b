//! Gated activation (`kernels/activation.cu`).

use super::driver::{DevicePtr, Gpu, Kernel, Launch, Params};
use super::modules::{Modules, PerDType};
use super::tensor::{Checker, Tensor, VECTOR_ELEMENTS, to_u32};
use crate::backend::{Activation, BackendResult};

const THREADS: u32 = 256;
/// Largest second dimension of a grid; threads stride over more rows.
const MAX_GRID_ROWS: usize = 65_535;

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct GatedActivationParams {
    gate_up: DevicePtr,
    out: DevicePtr,
    vectors: u32,
    rows: u32,
}

const _: () = assert!(size_of::<GatedActivationParams>() == 24);

// SAFETY: `repr(C)`, mirrors GatedActivationParams in activation.cu.
unsafe impl Params for GatedActivationParams {}

pub(super) struct GatedActivation {
    silu: PerDType<Kernel<GatedActivationParams>>,
}

impl GatedActivation {
    pub(super) fn new(gpu: &Gpu, modules: &Modules) -> BackendResult<GatedActivation> {
        let silu =
            PerDType::try_new(|dtype| modules.kernel(gpu, "activation", &format!("gated_silu_{dtype}")))?;
        Ok(GatedActivation { silu })
    }

    /// See [`crate::backend::Backend::gated_activation`].
    pub(super) fn run(
        &self,
        gpu: &Gpu,
        check: Checker,
        activation: Activation,
        (gate_up, out): (&Tensor, &mut Tensor),
        rows: usize,
    ) -> BackendResult<()> {
        check.vectors("out", out)?;
        check.tensor("out", out, gate_up.dtype(), rows, out.columns())?;
        check.tensor("gate_up", gate_up, out.dtype(), rows, out.columns().saturating_mul(2))?;
        let kernels = match activation {
            Activation::Silu => &self.silu,
        };
        let vectors = to_u32(check.operation, out.columns() / VECTOR_ELEMENTS)?;
        let params = GatedActivationParams {
            gate_up: gate_up.data,
            out: out.data,
            vectors,
            rows: to_u32(check.operation, rows)?,
        };
        let grid = [vectors.div_ceil(THREADS), rows.min(MAX_GRID_ROWS) as u32, 1];
        let launch = Launch { grid, threads: THREADS, shared_bytes: 0, overlaps: true };
        gpu.launch(check.operation, kernels.get(out.dtype()), launch, &params)
    }
}

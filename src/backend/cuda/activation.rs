//! Activations (`kernels/activation.cu`).

use super::Kernels;
use super::cublas::{Operands, ProductShape};
use super::driver::{DevicePtr, Gpu, Kernel, Launch, Params};
use super::linear::{self, FusedActivation};
use super::modules::{Modules, PerDType};
use super::tensor::{Checker, Tensor, VECTOR_ELEMENTS, to_u32};
use crate::backend::{Activate, Activation, BackendResult, Gating};

const THREADS: u32 = 256;
/// Largest second dimension of a grid; threads stride over more rows.
const MAX_GRID_ROWS: usize = 65_535;

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct ActivationParams {
    input: DevicePtr,
    bias: DevicePtr,
    out: DevicePtr,
    vectors: u32,
    rows: u32,
}

const _: () = assert!(size_of::<ActivationParams>() == 32);

// SAFETY: `repr(C)`, mirrors ActivationParams in activation.cu.
unsafe impl Params for ActivationParams {}

/// Kernels of one function.
struct FunctionKernels {
    function: Activation,
    gated: PerDType<Kernel<ActivationParams>>,
    plain: PerDType<Kernel<ActivationParams>>,
}

pub(super) struct Activations {
    functions: Vec<FunctionKernels>,
}

impl Activations {
    pub(super) fn new(gpu: &Gpu, modules: &Modules) -> BackendResult<Activations> {
        let kernels = |function: Activation, gating: &str| {
            PerDType::try_new(|dtype| {
                modules.kernel(gpu, "activation", &format!("{}_{gating}_{dtype}", function.name()))
            })
        };
        let functions = Activation::ALL.into_iter().map(|function| {
            let (gated, plain) = (kernels(function, "gated")?, kernels(function, "plain")?);
            Ok(FunctionKernels { function, gated, plain })
        });
        Ok(Activations { functions: functions.collect::<BackendResult<_>>()? })
    }

    /// See [`crate::backend::Backend::activate`].
    pub(super) fn run(
        &self,
        gpu: &Gpu,
        check: Checker,
        activate: &Activate<'_, Tensor>,
        (input, out): (&Tensor, &mut Tensor),
        rows: usize,
    ) -> BackendResult<()> {
        let input_width = activate.gating.input_width(out.columns());
        check.vectors("out", out)?;
        check.tensor("out", out, input.dtype(), rows, out.columns())?;
        check.tensor("input", input, out.dtype(), rows, input_width)?;
        let Some(kernels) = self.functions.iter().find(|kernels| kernels.function == activate.function)
        else {
            return check.fail(format!("{:?} has no kernel", activate.function));
        };
        let kernels = match activate.gating {
            Gating::Gated => &kernels.gated,
            Gating::Plain => &kernels.plain,
        };
        let vectors = to_u32(check.operation, out.columns() / VECTOR_ELEMENTS)?;
        let params = ActivationParams {
            input: input.data,
            bias: check.optional_row("bias", activate.bias, input_width)?,
            out: out.data,
            vectors,
            rows: to_u32(check.operation, rows)?,
        };
        let grid = [vectors.div_ceil(THREADS), rows.min(MAX_GRID_ROWS) as u32, 1];
        let launch = Launch { grid, threads: THREADS, shared_bytes: 0, overlaps: true };
        gpu.launch(check.operation, kernels.get(out.dtype()), launch, &params)
    }
}

impl Kernels {
    /// See [`crate::backend::Backend::linear_activate`].
    pub(super) fn linear_activate(
        &mut self,
        gpu: &Gpu,
        check: Checker,
        (input, weight): (&Tensor, &Tensor),
        activate: &Activate<'_, Tensor>,
        (projected, out): (&mut Tensor, &mut Tensor),
        rows: usize,
    ) -> BackendResult<()> {
        let width = activate.gating.input_width(out.columns());
        check.vectors("out", out)?;
        check.tensor("projected", projected, weight.dtype(), rows, width)?;
        let (shape, operands) = linear::product(check, (input, weight, out), rows, width)?;
        let bias = check.optional_row("bias", activate.bias, width)?;
        let Activate { function, gating, .. } = *activate;
        let activation = FusedActivation { function, gating, bias };
        let Kernels { linear, activations, .. } = self;
        linear.run_activated(gpu, check, (shape, operands), activation, &mut |gpu, cublas| {
            let projecting = ProductShape { out_features: width, ..shape };
            cublas.multiply(gpu, projecting, Operands { out: projected.data, ..operands })?;
            activations.run(gpu, check, activate, (projected, out), rows)
        })
    }
}

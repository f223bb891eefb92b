//! Matrix products: own kernels for few rows (`kernels/linear.cu`), which also apply activations, and cuBLASLt for
//! many.

use super::cublas::{CublasLt, Operands, ProductShape};
use super::driver::{DevicePtr, Gpu, Kernel, Launch, Params};
use super::modules::{Modules, PerDType};
use super::tensor::{Checker, to_u32};
use crate::backend::{Activation, BackendResult, DType, Gating};

/// Most rows that the own kernels take.
pub(super) const MAX_SKINNY_ROWS: usize = 16;
const THREADS: u32 = 256;

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct SkinnyLinearParams {
    input: DevicePtr,
    weight: DevicePtr,
    out: DevicePtr,
    rows: u32,
    in_features: u32,
    out_features: u32,
    function: u32,
    bias: DevicePtr,
}

const _: () = assert!(size_of::<SkinnyLinearParams>() == 48);

// SAFETY: `repr(C)`, mirrors SkinnyLinearParams in linear.cu.
unsafe impl Params for SkinnyLinearParams {}

/// Kernels for up to `max_rows` rows whose blocks take `weight_rows` rows of the weights.
struct Skinny {
    max_rows: usize,
    weight_rows: usize,
    /// Out in the type of the weights.
    same: PerDType<Kernel<SkinnyLinearParams>>,
    /// Out in single precision.
    single: PerDType<Kernel<SkinnyLinearParams>>,
    /// With an activation, out in the type of the weights.
    plain: PerDType<Kernel<SkinnyLinearParams>>,
    gated: PerDType<Kernel<SkinnyLinearParams>>,
}

impl Skinny {
    fn new(gpu: &Gpu, modules: &Modules, max_rows: usize, weight_rows: usize) -> BackendResult<Skinny> {
        let kernels = |operation: &str, suffix: &str| {
            PerDType::try_new(|dtype| {
                modules.kernel(gpu, "linear", &format!("skinny_{operation}_{dtype}{suffix}_{max_rows}"))
            })
        };
        Ok(Skinny {
            max_rows,
            weight_rows,
            same: kernels("linear", "")?,
            single: kernels("linear", "_f32")?,
            plain: kernels("plain", "")?,
            gated: kernels("gated", "")?,
        })
    }
}

/// An activation that a product applies to its results.
#[derive(Debug, Clone, Copy)]
pub(super) struct FusedActivation {
    pub(super) function: Activation,
    pub(super) gating: Gating,
    /// As wide as the weights have rows, or 0.
    pub(super) bias: DevicePtr,
}

/// A function as `activate` in `kernels/activation.cuh` takes it.
pub(super) fn activation_number(function: Activation) -> u32 {
    Activation::ALL.iter().position(|&other| other == function).unwrap_or_default() as u32
}

pub(super) struct Linear {
    skinny: [Skinny; 2],
    pub(super) cublas: CublasLt,
}

impl Linear {
    pub(super) fn new(gpu: &Gpu, modules: &Modules, cublas: CublasLt) -> BackendResult<Linear> {
        let skinny = [Skinny::new(gpu, modules, 8, 16)?, Skinny::new(gpu, modules, MAX_SKINNY_ROWS, 32)?];
        Ok(Linear { skinny, cublas })
    }

    /// Whether [`Linear::run_activated`] takes so many rows.
    pub(super) fn fuses_activation(rows: usize) -> bool {
        rows <= MAX_SKINNY_ROWS
    }

    /// The product and then its activation, for few rows. `shape.out_features` are those after the activation.
    pub(super) fn run_activated(
        &self,
        gpu: &Gpu,
        check: Checker,
        shape: ProductShape,
        operands: Operands,
        activation: FusedActivation,
    ) -> BackendResult<()> {
        match self.skinny.iter().find(|skinny| shape.rows <= skinny.max_rows) {
            _ if shape.rows == 0 => Ok(()),
            Some(skinny) => run_skinny(gpu, check, skinny, shape, operands, Some(activation)),
            None => check.fail(format!("{} rows at most, not {}", MAX_SKINNY_ROWS, shape.rows)),
        }
    }

    /// `out = input * weight^T` for checked matrices; see [`crate::backend::Backend::linear`].
    pub(super) fn run(
        &mut self,
        gpu: &Gpu,
        check: Checker,
        shape: ProductShape,
        operands: Operands,
    ) -> BackendResult<()> {
        if shape.rows == 0 {
            return Ok(());
        }
        match self.skinny.iter().find(|skinny| shape.rows <= skinny.max_rows) {
            Some(skinny) => run_skinny(gpu, check, skinny, shape, operands, None),
            None => self.cublas.multiply(gpu, shape, operands),
        }
    }
}

fn run_skinny(
    gpu: &Gpu,
    check: Checker,
    skinny: &Skinny,
    shape: ProductShape,
    operands: Operands,
    activation: Option<FusedActivation>,
) -> BackendResult<()> {
    let (kernels, features) = match activation.map(|activation| activation.gating) {
        None if shape.out_dtype == DType::F32 => (&skinny.single, skinny.weight_rows),
        None => (&skinny.same, skinny.weight_rows),
        Some(Gating::Plain) => (&skinny.plain, skinny.weight_rows),
        Some(Gating::Gated) => (&skinny.gated, skinny.weight_rows / 2),
    };
    let params = SkinnyLinearParams {
        input: operands.input,
        weight: operands.weight,
        out: operands.out,
        rows: shape.rows as u32,
        in_features: to_u32(check.operation, shape.in_features)?,
        out_features: to_u32(check.operation, shape.out_features)?,
        function: activation.map_or(0, |activation| activation_number(activation.function)),
        bias: activation.map_or(0, |activation| activation.bias),
    };
    let blocks = to_u32(check.operation, shape.out_features.div_ceil(features))?;
    gpu.launch(check.operation, kernels.get(shape.dtype), Launch::overlapping(blocks, THREADS), &params)
}

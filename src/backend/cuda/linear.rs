//! Matrix products: own kernels for few rows (`kernels/linear.cu`), cuBLASLt for many.

use super::cublas::{CublasLt, Operands, ProductShape};
use super::driver::{DevicePtr, Gpu, Kernel, Launch, Params};
use super::modules::{Modules, PerDType};
use super::tensor::{Checker, to_u32};
use crate::backend::{BackendResult, DType};

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
    reserved: u32,
}

const _: () = assert!(size_of::<SkinnyLinearParams>() == 40);

// SAFETY: `repr(C)`, mirrors SkinnyLinearParams in linear.cu.
unsafe impl Params for SkinnyLinearParams {}

/// A kernel for up to `max_rows` rows whose blocks take `features` rows of the weights.
struct Skinny {
    max_rows: usize,
    features: usize,
    /// Out in the type of the weights.
    same: PerDType<Kernel<SkinnyLinearParams>>,
    /// Out in single precision.
    single: PerDType<Kernel<SkinnyLinearParams>>,
}

impl Skinny {
    fn new(gpu: &Gpu, modules: &Modules, max_rows: usize, features: usize) -> BackendResult<Skinny> {
        let kernels = |suffix: &str| {
            PerDType::try_new(|dtype| {
                modules.kernel(gpu, "linear", &format!("skinny_linear_{dtype}{suffix}_{max_rows}"))
            })
        };
        Ok(Skinny { max_rows, features, same: kernels("")?, single: kernels("_f32")? })
    }
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
            Some(skinny) => run_skinny(gpu, check, skinny, shape, operands),
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
) -> BackendResult<()> {
    let kernels = if shape.out_dtype == DType::F32 { &skinny.single } else { &skinny.same };
    let params = SkinnyLinearParams {
        input: operands.input,
        weight: operands.weight,
        out: operands.out,
        rows: shape.rows as u32,
        in_features: to_u32(check.operation, shape.in_features)?,
        out_features: to_u32(check.operation, shape.out_features)?,
        reserved: 0,
    };
    let blocks = to_u32(check.operation, shape.out_features.div_ceil(skinny.features))?;
    gpu.launch(check.operation, kernels.get(shape.dtype), Launch::overlapping(blocks, THREADS), &params)
}

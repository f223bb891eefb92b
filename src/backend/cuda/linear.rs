//! Matrix products: own kernels for few rows (`kernels/linear.cu`) and, on Hopper, for many (`linear_sm90.rs`), which
//! also apply activations, and cuBLASLt for many. Which one takes many rows is timed, once per shape.

use super::choice::{self, Choices, Way};
use super::cublas::{CublasLt, Operands, ProductShape};
use super::driver::{DevicePtr, Gpu, Kernel, Launch, Params};
use super::linear_sm90::HopperLinear;
use super::modules::{Modules, PerDType};
use super::tensor::{Checker, Tensor, VECTOR_ELEMENTS, to_u32};
use crate::backend::{Activation, BackendResult, DType, Gating};

/// Most rows that the own kernels take.
pub(super) const MAX_SKINNY_ROWS: usize = 16;
/// Threads of one of their blocks, and the rows of the weights that it takes; of all kernels that are made of
/// `kernels/skinny.cuh`.
pub(super) const THREADS: u32 = 256;
pub(super) const WEIGHT_ROWS: usize = 16;

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

/// Kernels for up to `max_rows` rows.
struct Skinny {
    max_rows: usize,
    /// Out in the type of the weights.
    same: PerDType<Kernel<SkinnyLinearParams>>,
    /// Out in single precision.
    single: PerDType<Kernel<SkinnyLinearParams>>,
    /// With an activation, out in the type of the weights.
    plain: PerDType<Kernel<SkinnyLinearParams>>,
    gated: PerDType<Kernel<SkinnyLinearParams>>,
}

impl Skinny {
    fn new(gpu: &Gpu, modules: &Modules, max_rows: usize) -> BackendResult<Skinny> {
        let kernels = |operation: &str, suffix: &str| {
            PerDType::try_new(|dtype| {
                modules.kernel(gpu, "linear", &format!("skinny_{operation}_{dtype}{suffix}_{max_rows}"))
            })
        };
        Ok(Skinny {
            max_rows,
            same: kernels("linear", "")?,
            single: kernels("linear", "_f32")?,
            plain: kernels("plain", "")?,
            gated: kernels("gated", "")?,
        })
    }
}

/// The product of `rows` rows of tensors, which are checked; the weights have `weight_rows` rows, and `out` is of
/// their type or single precision.
pub(super) fn product(
    check: Checker,
    (input, weight, out): (&Tensor, &Tensor, &Tensor),
    rows: usize,
    weight_rows: usize,
) -> BackendResult<(ProductShape, Operands)> {
    check.vectors("weight", weight)?;
    check.tensor("weight", weight, weight.dtype(), weight_rows, weight.columns())?;
    check.tensor("input", input, weight.dtype(), rows, weight.columns())?;
    let out_dtype = if out.dtype() == DType::F32 { DType::F32 } else { weight.dtype() };
    check.tensor("out", out, out_dtype, rows, out.columns())?;
    let shape = ProductShape {
        rows,
        out_features: out.columns(),
        in_features: weight.columns(),
        dtype: weight.dtype(),
        out_dtype,
    };
    Ok((shape, Operands { input: input.data, weight: weight.data, out: out.data }))
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

/// A product through cuBLASLt, with what follows it.
pub(super) type LibraryProduct<'a> = &'a mut dyn FnMut(&Gpu, &mut CublasLt) -> BackendResult<()>;

pub(super) struct Linear {
    skinny: [Skinny; 2],
    pub(super) hopper: Option<HopperLinear>,
    pub(super) cublas: CublasLt,
    /// By their activation.
    choices: Choices<Option<Gating>>,
    forced: Option<Way>,
}

impl Linear {
    pub(super) fn new(gpu: &Gpu, modules: &Modules, cublas: CublasLt) -> BackendResult<Linear> {
        let skinny = [Skinny::new(gpu, modules, 8)?, Skinny::new(gpu, modules, MAX_SKINNY_ROWS)?];
        let hopper = HopperLinear::new(gpu, modules)?;
        Ok(Linear { skinny, hopper, cublas, choices: Choices::new(), forced: None })
    }

    /// Whether products of so many rows are those of the own kernels for few.
    pub(super) fn is_skinny(rows: usize) -> bool {
        rows <= MAX_SKINNY_ROWS
    }

    /// Takes tiles of `columns` for products of many rows from here on, or cuBLASLt for 0, instead of the
    /// fastest; for tests and benches.
    pub(super) fn force(&mut self, columns: usize) {
        self.forced = Some(if columns == 0 { Way::Apart } else { Way::Tiles(columns) });
    }

    /// What [`Linear::force`] was told.
    pub(super) fn forced(&self) -> Option<Way> {
        self.forced
    }

    /// The product and then its activation. `shape.out_features` are those after the activation; `separately`
    /// does the same with a product of cuBLASLt, for many rows.
    pub(super) fn run_activated(
        &mut self,
        gpu: &Gpu,
        check: Checker,
        product: (ProductShape, Operands),
        activation: FusedActivation,
        separately: LibraryProduct<'_>,
    ) -> BackendResult<()> {
        let (shape, operands) = product;
        match self.skinny.iter().find(|skinny| shape.rows <= skinny.max_rows) {
            _ if shape.rows == 0 => Ok(()),
            Some(skinny) => run_skinny(gpu, check, skinny, shape, operands, Some(activation)),
            None => self.run_many(gpu, check, product, Some(activation), separately),
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
        match self.skinny.iter().find(|skinny| shape.rows <= skinny.max_rows) {
            _ if shape.rows == 0 => Ok(()),
            Some(skinny) => run_skinny(gpu, check, skinny, shape, operands, None),
            None => self.run_many(gpu, check, (shape, operands), None, &mut |gpu, cublas| {
                cublas.multiply(gpu, shape, operands)
            }),
        }
    }

    /// Runs a product of many rows in the way that was fastest for its like, which is timed the first time.
    fn run_many(
        &mut self,
        gpu: &Gpu,
        check: Checker,
        product: (ProductShape, Operands),
        activation: Option<FusedActivation>,
        library: LibraryProduct<'_>,
    ) -> BackendResult<()> {
        let (shape, _) = product;
        let is_taken = shape.out_dtype == shape.dtype && shape.out_features.is_multiple_of(VECTOR_ELEMENTS);
        if self.hopper.is_none() || !is_taken {
            return library(gpu, &mut self.cublas);
        }
        let gating = activation.map(|activation| activation.gating);
        let weight_rows = weight_rows(shape, gating);
        let Linear { hopper, cublas, choices, forced, .. } = self;
        let mut run = |way: Way| match (way, &*hopper) {
            (Way::Tiles(columns), Some(hopper)) => hopper.run(gpu, check, columns, product, activation),
            _ => library(gpu, cublas),
        };
        let way = match *forced {
            Some(way) => way,
            None => choices.choose(gpu, (shape, gating, weight_rows), || {
                choice::time(gpu, check.operation, |_| true, &mut run)
            })?,
        };
        run(way)
    }
}

/// Rows of the weights of a product whose `out_features` are those after its activation.
fn weight_rows(shape: ProductShape, gating: Option<Gating>) -> usize {
    gating.map_or(shape.out_features, |gating| gating.input_width(shape.out_features))
}

fn run_skinny(
    gpu: &Gpu,
    check: Checker,
    skinny: &Skinny,
    shape: ProductShape,
    operands: Operands,
    activation: Option<FusedActivation>,
) -> BackendResult<()> {
    let gating = activation.map(|activation| activation.gating);
    let kernels = match gating {
        None if shape.out_dtype == DType::F32 => &skinny.single,
        None => &skinny.same,
        Some(Gating::Plain) => &skinny.plain,
        Some(Gating::Gated) => &skinny.gated,
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
    let blocks = to_u32(check.operation, weight_rows(shape, gating).div_ceil(WEIGHT_ROWS))?;
    gpu.launch(check.operation, kernels.get(shape.dtype), Launch::overlapping(blocks, THREADS), &params)
}

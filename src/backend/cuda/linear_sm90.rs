//! Products of many rows on Hopper (`kernels/linear_sm90.cu`), which also apply activations, add to the residual, or
//! rotate queries and keys and write the cache.

use super::boxes::{BoxedMatrix, TensorMap};
use super::cublas::{Operands, ProductShape};
use super::driver::{DevicePtr, Gpu, Kernel, Launch, Params};
use super::linear::{FusedActivation, activation_number};
use super::modules::{Modules, PerDType};
use super::rope::{RopeParams, Rotation, RotationForm};
use super::tensor::{Checker, VECTOR_ELEMENTS, to_u32};
use crate::backend::{BackendResult, Gating, RopePairing};

/// Columns of a tile that kernels are built for: of those that share a device out evenly, wider ones read less.
pub(super) const TILE_COLUMNS: [usize; 4] = [128, 192, 224, 256];
const TILE_ROWS: usize = 128;
/// Elements of k in a stage.
const STAGE_K: usize = 64;
/// Blocks of a cluster, which take neighbouring rows.
const CLUSTER: usize = 2;
/// Results of more bytes than this are not kept in the second-level cache (50 MB) for who reads them next: they would
/// take the place of operands.
const CACHED_BYTES_MAX: usize = 24 << 20;
/// Two warpgroups that multiply; a warp that copies and three that finish.
const THREADS: u32 = 384;

#[repr(C, align(128))]
#[derive(Debug, Clone, Copy)]
struct LinearParams {
    input: TensorMap,
    weight: TensorMap,
    out: DevicePtr,
    bias: DevicePtr,
    rows: u32,
    in_features: u32,
    out_features: u32,
    function: u32,
    leaves_cache: u32,
    reserved: [u32; 23],
}

const _: () = assert!(size_of::<LinearParams>() == 384);

// SAFETY: `repr(C)`, mirrors LinearParams in linear_sm90.cuh.
unsafe impl Params for LinearParams {}

#[repr(C, align(128))]
#[derive(Debug, Clone, Copy)]
struct AddedParams {
    first: LinearParams,
    second_input: TensorMap,
    second_weight: TensorMap,
    second_bias: DevicePtr,
    second_in_features: u32,
}

const _: () = assert!(size_of::<AddedParams>() == 768);

// SAFETY: `repr(C)`, mirrors AddedParams in linear_sm90.cuh.
unsafe impl Params for AddedParams {}

#[repr(C, align(128))]
#[derive(Debug, Clone, Copy)]
struct RotatedParams {
    product: LinearParams,
    rope: RopeParams,
}

const _: () = assert!(size_of::<RotatedParams>() == 512);

// SAFETY: `repr(C)`, mirrors RotatedParams in linear_sm90.cuh.
unsafe impl Params for RotatedParams {}

/// A checked product that is added to the residual with its bias.
#[derive(Debug, Clone, Copy)]
pub(super) struct AddedProduct {
    pub(super) shape: ProductShape,
    /// `out` is where the product goes unless it is added.
    pub(super) operands: Operands,
    /// As wide as the weights have rows, or 0.
    pub(super) bias: DevicePtr,
}

/// Kernels of one width of tiles.
struct Kernels {
    columns: usize,
    none: PerDType<Kernel<LinearParams>>,
    plain: PerDType<Kernel<LinearParams>>,
    gated: PerDType<Kernel<LinearParams>>,
    added: PerDType<Kernel<AddedParams>>,
    rotated_half: PerDType<Kernel<RotatedParams>>,
    rotated_interleaved: PerDType<Kernel<RotatedParams>>,
}

impl Kernels {
    fn new(gpu: &Gpu, modules: &Modules, columns: usize) -> BackendResult<Kernels> {
        Ok(Kernels {
            columns,
            none: load_kernels(gpu, modules, "", columns)?,
            plain: load_kernels(gpu, modules, "plain_", columns)?,
            gated: load_kernels(gpu, modules, "gated_", columns)?,
            added: load_kernels(gpu, modules, "added_", columns)?,
            rotated_half: load_kernels(gpu, modules, "rotated_half_", columns)?,
            rotated_interleaved: load_kernels(gpu, modules, "rotated_interleaved_", columns)?,
        })
    }
}

/// The kernels of an epilogue, by its part of their names.
fn load_kernels<P: Params>(
    gpu: &Gpu,
    modules: &Modules,
    epilogue: &str,
    columns: usize,
) -> BackendResult<PerDType<Kernel<P>>> {
    PerDType::try_new(|dtype| {
        let kernel = modules.kernel(gpu, "linear_sm90", &format!("linear_{epilogue}{dtype}_{columns}"))?;
        kernel.allow_shared_bytes(gpu, shared_bytes(columns))?;
        Ok(kernel)
    })
}

/// Mirrors LinearShape.
fn shared_bytes(columns: usize) -> u32 {
    let stages = match columns {
        ..=128 => 5,
        129..=192 => 4,
        _ => 3,
    };
    let barriers = stages + 1;
    let stage_bytes = (TILE_ROWS + columns) * STAGE_K * 2;
    let sum_bytes = TILE_ROWS * (columns + VECTOR_ELEMENTS) * 2;
    // Stages start at multiples of 1,024 bytes, which shared memory as a whole need not do. Barriers come in pairs.
    (1024 + stages * stage_bytes + barriers * 16 + sum_bytes) as u32
}

/// The kernels of all widths of tiles.
pub(super) struct HopperLinear {
    kernels: Vec<Kernels>,
}

impl HopperLinear {
    /// The kernels, where the device runs them.
    pub(super) fn new(gpu: &Gpu, modules: &Modules) -> BackendResult<Option<HopperLinear>> {
        if !gpu.is_hopper() {
            return Ok(None);
        }
        let kernels = TILE_COLUMNS.iter().map(|&columns| Kernels::new(gpu, modules, columns));
        Ok(Some(HopperLinear { kernels: kernels.collect::<BackendResult<_>>()? }))
    }

    /// The product of a checked shape, whose `out_features` are those after the activation, in tiles of
    /// `columns`, one of [`TILE_COLUMNS`].
    pub(super) fn run(
        &self,
        gpu: &Gpu,
        check: Checker,
        columns: usize,
        (shape, operands): (ProductShape, Operands),
        activation: Option<FusedActivation>,
    ) -> BackendResult<()> {
        let kernels = self.kernels_of(check, columns)?;
        let (kernel, out_columns) = match activation.map(|activation| activation.gating) {
            None => (&kernels.none, columns),
            Some(Gating::Plain) => (&kernels.plain, columns),
            Some(Gating::Gated) => (&kernels.gated, columns / 2),
        };
        let product = LinearParams {
            bias: activation.map_or(0, |activation| activation.bias),
            function: activation.map_or(0, |activation| activation_number(activation.function)),
            ..linear_params(gpu, check, (columns, out_columns), shape, operands)?
        };
        let launch = launch(gpu, (columns, out_columns), shape);
        gpu.launch(check.operation, kernel.get(shape.dtype), launch, &product)
    }

    /// Adds one or two products of as many rows and features to `residual`, in tiles of `columns`, one of
    /// [`TILE_COLUMNS`].
    pub(super) fn add(
        &self,
        gpu: &Gpu,
        check: Checker,
        columns: usize,
        (first, second): (AddedProduct, Option<AddedProduct>),
        residual: DevicePtr,
    ) -> BackendResult<()> {
        let kernels = self.kernels_of(check, columns)?;
        let encode = |product: AddedProduct| {
            let operands = Operands { out: residual, ..product.operands };
            let params = linear_params(gpu, check, (columns, columns), product.shape, operands)?;
            Ok(LinearParams { bias: product.bias, ..params })
        };
        let added = encode(first)?;
        let second = second.map(encode).transpose()?;
        let second_in_features = second.map_or(0, |second| second.in_features);
        // Both are counted in 32 bits together.
        to_u32(
            check.operation,
            first.shape.in_features.next_multiple_of(STAGE_K) + second_in_features as usize,
        )?;
        let params = AddedParams {
            first: added,
            second_input: second.map_or(added.input, |second| second.input),
            second_weight: second.map_or(added.weight, |second| second.weight),
            second_bias: second.map_or(0, |second| second.bias),
            second_in_features,
        };
        let launch = launch(gpu, (columns, columns), first.shape);
        gpu.launch(check.operation, kernels.added.get(first.shape.dtype), launch, &params)
    }

    /// Whether tiles of `columns` take a rotation; mirrors what `kernels/rope_sm90.cuh` asks for.
    pub(super) fn rotates(columns: usize, form: RotationForm) -> bool {
        let RotationForm { head_dim, rotary_dim, pairing, has_norm } = form;
        let is_taken = match pairing {
            _ if rotary_dim == 0 => true,
            RopePairing::Half => {
                rotary_dim.is_multiple_of(2 * VECTOR_ELEMENTS) && columns.is_multiple_of(head_dim)
            }
            RopePairing::Interleaved => rotary_dim.is_multiple_of(VECTOR_ELEMENTS),
        };
        is_taken && !has_norm && head_dim.is_multiple_of(VECTOR_ELEMENTS)
    }

    /// The product of a checked shape, whose columns are queries, keys and values, and their rotation, which tiles of
    /// `columns` take.
    pub(super) fn run_rotated(
        &self,
        gpu: &Gpu,
        check: Checker,
        columns: usize,
        (shape, operands): (ProductShape, Operands),
        rotation: &Rotation,
    ) -> BackendResult<()> {
        let kernels = self.kernels_of(check, columns)?;
        let kernel = match rotation.form.pairing {
            RopePairing::Half => &kernels.rotated_half,
            RopePairing::Interleaved => &kernels.rotated_interleaved,
        };
        let product = linear_params(gpu, check, (columns, columns), shape, operands)?;
        let params = RotatedParams { product, rope: rotation.params };
        let launch = launch(gpu, (columns, columns), shape);
        gpu.launch(check.operation, kernel.get(shape.dtype), launch, &params)
    }

    fn kernels_of(&self, check: Checker, columns: usize) -> BackendResult<&Kernels> {
        match self.kernels.iter().find(|kernels| kernels.columns == columns) {
            Some(kernels) => Ok(kernels),
            None => check.fail(format!("tiles of {columns} columns; kernels are built for {TILE_COLUMNS:?}")),
        }
    }
}

/// Parameters of a product without an activation in tiles of `columns`, of which `out_columns` go to `out`.
fn linear_params(
    gpu: &Gpu,
    check: Checker,
    (columns, out_columns): (usize, usize),
    shape: ProductShape,
    operands: Operands,
) -> BackendResult<LinearParams> {
    let matrix = |data: DevicePtr, rows: usize, box_rows: usize| BoxedMatrix {
        data,
        dtype: shape.dtype,
        rows: rows as u64,
        columns: shape.in_features as u64,
        box_rows: box_rows as u32,
        box_columns: STAGE_K as u32,
    };
    let weight_rows = shape.out_features * (columns / out_columns);
    let input = matrix(operands.input, shape.rows, TILE_ROWS);
    let weight = matrix(operands.weight, weight_rows, columns / CLUSTER);
    Ok(LinearParams {
        input: gpu.encode_boxes(check.operation, &input)?,
        weight: gpu.encode_boxes(check.operation, &weight)?,
        out: operands.out,
        bias: 0,
        rows: to_u32(check.operation, shape.rows)?,
        in_features: to_u32(check.operation, shape.in_features)?,
        // A gate's rows and the others are counted in 32 bits together.
        out_features: to_u32(check.operation, weight_rows)
            .map(|rows| rows / (columns / out_columns) as u32)?,
        function: 0,
        leaves_cache: (shape.rows * shape.out_features * shape.dtype.size_bytes() > CACHED_BYTES_MAX).into(),
        reserved: [0; 23],
    })
}

/// As many blocks as the device holds at once, or as the product has tiles.
fn launch(gpu: &Gpu, (columns, out_columns): (usize, usize), shape: ProductShape) -> Launch {
    let num_pairs = shape.rows.div_ceil(CLUSTER * TILE_ROWS) * shape.out_features.div_ceil(out_columns);
    let blocks = CLUSTER * num_pairs.min(gpu.num_multiprocessors() as usize / CLUSTER);
    Launch { shared_bytes: shared_bytes(columns), ..Launch::overlapping(blocks as u32, THREADS) }
}

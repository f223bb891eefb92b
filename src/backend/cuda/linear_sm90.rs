//! Products of many rows on Hopper (`kernels/linear_sm90.cu`), which also apply activations.

use super::cublas::{Operands, ProductShape};
use super::driver::{BoxedMatrix, DevicePtr, Gpu, Kernel, Launch, Params, TensorMap};
use super::linear::{FusedActivation, activation_number};
use super::modules::{Modules, PerDType};
use super::tensor::{Checker, to_u32};
use crate::backend::{BackendResult, Gating};

/// Columns of a tile that kernels are built for: of those that share a device out evenly, wider ones read less.
pub(super) const TILE_COLUMNS: [usize; 4] = [128, 192, 224, 256];
const TILE_ROWS: usize = 128;
/// Elements of k in a stage.
const STAGE_K: usize = 64;
/// Blocks of a cluster, which take neighbouring rows.
const CLUSTER: usize = 2;
/// Two warpgroups that multiply and one that copies.
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
    reserved: [u32; 24],
}

const _: () = assert!(size_of::<LinearParams>() == 384);

// SAFETY: `repr(C)`, mirrors LinearParams in linear_sm90.cu.
unsafe impl Params for LinearParams {}

/// Kernels of one width of tiles.
struct Kernels {
    columns: usize,
    none: PerDType<Kernel<LinearParams>>,
    plain: PerDType<Kernel<LinearParams>>,
    gated: PerDType<Kernel<LinearParams>>,
}

impl Kernels {
    fn new(gpu: &Gpu, modules: &Modules, columns: usize) -> BackendResult<Kernels> {
        let kernels = |epilogue: &str| {
            PerDType::try_new(|dtype| {
                let name = format!("linear_{epilogue}{dtype}_{columns}");
                let kernel = modules.kernel(gpu, "linear_sm90", &name)?;
                kernel.allow_shared_bytes(gpu, shared_bytes(columns))?;
                Ok(kernel)
            })
        };
        Ok(Kernels { columns, none: kernels("")?, plain: kernels("plain_")?, gated: kernels("gated_")? })
    }
}

/// Mirrors LinearShape.
fn shared_bytes(columns: usize) -> u32 {
    let stages = if columns > 128 { 4 } else { 6 };
    let stage_bytes = (TILE_ROWS + columns) * STAGE_K * 2;
    // Stages start at multiples of 1,024 bytes, which shared memory as a whole need not do.
    (1024 + stages * (stage_bytes + 16)) as u32
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
        let Some(kernels) = self.kernels.iter().find(|kernels| kernels.columns == columns) else {
            return check.fail(format!("tiles of {columns} columns; kernels are built for {TILE_COLUMNS:?}"));
        };
        let (kernel, out_columns) = match activation.map(|activation| activation.gating) {
            None => (&kernels.none, columns),
            Some(Gating::Plain) => (&kernels.plain, columns),
            Some(Gating::Gated) => (&kernels.gated, columns / 2),
        };
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
        let params = LinearParams {
            input: gpu.encode_boxes(check.operation, &input)?,
            weight: gpu.encode_boxes(check.operation, &weight)?,
            out: operands.out,
            bias: activation.map_or(0, |activation| activation.bias),
            rows: to_u32(check.operation, shape.rows)?,
            in_features: to_u32(check.operation, shape.in_features)?,
            // A gate's rows and the others are counted in 32 bits together.
            out_features: to_u32(check.operation, weight_rows)
                .map(|rows| rows / (columns / out_columns) as u32)?,
            function: activation.map_or(0, |activation| activation_number(activation.function)),
            reserved: [0; 24],
        };
        let num_pairs = shape.rows.div_ceil(CLUSTER * TILE_ROWS) * shape.out_features.div_ceil(out_columns);
        let blocks = CLUSTER * num_pairs.min(gpu.num_multiprocessors() as usize / CLUSTER);
        let launch =
            Launch { shared_bytes: shared_bytes(columns), ..Launch::overlapping(blocks as u32, THREADS) };
        gpu.launch(check.operation, kernel.get(shape.dtype), launch, &params)
    }
}

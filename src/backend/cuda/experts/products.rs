//! Products of a mixture of experts, grouped by expert: kernels for few rows of an expert
//! (`kernels/experts_few.cu`), for many (`kernels/experts_many.cu`), and for many on Hopper
//! (`kernels/experts_many_sm90.cu`).

use crate::backend::cuda::boxes::{BoxedMatrix, TensorMap};
use crate::backend::cuda::driver::{DevicePtr, Gpu, Kernel, Launch, Params};
use crate::backend::cuda::linear;
use crate::backend::cuda::modules::{Modules, PerDType};
use crate::backend::cuda::tensor::{Checker, to_u32};
use crate::backend::{Activation, BackendResult, DType, Gating};

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct ProductParams {
    input: DevicePtr,
    weight: DevicePtr,
    out: DevicePtr,
    tiles: DevicePtr,
    pair_rows: DevicePtr,
    pair_weights: DevicePtr,
    in_features: u32,
    out_features: u32,
    function: u32,
    num_feature_blocks: u32,
}

#[repr(C, align(128))]
#[derive(Debug, Clone, Copy)]
struct HopperProductParams {
    weights: TensorMap,
    product: ProductParams,
    num_works: u32,
    reserved: [u32; 15],
}

const _: () = assert!(size_of::<ProductParams>() == 64 && size_of::<HopperProductParams>() == 256);

// SAFETY: `repr(C)`, mirrors ExpertProductParams in experts.cuh.
unsafe impl Params for ProductParams {}
// SAFETY: `repr(C)`, mirrors HopperProductParams in experts_many_sm90.cu.
unsafe impl Params for HopperProductParams {}

/// How a kernel of products cuts its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TileShape {
    /// The file with the kernels.
    file: &'static str,
    /// Pairs of a tile.
    pub(super) rows: usize,
    /// Rows of the weights that a block takes at once.
    weight_rows: usize,
    threads: u32,
    /// Dynamic shared memory.
    shared_bytes: u32,
}

/// Ascending by rows. `shared_bytes` are `ManyShape::SHARED_BYTES` of `experts_many.cuh`.
pub(super) const TILE_SHAPES: [TileShape; 4] = [
    TileShape::few(8),
    TileShape::few(16),
    TileShape { file: "experts_many", rows: 64, weight_rows: 128, threads: 128, shared_bytes: 98_304 },
    TileShape { file: "experts_many", rows: 128, weight_rows: 128, threads: 128, shared_bytes: 98_304 },
];

/// What Hopper has in place of the shape of as many rows: four stages of both operands, their barriers, and room to
/// start at a multiple of 1,024 bytes.
const HOPPER_SHAPE: TileShape = TileShape {
    file: "experts_many_sm90",
    rows: 128,
    weight_rows: 256,
    threads: 384,
    shared_bytes: 1024 + 4 * ((128 + 256) * 128 + 16),
};

impl TileShape {
    /// Tiles that read weights as products of few rows do.
    const fn few(rows: usize) -> TileShape {
        let (weight_rows, threads) = (linear::WEIGHT_ROWS, linear::THREADS);
        TileShape { file: "experts_few", rows, weight_rows, threads, shared_bytes: 0 }
    }

    /// Index of the shape for `rows` rows of which every expert gets `mean_pairs` on average. No expert gets more
    /// than `rows`, so that few rows are sure of one tile per expert.
    pub(super) fn index(rows: usize, mean_pairs: usize) -> usize {
        match (rows, mean_pairs) {
            (..=8, _) => 0,
            (..=16, _) | (_, ..=8) => 1,
            (_, ..=64) => 2,
            _ => 3,
        }
    }

    /// Most tiles that `num_pairs` pairs of `num_experts` experts make: all but one pair of an expert may leave a
    /// tile of its own.
    pub(super) fn max_tiles(&self, num_pairs: usize, num_experts: usize) -> usize {
        (num_pairs + num_experts.min(num_pairs) * (self.rows - 1)) / self.rows
    }
}

/// Pairs of a row and one of its experts, sorted by expert and cut into tiles.
pub(super) struct Pairs {
    pub(super) max_tiles: usize,
    pub(super) tiles: DevicePtr,
    /// `[pairs]` each.
    pub(super) pair_rows: DevicePtr,
    pub(super) pair_weights: DevicePtr,
    pub(super) dtype: DType,
}

/// Matrices of a product.
pub(super) struct Operands {
    pub(super) input: DevicePtr,
    /// Of all experts, one under the other.
    pub(super) weight: DevicePtr,
    pub(super) out: DevicePtr,
    pub(super) num_experts: usize,
    pub(super) in_features: usize,
    /// After the activation.
    pub(super) out_features: usize,
}

/// Kernels with an activation of one input or of two, and with the pairs' weights.
struct Kernels<P> {
    up_plain: PerDType<Kernel<P>>,
    up_gated: PerDType<Kernel<P>>,
    down: PerDType<Kernel<P>>,
}

impl<P: Params> Kernels<P> {
    /// `suffix` ends the kernels' names.
    fn new(gpu: &Gpu, modules: &Modules, shape: &TileShape, suffix: &str) -> BackendResult<Self> {
        let kernels = |product: &str| {
            PerDType::try_new(|dtype| {
                let name = format!("{}_{product}_{dtype}{suffix}", shape.file);
                let kernel = modules.kernel(gpu, shape.file, &name)?;
                kernel.allow_shared_bytes(gpu, shape.shared_bytes)?;
                Ok(kernel)
            })
        };
        Ok(Self { up_plain: kernels("up_plain")?, up_gated: kernels("up_gated")?, down: kernels("down")? })
    }

    fn get(&self, gating: Option<Gating>, dtype: DType) -> &Kernel<P> {
        match gating {
            Some(Gating::Plain) => self.up_plain.get(dtype),
            Some(Gating::Gated) => self.up_gated.get(dtype),
            None => self.down.get(dtype),
        }
    }
}

enum Variant {
    Portable(Kernels<ProductParams>),
    Hopper(Kernels<HopperProductParams>),
}

/// Products in tiles of one shape.
pub(super) struct Products {
    pub(super) shape: TileShape,
    kernels: Variant,
}

impl Products {
    pub(super) fn new(gpu: &Gpu, modules: &Modules, shape: TileShape) -> BackendResult<Products> {
        if gpu.is_hopper() && shape.rows == HOPPER_SHAPE.rows {
            let kernels = Variant::Hopper(Kernels::new(gpu, modules, &HOPPER_SHAPE, "")?);
            return Ok(Products { shape: HOPPER_SHAPE, kernels });
        }
        let kernels = Kernels::new(gpu, modules, &shape, &format!("_{}", shape.rows))?;
        Ok(Products { shape, kernels: Variant::Portable(kernels) })
    }

    /// `out[pair] = activation(weight * input[row of the pair])`, or without an activation the pair's weight times
    /// `weight * input[pair]`, for checked operands.
    pub(super) fn run(
        &self,
        gpu: &Gpu,
        check: Checker,
        pairs: &Pairs,
        operands: &Operands,
        activation: Option<(Activation, Gating)>,
    ) -> BackendResult<()> {
        let gating = activation.map(|(_, gating)| gating);
        let TileShape { weight_rows, threads, shared_bytes, .. } = self.shape;
        let block_features = weight_rows / gating.map_or(1, |gating| gating.input_width(1));
        let num_feature_blocks = operands.out_features.div_ceil(block_features);
        let num_works = to_u32(check.operation, pairs.max_tiles * num_feature_blocks)?;
        let product = ProductParams {
            input: operands.input,
            weight: operands.weight,
            out: operands.out,
            tiles: pairs.tiles,
            pair_rows: pairs.pair_rows,
            pair_weights: pairs.pair_weights,
            in_features: operands.in_features as u32,
            out_features: operands.out_features as u32,
            function: activation.map_or(0, |(function, _)| linear::activation_number(function)),
            num_feature_blocks: num_feature_blocks as u32,
        };
        match &self.kernels {
            Variant::Portable(kernels) => {
                let launch = Launch { shared_bytes, ..Launch::overlapping(num_works, threads) };
                gpu.launch(check.operation, kernels.get(gating, pairs.dtype), launch, &product)
            }
            Variant::Hopper(kernels) => {
                let expert_rows = gating.map_or(1, |gating| gating.input_width(1)) * operands.out_features;
                let weights = BoxedMatrix {
                    data: operands.weight,
                    dtype: pairs.dtype,
                    rows: (operands.num_experts * expert_rows) as u64,
                    columns: operands.in_features as u64,
                    box_rows: weight_rows as u32 / 2,
                    box_columns: 64,
                };
                let weights = gpu.encode_boxes(check.operation, &weights)?;
                let params = HopperProductParams { weights, product, num_works, reserved: [0; 15] };
                // Every block stays on a multiprocessor and takes works in turn.
                let blocks = num_works.min(gpu.num_multiprocessors());
                let launch = Launch { shared_bytes, ..Launch::overlapping(blocks, threads) };
                gpu.launch(check.operation, kernels.get(gating, pairs.dtype), launch, &params)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_rows_have_one_tile_per_expert() {
        for rows in 1..=16 {
            for mean_pairs in 1..=rows {
                assert!(TILE_SHAPES[TileShape::index(rows, mean_pairs)].rows >= rows);
            }
        }
        assert_eq!([17, 64, 4096].map(|rows| TileShape::index(rows, rows * 2 / 8)), [1, 2, 3]);
        assert_eq!([17, 64, 4096].map(|rows| TileShape::index(rows, rows * 8 / 128)), [1, 1, 3]);
    }

    proptest::proptest! {
        #[test]
        fn grids_have_room_for_every_tile(counts in proptest::collection::vec(0usize..300, 1..40)) {
            let num_pairs = counts.iter().sum();
            for shape in TILE_SHAPES {
                let num_tiles: usize = counts.iter().map(|count| count.div_ceil(shape.rows)).sum();
                let max_tiles = shape.max_tiles(num_pairs, counts.len());
                assert!(num_tiles <= max_tiles && max_tiles <= num_pairs, "{counts:?} {shape:?}");
            }
        }
    }
}

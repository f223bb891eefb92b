//! Products of input rows with `[out, in]` weights.
//!
//! Every output element is one dot product, and always the same sequence of operations: `STEP` neighbouring
//! products are added to as many partial sums from the start of the row to its end, and the partial sums are
//! added by halving. Tiles, panels and threads only choose which elements are computed together, never how one
//! is. So a row's result does not depend on what else is in the batch, bit for bit.
//!
//! A register tile of 4 weight rows by `TILE_ROWS` input rows loads each operand once per tile. For many rows a
//! panel of weight rows stays in the second-level cache while all input rows pass.

use std::ops::Range;

use half::{bf16, f16};

use super::simd::{Dot, DotKernel, Element, Isa, Kernel, Simd};
use super::tensor::{Buffer, Tensor, product};
use super::threads::{Parts, Threads};
use crate::backend::{BackendResult, DType};

/// Weight rows in a register tile.
const TILE_FEATURES: usize = 4;
/// Bytes of weights that pass all of a task's input rows together; a fraction of the second-level cache.
const PANEL_BYTES: usize = 128 << 10;
/// Input rows of one task.
const BLOCK_ROWS: usize = 128;
/// Tasks per thread that a product is cut into where panels allow it, so that a late thread does not matter.
const TASKS_PER_THREAD: usize = 4;

/// Rows rounded to bf16 for the bf16 dot product. Grows to the largest input seen.
pub(super) struct Packed(Buffer);

impl Packed {
    pub(super) const EMPTY: Packed = Packed(Buffer::EMPTY);

    /// Rounds `input`, rows of `width` elements.
    fn pack(
        &mut self,
        threads: &mut Threads,
        isa: Isa,
        input: &[f32],
        width: usize,
    ) -> BackendResult<&[bf16]> {
        if self.0.elements::<bf16>().len() < input.len() {
            self.0 = Buffer::zeroed(product(&[input.len(), size_of::<bf16>()]), "packed input rows")?;
        }
        let packed = &mut self.0.elements_mut::<bf16>()[..input.len()];
        let parts = Parts::new(packed);
        threads.run_rows(input.len().checked_div(width).unwrap_or(0), width, |rows| {
            let range = rows.start * width..rows.end * width;
            // SAFETY: every row belongs to one task.
            let target = unsafe { parts.slice(range.clone()) };
            isa.run(Narrow { source: &input[range], target });
        });
        Ok(packed)
    }
}

/// Rounds f32 values to the target's type.
pub(super) struct Narrow<'a, E> {
    pub(super) source: &'a [f32],
    pub(super) target: &'a mut [E],
}

impl<E: Element> Kernel for Narrow<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        E::narrow(self.source, self.target);
    }
}

/// Computes `out[r] = weight · input[r]`. `input` is `[rows, weight.columns()]`, `out` `[rows, weight.rows()]`.
pub(super) fn linear(
    threads: &mut Threads,
    isa: Isa,
    packed: &mut Packed,
    input: &[f32],
    weight: &Tensor,
    out: &mut [f32],
) -> BackendResult<()> {
    match weight.dtype() {
        DType::Bf16 if isa.has_bf16_dot() => {
            let input = packed.pack(threads, isa, input, weight.columns())?;
            Product::new(input, weight.elements::<bf16>(), weight, out)
                .run(threads, |block| isa.run_bf16(block));
        }
        DType::F32 => Product::new(input, weight.elements::<f32>(), weight, out)
            .run(threads, |block| isa.run_widening::<f32, _>(block)),
        DType::F16 => Product::new(input, weight.elements::<f16>(), weight, out)
            .run(threads, |block| isa.run_widening::<f16, _>(block)),
        DType::Bf16 => Product::new(input, weight.elements::<bf16>(), weight, out)
            .run(threads, |block| isa.run_widening::<bf16, _>(block)),
    }
    Ok(())
}

/// `[rows, depth]` times `[features, depth]` transposed, into `[rows, features]`.
struct Product<'a, W, I> {
    input: &'a [I],
    weight: &'a [W],
    out: Parts<'a, f32>,
    rows: usize,
    features: usize,
    depth: usize,
}

impl<'a, W: Element, I: Element> Product<'a, W, I> {
    fn new(input: &'a [I], weight: &'a [W], shape: &Tensor, out: &'a mut [f32]) -> Self {
        let (features, depth) = (shape.rows(), shape.columns());
        let rows = out.len().checked_div(features).unwrap_or(0);
        assert!(
            input.len() == rows * depth && weight.len() == features * depth && out.len() == rows * features
        );
        Self { input, weight, out: Parts::new(out), rows, features, depth }
    }

    /// Cuts the product into blocks and computes them on all threads.
    fn run(&self, threads: &mut Threads, compute: impl Fn(Block<'_, W, I>) + Sync) {
        let row_bytes = (self.depth * size_of::<W>()).max(1);
        let features_for_threads = self.features.div_ceil(threads.num_threads() * TASKS_PER_THREAD);
        let panel = (PANEL_BYTES / row_bytes)
            .min(features_for_threads)
            .next_multiple_of(TILE_FEATURES)
            .max(TILE_FEATURES);
        let num_panels = self.features.div_ceil(panel);
        let num_blocks = self.rows.div_ceil(BLOCK_ROWS);
        threads.run(num_panels * num_blocks, |task| {
            let (first_feature, first_row) = (task / num_blocks * panel, task % num_blocks * BLOCK_ROWS);
            compute(Block {
                product: self,
                rows: first_row..(first_row + BLOCK_ROWS).min(self.rows),
                features: first_feature..(first_feature + panel).min(self.features),
            });
        });
    }
}

/// The part of a product that one task computes.
struct Block<'a, W, I> {
    product: &'a Product<'a, W, I>,
    rows: Range<usize>,
    features: Range<usize>,
}

impl<W: Element, I: Element> DotKernel<W, I> for Block<'_, W, I> {
    #[inline(always)]
    fn run<D: Dot<Weight = W, Input = I>>(self, dot: D) {
        let mut row = self.rows.start;
        while row < self.rows.end {
            let count = (self.rows.end - row).min(D::TILE_ROWS);
            match count {
                4 => self.row_tile::<D, 4>(dot, row),
                3 => self.row_tile::<D, 3>(dot, row),
                2 => self.row_tile::<D, 2>(dot, row),
                _ => self.row_tile::<D, 1>(dot, row),
            }
            row += count;
        }
    }
}

impl<W: Element, I: Element> Block<'_, W, I> {
    /// Computes `ROWS` rows from `row` on.
    #[inline(always)]
    fn row_tile<D: Dot<Weight = W, Input = I>, const ROWS: usize>(&self, dot: D, row: usize) {
        let mut feature = self.features.start;
        while feature + TILE_FEATURES <= self.features.end {
            self.tile::<D, ROWS, TILE_FEATURES>(dot, row, feature);
            feature += TILE_FEATURES;
        }
        while feature < self.features.end {
            self.tile::<D, ROWS, 1>(dot, row, feature);
            feature += 1;
        }
    }

    /// Computes `ROWS` by `FEATURES` elements in registers.
    #[inline(always)]
    fn tile<D: Dot<Weight = W, Input = I>, const ROWS: usize, const FEATURES: usize>(
        &self,
        dot: D,
        row: usize,
        feature: usize,
    ) {
        let Product { input, weight, depth, features, .. } = *self.product;
        assert!((row + ROWS) * depth <= input.len() && (feature + FEATURES) * depth <= weight.len());
        let input = input[row * depth..].as_ptr();
        let weight = weight[feature * depth..].as_ptr();
        let mut sums = [[dot.zero(); FEATURES]; ROWS];
        let full = depth - depth % D::STEP;
        let mut i = 0;
        while i < full {
            // SAFETY: row `feature` has `STEP` weights from `i` on, as asserted above.
            let mut weights = [unsafe { dot.load_weight(weight.add(i)) }; FEATURES];
            for f in 1..FEATURES {
                // SAFETY: so has row `feature + f`.
                weights[f] = unsafe { dot.load_weight(weight.add(f * depth + i)) };
            }
            for r in 0..ROWS {
                // SAFETY: row `row + r` has `STEP` inputs from `i` on, as asserted above.
                let inputs = unsafe { dot.load_input(input.add(r * depth + i)) };
                for f in 0..FEATURES {
                    sums[r][f] = dot.mul_add(sums[r][f], weights[f], inputs);
                }
            }
            i += D::STEP;
        }
        if full < depth {
            for f in 0..FEATURES {
                // SAFETY: row `feature + f` has `depth - full` weights from `full` on, as asserted above.
                let weights = unsafe { dot.load_weight_partial(weight.add(f * depth + full), depth - full) };
                for r in 0..ROWS {
                    // SAFETY: row `row + r` has `depth - full` inputs from `full` on, as asserted above.
                    let inputs = unsafe { dot.load_input_partial(input.add(r * depth + full), depth - full) };
                    sums[r][f] = dot.mul_add(sums[r][f], weights, inputs);
                }
            }
        }
        for r in 0..ROWS {
            let start = (row + r) * features + feature;
            // SAFETY: an element belongs to one task.
            let out = unsafe { self.product.out.slice(start..start + FEATURES) };
            if FEATURES == 4 {
                out.copy_from_slice(&dot.sum4([
                    sums[r][0],
                    sums[r][1 % FEATURES],
                    sums[r][2 % FEATURES],
                    sums[r][3 % FEATURES],
                ]));
            } else {
                for f in 0..FEATURES {
                    out[f] = dot.sum(sums[r][f]);
                }
            }
        }
    }
}

//! Products of input rows with `[out, in]` weights.
//!
//! Every output element is one dot product, and always the same sequence of operations: `STEP` neighbouring
//! products are added to as many partial sums from the start of the row to its end, and the partial sums are
//! added by halving. Tiles, panels and threads only choose which elements are computed together, never how one
//! is. So a row's result does not depend on what else is in the batch, bit for bit.
//!
//! A register tile of 4 weight rows by `TILE_ROWS` input rows loads each operand once per tile. For many rows a
//! panel of weight rows stays in the second-level cache while all input rows pass; 16-bit weights are widened to
//! f32 once per panel there, which gives the same numbers as widening them in registers, but once.

#![allow(clippy::needless_range_loop, reason = "indexes name the places of a register tile")]

use std::ops::Range;

use half::{bf16, f16};

use super::embed::Widen;
use super::simd::{Dot, DotKernel, Element, Isa, Kernel, Simd};
use super::tensor::{Buffer, Tensor, product};
use super::threads::{Parts, Threads};
use crate::backend::{BackendResult, DType};

/// Weight rows in a register tile.
const TILE_FEATURES: usize = 4;
/// Elements of the weights that pass all of a task's input rows together: as f32 a fraction of the second-level
/// cache.
const PANEL_ELEMENTS: usize = 64 << 10;
/// Bytes of a panel that was widened.
pub(super) const PANEL_BYTES: usize = PANEL_ELEMENTS * size_of::<f32>();
/// Input rows of one task; a multiple of the register tiles' rows.
const BLOCK_ROWS: usize = 264;
/// Bytes that memory brings at once.
const CACHE_LINE: usize = 64;
/// Tasks per thread that a product is cut into where panels allow it, so that a late thread does not matter.
const TASKS_PER_THREAD: usize = 4;
/// From this number of rows on, widening a panel once costs less than widening it in each register tile.
const WIDEN_ROWS: usize = 24;

/// Memory for operands in another type than they came in. Grows to the largest call seen.
pub(super) struct Workspace {
    /// Input rows rounded to bf16.
    packed: Buffer,
    /// A panel of weights widened to f32 for each thread.
    panels: Vec<Buffer>,
}

impl Workspace {
    pub(super) const EMPTY: Workspace = Workspace { packed: Buffer::EMPTY, panels: Vec::new() };

    /// Rounds `input`, rows of `width` elements.
    fn pack(
        &mut self,
        threads: &mut Threads,
        isa: Isa,
        input: &[f32],
        width: usize,
    ) -> BackendResult<&[bf16]> {
        self.packed.grow(product(&[input.len(), size_of::<bf16>()]), "packed input rows")?;
        let packed = &mut self.packed.elements_mut::<bf16>()[..input.len()];
        let parts = Parts::new(packed);
        threads.run_rows(input.len().checked_div(width).unwrap_or(0), width, |rows| {
            let range = rows.start * width..rows.end * width;
            // SAFETY: every row belongs to one task.
            let target = unsafe { parts.slice(range.clone()) };
            isa.run(Narrow { source: &input[range], target });
        });
        Ok(packed)
    }

    /// A panel of `num_elements` for each thread.
    fn panels(&mut self, num_threads: usize, num_elements: usize) -> BackendResult<&mut [Buffer]> {
        self.panels.resize_with(num_threads, || Buffer::EMPTY);
        for panel in &mut self.panels {
            panel.grow(product(&[num_elements, size_of::<f32>()]), "panel of weights")?;
        }
        Ok(&mut self.panels)
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

/// Some rows of a tensor of weights.
#[derive(Clone)]
pub(super) struct Matrix<'a> {
    pub(super) tensor: &'a Tensor,
    pub(super) rows: Range<usize>,
}

impl<'a> Matrix<'a> {
    /// All rows.
    pub(super) fn all(tensor: &'a Tensor) -> Self {
        Self { tensor, rows: 0..tensor.rows() }
    }

    fn elements<E: Element>(&self) -> &'a [E] {
        let columns = self.tensor.columns();
        &self.tensor.elements()[self.rows.start * columns..self.rows.end * columns]
    }
}

/// Computes `out[r] = weight · input[r]`. `input` is `[rows, weight's columns]`, `out` `[rows, weight's rows]`.
pub(super) fn linear(
    threads: &mut Threads,
    isa: Isa,
    workspace: &mut Workspace,
    input: &[f32],
    weight: &Matrix<'_>,
    out: &mut [f32],
) -> BackendResult<()> {
    match weight.tensor.dtype() {
        DType::Bf16 if isa.has_bf16_dot() => {
            let input = workspace.pack(threads, isa, input, weight.tensor.columns())?;
            let product = Product::new(input, weight.elements::<bf16>(), weight, out);
            product.run(threads, |_, block| isa.run_bf16(block));
            Ok(())
        }
        DType::F32 => {
            let product = Product::new(input, weight.elements::<f32>(), weight, out);
            product.run(threads, |_, block| isa.run_widening::<f32, _>(block));
            Ok(())
        }
        DType::F16 => {
            Product::new(input, weight.elements::<f16>(), weight, out).run_widening(threads, isa, workspace)
        }
        DType::Bf16 => {
            Product::new(input, weight.elements::<bf16>(), weight, out).run_widening(threads, isa, workspace)
        }
    }
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
    fn new(input: &'a [I], weight: &'a [W], shape: &Matrix<'_>, out: &'a mut [f32]) -> Self {
        let (features, depth) = (shape.rows.len(), shape.tensor.columns());
        let rows = out.len().checked_div(features).unwrap_or(0);
        assert!(
            input.len() == rows * depth && weight.len() == features * depth && out.len() == rows * features
        );
        Self { input, weight, out: Parts::new(out), rows, features, depth }
    }

    /// Weight rows of one task: few enough for the cache and for all threads, in whole register tiles.
    fn panel_features(&self, num_threads: usize) -> usize {
        let for_cache = PANEL_ELEMENTS / self.depth.max(1);
        let for_threads = self.features.div_ceil(num_threads * TASKS_PER_THREAD);
        for_cache.min(for_threads).next_multiple_of(TILE_FEATURES).max(TILE_FEATURES)
    }

    /// Cuts the product into blocks and computes them on all threads with `compute(thread_index, block)`.
    fn run(&self, threads: &mut Threads, compute: impl Fn(usize, Block<'_, W, I>) + Sync) {
        let panel = self.panel_features(threads.num_threads());
        let num_panels = self.features.div_ceil(panel);
        let num_blocks = self.rows.div_ceil(BLOCK_ROWS);
        threads.run_with_thread(num_panels * num_blocks, |thread_index, task| {
            let (first_feature, first_row) = (task / num_blocks * panel, task % num_blocks * BLOCK_ROWS);
            let features = first_feature..(first_feature + panel).min(self.features);
            let rows = first_row..(first_row + BLOCK_ROWS).min(self.rows);
            let block = Block {
                input: &self.input[rows.start * self.depth..rows.end * self.depth],
                weight: &self.weight[features.start * self.depth..features.end * self.depth],
                out: &self.out,
                rows,
                features,
                depth: self.depth,
                row_stride: self.features,
            };
            compute(thread_index, block);
        });
    }
}

impl<W: Element> Product<'_, W, f32> {
    /// Computes with 16-bit weights as f32, widened where that costs least.
    fn run_widening(&self, threads: &mut Threads, isa: Isa, workspace: &mut Workspace) -> BackendResult<()> {
        if self.rows < WIDEN_ROWS {
            self.run(threads, |_, block| isa.run_widening::<W, _>(block));
            return Ok(());
        }
        let panel_elements = self.panel_features(threads.num_threads()) * self.depth;
        let panels = Parts::new(workspace.panels(threads.num_threads(), panel_elements)?);
        self.run(threads, |thread_index, block| {
            // SAFETY: a thread runs one task at a time.
            let panel = unsafe { &mut panels.slice(thread_index..thread_index + 1)[0] };
            let panel = &mut panel.elements_mut::<f32>()[..block.weight.len()];
            isa.run(Widen { source: block.weight, target: panel });
            isa.run_widening::<f32, _>(block.with_weight(panel));
        });
        Ok(())
    }
}

/// The part of a product that one task computes.
struct Block<'a, W, I> {
    /// `[rows, depth]`.
    input: &'a [I],
    /// `[features, depth]`.
    weight: &'a [W],
    /// All of the product's output.
    out: &'a Parts<'a, f32>,
    rows: Range<usize>,
    features: Range<usize>,
    depth: usize,
    /// Elements between two rows of the output.
    row_stride: usize,
}

impl<'a, W: Element, I: Element> Block<'a, W, I> {
    /// The same block with its weights in another type.
    fn with_weight<V: Element>(self, weight: &'a [V]) -> Block<'a, V, I> {
        let Block { input, out, rows, features, depth, row_stride, .. } = self;
        Block { input, weight, out, rows, features, depth, row_stride }
    }

    /// Computes `FEATURES` features from `feature` on of some rows from `row` on, and returns the number of
    /// rows.
    #[inline(always)]
    fn compute<D: Dot<Weight = W, Input = I>, const FEATURES: usize>(
        &self,
        dot: D,
        row: usize,
        feature: usize,
    ) -> usize {
        let count = (self.rows.len() - row).min(D::TILE_ROWS);
        match count {
            6 => self.store_tile::<D, 6, FEATURES>(dot, row, feature),
            5 => self.store_tile::<D, 5, FEATURES>(dot, row, feature),
            4 => self.store_tile::<D, 4, FEATURES>(dot, row, feature),
            3 => self.store_tile::<D, 3, FEATURES>(dot, row, feature),
            2 => self.store_tile::<D, 2, FEATURES>(dot, row, feature),
            _ => self.store_tile::<D, 1, FEATURES>(dot, row, feature),
        }
        count
    }

    #[inline(always)]
    fn store_tile<D: Dot<Weight = W, Input = I>, const ROWS: usize, const FEATURES: usize>(
        &self,
        dot: D,
        row: usize,
        feature: usize,
    ) {
        let sums = self.tile::<D, ROWS, FEATURES>(dot, row, feature);
        for (r, sums) in sums.iter().enumerate() {
            let out = self.out_slice(row + r, feature, FEATURES);
            if let [a, b, c, d] = sums[..] {
                out.copy_from_slice(&dot.sum4([a, b, c, d]));
            } else {
                for (out, &sums) in out.iter_mut().zip(sums) {
                    *out = dot.sum(sums);
                }
            }
        }
    }

    /// `count` output elements from the block's row and feature on.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    fn out_slice(&self, row: usize, feature: usize, count: usize) -> &mut [f32] {
        let start = (self.rows.start + row) * self.row_stride + self.features.start + feature;
        // SAFETY: an element of the output belongs to one task, which holds one slice at a time.
        unsafe { self.out.slice(start..start + count) }
    }

    /// Weight rows, counted from the tile's first, that pass `pass` of the tile's `num_passes` row tiles asks
    /// memory for: its share of the tile after the next, or none where a panel rests in the cache anyway.
    #[inline(always)]
    fn rows_ahead(&self, pass: usize, num_passes: usize) -> Range<usize> {
        if num_passes > TILE_FEATURES {
            return 0..0;
        }
        let share = |pass: usize| 2 * TILE_FEATURES + pass * TILE_FEATURES / num_passes;
        share(pass)..share(pass + 1)
    }

    /// Partial sums of `ROWS` by `FEATURES` elements, in registers.
    #[inline(always)]
    fn tile<D: Dot<Weight = W, Input = I>, const ROWS: usize, const FEATURES: usize>(
        &self,
        dot: D,
        row: usize,
        feature: usize,
    ) -> [[D::Sums; FEATURES]; ROWS] {
        let depth = self.depth;
        let input = &self.input[row * depth..(row + ROWS) * depth];
        let weight = &self.weight[feature * depth..(feature + FEATURES) * depth];
        let (input, weight) = (input.as_ptr(), weight.as_ptr());
        let mut sums = [[dot.zero(); FEATURES]; ROWS];
        let full = depth - depth % D::STEP;
        let ahead = self.rows_ahead(row / D::TILE_ROWS, self.rows.len().div_ceil(D::TILE_ROWS));
        let mut i = 0;
        while i < full {
            // SAFETY: weight row 0 of the slice has `STEP` elements from `i` on.
            let mut weights = [unsafe { dot.load_weight(weight.add(i)) }; FEATURES];
            for f in 1..FEATURES {
                // SAFETY: so has row `f`.
                weights[f] = unsafe { dot.load_weight(weight.add(f * depth + i)) };
            }
            if (i * size_of::<W>()).is_multiple_of(CACHE_LINE) {
                for f in ahead.clone() {
                    dot.prefetch(weight.wrapping_add(f * depth + i).cast());
                }
            }
            for r in 0..ROWS {
                // SAFETY: input row `r` of the slice has `STEP` elements from `i` on.
                let inputs = unsafe { dot.load_input(input.add(r * depth + i)) };
                for f in 0..FEATURES {
                    sums[r][f] = dot.mul_add(sums[r][f], weights[f], inputs);
                }
            }
            i += D::STEP;
        }
        if full < depth {
            for f in 0..FEATURES {
                // SAFETY: weight row `f` of the slice has `depth - full` elements from `full` on.
                let weights = unsafe { dot.load_weight_partial(weight.add(f * depth + full), depth - full) };
                for r in 0..ROWS {
                    // SAFETY: input row `r` of the slice has `depth - full` elements from `full` on.
                    let inputs = unsafe { dot.load_input_partial(input.add(r * depth + full), depth - full) };
                    sums[r][f] = dot.mul_add(sums[r][f], weights, inputs);
                }
            }
        }
        sums
    }
}

impl<W: Element, I: Element> DotKernel<W, I> for Block<'_, W, I> {
    #[inline(always)]
    fn run<D: Dot<Weight = W, Input = I>>(self, dot: D) {
        let (num_rows, num_features) = (self.rows.len(), self.features.len());
        let tiled_features = num_features - num_features % TILE_FEATURES;
        if num_rows < WIDEN_ROWS {
            for feature in (0..tiled_features).step_by(TILE_FEATURES) {
                let mut row = 0;
                while row < num_rows {
                    row += self.compute::<D, TILE_FEATURES>(dot, row, feature);
                }
            }
        } else {
            let mut row = 0;
            while row < num_rows {
                let mut count = 0;
                for feature in (0..tiled_features).step_by(TILE_FEATURES) {
                    count = self.compute::<D, TILE_FEATURES>(dot, row, feature);
                }
                row += count.max(1);
            }
        }
        for feature in tiled_features..num_features {
            let mut row = 0;
            while row < num_rows {
                row += self.compute::<D, 1>(dot, row, feature);
            }
        }
    }
}

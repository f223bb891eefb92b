//! Addition to the residual, and norms.

use std::ops::Range;

use super::simd::{Isa, Kernel, Simd};
use super::tensor::Tensor;
use super::threads::{Parts, Threads};
use crate::backend::{BackendResult, Delta, Norm, NormKind};

/// Rows of one call; all shapes are checked.
pub(super) struct Rows<'a> {
    pub(super) threads: &'a mut Threads,
    pub(super) isa: Isa,
    pub(super) rows: usize,
    pub(super) width: usize,
}

/// Checks the shapes of a delta.
pub(super) fn check_delta(
    operation: &'static str,
    delta: &Delta<'_, Tensor>,
    rows: usize,
    width: usize,
) -> BackendResult<()> {
    delta.values.expect(operation, "delta", rows, width)?;
    delta.bias.map_or(Ok(()), |bias| bias.expect(operation, "bias of the delta", 1, width))
}

/// Checks the shapes of a norm.
pub(super) fn check_norm(
    operation: &'static str,
    norm: &Norm<'_, Tensor>,
    width: usize,
) -> BackendResult<()> {
    norm.weight.expect(operation, "weight", 1, width)?;
    norm.bias.map_or(Ok(()), |bias| bias.expect(operation, "bias", 1, width))
}

impl Rows<'_> {
    /// `residual += deltas; out = norm(residual)`, row by row.
    pub(super) fn add_norm(
        self,
        residual: &mut Tensor,
        deltas: [Option<Delta<'_, Tensor>>; 2],
        norm: &Norm<'_, Tensor>,
        out: &mut Tensor,
    ) {
        let Self { threads, isa, rows, width } = self;
        let row_norm = RowNorm::new(norm, width);
        let deltas = deltas.map(|delta| delta.map(|delta| RowDelta::new(&delta, width)));
        let residual = Parts::new(residual.elements_mut::<f32>());
        let out = Parts::new(out.elements_mut::<f32>());
        threads.run_rows(rows, width, |rows| {
            for row in rows {
                let range = row * width..(row + 1) * width;
                // SAFETY: every row belongs to one task.
                let (residual, out) = unsafe { (residual.slice(range.clone()), out.slice(range.clone())) };
                for delta in deltas.iter().flatten() {
                    isa.run(AddRow { target: residual, source: &delta.values[range.clone()] });
                    if let Some(bias) = delta.bias {
                        isa.run(AddRow { target: residual, source: bias });
                    }
                }
                out.copy_from_slice(residual);
                isa.run(NormRow { norm: row_norm, row: out });
            }
        });
    }

    /// `residual += norm(delta)`, row by row.
    pub(super) fn norm_add(self, delta: &Delta<'_, Tensor>, norm: &Norm<'_, Tensor>, residual: &mut Tensor) {
        let Self { threads, isa, rows, width } = self;
        let row_norm = RowNorm::new(norm, width);
        let delta = RowDelta::new(delta, width);
        let residual = Parts::new(residual.elements_mut::<f32>());
        threads.run_rows(rows, width, |rows| {
            let mut normed = vec![0.0; width];
            for row in rows {
                let range = row * width..(row + 1) * width;
                // SAFETY: every row belongs to one task.
                let residual = unsafe { residual.slice(range.clone()) };
                normed.copy_from_slice(&delta.values[range]);
                if let Some(bias) = delta.bias {
                    isa.run(AddRow { target: &mut normed, source: bias });
                }
                isa.run(NormRow { norm: row_norm, row: &mut normed });
                isa.run(AddRow { target: residual, source: &normed });
            }
        });
    }
}

/// A delta's elements.
#[derive(Clone, Copy)]
struct RowDelta<'a> {
    /// All rows.
    values: &'a [f32],
    /// One row.
    bias: Option<&'a [f32]>,
}

impl<'a> RowDelta<'a> {
    fn new(delta: &Delta<'a, Tensor>, width: usize) -> Self {
        let bias = delta.bias.map(|bias| &bias.elements::<f32>()[..width]);
        Self { values: delta.values.elements(), bias }
    }
}

/// A norm of rows of one width.
#[derive(Clone, Copy)]
pub(super) struct RowNorm<'a> {
    kind: NormKind,
    epsilon: f32,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
}

impl<'a> RowNorm<'a> {
    /// The part of the norm that some columns have to themselves.
    pub(super) fn columns(self, columns: Range<usize>) -> Self {
        let bias = self.bias.map(|bias| &bias[columns.clone()]);
        Self { weight: &self.weight[columns], bias, ..self }
    }

    pub(super) fn new(norm: &Norm<'a, Tensor>, width: usize) -> Self {
        let row = |tensor: &'a Tensor| &tensor.elements::<f32>()[..width];
        Self { kind: norm.kind, epsilon: norm.epsilon, weight: row(norm.weight), bias: norm.bias.map(row) }
    }

    /// Normalises the leading `len` elements of every `stride` of a row, all together. Plain code: this backend
    /// asks for no padding.
    pub(super) fn run_padded(&self, row: &mut [f32], stride: usize, len: usize) {
        let mean_of = |row: &[f32], of_one: &dyn Fn(f32) -> f32| {
            let kept = row.chunks_exact(stride).flat_map(|unit| &unit[..len]);
            kept.map(|&value| of_one(value)).sum::<f32>() / (row.len() / stride * len) as f32
        };
        let mean = match self.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => mean_of(row, &|value| value),
        };
        let scale = 1.0 / (mean_of(row, &|value| (value - mean) * (value - mean)) + self.epsilon).sqrt();
        for (i, value) in row.iter_mut().enumerate().filter(|(i, _)| i % stride < len) {
            *value = (*value - mean) * scale * self.weight[i] + self.bias.map_or(0.0, |bias| bias[i]);
        }
    }
}

/// `row = norm(row)` for one row.
pub(super) struct NormRow<'a> {
    pub(super) norm: RowNorm<'a>,
    pub(super) row: &'a mut [f32],
}

impl Kernel for NormRow<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { norm, row } = self;
        let width = row.len();
        assert!(norm.weight.len() == width);
        let mean = match norm.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => sum(simd, row, S::add, |x| x) / width as f32,
        };
        let means = simd.splat(mean);
        let add_square = |simd: S, total, x| {
            let centred = simd.sub(x, means);
            simd.mul_add(centred, centred, total)
        };
        let variance = sum(simd, row, add_square, |x| (x - mean) * (x - mean)) / width as f32;
        let scale = 1.0 / (variance + norm.epsilon).sqrt();
        let scales = simd.splat(scale);
        let mut i = 0;
        while i + S::LANES <= width {
            // SAFETY: both slices have `LANES` elements from `i` on.
            unsafe {
                let normed = simd.mul(simd.sub(simd.load(row.as_ptr().add(i)), means), scales);
                let weighted = simd.mul(normed, simd.load(norm.weight.as_ptr().add(i)));
                simd.store(row.as_mut_ptr().add(i), weighted);
            }
            i += S::LANES;
        }
        for (value, weight) in row[i..].iter_mut().zip(&norm.weight[i..]) {
            *value = (*value - mean) * scale * weight;
        }
        if let Some(bias) = norm.bias {
            AddRow { target: row, source: bias }.run(simd);
        }
    }
}

/// `target += source` for one row.
pub(super) struct AddRow<'a> {
    pub(super) target: &'a mut [f32],
    pub(super) source: &'a [f32],
}

impl Kernel for AddRow<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { target, source } = self;
        assert_eq!(target.len(), source.len());
        let mut i = 0;
        while i + S::LANES <= target.len() {
            // SAFETY: both slices have `LANES` elements from `i` on.
            unsafe {
                let sum = simd.add(simd.load(target.as_ptr().add(i)), simd.load(source.as_ptr().add(i)));
                simd.store(target.as_mut_ptr().add(i), sum);
            }
            i += S::LANES;
        }
        for (target, source) in target[i..].iter_mut().zip(&source[i..]) {
            *target += source;
        }
    }
}

/// Sum of a function of every element, in two vectors of partial sums that `add` adds to.
#[inline(always)]
fn sum<S: Simd>(
    simd: S,
    values: &[f32],
    add: impl Fn(S, S::Vector, S::Vector) -> S::Vector,
    of_one: impl Fn(f32) -> f32,
) -> f32 {
    let mut sums = [simd.splat(0.0); 2];
    let mut i = 0;
    while i + 2 * S::LANES <= values.len() {
        // SAFETY: the slice has two vectors from `i` on.
        let (a, b) =
            unsafe { (simd.load(values.as_ptr().add(i)), simd.load(values.as_ptr().add(i + S::LANES))) };
        sums = [add(simd, sums[0], a), add(simd, sums[1], b)];
        i += 2 * S::LANES;
    }
    let rest: f32 = values[i..].iter().map(|&value| of_one(value)).sum();
    simd.sum(simd.add(sums[0], sums[1])) + rest
}

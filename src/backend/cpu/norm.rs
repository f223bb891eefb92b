//! Residual addition and RMS norm.

use half::{bf16, f16};

use super::simd::{Element, Isa, Kernel, Simd};
use super::tensor::Tensor;
use super::threads::{Parts, Threads};
use crate::backend::DType;

/// The tensors of one call; all shapes are checked.
pub(super) struct RmsNorm<'a> {
    pub(super) residual: &'a mut Tensor,
    pub(super) delta: Option<&'a Tensor>,
    pub(super) weight: &'a Tensor,
    pub(super) epsilon: f32,
    pub(super) out: &'a mut Tensor,
    pub(super) rows: usize,
}

impl RmsNorm<'_> {
    /// `residual += delta; out = residual / rms(residual) * weight`, row by row.
    pub(super) fn run(self, threads: &mut Threads, isa: Isa) {
        match self.weight.dtype() {
            DType::F32 => self.run_weight::<f32>(threads, isa),
            DType::F16 => self.run_weight::<f16>(threads, isa),
            DType::Bf16 => self.run_weight::<bf16>(threads, isa),
        }
    }

    fn run_weight<W: Element>(self, threads: &mut Threads, isa: Isa) {
        let width = self.out.columns();
        let weight = &self.weight.elements::<W>()[..width];
        let delta = self.delta.map(|delta| delta.elements::<f32>());
        let residual = Parts::new(self.residual.elements_mut::<f32>());
        let out = Parts::new(self.out.elements_mut::<f32>());
        threads.run_rows(self.rows, width, |rows| {
            for row in rows {
                let range = row * width..(row + 1) * width;
                let delta = delta.map(|delta| &delta[range.clone()]);
                // SAFETY: every row belongs to one task.
                let (residual, out) = unsafe { (residual.slice(range.clone()), out.slice(range)) };
                isa.run(NormRow { residual, delta, weight, epsilon: self.epsilon, out });
            }
        });
    }
}

/// One row.
struct NormRow<'a, W> {
    residual: &'a mut [f32],
    delta: Option<&'a [f32]>,
    weight: &'a [W],
    epsilon: f32,
    out: &'a mut [f32],
}

impl<W: Element> Kernel for NormRow<'_, W> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.residual.len();
        assert!(self.weight.len() == width && self.out.len() == width);
        if let Some(delta) = self.delta {
            add_assign(simd, self.residual, delta);
        }
        let scale = 1.0 / (sum_of_squares(simd, self.residual) / width as f32 + self.epsilon).sqrt();
        let scales = simd.splat(scale);
        let mut i = 0;
        while i + S::LANES <= width {
            // SAFETY: all three slices have `LANES` elements from `i` on.
            unsafe {
                let normed = simd.mul(simd.load(self.residual.as_ptr().add(i)), scales);
                let weighted = simd.mul(normed, W::load(simd, self.weight.as_ptr().add(i)));
                simd.store(self.out.as_mut_ptr().add(i), weighted);
            }
            i += S::LANES;
        }
        for ((out, residual), weight) in
            self.out[i..].iter_mut().zip(&self.residual[i..]).zip(&self.weight[i..])
        {
            *out = residual * scale * weight.to_f32();
        }
    }
}

/// `target += source`, elementwise.
#[inline(always)]
fn add_assign<S: Simd>(simd: S, target: &mut [f32], source: &[f32]) {
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

#[inline(always)]
fn sum_of_squares<S: Simd>(simd: S, values: &[f32]) -> f32 {
    let mut sums = [simd.splat(0.0); 2];
    let mut i = 0;
    while i + 2 * S::LANES <= values.len() {
        // SAFETY: the slice has two vectors from `i` on.
        unsafe {
            let (a, b) = (simd.load(values.as_ptr().add(i)), simd.load(values.as_ptr().add(i + S::LANES)));
            sums[0] = simd.mul_add(a, a, sums[0]);
            sums[1] = simd.mul_add(b, b, sums[1]);
        }
        i += 2 * S::LANES;
    }
    let mut rest = 0.0;
    for value in &values[i..] {
        rest += value * value;
    }
    simd.sum(simd.add(sums[0], sums[1])) + rest
}

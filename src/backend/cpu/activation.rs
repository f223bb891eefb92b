//! The gated activation of an MLP.

use super::simd::{Isa, Kernel, Simd, math};
use super::tensor::Tensor;
use super::threads::{Parts, Threads};

/// `out = silu(gate) * up` for rows `[gate | up]`; shapes are checked.
pub(super) fn gated_silu(threads: &mut Threads, isa: Isa, gate_up: &Tensor, out: &mut Tensor, rows: usize) {
    let width = out.columns();
    let gate_up = gate_up.elements::<f32>();
    let out = Parts::new(out.elements_mut::<f32>());
    // An exponential costs about as much as eight loads and stores.
    threads.run_rows(rows, 8 * width, |rows| {
        for row in rows {
            let (gate, up) = gate_up[row * 2 * width..(row + 1) * 2 * width].split_at(width);
            // SAFETY: every row belongs to one task.
            let out = unsafe { out.slice(row * width..(row + 1) * width) };
            isa.run(GatedSilu { gate, up, out });
        }
    });
}

/// One row.
struct GatedSilu<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for GatedSilu<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.out.len();
        assert!(self.gate.len() == width && self.up.len() == width);
        let mut i = 0;
        while i + S::LANES <= width {
            // SAFETY: all three slices have `LANES` elements from `i` on.
            unsafe {
                let result =
                    silu_mul(simd, simd.load(self.gate.as_ptr().add(i)), simd.load(self.up.as_ptr().add(i)));
                simd.store(self.out.as_mut_ptr().add(i), result);
            }
            i += S::LANES;
        }
        let rest = width - i;
        if rest > 0 {
            let mut gate = [0.0; super::simd::MAX_LANES];
            let mut up = gate;
            gate[..rest].copy_from_slice(&self.gate[i..]);
            up[..rest].copy_from_slice(&self.up[i..]);
            // SAFETY: the arrays hold at least `LANES` elements.
            unsafe {
                let result = silu_mul(simd, simd.load(gate.as_ptr()), simd.load(up.as_ptr()));
                simd.store(gate.as_mut_ptr(), result);
            }
            self.out[i..].copy_from_slice(&gate[..rest]);
        }
    }
}

/// `gate / (1 + e^-gate) * up`.
#[inline(always)]
fn silu_mul<S: Simd>(simd: S, gate: S::Vector, up: S::Vector) -> S::Vector {
    let negated = simd.sub(simd.splat(0.0), gate);
    let denominator = simd.add(simd.splat(1.0), math::exp(simd, negated));
    simd.mul(simd.div(gate, denominator), up)
}

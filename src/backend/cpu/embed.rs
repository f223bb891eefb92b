//! Rows of the embedding table, widened to f32.

use half::{bf16, f16};

use super::simd::{Element, Isa, Kernel, Simd};
use super::tensor::Tensor;
use super::threads::{Parts, Threads};
use crate::backend::DType;

/// Copies `table[tokens[t]]` to row `t` of `out`; shapes and tokens are checked.
pub(super) fn embed(threads: &mut Threads, isa: Isa, tokens: &[u32], table: &Tensor, out: &mut Tensor) {
    match table.dtype() {
        DType::F32 => embed_from(threads, isa, tokens, table.elements::<f32>(), out),
        DType::F16 => embed_from(threads, isa, tokens, table.elements::<f16>(), out),
        DType::Bf16 => embed_from(threads, isa, tokens, table.elements::<bf16>(), out),
    }
}

fn embed_from<E: Element>(threads: &mut Threads, isa: Isa, tokens: &[u32], table: &[E], out: &mut Tensor) {
    let width = out.columns();
    let out = Parts::new(out.elements_mut::<f32>());
    threads.run_rows(tokens.len(), width, |rows| {
        for t in rows {
            let source = &table[tokens[t] as usize * width..][..width];
            // SAFETY: every row belongs to one task.
            let target = unsafe { out.slice(t * width..(t + 1) * width) };
            isa.run(Widen { source, target });
        }
    });
}

/// Copies elements of any type to f32; both slices have one length.
pub(super) struct Widen<'a, E> {
    pub(super) source: &'a [E],
    pub(super) target: &'a mut [f32],
}

impl<E: Element> Kernel for Widen<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let len = self.source.len();
        assert_eq!(self.target.len(), len);
        let mut i = 0;
        while i + S::LANES <= len {
            // SAFETY: both slices have `LANES` elements from `i` on.
            unsafe {
                simd.store(self.target.as_mut_ptr().add(i), E::load(simd, self.source.as_ptr().add(i)));
            }
            i += S::LANES;
        }
        for (target, source) in self.target[i..].iter_mut().zip(&self.source[i..]) {
            *target = source.to_f32();
        }
    }
}

//! Embedding of tokens and positions.

use half::{bf16, f16};

use super::batch::LoadedBatch;
use super::simd::{Element, Isa, Kernel, Simd};
use super::tensor::Tensor;
use super::threads::{Parts, Threads};
use crate::backend::{DType, Embedding};

/// What is embedded; shapes and tokens are checked.
pub(super) struct Embed<'a> {
    pub(super) batch: &'a LoadedBatch,
    pub(super) embedding: &'a Embedding<'a, Tensor>,
    pub(super) out: &'a mut Tensor,
}

impl Embed<'_> {
    /// Writes `table[tokens[t]] * scale + positions[position of t]` to row `t` of `out`.
    pub(super) fn run(self, threads: &mut Threads, isa: Isa) {
        match self.embedding.table.dtype() {
            DType::F32 => self.run_table::<f32>(threads, isa),
            DType::F16 => self.run_table::<f16>(threads, isa),
            DType::Bf16 => self.run_table::<bf16>(threads, isa),
        }
    }

    fn run_table<E: Element>(self, threads: &mut Threads, isa: Isa) {
        let width = self.out.columns();
        let Embedding { table, scale, positions } = *self.embedding;
        let (table, positions) = (table.elements::<E>(), positions.map(|table| table.elements::<E>()));
        let row = |index: usize| index * width..(index + 1) * width;
        let out = Parts::new(self.out.elements_mut::<f32>());
        let batch = self.batch;
        threads.run_rows(batch.tokens.len(), width, |rows| {
            for t in rows {
                // SAFETY: every row belongs to one task.
                let target = unsafe { out.slice(t * width..(t + 1) * width) };
                isa.run(Widen { source: &table[row(batch.tokens[t] as usize)], target });
                if scale != 1.0 {
                    target.iter_mut().for_each(|value| *value *= scale);
                }
                if let Some(positions) = positions {
                    let added = &positions[row(batch.positions[t])];
                    target.iter_mut().zip(added).for_each(|(value, added)| *value += added.to_f32());
                }
            }
        });
    }
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

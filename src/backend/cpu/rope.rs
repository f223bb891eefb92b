//! What happens to queries, keys and values before attention: bias, clamp, norm, rotation, and the write to the
//! cache.

use half::{bf16, f16};

use super::batch::LoadedBatch;
use super::invalid;
use super::linear::Narrow;
use super::norm::{self, AddRow, NormRow, RowNorm};
use super::simd::{Element, Isa, Kernel, Simd};
use super::tensor::{KeyOrValue, KvCache, Tensor, head_offset};
use super::threads::{Parts, Threads};
use crate::backend::{
    AttentionShape, BackendResult, DType, KvLayout, NormExtent, QkNorm, QkvTransform, RopePairing,
};

/// One call's arguments; shapes and the batch are checked.
pub(super) struct RopeAndWriteKv<'a> {
    pub(super) batch: &'a LoadedBatch,
    pub(super) qkv: &'a mut Tensor,
    pub(super) transform: &'a QkvTransform<'a, Tensor>,
    pub(super) shape: &'a AttentionShape,
    pub(super) cache: &'a mut KvCache,
    pub(super) layer: usize,
}

/// Checks that a transform's tensors fit `shape`, and the table contexts of up to `max_context_len`.
pub(super) fn check_transform(
    operation: &'static str,
    transform: &QkvTransform<'_, Tensor>,
    shape: &AttentionShape,
    max_context_len: usize,
) -> BackendResult<()> {
    if let Some(bias) = transform.bias {
        bias.expect(operation, "bias", 1, shape.qkv_width())?;
    }
    if let Some(norm) = &transform.norm {
        norm::check_norm(operation, &norm.query, shape.num_heads * shape.head_dim)?;
        norm::check_norm(operation, &norm.key, shape.num_kv_heads * shape.head_dim)?;
        if norm.head_len == 0 || norm.head_len > shape.head_dim {
            let message = format!("norms of {} elements for heads of {}", norm.head_len, shape.head_dim);
            return Err(invalid(operation, message));
        }
    }
    let Some(rope) = &transform.rope else { return Ok(()) };
    let rotary_dim = rope.table.columns();
    rope.table.expect(operation, "table", max_context_len, rotary_dim)?;
    if rotary_dim > shape.head_dim || !rotary_dim.is_multiple_of(2) {
        let message = format!("table has {rotary_dim} columns for heads of {}", shape.head_dim);
        return Err(invalid(operation, message));
    }
    Ok(())
}

impl RopeAndWriteKv<'_> {
    /// Rotates queries and keys in place and copies keys and values to the cache.
    pub(super) fn run(self, threads: &mut Threads, isa: Isa) {
        match self.cache.layout().dtype {
            DType::F32 => self.run_cache::<f32>(threads, isa),
            DType::F16 => self.run_cache::<f16>(threads, isa),
            DType::Bf16 => self.run_cache::<bf16>(threads, isa),
        }
    }

    /// One task is one head of all tokens: no two tasks write to the same place of the cache, even where a
    /// faulty caller gave one block to two rows.
    fn run_cache<E: Element>(mut self, threads: &mut Threads, isa: Isa) {
        let layout = *self.cache.layout();
        let num_heads = self.shape.num_heads + 2 * self.shape.num_kv_heads;
        let norm = self.transform.norm.as_ref();
        let is_prepared = norm.is_some_and(|norm| norm.extent == NormExtent::Width);
        if is_prepared {
            self.prepare_rows(threads, isa);
        }
        let head_norms = norm.filter(|_| !is_prepared).map(|norm| norms(norm, self.shape));
        let heads = HeadTask {
            batch: self.batch,
            qkv: Parts::new(self.qkv.elements_mut::<f32>()),
            bias: self.transform.bias.map(|bias| bias.elements::<f32>()),
            clamp: self.transform.clamp,
            head_norms,
            head_len: norm.map_or(0, |norm| norm.head_len),
            is_prepared,
            rotation: self.transform.rope.as_ref().map(|rope| Rotation {
                table: rope.table.elements::<f32>(),
                rotary_dim: rope.table.columns(),
                pairing: rope.pairing,
            }),
            shape: self.shape,
            cache: Parts::new(self.cache.elements_mut::<E>()),
            layout,
            layer: self.layer,
            isa,
        };
        // Below about 4 K elements a parallel region costs more than it brings.
        if self.batch.num_tokens() * self.shape.qkv_width() < 4096 {
            (0..num_heads).for_each(|head| heads.run(head));
        } else {
            threads.run(num_heads, |head| heads.run(head));
        }
    }
}

impl RopeAndWriteKv<'_> {
    /// Bias, clamp and the norms that take all heads together.
    fn prepare_rows(&mut self, threads: &mut Threads, isa: Isa) {
        let AttentionShape { num_heads, num_kv_heads, head_dim, .. } = *self.shape;
        let (width, num_tokens) = (self.shape.qkv_width(), self.batch.num_tokens());
        let QkvTransform { bias, clamp, norm, .. } = self.transform;
        let bias = bias.map(|bias| &bias.elements::<f32>()[..width]);
        let head_len = norm.as_ref().map_or(head_dim, |norm| norm.head_len);
        let norms = norm.as_ref().map(|norm| norms(norm, self.shape));
        let qkv = Parts::new(self.qkv.elements_mut::<f32>());
        threads.run_rows(num_tokens, width, |rows| {
            for row in rows {
                // SAFETY: every row belongs to one task.
                let values = unsafe { qkv.slice(row * width..(row + 1) * width) };
                add_and_clamp(isa, values, bias, *clamp);
                let (queries, rest) = values.split_at_mut(num_heads * head_dim);
                let keys = &mut rest[..num_kv_heads * head_dim];
                match norms {
                    None => {}
                    Some([query, key]) if head_len == head_dim => {
                        isa.run(NormRow { norm: query, row: queries });
                        isa.run(NormRow { norm: key, row: keys });
                    }
                    Some([query, key]) => {
                        query.run_padded(queries, head_dim, head_len);
                        key.run_padded(keys, head_dim, head_len);
                    }
                }
            }
        });
    }
}

/// Norms of queries and keys.
fn norms<'a>(norm: &QkNorm<'a, Tensor>, shape: &AttentionShape) -> [RowNorm<'a>; 2] {
    let AttentionShape { num_heads, num_kv_heads, head_dim, .. } = *shape;
    [RowNorm::new(&norm.query, num_heads * head_dim), RowNorm::new(&norm.key, num_kv_heads * head_dim)]
}

fn add_and_clamp(isa: Isa, values: &mut [f32], bias: Option<&[f32]>, clamp: Option<f32>) {
    if let Some(source) = bias {
        isa.run(AddRow { target: values, source });
    }
    if let Some(clamp) = clamp {
        values.iter_mut().for_each(|value| *value = value.clamp(-clamp, clamp));
    }
}

/// What the tasks share.
struct HeadTask<'a, E> {
    batch: &'a LoadedBatch,
    qkv: Parts<'a, f32>,
    /// Of a row.
    bias: Option<&'a [f32]>,
    clamp: Option<f32>,
    /// Whether bias and clamp have been applied already.
    is_prepared: bool,
    /// Norms of query heads and key heads, each head with its own columns.
    head_norms: Option<[RowNorm<'a>; 2]>,
    /// Leading elements of a head that they take.
    head_len: usize,
    rotation: Option<Rotation<'a>>,
    shape: &'a AttentionShape,
    cache: Parts<'a, E>,
    layout: KvLayout,
    layer: usize,
    isa: Isa,
}

/// Angles of all positions.
#[derive(Clone, Copy)]
struct Rotation<'a> {
    /// `[positions, rotary_dim]`: cosines, then sines.
    table: &'a [f32],
    rotary_dim: usize,
    pairing: RopePairing,
}

impl<E: Element> HeadTask<'_, E> {
    /// Works on head `head` of a `qkv` row: the query heads come first, then the key heads, then the values'.
    fn run(&self, head: usize) {
        let AttentionShape { num_heads, num_kv_heads, head_dim, .. } = *self.shape;
        let is_value = head >= num_heads + num_kv_heads;
        let width = self.shape.qkv_width();
        for row in &self.batch.rows {
            for i in 0..row.num_tokens {
                let position = row.first_position + i;
                let start = (row.first_token + i) * width + head * head_dim;
                // SAFETY: a head of a token belongs to one task.
                let values = unsafe { self.qkv.slice(start..start + head_dim) };
                if !self.is_prepared {
                    let bias = self.bias.map(|bias| &bias[head * head_dim..(head + 1) * head_dim]);
                    add_and_clamp(self.isa, values, bias, self.clamp);
                }
                if let Some([query, key]) = self.head_norms.filter(|_| !is_value) {
                    let (norm, head) = if head < num_heads { (query, head) } else { (key, head - num_heads) };
                    let norm = norm.columns(head * head_dim..head * head_dim + self.head_len);
                    self.isa.run(NormRow { norm, row: &mut values[..self.head_len] });
                }
                if let Some(rotation) = self.rotation.filter(|_| !is_value) {
                    rotation.run(self.isa, values, position);
                }
                if head < num_heads {
                    continue;
                }
                let block = self.batch.block(row, position, self.layout.block_size);
                let (part, kv_head) = match is_value {
                    false => (KeyOrValue::Key, head - num_heads),
                    true => (KeyOrValue::Value, head - num_heads - num_kv_heads),
                };
                let start = head_offset(&self.layout, self.layer, block, part, kv_head)
                    + position % self.layout.block_size * head_dim;
                // SAFETY: keys or values of one head, in all blocks, belong to one task, and tasks run one
                // token after the other.
                let target = unsafe { self.cache.slice(start..start + head_dim) };
                self.isa.run(Narrow { source: values, target });
            }
        }
    }
}

impl Rotation<'_> {
    /// Rotates a head's leading elements.
    fn run(&self, isa: Isa, values: &mut [f32], position: usize) {
        let angles = &self.table[position * self.rotary_dim..(position + 1) * self.rotary_dim];
        let values = &mut values[..self.rotary_dim];
        match self.pairing {
            RopePairing::Half => isa.run(RotateHalves { values, angles }),
            RopePairing::Interleaved => {
                let (cosines, sines) = angles.split_at(angles.len() / 2);
                for ((pair, cosine), sine) in values.chunks_exact_mut(2).zip(cosines).zip(sines) {
                    let (a, b) = (pair[0], pair[1]);
                    pair[0] = a * cosine - b * sine;
                    pair[1] = b * cosine + a * sine;
                }
            }
        }
    }
}

/// Rotates element `i` with element `i + half`.
struct RotateHalves<'a> {
    values: &'a mut [f32],
    angles: &'a [f32],
}

impl Kernel for RotateHalves<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, _simd: S) {
        let half = self.angles.len() / 2;
        let (cosines, sines) = self.angles.split_at(half);
        let (first, second) = self.values.split_at_mut(half);
        for (((a, b), cosine), sine) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
            (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
        }
    }
}

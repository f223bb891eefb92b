//! Typed buffers in host memory.

use bytemuck::Pod;

use super::invalid;
use super::simd::Element;
use crate::backend::{BackendError, BackendResult, DType, KvLayout};

/// Start of every buffer: a cache line, so that wide loads of aligned rows do not cross two.
const ALIGNMENT: usize = 64;

/// Zeroed bytes, aligned to a cache line. Pages that were never written take no memory.
pub(super) struct Buffer {
    /// 16 bytes is the largest alignment for which the allocator hands out zero pages untouched, so the buffer
    /// is over-allocated and starts at `first_word`.
    words: Vec<u128>,
    first_word: usize,
    num_words: usize,
}

impl Buffer {
    pub(super) const EMPTY: Buffer = Buffer { words: Vec::new(), first_word: 0, num_words: 0 };

    /// `num_bytes` zero bytes; `what` names them in the error.
    pub(super) fn zeroed(num_bytes: Option<u64>, what: &str) -> BackendResult<Buffer> {
        const WORD: usize = size_of::<u128>();
        let shortage =
            || BackendError::HostOutOfMemory { what: what.to_string(), bytes: num_bytes.unwrap_or(u64::MAX) };
        let num_bytes = num_bytes.and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(shortage)?;
        let num_words = num_bytes.div_ceil(WORD);
        let words = bytemuck::allocation::try_zeroed_vec::<u128>(num_words + ALIGNMENT / WORD)
            .map_err(|()| shortage())?;
        let first_word = words.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT / WORD);
        Ok(Buffer { words, first_word, num_words })
    }

    /// Replaces the buffer by a zeroed one if it is smaller than `num_bytes`.
    pub(super) fn grow(&mut self, num_bytes: Option<u64>, what: &str) -> BackendResult<()> {
        if num_bytes.is_none_or(|num_bytes| num_bytes > (self.num_words * size_of::<u128>()) as u64) {
            *self = Buffer::zeroed(num_bytes, what)?;
        }
        Ok(())
    }

    /// The buffer as elements of one type; a few zeros may follow what was asked for.
    pub(super) fn elements<T: Pod>(&self) -> &[T] {
        bytemuck::cast_slice(&self.words[self.first_word..self.first_word + self.num_words])
    }

    /// [`Buffer::elements`], to write.
    pub(super) fn elements_mut<T: Pod>(&mut self) -> &mut [T] {
        bytemuck::cast_slice_mut(&mut self.words[self.first_word..self.first_word + self.num_words])
    }
}

/// `factors` multiplied, or `None` on overflow.
pub(super) fn product(factors: &[usize]) -> Option<u64> {
    factors.iter().try_fold(1u64, |product, &factor| product.checked_mul(factor as u64))
}

/// A row-major `[rows, columns]` buffer.
pub struct Tensor {
    dtype: DType,
    rows: usize,
    columns: usize,
    buffer: Buffer,
}

impl Tensor {
    pub(super) fn zeroed(dtype: DType, rows: usize, columns: usize) -> BackendResult<Tensor> {
        let num_bytes = product(&[rows, columns, dtype.size_bytes()]);
        let buffer = Buffer::zeroed(num_bytes, &format!("tensor [{rows}, {columns}] of {dtype:?}"))?;
        Ok(Tensor { dtype, rows, columns, buffer })
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// All elements; `E` is the tensor's type.
    pub(super) fn elements<E: Element>(&self) -> &[E] {
        assert_eq!(self.dtype, E::DTYPE);
        &self.buffer.elements()[..self.rows * self.columns]
    }

    /// [`Tensor::elements`], to write.
    pub(super) fn elements_mut<E: Element>(&mut self) -> &mut [E] {
        assert_eq!(self.dtype, E::DTYPE);
        &mut self.buffer.elements_mut()[..self.rows * self.columns]
    }

    /// The bytes of `num_rows` rows from `first_row` on, checked.
    pub(super) fn row_bytes_mut(&mut self, first_row: usize, num_bytes: usize) -> BackendResult<&mut [u8]> {
        let row_bytes = self.columns * self.dtype.size_bytes();
        if row_bytes == 0 || !num_bytes.is_multiple_of(row_bytes) {
            return Err(invalid(
                "write_rows",
                format!("{num_bytes} bytes are no whole rows of {row_bytes} bytes"),
            ));
        }
        let num_rows = num_bytes / row_bytes;
        let end = first_row.checked_add(num_rows).filter(|&end| end <= self.rows);
        let Some(end) = end else {
            let message =
                format!("{num_rows} rows from row {first_row} on leave a tensor of {} rows", self.rows);
            return Err(invalid("write_rows", message));
        };
        Ok(&mut self.buffer.elements_mut::<u8>()[first_row * row_bytes..end * row_bytes])
    }

    /// Checks that this is an f32 tensor of at least `rows` rows and exactly `columns` columns.
    pub(super) fn expect(
        &self,
        operation: &'static str,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> BackendResult<()> {
        self.expect_shape(operation, name, rows, columns)?;
        if self.dtype != DType::F32 {
            return Err(invalid(operation, format!("{name} is {:?} and must be F32", self.dtype)));
        }
        Ok(())
    }

    /// Checks the shape alone.
    pub(super) fn expect_shape(
        &self,
        operation: &'static str,
        name: &str,
        rows: usize,
        columns: usize,
    ) -> BackendResult<()> {
        if self.rows < rows || self.columns != columns {
            let message = format!(
                "{name} is [{}, {}] and must be [{rows} or more, {columns}]",
                self.rows, self.columns
            );
            return Err(invalid(operation, message));
        }
        Ok(())
    }
}

/// The paged cache of all layers, see [`KvLayout`].
pub struct KvCache {
    layout: KvLayout,
    buffer: Buffer,
}

impl KvCache {
    pub(super) fn zeroed(layout: &KvLayout) -> BackendResult<KvCache> {
        let sizes = [layout.num_layers, layout.num_kv_heads, layout.block_size, layout.head_dim];
        if sizes.contains(&0) {
            return Err(invalid("alloc_kv_cache", format!("{layout:?} has a size of 0")));
        }
        let num_bytes = layout.block_bytes().and_then(|bytes| bytes.checked_mul(layout.num_blocks as u64));
        Ok(KvCache { layout: *layout, buffer: Buffer::zeroed(num_bytes, "KV cache")? })
    }

    /// Shape and type.
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Elements of all layers.
    pub(super) fn elements<E: Element>(&self) -> &[E] {
        assert_eq!(self.layout.dtype, E::DTYPE);
        self.buffer.elements()
    }

    /// [`KvCache::elements`], to write.
    pub(super) fn elements_mut<E: Element>(&mut self) -> &mut [E] {
        assert_eq!(self.layout.dtype, E::DTYPE);
        self.buffer.elements_mut()
    }
}

/// Which half of a block.
#[derive(Clone, Copy)]
pub(super) enum KeyOrValue {
    Key = 0,
    Value = 1,
}

/// Index of the first element of one head's part of one block; all arguments lie in the layout's ranges.
pub(super) fn head_offset(
    layout: &KvLayout,
    layer: usize,
    block: usize,
    part: KeyOrValue,
    kv_head: usize,
) -> usize {
    debug_assert!(layer < layout.num_layers && block < layout.num_blocks && kv_head < layout.num_kv_heads);
    let head_index =
        ((layer * layout.num_blocks + block) * 2 + part as usize) * layout.num_kv_heads + kv_head;
    head_index * layout.block_size * layout.head_dim
}

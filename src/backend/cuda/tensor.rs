//! Tensors and the KV cache: places in the arena, and the checks that launchers make before they use them.

use super::driver::DevicePtr;
use crate::backend::{AttentionShape, BackendError, BackendResult, DType, KvLayout};

/// Elements of a 16-byte vector of 2-byte elements; rows of activations are whole vectors.
pub(super) const VECTOR_ELEMENTS: usize = 8;
/// Keys of a block that kernels load together; block sizes are multiples of it.
const BLOCK_SIZE_MULTIPLE: usize = 16;

/// A row-major matrix in device memory, `[rows, columns]`. Its memory belongs to the backend that made it.
pub struct Tensor {
    pub(super) data: DevicePtr,
    pub(super) backend_id: u64,
    dtype: DType,
    rows: usize,
    columns: usize,
}

impl Tensor {
    pub(super) fn new(data: DevicePtr, backend_id: u64, dtype: DType, rows: usize, columns: usize) -> Tensor {
        Tensor { data, backend_id, dtype, rows, columns }
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

    /// Address of row `row`.
    pub(super) fn row(&self, row: usize) -> DevicePtr {
        self.data + (row * self.row_bytes()) as u64
    }

    pub(super) fn row_bytes(&self) -> usize {
        self.columns * self.dtype.size_bytes()
    }
}

/// The paged cache of all layers, see [`KvLayout`].
pub struct KvCache {
    pub(super) data: DevicePtr,
    pub(super) backend_id: u64,
    layout: KvLayout,
}

impl KvCache {
    pub(super) fn new(data: DevicePtr, backend_id: u64, layout: KvLayout) -> KvCache {
        KvCache { data, backend_id, layout }
    }

    /// Shape and type.
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// Address of a layer's blocks.
    pub(super) fn layer(&self, layer: usize) -> DevicePtr {
        let KvLayout { num_blocks, block_size, num_kv_heads, head_dim, dtype, .. } = self.layout;
        let layer_elements = num_blocks * 2 * num_kv_heads * block_size * head_dim;
        self.data + (layer * layer_elements * dtype.size_bytes()) as u64
    }
}

/// The arguments of one operation, under check.
#[derive(Clone, Copy)]
pub(super) struct Checker {
    pub(super) operation: &'static str,
    pub(super) backend_id: u64,
}

impl Checker {
    pub(super) fn fail<T>(&self, message: String) -> BackendResult<T> {
        Err(BackendError::InvalidArgument { operation: self.operation, message })
    }

    pub(super) fn require(&self, is_met: bool, message: impl FnOnce() -> String) -> BackendResult<()> {
        if is_met { Ok(()) } else { self.fail(message()) }
    }

    /// At least `rows` rows of exactly `columns` elements of `dtype`.
    pub(super) fn tensor(
        &self,
        name: &str,
        tensor: &Tensor,
        dtype: DType,
        rows: usize,
        columns: usize,
    ) -> BackendResult<()> {
        self.require(tensor.backend_id == self.backend_id, || format!("{name} belongs to another backend"))?;
        self.require(tensor.rows >= rows && tensor.columns == columns && tensor.dtype == dtype, || {
            format!(
                "{name} is [{}, {}] of {:?} and must be [{rows} or more, {columns}] of {dtype:?}",
                tensor.rows, tensor.columns, tensor.dtype
            )
        })
    }

    /// Address of `num_bytes` bytes of whole rows of `tensor`, starting at row `first_row`.
    pub(super) fn whole_rows(
        &self,
        tensor: &Tensor,
        first_row: usize,
        num_bytes: usize,
    ) -> BackendResult<DevicePtr> {
        self.tensor("tensor", tensor, tensor.dtype, 0, tensor.columns)?;
        let row_bytes = tensor.row_bytes();
        self.require(row_bytes > 0 && num_bytes.is_multiple_of(row_bytes), || {
            format!("{num_bytes} bytes are no whole rows of {row_bytes} bytes")
        })?;
        let num_rows = num_bytes / row_bytes;
        let is_inside = first_row.checked_add(num_rows).is_some_and(|end| end <= tensor.rows);
        self.require(is_inside, || {
            format!("{num_rows} rows from row {first_row} on leave a tensor of {} rows", tensor.rows)
        })?;
        Ok(tensor.row(first_row))
    }

    /// A type that kernels compute with, and rows of whole 16-byte vectors.
    pub(super) fn vectors(&self, name: &str, tensor: &Tensor) -> BackendResult<()> {
        let is_supported = tensor.dtype != DType::F32 && tensor.columns.is_multiple_of(VECTOR_ELEMENTS);
        self.require(is_supported && tensor.columns > 0, || {
            format!(
                "{name} has {} columns of {:?}; the CUDA backend takes BF16 and F16 and multiples of 8",
                tensor.columns, tensor.dtype
            )
        })
    }

    /// A cache that kernels take, with heads of one of `head_dims`.
    pub(super) fn layout(&self, layout: &KvLayout, head_dims: &[usize]) -> BackendResult<()> {
        let KvLayout { num_layers, num_blocks, block_size, num_kv_heads, head_dim, dtype } = *layout;
        let sizes = [num_layers, num_blocks, num_kv_heads, block_size, head_dim];
        self.require(!sizes.contains(&0), || format!("{layout:?} has a size of 0"))?;
        self.require(block_size.is_multiple_of(BLOCK_SIZE_MULTIPLE), || {
            format!("blocks of {block_size} tokens; they must be a multiple of {BLOCK_SIZE_MULTIPLE}")
        })?;
        self.require(dtype != DType::F32 && head_dims.contains(&head_dim), || {
            format!(
                "a cache of {dtype:?} with heads of {head_dim}; the CUDA backend takes BF16 and F16, and heads \
                 of {head_dims:?}"
            )
        })?;
        // A token's place in a layer has 32 bits on the device.
        to_u32(self.operation, num_blocks.saturating_mul(block_size)).map(drop)
    }

    /// A layer of a cache, and heads that fit it.
    pub(super) fn cache(&self, cache: &KvCache, layer: usize, shape: &AttentionShape) -> BackendResult<()> {
        self.require(cache.backend_id == self.backend_id, || {
            "the cache belongs to another backend".to_owned()
        })?;
        let layout = &cache.layout;
        self.require(layer < layout.num_layers, || format!("layer {layer} of {}", layout.num_layers))?;
        shape.check(self.operation, layout)
    }

    /// Address of a row of `columns` single-precision elements, or null where there is none.
    pub(super) fn optional_row(
        &self,
        name: &str,
        row: Option<&Tensor>,
        columns: usize,
    ) -> BackendResult<DevicePtr> {
        let Some(row) = row else { return Ok(0) };
        self.tensor(name, row, DType::F32, 1, columns)?;
        Ok(row.data)
    }
}

/// Appends elements of `dtype` to `values`.
pub(super) fn widen(dtype: DType, bytes: &[u8], values: &mut Vec<f32>) {
    match dtype {
        DType::F32 => values.extend_from_slice(bytemuck::cast_slice::<u8, f32>(bytes)),
        DType::F16 => {
            values.extend(bytemuck::cast_slice::<u8, half::f16>(bytes).iter().map(|v| v.to_f32()));
        }
        DType::Bf16 => {
            values.extend(bytemuck::cast_slice::<u8, half::bf16>(bytes).iter().map(|v| v.to_f32()));
        }
    }
}

/// A size as kernels take it.
pub(super) fn to_u32(operation: &'static str, value: usize) -> BackendResult<u32> {
    u32::try_from(value)
        .map_err(|_| BackendError::InvalidArgument { operation, message: format!("{value} exceeds 32 bits") })
}

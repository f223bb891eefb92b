//! Attention of rows with several query tokens: the kernel for Hopper (`kernels/attention_prompt_sm90.cu`) and the
//! one for every other device (`kernels/attention_prompt.cu`).

use super::attention::{AttentionCall, AttentionParams, Variants};
use super::boxes::{BoxedMatrix, TensorMap};
use super::driver::{Gpu, Launch, Params};
use super::modules::{Modules, PerDType};
use super::plan::TILE_TOKENS;
use super::tensor::Checker;
use crate::backend::BackendResult;

/// Query rows that a block of the portable kernel takes, and a warpgroup of the other.
const QUERY_ROWS: usize = TILE_TOKENS / 2;

#[repr(C, align(128))]
#[derive(Debug, Clone, Copy)]
pub(super) struct HopperParams {
    queries: TensorMap,
    cache: TensorMap,
    attention: AttentionParams,
    layer_row: u32,
    box_keys: u32,
    boxes_per_block: u32,
    heads_per_block: u32,
}

const _: () = assert!(size_of::<HopperParams>() == 512);

// SAFETY: `repr(C)`, mirrors PromptParams in attention_prompt_sm90.cu.
unsafe impl Params for HopperParams {}

/// The kernels of one head size.
pub(super) enum PromptAttention {
    Portable { kernels: Variants<AttentionParams>, shared_bytes: u32 },
    Hopper { kernels: Variants<HopperParams>, shape: HopperShape },
}

impl PromptAttention {
    pub(super) fn new(gpu: &Gpu, modules: &Modules, head_dim: usize) -> BackendResult<PromptAttention> {
        if gpu.is_hopper() {
            let shape = HopperShape::new(head_dim);
            let kernels = Variants::try_new(|variant| {
                PerDType::try_new(|dtype| {
                    let name = format!("attention_prompt_sm90_{variant}{dtype}_{head_dim}");
                    let kernel = modules.kernel(gpu, "attention_prompt_sm90", &name)?;
                    kernel.allow_shared_bytes(gpu, shape.shared_bytes())?;
                    Ok(kernel)
                })
            })?;
            return Ok(PromptAttention::Hopper { kernels, shape });
        }
        // Mirrors PromptShape: a shared row carries one more vector against bank conflicts.
        let keys = if head_dim > 128 { 32 } else { 64 };
        let shared_bytes = ((QUERY_ROWS + 2 * 2 * keys) * 2 * (head_dim + 8)) as u32;
        let kernels = Variants::try_new(|variant| {
            PerDType::try_new(|dtype| {
                let name = format!("attention_prompt_{variant}{dtype}_{head_dim}");
                let kernel = modules.kernel(gpu, "attention_prompt", &name)?;
                kernel.allow_shared_bytes(gpu, shared_bytes)?;
                Ok(kernel)
            })
        })?;
        Ok(PromptAttention::Portable { kernels, shared_bytes })
    }

    /// Runs `num_tiles` tiles of a checked call.
    pub(super) fn run(
        &self,
        gpu: &Gpu,
        check: Checker,
        num_tiles: usize,
        call: &AttentionCall<'_>,
        params: &AttentionParams,
    ) -> BackendResult<()> {
        if num_tiles == 0 {
            return Ok(());
        }
        let (num_heads, dtype) = (call.shape.num_heads, call.cache.layout().dtype);
        match self {
            PromptAttention::Portable { kernels, shared_bytes } => {
                let grid = [2 * num_tiles as u32, num_heads as u32, 1];
                let launch = Launch { grid, threads: 128, shared_bytes: *shared_bytes, overlaps: false };
                gpu.launch(check.operation, kernels.get(&call.scoring, dtype), launch, params)
            }
            PromptAttention::Hopper { kernels, shape } => {
                let params = shape.params(gpu, check, call, params)?;
                // Every block stays on a multiprocessor and draws work until there is none.
                let num_works = u32::try_from(num_tiles * num_heads).unwrap_or(u32::MAX);
                let grid = [num_works.min(gpu.num_multiprocessors()), 1, 1];
                let launch =
                    Launch { grid, threads: 384, shared_bytes: shape.shared_bytes(), overlaps: false };
                gpu.launch(check.operation, kernels.get(&call.scoring, dtype), launch, &params)
            }
        }
    }
}

/// Mirrors PromptShape and SharedLayout in `attention_prompt_sm90.cuh`.
#[derive(Debug, Clone, Copy)]
pub(super) struct HopperShape {
    head_dim: usize,
    /// Keys of a tile.
    keys: usize,
    /// Tiles of keys, and of values, in shared memory.
    stages: usize,
    /// Elements of a row of a panel, which is what one copy takes of a head.
    panel: usize,
}

impl HopperShape {
    /// Warpgroups that compute.
    const CONSUMERS: usize = 2;
    /// What a consumer is told of its next work.
    const WORK_BYTES: usize = 32;

    fn new(head_dim: usize) -> HopperShape {
        let (keys, stages) = if head_dim > 128 { (64, 2) } else { (128, 3) };
        let panel = [64, 32].into_iter().find(|&panel| head_dim.is_multiple_of(panel)).unwrap_or(16);
        HopperShape { head_dim, keys, stages, panel }
    }

    fn shared_bytes(&self) -> u32 {
        let consumer_bytes = QUERY_ROWS * self.head_dim * 2 + Self::WORK_BYTES;
        let tiles_bytes = 2 * self.stages * self.keys * self.head_dim * 2;
        let barriers_bytes = (2 * (2 * self.stages + Self::CONSUMERS) + 1) * 8;
        // Tiles start at multiples of 1,024 bytes, which shared memory as a whole need not do.
        (1024 + Self::CONSUMERS * consumer_bytes + tiles_bytes + barriers_bytes) as u32
    }

    fn params(
        &self,
        gpu: &Gpu,
        check: Checker,
        call: &AttentionCall<'_>,
        params: &AttentionParams,
    ) -> BackendResult<HopperParams> {
        let layout = call.cache.layout();
        let group = call.shape.num_heads / call.shape.num_kv_heads;
        let queries = BoxedMatrix {
            data: call.qkv.data,
            dtype: layout.dtype,
            rows: call.qkv.rows() as u64,
            columns: call.qkv.columns() as u64,
            box_rows: QUERY_ROWS as u32,
            box_columns: self.panel as u32,
        };
        // A box lies within a block and within a tile of keys; block sizes are multiples of 16.
        let box_keys = [128, 64, 32, 16]
            .into_iter()
            .find(|&keys| layout.block_size.is_multiple_of(keys) && self.keys.is_multiple_of(keys))
            .unwrap_or(16);
        let layer_rows = layout.num_blocks * 2 * layout.num_kv_heads * layout.block_size;
        let num_rows = layer_rows as u64 * layout.num_layers as u64;
        check.require(i32::try_from(num_rows).is_ok(), || {
            format!("a cache of {num_rows} keys and values of all heads; at most 2^31 - 1 are supported")
        })?;
        let cache = BoxedMatrix {
            data: call.cache.data,
            dtype: layout.dtype,
            rows: num_rows,
            columns: layout.head_dim as u64,
            box_rows: box_keys as u32,
            box_columns: self.panel as u32,
        };
        Ok(HopperParams {
            queries: gpu.encode_boxes(check.operation, &queries)?,
            cache: gpu.encode_boxes(check.operation, &cache)?,
            attention: *params,
            layer_row: (call.layer * layer_rows) as u32,
            box_keys: box_keys as u32,
            boxes_per_block: (layout.block_size / box_keys) as u32,
            heads_per_block: if group.is_multiple_of(Self::CONSUMERS) { Self::CONSUMERS as u32 } else { 1 },
        })
    }
}

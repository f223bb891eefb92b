//! Attention over the paged cache: parameters, and decodes (`kernels/attention_decode.cu`).

use std::f32::consts::LOG2_E;

use super::batch::StepState;
use super::driver::{DevicePtr, Gpu, Kernel, Launch, Params};
use super::modules::{Modules, PerDType};
use super::prompt_attention::PromptAttention;
use super::tensor::{Checker, KvCache, Tensor, to_u32};
use crate::backend::{AttentionShape, BackendResult, DType, Scoring};

/// Head sizes that kernels are built for.
pub(super) const HEAD_DIMS: [usize; 5] = [64, 80, 96, 128, 256];

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct AttentionParams {
    arrays: super::batch::StepArrays,
    decode_items: DevicePtr,
    split_rows: DevicePtr,
    prompt_tiles: DevicePtr,
    qkv: DevicePtr,
    cache: DevicePtr,
    out: DevicePtr,
    partial_sums: DevicePtr,
    partial_stats: DevicePtr,
    num_heads: u32,
    num_kv_heads: u32,
    block_size: u32,
    scale_log2: f32,
    alibi_slopes: DevicePtr,
    window: u32,
    soft_cap: f32,
}

const _: () = assert!(size_of::<AttentionParams>() == 144);

// SAFETY: `repr(C)`, mirrors AttentionParams in attention.cuh.
unsafe impl Params for AttentionParams {}

/// What scores pass, and where the slopes lie.
#[derive(Clone, Copy)]
pub(super) struct DeviceScoring<'a> {
    pub(super) scoring: &'a Scoring,
    /// `[num_heads]`, or 0 without ALiBi.
    pub(super) alibi_slopes: DevicePtr,
}

impl DeviceScoring<'_> {
    /// Whether the plain kernels do, which know none of this.
    pub(super) fn is_plain(&self) -> bool {
        *self.scoring == Scoring::default()
    }
}

/// Arguments of one call.
pub(super) struct AttentionCall<'a> {
    pub(super) qkv: &'a Tensor,
    pub(super) shape: &'a AttentionShape,
    pub(super) scoring: DeviceScoring<'a>,
    pub(super) cache: &'a KvCache,
    pub(super) layer: usize,
    pub(super) out: &'a mut Tensor,
    /// Memory for partial results: address and bytes.
    pub(super) scratch: (DevicePtr, u64),
}

/// A kernel without and with a window, a soft cap or slopes.
pub(super) struct Variants<P> {
    plain: PerDType<Kernel<P>>,
    general: PerDType<Kernel<P>>,
}

impl<P> Variants<P> {
    /// Makes both from the part of their names that tells them apart.
    pub(super) fn try_new<E>(
        mut make: impl FnMut(&str) -> Result<PerDType<Kernel<P>>, E>,
    ) -> Result<Self, E> {
        Ok(Self { plain: make("")?, general: make("general_")? })
    }

    pub(super) fn get(&self, scoring: &DeviceScoring<'_>, dtype: DType) -> &Kernel<P> {
        let kernels = if scoring.is_plain() { &self.plain } else { &self.general };
        kernels.get(dtype)
    }
}

/// Warps of a block of decode attention.
const DECODE_WARPS: usize = 4;

/// Kernels of decode attention whose blocks take up to `num_heads` of the query heads that share keys.
struct DecodeKernels {
    num_heads: usize,
    kernels: Variants<AttentionParams>,
}

/// The kernels of one head size and the launch parameters that they are built with.
struct HeadKernels {
    head_dim: usize,
    /// By ascending number of heads.
    decode: [DecodeKernels; 2],
    combine: PerDType<Kernel<AttentionParams>>,
    prompt: PromptAttention,
    decode_shared_bytes: u32,
}

impl HeadKernels {
    fn new(gpu: &Gpu, modules: &Modules, head_dim: usize) -> BackendResult<HeadKernels> {
        // These mirror DecodeShape: a shared row carries one more vector against bank conflicts.
        let row_bytes = 2 * (head_dim + 8);
        let stages = match head_dim {
            ..=64 => 4,
            65..=96 => 3,
            97..=128 => 2,
            _ => 1,
        };
        let decode_shared_bytes = (DECODE_WARPS * stages * 2 * 16 * row_bytes) as u32;
        let kernels = |name: &str, suffix: &str, shared_bytes: u32| {
            PerDType::try_new(|dtype| {
                let name = format!("attention_{name}{dtype}_{head_dim}{suffix}");
                let kernel = modules.kernel(gpu, "attention_decode", &name)?;
                kernel.allow_shared_bytes(gpu, shared_bytes)?;
                Ok(kernel)
            })
        };
        let decode = |num_heads: usize| {
            let suffix = format!("_{num_heads}");
            let kernels = Variants::try_new(|variant| {
                kernels(&format!("decode_{variant}"), &suffix, decode_shared_bytes)
            })?;
            Ok(DecodeKernels { num_heads, kernels })
        };
        Ok(HeadKernels {
            head_dim,
            decode: [decode(8)?, decode(16)?],
            combine: kernels("combine_", "", 0)?,
            prompt: PromptAttention::new(gpu, modules, head_dim)?,
            decode_shared_bytes,
        })
    }

    /// The kernels of a group of `group` query heads, and how many blocks take its parts.
    fn decode(&self, group: usize) -> (&DecodeKernels, usize) {
        let [few, many] = &self.decode;
        let kernels = if group <= few.num_heads { few } else { many };
        (kernels, group.div_ceil(kernels.num_heads))
    }
}

pub(super) struct Attention {
    heads: Vec<HeadKernels>,
}

impl Attention {
    pub(super) fn new(gpu: &Gpu, modules: &Modules) -> BackendResult<Attention> {
        let heads = HEAD_DIMS.iter().map(|&head_dim| HeadKernels::new(gpu, modules, head_dim));
        Ok(Attention { heads: heads.collect::<BackendResult<_>>()? })
    }

    /// See [`crate::backend::Backend::attention`].
    pub(super) fn run(
        &self,
        gpu: &Gpu,
        check: Checker,
        step: &StepState,
        call: AttentionCall<'_>,
    ) -> BackendResult<()> {
        let AttentionCall { qkv, shape, scoring, cache, layer, ref out, scratch } = call;
        check.cache(cache, layer, shape)?;
        let layout = *cache.layout();
        step.batch.check_cache(check, &layout)?;
        let launch = step.batch.launch;
        let num_tokens = launch.tokens;
        check.tensor("qkv", qkv, layout.dtype, num_tokens, shape.qkv_width())?;
        check.tensor("out", out, layout.dtype, num_tokens, shape.num_heads * shape.head_dim)?;
        let Some(kernels) = self.heads.iter().find(|kernels| kernels.head_dim == shape.head_dim) else {
            return check.fail(format!("heads of {}; kernels are built for {HEAD_DIMS:?}", shape.head_dim));
        };
        // The places do not depend on the batch, only on the largest number of partial results.
        let num_stats = step.max_partials() as u64 * shape.num_heads as u64;
        let (stats_bytes, sums_bytes) = (num_stats * 8, num_stats * shape.head_dim as u64 * 4);
        check.require(stats_bytes + sums_bytes <= scratch.1, || {
            format!("partial results of {shape:?} exceed the workspace of {} bytes", scratch.1)
        })?;
        let params = AttentionParams {
            arrays: step.arrays,
            decode_items: step.decode_items,
            split_rows: step.split_rows,
            prompt_tiles: step.prompt_tiles,
            qkv: qkv.data,
            cache: cache.layer(layer),
            out: out.data,
            partial_sums: scratch.0 + stats_bytes,
            partial_stats: scratch.0,
            num_heads: shape.num_heads as u32,
            num_kv_heads: shape.num_kv_heads as u32,
            block_size: layout.block_size as u32,
            scale_log2: shape.scale * LOG2_E,
            alibi_slopes: scoring.alibi_slopes,
            window: to_u32(check.operation, scoring.scoring.window.unwrap_or(0))?,
            soft_cap: scoring.scoring.soft_cap.unwrap_or(0.0),
        };
        kernels.prompt.run(gpu, check, launch.prompt_tiles, &call, &params)?;
        let (decode, num_parts) = kernels.decode(shape.num_heads / shape.num_kv_heads);
        let num_works = launch.decode_items * shape.num_kv_heads * num_parts;
        let shared_bytes = kernels.decode_shared_bytes;
        let blocks = to_u32(check.operation, num_works)?;
        let threads = (DECODE_WARPS * 32) as u32;
        let geometry = Launch { shared_bytes, ..Launch::overlapping(blocks, threads) };
        gpu.launch(check.operation, decode.kernels.get(&scoring, layout.dtype), geometry, &params)?;
        let grid = [launch.split_rows as u32, shape.num_heads as u32, 1];
        let combine = Launch { grid, threads: shape.head_dim as u32, shared_bytes: 0, overlaps: true };
        gpu.launch(check.operation, kernels.combine.get(layout.dtype), combine, &params)
    }
}

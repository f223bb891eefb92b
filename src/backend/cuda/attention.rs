//! Attention over the paged cache: parameters, and decodes (`kernels/attention_decode.cu`).

use std::f32::consts::LOG2_E;

use super::batch::{ARRIVALS_BYTES, StepState};
use super::driver::{DevicePtr, Gpu, Kernel, Launch, Params};
use super::modules::{Modules, PerDType};
use super::plan;
use super::prompt_attention::PromptAttention;
use super::tensor::{Checker, KvCache, Tensor, VECTOR_ELEMENTS, to_u32};
use crate::backend::{AttentionShape, BackendResult, DType, Scoring};

/// Head sizes that kernels are built for.
pub(super) const HEAD_DIMS: [usize; 5] = [64, 80, 96, 128, 256];

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct AttentionParams {
    arrays: super::batch::StepArrays,
    decode_items: DevicePtr,
    decode_shares: DevicePtr,
    prompt_tiles: DevicePtr,
    qkv: DevicePtr,
    cache: DevicePtr,
    out: DevicePtr,
    partial_sums: DevicePtr,
    partial_stats: DevicePtr,
    arrivals: DevicePtr,
    num_heads: u32,
    num_kv_heads: u32,
    block_size: u32,
    scale_log2: f32,
    alibi_slopes: DevicePtr,
    window: u32,
    soft_cap: f32,
}

const _: () = assert!(size_of::<AttentionParams>() == 152);

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

/// Shared memory that the driver keeps of a block.
const RESERVED_SHARED_BYTES: u32 = 1024;

/// Kernels of decode attention whose blocks take up to `num_heads` of the query heads that share keys.
struct DecodeKernels {
    num_heads: usize,
    kernels: Variants<AttentionParams>,
    /// Of a block.
    warps: usize,
    shared_bytes: u32,
    /// Of a multiprocessor.
    blocks: usize,
}

/// The kernels of one head size and the launch parameters that they are built with.
struct HeadKernels {
    head_dim: usize,
    /// By ascending number of heads.
    decode: [DecodeKernels; 2],
    prompt: PromptAttention,
}

impl HeadKernels {
    fn new(gpu: &Gpu, modules: &Modules, head_dim: usize) -> BackendResult<HeadKernels> {
        let decode = |num_heads: usize| {
            // These mirror DecodeShape and DecodeMemory: for each warp and head two numbers and the sums of its
            // elements, and two items' queries.
            let warps = if head_dim <= 128 { 4 } else { 2 };
            let resident_warps = match head_dim {
                _ if num_heads > 8 => 8,
                ..=96 => 16,
                97..=128 => 12,
                _ => 8,
            };
            let result_bytes = warps * num_heads * (2 + head_dim) * size_of::<f32>();
            let query_bytes = 2 * num_heads * (head_dim + VECTOR_ELEMENTS) * 2;
            let shared_bytes = (result_bytes + query_bytes) as u32;
            let taken_bytes = shared_bytes + RESERVED_SHARED_BYTES;
            let blocks = (resident_warps / warps).min((gpu.shared_bytes() / taken_bytes) as usize).max(1);
            let kernels = Variants::try_new(|variant| {
                PerDType::try_new(|dtype| {
                    let name = format!("attention_decode_{variant}{dtype}_{head_dim}_{num_heads}");
                    let kernel = modules.kernel(gpu, "attention_decode", &name)?;
                    kernel.allow_shared_bytes(gpu, shared_bytes)?;
                    // What loads have on their way lies in the cache.
                    kernel.leave_cache(gpu, blocks as u32 * taken_bytes)?;
                    Ok(kernel)
                })
            })?;
            Ok(DecodeKernels { num_heads, kernels, warps, shared_bytes, blocks })
        };
        Ok(HeadKernels {
            head_dim,
            decode: [decode(8)?, decode(16)?],
            prompt: PromptAttention::new(gpu, modules, head_dim)?,
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
        step: &mut StepState,
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
        let (decode, num_parts) = kernels.decode(shape.num_heads / shape.num_kv_heads);
        // Blocks of a share, and shares for which a device has blocks.
        let share_blocks = shape.num_kv_heads * num_parts;
        let num_shares = (decode.blocks * gpu.num_multiprocessors() as usize / share_blocks).max(1);
        step.set_num_shares(num_shares);
        // The places do not depend on the batch, only on the largest number of partial results.
        let max_shares = num_shares.max(step.first_num_shares());
        check.require(launch.decode_shares <= max_shares, || {
            format!("the batch was cut into {} shares for other heads", launch.decode_shares)
        })?;
        let max_partials = plan::max_partials(max_shares);
        let num_stats = max_partials as u64 * shape.num_heads as u64;
        let (stats_bytes, sums_bytes) = (num_stats * 8, num_stats * shape.head_dim as u64 * 4);
        check.require(stats_bytes + sums_bytes <= scratch.1, || {
            format!("partial results of {shape:?} exceed the workspace of {} bytes", scratch.1)
        })?;
        check.require((max_partials * share_blocks * size_of::<u32>()) as u64 <= ARRIVALS_BYTES, || {
            format!("{shape:?} has too many blocks a share")
        })?;
        let params = AttentionParams {
            arrays: step.arrays,
            decode_items: step.decode_items,
            decode_shares: step.decode_shares,
            prompt_tiles: step.prompt_tiles,
            qkv: qkv.data,
            cache: cache.layer(layer),
            out: out.data,
            partial_sums: scratch.0 + stats_bytes,
            partial_stats: scratch.0,
            arrivals: step.arrivals,
            num_heads: shape.num_heads as u32,
            num_kv_heads: shape.num_kv_heads as u32,
            block_size: layout.block_size as u32,
            scale_log2: shape.scale * LOG2_E,
            alibi_slopes: scoring.alibi_slopes,
            window: to_u32(check.operation, scoring.scoring.window.unwrap_or(0))?,
            soft_cap: scoring.scoring.soft_cap.unwrap_or(0.0),
        };
        kernels.prompt.run(gpu, check, launch.prompt_tiles, &call, &params)?;
        let blocks = to_u32(check.operation, launch.decode_shares * share_blocks)?;
        let threads = (decode.warps * 32) as u32;
        let geometry = Launch { shared_bytes: decode.shared_bytes, ..Launch::overlapping(blocks, threads) };
        gpu.launch(check.operation, decode.kernels.get(&scoring, layout.dtype), geometry, &params)
    }
}

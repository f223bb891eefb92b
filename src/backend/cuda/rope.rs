//! Biases, clamp and rotation of queries, keys and values, and their writing to the cache (`kernels/rope.cu`).

use super::batch::StepState;
use super::driver::{DevicePtr, Gpu, Kernel, Launch, Params};
use super::modules::{Modules, PerDType};
use super::tensor::{Checker, KvCache, Tensor};
use crate::backend::{AttentionShape, BackendResult, DType, NormExtent, NormKind, QkvTransform, RopePairing};

const THREADS: u32 = 256;
/// Pairs per unit of the kernel that works in 16-byte vectors.
const VECTOR_LANES: usize = 8;

/// A rotation as kernels take it, alone or behind a product.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct RopeParams {
    header: DevicePtr,
    positions: DevicePtr,
    cache_places: DevicePtr,
    table: DevicePtr,
    bias: DevicePtr,
    query_weight: DevicePtr,
    query_bias: DevicePtr,
    key_weight: DevicePtr,
    key_bias: DevicePtr,
    qkv: DevicePtr,
    cache: DevicePtr,
    num_heads: u32,
    num_kv_heads: u32,
    head_dim: u32,
    rotary_dim: u32,
    block_size: u32,
    clamp: f32,
    epsilon: f32,
    is_layer: u32,
    takes_width: u32,
    head_len: u32,
}

const _: () = assert!(size_of::<RopeParams>() == 128);

// SAFETY: `repr(C)`, mirrors RopeParams in rope.cuh.
unsafe impl Params for RopeParams {}

/// Arguments of one call.
pub(super) struct RopeAndWriteKv<'a> {
    pub(super) qkv: &'a mut Tensor,
    pub(super) transform: &'a QkvTransform<'a, Tensor>,
    pub(super) shape: &'a AttentionShape,
    pub(super) cache: &'a mut KvCache,
    pub(super) layer: usize,
}

/// What a rotation is, by which kernels are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct RotationForm {
    pub(super) head_dim: usize,
    /// 0: nothing rotates.
    pub(super) rotary_dim: usize,
    pub(super) pairing: RopePairing,
    /// Whether queries and keys are normalised.
    pub(super) has_norm: bool,
}

/// A checked call, which does not borrow its arguments.
pub(super) struct Rotation {
    pub(super) params: RopeParams,
    pub(super) form: RotationForm,
    dtype: DType,
    pub(super) num_tokens: usize,
}

/// The norms of queries and of keys; null where there are none.
#[derive(Default)]
struct NormParams {
    weights: [DevicePtr; 2],
    biases: [DevicePtr; 2],
    epsilon: f32,
    is_layer: bool,
    takes_width: bool,
    head_len: u32,
}

impl NormParams {
    fn new(
        check: Checker,
        transform: &QkvTransform<'_, Tensor>,
        shape: &AttentionShape,
    ) -> BackendResult<NormParams> {
        let Some(norm) = &transform.norm else { return Ok(NormParams::default()) };
        let (query, key) = (&norm.query, &norm.key);
        check.require((query.kind, query.epsilon) == (key.kind, key.epsilon), || {
            "queries and keys have norms of different kinds".to_owned()
        })?;
        check.require((1..=shape.head_dim).contains(&norm.head_len), || {
            format!("norms of {} elements for heads of {}", norm.head_len, shape.head_dim)
        })?;
        let (query_width, key_width) =
            (shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim);
        Ok(NormParams {
            weights: [
                check.optional_row("weight of the queries' norm", Some(query.weight), query_width)?,
                check.optional_row("weight of the keys' norm", Some(key.weight), key_width)?,
            ],
            biases: [
                check.optional_row("bias of the queries' norm", query.bias, query_width)?,
                check.optional_row("bias of the keys' norm", key.bias, key_width)?,
            ],
            epsilon: query.epsilon,
            is_layer: query.kind == NormKind::Layer,
            takes_width: norm.extent == NormExtent::Width,
            head_len: norm.head_len as u32,
        })
    }
}

impl Rotation {
    /// Checks a call for the loaded batch.
    pub(super) fn new(
        check: Checker,
        step: &StepState,
        arguments: RopeAndWriteKv<'_>,
    ) -> BackendResult<Rotation> {
        let RopeAndWriteKv { qkv, transform, shape, cache, layer } = arguments;
        check.cache(cache, layer, shape)?;
        let layout = *cache.layout();
        step.batch.check_cache(check, &layout)?;
        let num_tokens = step.batch.launch.tokens;
        check.vectors("qkv", qkv)?;
        check.tensor("qkv", qkv, layout.dtype, num_tokens, shape.qkv_width())?;
        let norm = NormParams::new(check, transform, shape)?;
        let (table, rotary_dim, pairing) = match &transform.rope {
            // No pairs: everything is copied.
            None => (0, 0, RopePairing::Half),
            Some(rope) => {
                let (table, rotary_dim) = (rope.table, rope.table.columns());
                check.tensor("table", table, DType::F32, step.batch.max_context_len, rotary_dim)?;
                check.require(rotary_dim <= shape.head_dim && rotary_dim.is_multiple_of(2), || {
                    format!("table has {rotary_dim} columns for heads of {}", shape.head_dim)
                })?;
                (table.data, rotary_dim, rope.pairing)
            }
        };
        let params = RopeParams {
            header: step.arrays.header,
            positions: step.positions,
            cache_places: step.cache_places,
            table,
            bias: check.optional_row("bias", transform.bias, shape.qkv_width())?,
            query_weight: norm.weights[0],
            query_bias: norm.biases[0],
            key_weight: norm.weights[1],
            key_bias: norm.biases[1],
            qkv: qkv.data,
            cache: cache.layer(layer),
            num_heads: shape.num_heads as u32,
            num_kv_heads: shape.num_kv_heads as u32,
            head_dim: shape.head_dim as u32,
            rotary_dim: rotary_dim as u32,
            block_size: layout.block_size as u32,
            clamp: transform.clamp.unwrap_or(f32::INFINITY),
            epsilon: norm.epsilon,
            is_layer: norm.is_layer.into(),
            takes_width: norm.takes_width.into(),
            head_len: norm.head_len,
        };
        let has_norm = transform.norm.is_some();
        let form = RotationForm { head_dim: shape.head_dim, rotary_dim, pairing, has_norm };
        Ok(Rotation { params, form, dtype: layout.dtype, num_tokens })
    }
}

/// Kernels of one pairing.
struct Pairing {
    vector: PerDType<Kernel<RopeParams>>,
    scalar: PerDType<Kernel<RopeParams>>,
}

pub(super) struct Rope {
    half: Pairing,
    interleaved: Pairing,
}

impl Rope {
    pub(super) fn new(gpu: &Gpu, modules: &Modules) -> BackendResult<Rope> {
        let kernels = |pairing: &str, lanes: usize| {
            PerDType::try_new(|dtype| modules.kernel(gpu, "rope", &format!("rope_{pairing}_{dtype}_{lanes}")))
        };
        let pairing = |name| Ok(Pairing { vector: kernels(name, VECTOR_LANES)?, scalar: kernels(name, 1)? });
        Ok(Rope { half: pairing("half")?, interleaved: pairing("interleaved")? })
    }

    /// See [`crate::backend::Backend::rope_and_write_kv`].
    pub(super) fn run(&self, gpu: &Gpu, check: Checker, rotation: &Rotation) -> BackendResult<()> {
        let RotationForm { rotary_dim, pairing, .. } = rotation.form;
        let kernels = match pairing {
            RopePairing::Half => &self.half,
            RopePairing::Interleaved => &self.interleaved,
        };
        let kernels =
            if rotary_dim.is_multiple_of(2 * VECTOR_LANES) { &kernels.vector } else { &kernels.scalar };
        let launch = Launch::overlapping(rotation.num_tokens as u32, THREADS);
        gpu.launch(check.operation, kernels.get(rotation.dtype), launch, &rotation.params)
    }
}

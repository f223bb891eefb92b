//! Norms of queries and keys before the rotation, whole and by head.

use inflight::backend::{
    AttentionShape, Backend, BackendLimits, DType, KvLayout, Norm, NormExtent, NormKind, QkNorm,
    QkvTransform, Rope, RopePairing, Scoring,
};

use crate::rig::*;

const NUM_TOKENS: usize = 9;
const BLOCK_SIZE: usize = 16;

#[test]
fn queries_and_keys_are_normalised() {
    for dtype in DTYPES {
        for (num_heads, num_kv_heads, head_dim, rotary_dim) in
            [(4, 2, 64, 64), (5, 1, 80, 20), (3, 3, 128, 2), (9, 3, 256, 64)]
        {
            let shape = AttentionShape { num_heads, num_kv_heads, head_dim, scale: 0.1 };
            check(dtype, &shape, rotary_dim, (NormKind::Rms, NormExtent::Head), false);
            check(dtype, &shape, rotary_dim, (NormKind::Rms, NormExtent::Width), true);
            check(dtype, &shape, rotary_dim, (NormKind::Layer, NormExtent::Head), true);
            check(dtype, &shape, rotary_dim, (NormKind::Layer, NormExtent::Width), false);
        }
    }
}

/// Heads of other sizes, with zeros behind them.
#[test]
fn padding_of_heads_does_not_count() {
    for dtype in DTYPES {
        for (num_heads, num_kv_heads, head_dim, head_len, rotary_dim) in [
            (4, 2, 64, 8, 4),
            (5, 1, 80, 72, 72),
            (3, 3, 128, 100, 32),
            (9, 3, 256, 255, 64),
            (1, 1, 64, 1, 0),
        ] {
            let shape = AttentionShape { num_heads, num_kv_heads, head_dim, scale: 0.1 };
            for kind in [NormKind::Rms, NormKind::Layer] {
                for extent in [NormExtent::Head, NormExtent::Width] {
                    check_padded(dtype, &shape, (head_len, rotary_dim), (kind, extent), true);
                    check_padded(dtype, &shape, (head_len, rotary_dim), (kind, extent), false);
                }
            }
        }
    }
}

fn check(
    dtype: DType,
    shape: &AttentionShape,
    rotary_dim: usize,
    norm: (NormKind, NormExtent),
    with_bias: bool,
) {
    check_padded(dtype, shape, (shape.head_dim, rotary_dim), norm, with_bias);
}

fn check_padded(
    dtype: DType,
    shape: &AttentionShape,
    (head_len, rotary_dim): (usize, usize),
    (kind, extent): (NormKind, NormExtent),
    with_bias: bool,
) {
    let AttentionShape { num_heads, num_kv_heads, head_dim, .. } = *shape;
    let (mut rig, mut random) = (Rig::new(dtype), Random(21));
    let layout =
        KvLayout { num_layers: 1, num_blocks: 2, block_size: BLOCK_SIZE, num_kv_heads, head_dim, dtype };
    let mut cpu_cache = rig.cpu.alloc_kv_cache(&layout).unwrap();
    let mut gpu_cache = rig.gpu.alloc_kv_cache(&layout).unwrap();
    rig.reserve(&BackendLimits { max_tokens: 16, max_slots: 2, vocab_size: 8 });
    let tokens = vec![0; NUM_TOKENS];
    rig.load_batch(&batch(&[BatchRow { slot: 0, tokens, context_len: NUM_TOKENS, blocks: vec![1] }], &[]));
    let (width, query_width, key_width) = (shape.qkv_width(), num_heads * head_dim, num_kv_heads * head_dim);
    let mut padded = |count: usize, scale: f32| {
        let mut values = random.values(count, scale);
        let padding = values.iter_mut().enumerate().filter(|(i, _)| i % head_dim >= head_len);
        padding.for_each(|(_, value)| *value = 0.0);
        values
    };
    let mut qkv = rig.activation(width, &padded(NUM_TOKENS * width, 2.0));
    let bias = rig.single(width, &padded(width, 1.0));
    let table = rig.single(rotary_dim.max(2), &random.values(BLOCK_SIZE * rotary_dim.max(2), 1.0));
    // Weights of the padding are of no account.
    let mut single = |width: usize, scale: f32| rig.single(width, &random.values(width, scale));
    let (query_weight, query_bias) = (single(query_width, 1.0), single(query_width, 0.5));
    let (key_weight, key_bias) = (single(key_width, 1.0), single(key_width, 0.5));
    let mut out = rig.poisoned(NUM_TOKENS + 1, query_width);
    macro_rules! run {
        ($backend:ident, $cache:ident) => {{
            let norm = |weight, bias| {
                let bias = if with_bias { Some(bias) } else { None };
                Norm { kind, epsilon: 1e-5, weight, bias }
            };
            let transform = QkvTransform {
                bias: if with_bias { Some(&bias.$backend) } else { None },
                clamp: with_bias.then_some(1.5),
                norm: Some(QkNorm {
                    query: norm(&query_weight.$backend, &query_bias.$backend),
                    key: norm(&key_weight.$backend, &key_bias.$backend),
                    extent,
                    head_len,
                }),
                rope: (rotary_dim > 0).then_some(Rope { table: &table.$backend, pairing: RopePairing::Half }),
            };
            let (qkv, out) = (&mut qkv.$backend, &mut out.$backend);
            rig.$backend.rope_and_write_kv(qkv, &transform, shape, &mut $cache, 0).unwrap();
            rig.$backend.attention(qkv, shape, &Scoring::default(), &$cache, 0, out).unwrap();
        }};
    }
    run!(cpu, cpu_cache);
    run!(gpu, gpu_cache);
    rig.assert_same(
        &format!("{dtype:?} {shape:?} {head_len} {kind:?} {extent:?}"),
        &out,
        2.0 * rig.tolerance(),
    );
}

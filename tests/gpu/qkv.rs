//! The product of queries, keys and values with what follows it up to the cache, in each way that the device has.

use inflight::backend::{
    AttentionShape, Backend, BackendLimits, DType, KvLayout, QkvProjection, QkvTransform, Rope, RopePairing,
    Scoring,
};
use inflight::backend::{cpu, cuda};

use crate::rig::*;
use RopePairing::{Half, Interleaved};

const BLOCK_SIZE: usize = 16;
const LAYER: usize = 1;
/// Of which nothing is written.
const OTHER_LAYER: usize = 0;
const MAX_ROWS: usize = 513;
/// Rows up to which products have kernels of their own, of 8 rows and of 16.
const FEW_ROWS: usize = 16;
/// Blocks of three sequences: two of the first batch, of which one starts in its first block, and one of the second.
const NUM_BLOCKS: usize = 2 * (MAX_ROWS.div_ceil(BLOCK_SIZE) + 2);
/// Rows of the second batch that have no token.
const PADDING: usize = 30;

#[derive(Debug, Clone, Copy)]
struct Case {
    heads: (usize, usize),
    head_dim: usize,
    rotation: Option<(usize, RopePairing)>,
    in_features: usize,
    has_bias: bool,
    clamp: Option<f32>,
}

impl Case {
    fn new(heads: (usize, usize), head_dim: usize, rotary_dim: usize, pairing: RopePairing) -> Case {
        let rotation = (rotary_dim > 0).then_some((rotary_dim, pairing));
        Case { heads, head_dim, rotation, in_features: 72, has_bias: false, clamp: None }
    }

    fn extras(self, has_bias: bool, clamp: Option<f32>) -> Case {
        Case { has_bias, clamp, ..self }
    }
}

struct Run {
    case: Case,
    rig: Rig,
    random: Random,
    shape: AttentionShape,
    table: Pair,
    bias: Pair,
    weight: Pair,
    /// Rows whose queries read the caches.
    readers: Pair,
    cpu_cache: cpu::KvCache,
    gpu_cache: cuda::KvCache,
}

impl Run {
    fn new(case: Case, dtype: DType) -> Run {
        let Case { heads: (num_heads, num_kv_heads), head_dim, in_features, .. } = case;
        let (mut rig, mut random) = (Rig::new(dtype), Random(31));
        let layout = KvLayout {
            num_layers: 2,
            num_blocks: NUM_BLOCKS,
            block_size: BLOCK_SIZE,
            num_kv_heads,
            head_dim,
            dtype,
        };
        let cpu_cache = rig.cpu.alloc_kv_cache(&layout).unwrap();
        let gpu_cache = rig.gpu.alloc_kv_cache(&layout).unwrap();
        let max_tokens = NUM_BLOCKS * BLOCK_SIZE;
        rig.reserve(&BackendLimits { max_tokens, max_slots: 4, vocab_size: 8 });
        let shape =
            AttentionShape { num_heads, num_kv_heads, head_dim, scale: 2.0 / (head_dim as f32).sqrt() };
        let (width, rotary_dim) = (shape.qkv_width(), case.rotation.map_or(2, |rotation| rotation.0));
        let table = rig.single(rotary_dim, &random.values(max_tokens * rotary_dim, 1.0));
        let bias = rig.single(width, &random.values(width, 1.0));
        let weight = rig.weight(in_features, &random.values(width * in_features, 0.3));
        let readers = rig.activation(width, &random.values(max_tokens * width, 1.5));
        Run { case, rig, random, shape, table, bias, weight, readers, cpu_cache, gpu_cache }
    }

    /// Projects fresh rows, of which the batch has the first `num_tokens`, and compares queries and the caches.
    fn check(&mut self, what: &str, num_tokens: usize, rows: usize) {
        let Run { case, rig, random, shape, table, bias, weight, cpu_cache, gpu_cache, .. } = self;
        let input = rig.activation(case.in_features, &random.values((rows + 3) * case.in_features, 1.0));
        let mut qkv = rig.poisoned(rows + 3, shape.qkv_width());
        macro_rules! run {
            ($backend:ident, $cache:ident) => {{
                let transform = QkvTransform {
                    bias: if case.has_bias { Some(&bias.$backend) } else { None },
                    clamp: case.clamp,
                    norm: None,
                    rope: case.rotation.map(|(_, pairing)| Rope { table: &table.$backend, pairing }),
                };
                let projection = QkvProjection { weight: &weight.$backend, transform, shape };
                let (input, qkv) = (&input.$backend, &mut qkv.$backend);
                rig.$backend.linear_qkv(input, &projection, qkv, $cache, LAYER, rows).unwrap();
            }};
        }
        run!(cpu, cpu_cache);
        run!(gpu, gpu_cache);
        let (width, query_width) = (shape.qkv_width(), shape.num_heads * shape.head_dim);
        let queries = |values: &[f32]| -> Vec<f32> {
            values.chunks(width).take(num_tokens).flat_map(|row| &row[..query_width]).copied().collect()
        };
        let expected = rig.cpu.read_rows(&qkv.cpu, rows + 3).unwrap();
        let actual = rig.gpu.read_rows(&qkv.gpu, rows + 3).unwrap();
        let tolerance = 1.5 * rig.tolerance();
        assert_close(&format!("{what}: queries"), &queries(&actual), &queries(&expected), tolerance);
        assert!(actual[rows * width..].iter().all(|value| value.is_nan()), "{what}: rows after the last");
        self.check_caches(what);
    }

    /// Compares all of both caches. A token that sees itself alone reads its value, and one that sees another token
    /// too compares their keys.
    fn check_caches(&mut self, what: &str) {
        let Run { rig, shape, readers, cpu_cache, gpu_cache, .. } = self;
        let num_tokens = NUM_BLOCKS * BLOCK_SIZE;
        let blocks = (0..NUM_BLOCKS as u32).collect();
        let row = BatchRow { slot: 3, tokens: vec![0; num_tokens], context_len: num_tokens, blocks };
        rig.load_batch(&batch(&[row], &[]));
        for (layer, window) in [(OTHER_LAYER, 1), (LAYER, 1), (LAYER, 2)] {
            let scoring = Scoring { window: Some(window), ..Scoring::default() };
            let mut out = rig.poisoned(num_tokens, shape.num_heads * shape.head_dim);
            rig.cpu.attention(&readers.cpu, shape, &scoring, cpu_cache, layer, &mut out.cpu).unwrap();
            rig.gpu.attention(&readers.gpu, shape, &scoring, gpu_cache, layer, &mut out.gpu).unwrap();
            let tolerance = 2.0 * rig.tolerance();
            rig.assert_same(&format!("{what}: layer {layer}, window {window}"), &out, tolerance);
        }
    }

    /// A batch of `rows` tokens, then one of fewer that is padded to as many: places of earlier batches' tokens still
    /// lie where those of the padding would.
    fn check_rows(&mut self, what: &str, rows: usize) {
        let mut free = self.random.permutation(NUM_BLOCKS);
        let mut row = |slot: u32, count: usize, past: usize| {
            let blocks = free.split_off(free.len() - (count + past).div_ceil(BLOCK_SIZE));
            BatchRow { slot, tokens: vec![0; count], context_len: past + count, blocks }
        };
        let (first, second) = (rows - rows / 3, rows / 3);
        let num_tokens = rows.saturating_sub(PADDING).max(1);
        let (mut full, padded) = (vec![row(0, first, 0)], [row(2, num_tokens, 7)]);
        full.extend((second > 0).then(|| row(1, second, 5)));
        self.rig.load_batch(&batch(&full, &[]));
        self.check(&format!("{what} {rows} rows"), rows, rows);
        self.rig.load_batch(&batch(&padded, &[]));
        self.check(&format!("{what} {num_tokens} of {rows} rows"), num_tokens, rows);
    }
}

/// Each way that the device has, after the one that it would choose. Few rows have one way.
fn check(case: Case, rows: &[usize]) {
    for dtype in DTYPES.into_iter().take(if is_small() { 1 } else { DTYPES.len() }) {
        let mut run = Run::new(case, dtype);
        let tiles = run.rig.gpu.tile_columns();
        let library = (!is_in_own_tiles()).then_some(Some(0));
        let ways = [None].into_iter().chain(library).chain(tiles.iter().copied().map(Some));
        for columns in ways {
            if let Some(columns) = columns {
                run.rig.gpu.force_tiles(columns);
            }
            for &rows in rows.iter().filter(|&&rows| rows > FEW_ROWS || columns.is_none()) {
                run.check_rows(&format!("{dtype:?} {case:?}, tiles {columns:?}"), rows);
            }
        }
    }
}

/// Every size of heads and sharing of keys; tiles end within queries, keys and values, and behind the last value.
#[test]
fn whole_heads_rotate_by_halves() {
    for (heads, head_dim) in [
        ((2, 2), 64),
        ((6, 2), 64),
        ((7, 1), 64),
        ((4, 2), 96),
        ((3, 3), 128),
        ((4, 2), 128),
        ((5, 1), 128),
        ((2, 1), 256),
        ((1, 1), 256),
    ]
    .into_iter()
    .step_by(if is_small() { 4 } else { 1 })
    {
        check(Case::new(heads, head_dim, head_dim, Half), &sizes(&[5, 16, 65, 300], 65));
    }
}

#[test]
fn heads_rotate_by_neighbours_whole_and_in_part() {
    for (heads, head_dim, rotary_dim) in [
        ((2, 2), 256, 64),
        ((3, 1), 256, 256),
        ((4, 4), 64, 64),
        ((4, 2), 128, 128),
        ((5, 1), 128, 64),
        ((2, 1), 256, 192),
    ]
    .into_iter()
    .step_by(if is_small() { 4 } else { 1 })
    {
        check(Case::new(heads, head_dim, rotary_dim, Interleaved), &sizes(&[3, 11, 65, 300], 65));
    }
}

#[test]
fn biases_and_clamps_come_before_the_rotation() {
    for case in [
        Case::new((4, 2), 128, 128, Half),
        Case::new((6, 2), 64, 64, Half),
        Case::new((2, 1), 256, 256, Half),
        Case::new((2, 2), 256, 64, Interleaved),
        Case::new((4, 2), 128, 0, Half),
        Case::new((4, 2), 96, 0, Half),
    ] {
        if !is_small() {
            check(case.extras(true, None), &[8, 130]);
            check(case.extras(false, Some(0.8)), &[9, 130]);
        }
        check(case.extras(true, Some(1.25)), &sizes(&[130, 20], 20));
    }
}

/// Few rows, a row beside what a warp, a tile and a pair of tiles hold, and more products to add up.
#[test]
fn any_number_of_rows() {
    for case in [Case::new((4, 2), 128, 128, Half), Case::new((2, 2), 256, 64, Interleaved)] {
        let case = Case { in_features: 456, ..case };
        check(case, &sizes(&[1, 16, 17, 31, 63, 127, 128, 129, 255, 257, 513], 31));
    }
}

/// Rotations of a part of a head and of none, of heads that no tile holds whole, and of parts that blocks of few rows
/// do not hold: their rotation follows the product.
#[test]
fn heads_rotate_in_part_or_not_at_all() {
    for case in [
        Case::new((4, 2), 64, 32, Half),
        Case::new((4, 2), 64, 24, Half),
        Case::new((4, 2), 64, 24, Interleaved),
        Case::new((4, 2), 80, 80, Half),
        Case::new((4, 2), 128, 32, Interleaved),
        Case::new((4, 2), 96, 96, Interleaved),
        Case::new((4, 2), 80, 0, Half),
    ] {
        check(case.extras(true, None), &[7, 15, 40]);
    }
}

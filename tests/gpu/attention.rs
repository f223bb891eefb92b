//! Rotary embedding, the writing of keys and values, and attention, over batches of mixed lengths. Every place
//! of the cache holds NaN before the sequences' own keys and values come.

use inflight::backend::{
    AttentionShape, Backend, BackendLimits, Batch, DType, KvLayout, QkvTransform, RopePairing, Scoring,
};
use inflight::backend::{cpu, cuda};

use crate::rig::*;

/// New tokens of a row and tokens that were in the cache before.
type Row = (usize, usize);

struct Case {
    heads: (usize, usize),
    head_dim: usize,
    rotary_dim: usize,
    pairing: RopePairing,
    block_size: usize,
    /// Factor on the usual scale of scores.
    sharpness: f32,
    rows: Vec<Row>,
}

const MAX_TOKENS: usize = 4096;

struct Caches {
    cpu: cpu::KvCache,
    gpu: cuda::KvCache,
}

struct Run {
    rig: Rig,
    random: Random,
    shape: AttentionShape,
    table: Pair,
    pairing: RopePairing,
    /// Where only a part of a head rotates, so that all of the rest is checked with and without.
    bias: Option<Pair>,
    clamp: Option<f32>,
    caches: Caches,
}

const LAYER: usize = 1;

impl Run {
    fn new(case: &Case, dtype: DType, seed: u64) -> Run {
        let mut rig = Rig::new(dtype);
        let mut random = Random(seed);
        let num_blocks: usize = case.rows.iter().map(|row| (row.0 + row.1).div_ceil(case.block_size)).sum();
        let layout = KvLayout {
            num_layers: 2,
            num_blocks: num_blocks + 3,
            block_size: case.block_size,
            num_kv_heads: case.heads.1,
            head_dim: case.head_dim,
            dtype,
        };
        let caches = Caches {
            cpu: rig.cpu.alloc_kv_cache(&layout).unwrap(),
            gpu: rig.gpu.alloc_kv_cache(&layout).unwrap(),
        };
        let max_slots = case.rows.len() + 1;
        rig.reserve(&BackendLimits { max_tokens: MAX_TOKENS, max_slots, vocab_size: 8 });
        let positions = layout.num_blocks * layout.block_size;
        let table = rig.single(case.rotary_dim, &random.values(positions * case.rotary_dim, 1.0));
        let shape = AttentionShape {
            num_heads: case.heads.0,
            num_kv_heads: case.heads.1,
            head_dim: case.head_dim,
            scale: case.sharpness / (case.head_dim as f32).sqrt(),
        };
        let is_partial = case.rotary_dim < case.head_dim;
        let bias = random.values(shape.qkv_width(), 1.0);
        let bias = is_partial.then(|| rig.single(shape.qkv_width(), &bias));
        let clamp = (is_partial && case.pairing == RopePairing::Half).then_some(1.25);
        let mut run = Run { rig, random, shape, table, pairing: case.pairing, bias, clamp, caches };
        run.poison(&layout);
        run
    }

    /// Fills the whole cache with NaN.
    fn poison(&mut self, layout: &KvLayout) {
        let num_positions = layout.num_blocks * layout.block_size;
        for first in (0..num_positions).step_by(MAX_TOKENS) {
            let count = MAX_TOKENS.min(num_positions - first);
            let row = BatchRow {
                slot: 0,
                tokens: vec![0; count],
                context_len: first + count,
                blocks: (0..layout.num_blocks as u32).collect(),
            };
            let width = self.shape.qkv_width();
            self.write(&batch(&[row], &[]), &vec![f32::NAN; count * width]);
        }
    }

    /// Rotates and writes `values`, the batch's queries, keys and values.
    fn write(&mut self, batch: &Batch, values: &[f32]) -> Pair {
        let Run { rig, shape, table, pairing, bias, clamp, caches, .. } = self;
        rig.load_batch(batch);
        let mut qkv = rig.activation(shape.qkv_width(), values);
        let bias = bias.as_ref();
        let rotate = QkvTransform::rotate(&table.cpu, *pairing);
        let transform = QkvTransform { bias: bias.map(|bias| &bias.cpu), clamp: *clamp, ..rotate };
        rig.cpu.rope_and_write_kv(&mut qkv.cpu, &transform, shape, &mut caches.cpu, LAYER).unwrap();
        let rotate = QkvTransform::rotate(&table.gpu, *pairing);
        let transform = QkvTransform { bias: bias.map(|bias| &bias.gpu), clamp: *clamp, ..rotate };
        rig.gpu.rope_and_write_kv(&mut qkv.gpu, &transform, shape, &mut caches.gpu, LAYER).unwrap();
        qkv
    }

    fn random_qkv(&mut self, num_tokens: usize) -> Vec<f32> {
        self.random.values(num_tokens * self.shape.qkv_width(), 1.5)
    }

    /// Writes what was in the cache before, in chunks.
    fn write_past(&mut self, slot: u32, past: usize, blocks: &[u32]) {
        for first in (0..past).step_by(MAX_TOKENS) {
            let count = MAX_TOKENS.min(past - first);
            let row = BatchRow {
                slot,
                tokens: vec![0; count],
                context_len: first + count,
                blocks: blocks.to_vec(),
            };
            let values = self.random_qkv(count);
            self.write(&batch(&[row], &[]), &values);
        }
    }
}

fn check(case: &Case, dtype: DType, seed: u64) {
    let mut run = Run::new(case, dtype, seed);
    let num_blocks: usize = case.rows.iter().map(|row| (row.0 + row.1).div_ceil(case.block_size)).sum();
    let mut free = run.random.permutation(num_blocks + 3);
    let mut rows = Vec::new();
    for (slot, &(num_tokens, past)) in case.rows.iter().enumerate() {
        let blocks = free.split_off(free.len() - (num_tokens + past).div_ceil(case.block_size));
        run.write_past(slot as u32, past, &blocks);
        let tokens = vec![0; num_tokens];
        rows.push(BatchRow { slot: slot as u32, tokens, context_len: past + num_tokens, blocks });
    }
    let num_tokens = case.rows.iter().map(|row| row.0).sum();
    let values = run.random_qkv(num_tokens);
    let batch = batch(&rows, &[]);
    let qkv = run.write(&batch, &values);
    let what = format!(
        "attention {dtype:?} heads {:?} of {}, rotary {} {:?}, blocks of {}",
        case.heads, case.head_dim, case.rotary_dim, case.pairing, case.block_size
    );
    let Run { rig, shape, caches, .. } = &mut run;
    // Keys and values need not stand there any more: attention reads them from the cache.
    let queries = |values: Vec<f32>| -> Vec<f32> {
        let rows = values.chunks(shape.qkv_width());
        rows.flat_map(|row| &row[..shape.num_heads * shape.head_dim]).copied().collect()
    };
    let expected = queries(rig.cpu.read_rows(&qkv.cpu, num_tokens).unwrap());
    let actual = queries(rig.gpu.read_rows(&qkv.gpu, num_tokens).unwrap());
    assert_close(&format!("{what}: queries"), &actual, &expected, rig.tolerance());
    // Batches after the first are cut into as many shares as attention then has blocks for, and merge where others have
    // merged before. The window leaves whole parts of long rows without a visible key.
    let windowed = Scoring { window: Some(100), soft_cap: Some(20.0), alibi: None };
    for scoring in [Scoring::default(), windowed, Scoring::default()] {
        rig.load_batch(&batch);
        let mut out = rig.poisoned(num_tokens + 2, shape.num_heads * shape.head_dim);
        rig.cpu.attention(&qkv.cpu, shape, &scoring, &caches.cpu, LAYER, &mut out.cpu).unwrap();
        rig.gpu.attention(&qkv.gpu, shape, &scoring, &caches.gpu, LAYER, &mut out.gpu).unwrap();
        rig.assert_same(&format!("{what}, {scoring:?}"), &out, 1.5 * rig.tolerance());
    }
}

fn mixed_rows() -> Vec<Row> {
    if is_small() {
        return vec![(1, 0), (1, 16), (66, 3), (1, 300), (2, 0)];
    }
    vec![
        (1, 0),
        (1, 14),
        (64, 0),
        (1, 15),
        (65, 0),
        (1, 16),
        (2, 5),
        (1, 63),
        (63, 64),
        (1, 64),
        (1, 256),
        (130, 77),
        (1, 999),
        (1, 5000),
        (3, 700),
    ]
}

#[test]
fn every_head_size_and_type() {
    for dtype in DTYPES {
        for head_dim in [64, 80, 96, 128, 256] {
            for (heads, block_size) in [((4, 4), 64), ((8, 2), 16)] {
                let case = Case {
                    heads,
                    head_dim,
                    rotary_dim: head_dim,
                    pairing: RopePairing::Half,
                    block_size,
                    sharpness: 1.0,
                    rows: mixed_rows(),
                };
                check(&case, dtype, head_dim as u64);
            }
        }
    }
}

#[test]
fn unusual_groups() {
    for heads in [(9, 3), (7, 1), (32, 1), (71, 1), (34, 2)] {
        let case = Case {
            heads,
            head_dim: 64,
            rotary_dim: 64,
            pairing: RopePairing::Half,
            block_size: 32,
            sharpness: 1.0,
            rows: mixed_rows(),
        };
        check(&case, DType::Bf16, heads.0 as u64);
    }
}

/// More than 8 query heads to a key-value head, in one block and in several.
#[test]
fn large_groups() {
    for heads in [(9, 1), (16, 1), (34, 2)] {
        for head_dim in [80, 96, 128, 256] {
            let rows = if is_small() { vec![(1, 40), (1, 300)] } else { mixed_rows() };
            let (pairing, sharpness) = (RopePairing::Half, 1.0);
            let case =
                Case { heads, head_dim, rotary_dim: head_dim, pairing, block_size: 32, sharpness, rows };
            check(&case, DType::Bf16, (heads.0 + head_dim) as u64);
        }
    }
}

#[test]
fn partial_and_interleaved_rotation() {
    let rows = vec![(5, 0), (1, 20), (1, 3)];
    for dtype in DTYPES {
        for pairing in [RopePairing::Half, RopePairing::Interleaved] {
            for (head_dim, rotary_dim) in
                [(256, 64), (80, 20), (64, 64), (64, 2), (96, 6), (80, 80), (128, 32)]
            {
                let rows = rows.clone();
                let heads = (4, 2);
                let case =
                    Case { heads, head_dim, rotary_dim, pairing, block_size: 16, sharpness: 1.0, rows };
                check(&case, dtype, 9);
            }
        }
    }
}

#[test]
fn many_rows_of_skewed_lengths() {
    if is_small() {
        return;
    }
    let rows = (0..96).map(|row| (1, if row % 24 == 0 { 3000 } else { 7 * row })).collect();
    let case = Case {
        heads: (8, 2),
        head_dim: 128,
        rotary_dim: 128,
        pairing: RopePairing::Half,
        block_size: 64,
        sharpness: 1.0,
        rows,
    };
    check(&case, DType::Bf16, 11);
}

/// Prompts alone, around the sizes of tiles, with heads that come in pairs and heads that do not, and blocks that
/// divide a tile of keys, hold several boxes of it, or share none with it but 16 tokens.
#[test]
fn prompts_of_awkward_lengths() {
    let rows: Vec<Row> = match is_small() {
        true => vec![(17, 0), (65, 64), (129, 1)],
        false => vec![
            (17, 0),
            (63, 5),
            (127, 0),
            (128, 0),
            (129, 1),
            (65, 64),
            (2, 1023),
            (130, 77),
            (257, 300),
            (700, 0),
        ],
    };
    for (heads, head_dim, block_size) in [
        ((4, 2), 128, 64),
        ((3, 3), 128, 16),
        ((6, 2), 128, 48),
        ((4, 2), 128, 80),
        ((2, 1), 128, 256),
        ((4, 4), 256, 64),
        ((4, 2), 256, 128),
        ((3, 1), 256, 32),
        ((4, 4), 64, 64),
        ((2, 2), 80, 64),
        ((4, 2), 96, 64),
    ] {
        for dtype in DTYPES {
            let rows = rows.clone();
            let pairing = RopePairing::Half;
            let sharpness = 1.0;
            let case = Case { heads, head_dim, rotary_dim: head_dim, pairing, block_size, sharpness, rows };
            check(&case, dtype, (head_dim + block_size) as u64);
        }
    }
}

/// Scores so large that few keys have any weight, and that exponentials relative to the first keys' scores
/// overflow: running maxima must rise again and again.
#[test]
fn sharp_scores() {
    for (head_dim, heads) in [(128, (4, 2)), (64, (3, 3)), (256, (2, 2))] {
        for sharpness in [8.0, 30.0] {
            for dtype in DTYPES {
                let rows = if is_small() { vec![(66, 130), (1, 200)] } else { vec![(700, 900), (1, 3000)] };
                let pairing = RopePairing::Half;
                let case =
                    Case { heads, head_dim, rotary_dim: head_dim, pairing, block_size: 64, sharpness, rows };
                check(&case, dtype, head_dim as u64 + sharpness as u64);
            }
        }
    }
}

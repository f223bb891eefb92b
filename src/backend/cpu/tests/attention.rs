//! Rotary embedding, cache and attention.

use super::*;
use crate::backend::{Alibi, RopePairing};

const NUM_BLOCKS: usize = 40;

/// A model's attention in small.
#[derive(Clone, Copy, Debug)]
struct Case {
    shape: AttentionShape,
    rotary_dim: usize,
    pairing: RopePairing,
    dtype: DType,
    /// Limit of queries, keys and values after their biases.
    clamp: Option<f32>,
    scoring: Scoring,
}

fn case(num_heads: usize, num_kv_heads: usize, head_dim: usize, rotary_dim: usize, dtype: DType) -> Case {
    let shape = AttentionShape { num_heads, num_kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt() };
    let pairing = if rotary_dim.is_multiple_of(4) { RopePairing::Half } else { RopePairing::Interleaved };
    let clamp = (head_dim == 20).then_some(1.5);
    Case { shape, rotary_dim, pairing, dtype, clamp, scoring: Scoring::default() }
}

/// Groups of 1 to 8 heads; head sizes below, at and around the vectors.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for dtype in DTYPES {
        cases.push(case(9, 3, 64, 64, dtype));
        cases.push(case(1, 1, 6, 2, dtype));
        cases.push(case(4, 4, 20, 20, dtype));
        cases.push(case(8, 1, 80, 40, dtype));
        cases.push(case(5, 1, 128, 126, dtype));
    }
    cases
}

/// Windows below, at and above the tiles of keys, and everything else that scores pass.
fn scored_cases() -> Vec<Case> {
    let alibi = Some(Alibi { max_bias: 8.0, scale: 0.7 });
    let windows = [1, 5, 63, 64, 65, 100, 128, 500]
        .map(|window| Scoring { window: Some(window), ..Scoring::default() });
    let others = [
        Scoring { soft_cap: Some(0.8), ..Scoring::default() },
        Scoring { soft_cap: Some(30.0), window: Some(70), ..Scoring::default() },
        Scoring { alibi, ..Scoring::default() },
        Scoring { soft_cap: Some(2.0), alibi, window: Some(33) },
    ];
    let scorings = windows.into_iter().chain(others).enumerate();
    scorings.map(|(i, scoring)| Case { scoring, ..case(6, 1 + i % 2, 24, 8, DTYPES[i % 3]) }).collect()
}

/// A sequence's fused rows, and its blocks of the cache.
struct Sequence {
    rows: Vec<f32>,
    blocks: Vec<u32>,
}

impl Sequence {
    fn len(&self, case: &Case) -> usize {
        self.rows.len() / case.shape.qkv_width()
    }
}

/// Sequences of `lens` tokens in shuffled blocks.
fn sequences(random: &mut Random, case: &Case, block_size: usize, lens: &[usize]) -> Vec<Sequence> {
    let mut free: Vec<u32> = (0..NUM_BLOCKS as u32).collect();
    lens.iter()
        .map(|&len| {
            let blocks = (0..len.div_ceil(block_size)).map(|_| free.swap_remove(random.below(free.len())));
            Sequence { blocks: blocks.collect(), rows: random.values(len * case.shape.qkv_width(), 2.0) }
        })
        .collect()
}

/// Biases of a fused row.
fn biases(case: &Case) -> Vec<f32> {
    Random(77).values(case.shape.qkv_width(), 0.5)
}

/// Rows with their biases, clamped.
fn biased(case: &Case, rows: &[f32]) -> Vec<f32> {
    let clamp = case.clamp.unwrap_or(f32::INFINITY);
    let biases = biases(case);
    rows.iter().zip(biases.iter().cycle()).map(|(x, bias)| (x + bias).clamp(-clamp, clamp)).collect()
}

fn angles(case: &Case, num_positions: usize) -> Vec<f32> {
    let half = case.rotary_dim / 2;
    let angle = |p: usize, i: usize| p as f64 / 10000f64.powf(i as f64 / half as f64);
    (0..num_positions)
        .flat_map(|p| {
            let cosines = (0..half).map(move |i| angle(p, i).cos() as f32);
            cosines.chain((0..half).map(move |i| angle(p, i).sin() as f32))
        })
        .collect()
}

fn rotated(case: &Case, head: &[f32], angles: &[f32]) -> Vec<f64> {
    let half = case.rotary_dim / 2;
    let mut out: Vec<f64> = head.iter().map(|&x| f64::from(x)).collect();
    for i in 0..half {
        let (a, b) = match case.pairing {
            RopePairing::Half => (i, i + half),
            RopePairing::Interleaved => (2 * i, 2 * i + 1),
        };
        let (x, y) = (f64::from(head[a]), f64::from(head[b]));
        let (cosine, sine) = (f64::from(angles[i]), f64::from(angles[half + i]));
        (out[a], out[b]) = (x * cosine - y * sine, y * cosine + x * sine);
    }
    out
}

/// What a score between tokens `distance` apart becomes.
fn scored(case: &Case, score: f64, head: usize, distance: usize) -> f64 {
    let Scoring { soft_cap, alibi, window } = case.scoring;
    if window.is_some_and(|window| distance >= window) {
        return f64::NEG_INFINITY;
    }
    let score = soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh());
    let slope = alibi.map_or(0.0, |alibi| alibi.slope(head, case.shape.num_heads));
    score - f64::from(slope) * distance as f64
}

/// What attention gives for all tokens of a sequence, by the definition.
fn reference(case: &Case, rows: &[f32]) -> Vec<f64> {
    let rows = &biased(case, rows)[..];
    let AttentionShape { num_heads, num_kv_heads, head_dim, scale } = case.shape;
    let width = case.shape.qkv_width();
    let num_tokens = rows.len() / width;
    let table = angles(case, num_tokens);
    let head = |t: usize, head: usize| &rows[t * width + head * head_dim..][..head_dim];
    let angle = |t: usize| &table[t * case.rotary_dim..][..case.rotary_dim];
    let hold = |values: Vec<f64>| {
        let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
        rounded(case.dtype, &values).into_iter().map(f64::from).collect::<Vec<f64>>()
    };
    let mut out = Vec::new();
    for t in 0..num_tokens {
        for h in 0..num_heads {
            let kv_head = h / (num_heads / num_kv_heads);
            let query = rotated(case, head(t, h), angle(t));
            let scores: Vec<f64> = (0..=t)
                .map(|s| {
                    let key = hold(rotated(case, head(s, num_heads + kv_head), angle(s)));
                    let score = query.iter().zip(&key).map(|(q, k)| q * k).sum::<f64>() * f64::from(scale);
                    scored(case, score, h, t - s)
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            let mut sums = vec![0.0; head_dim];
            for (s, weight) in weights.iter().enumerate() {
                let value = rounded(case.dtype, head(s, num_heads + num_kv_heads + kv_head));
                for (sum, value) in sums.iter_mut().zip(value) {
                    *sum += weight / total * f64::from(value);
                }
            }
            out.extend(sums);
        }
    }
    out
}

/// Runs the sequences through a poisoned cache, at most `chunk` tokens of each a step, all in one batch, and
/// returns the attention rows of each.
fn run(cpu: &mut Cpu, case: &Case, sequences: &[Sequence], block_size: usize, chunk: usize) -> Vec<Vec<f32>> {
    let shape = case.shape;
    let (width, out_width) = (shape.qkv_width(), shape.num_heads * shape.head_dim);
    let longest = sequences.iter().map(|sequence| sequence.len(case)).max().unwrap();
    let num_tokens: usize = sequences.iter().map(|sequence| sequence.len(case)).sum();
    cpu.reserve(&BackendLimits { max_tokens: num_tokens, max_slots: sequences.len(), vocab_size: 1 })
        .unwrap();
    let layout = KvLayout {
        num_layers: 2,
        num_blocks: NUM_BLOCKS,
        block_size,
        num_kv_heads: shape.num_kv_heads,
        head_dim: shape.head_dim,
        dtype: case.dtype,
    };
    let mut cache = cpu.alloc_kv_cache(&layout).unwrap();
    match case.dtype {
        DType::F32 => cache.elements_mut::<f32>().fill(f32::NAN),
        DType::F16 => cache.elements_mut::<f16>().fill(f16::NAN),
        DType::Bf16 => cache.elements_mut::<bf16>().fill(bf16::NAN),
    }
    let table = tensor(cpu, DType::F32, case.rotary_dim, &angles(case, longest));
    let bias = tensor(cpu, DType::F32, width, &biases(case));
    let mut results = vec![Vec::new(); sequences.len()];
    let mut start = 0;
    while start < longest {
        let mut batch = Batch::new();
        let mut rows = Vec::new();
        for (i, sequence) in sequences.iter().enumerate().filter(|(_, s)| s.len(case) > start) {
            let end = sequence.len(case).min(start + chunk);
            rows.extend_from_slice(&sequence.rows[start * width..end * width]);
            batch.slots.push(i as u32);
            batch.tokens.resize(rows.len() / width, 0);
            batch.query_starts.push(batch.tokens.len() as u32);
            batch.context_lens.push(end as u32);
            batch.block_tables.extend(&sequence.blocks);
            batch.block_starts.push(batch.block_tables.len() as u32);
        }
        cpu.load_batch(&batch).unwrap();
        let mut qkv = tensor(cpu, DType::F32, width, &rows);
        let transform = QkvTransform {
            bias: Some(&bias),
            clamp: case.clamp,
            ..QkvTransform::rotate(&table, case.pairing)
        };
        cpu.rope_and_write_kv(&mut qkv, &transform, &shape, &mut cache, 1).unwrap();
        let mut out = poisoned(cpu, batch.num_tokens() + 1, out_width);
        cpu.attention(&qkv, &shape, &case.scoring, &cache, 1, &mut out).unwrap();
        let out = read(cpu, &out);
        assert!(out[batch.num_tokens() * out_width..].iter().all(|x| x.is_nan()));
        for row in 0..batch.num_rows() {
            let range = batch.query_range(row);
            let part = &out[range.start * out_width..range.end * out_width];
            results[batch.slots[row] as usize].extend_from_slice(part);
        }
        start += chunk;
    }
    results
}

#[test]
fn attention_is_softmax_over_the_past() {
    let mut random = Random(11);
    for case in cases().into_iter().chain(scored_cases()) {
        let sequences = sequences(&mut random, &case, 16, &[1, 150, 16, 64, 65]);
        for mut cpu in backends() {
            let results = run(&mut cpu, &case, &sequences, 16, 1000);
            for (sequence, result) in sequences.iter().zip(&results) {
                // Values lie in [-2, 2]. A key held in a narrow type may round the other way than the
                // reference's, by an ulp of a rotated value of up to 2.8.
                let tolerance = match case.dtype {
                    DType::F32 => 5e-6,
                    DType::F16 => 2e-3,
                    DType::Bf16 => 1.5e-2,
                };
                let expected: Vec<_> =
                    reference(&case, &sequence.rows).into_iter().map(|x| (x, tolerance)).collect();
                assert_close(&format!("{case:?} {}", cpu.instruction_set()), result, &expected);
            }
        }
    }
}

#[test]
fn attention_gives_a_token_the_same_bits_in_any_batch_chunk_and_block() {
    let mut random = Random(12);
    for case in cases() {
        let sequences = sequences(&mut random, &case, 16, &[33, 170, 5]);
        for isa in Isa::supported() {
            let mut cpu = Cpu::with_isa(Threads::new(3).unwrap(), isa);
            let whole = run(&mut cpu, &case, &sequences, 16, 1000);
            for (block_size, chunk) in [(16, 7), (16, 1), (32, 64), (64, 50), (6, 100)] {
                let mut free = 0..NUM_BLOCKS as u32;
                let moved: Vec<_> = sequences
                    .iter()
                    .map(|sequence| Sequence {
                        rows: sequence.rows.clone(),
                        blocks: free.by_ref().take(sequence.len(&case).div_ceil(block_size)).collect(),
                    })
                    .collect();
                let result = run(&mut cpu, &case, &moved, block_size, chunk);
                for (whole, part) in whole.iter().zip(&result) {
                    assert_eq!(bits(whole), bits(part), "{case:?} {} {block_size} {chunk}", isa.name());
                }
            }
            for (sequence, whole) in sequences.iter().zip(&whole) {
                let alone = [Sequence { rows: sequence.rows.clone(), blocks: sequence.blocks.clone() }];
                let result = run(&mut cpu, &case, &alone, 16, 1000);
                assert_eq!(bits(whole), bits(&result[0]), "{case:?} {} alone", isa.name());
            }
        }
    }
}

#[test]
fn rope_rotates_queries_and_keys_alone() {
    let case = case(2, 1, 12, 8, DType::F32);
    let width = case.shape.qkv_width();
    let sequence = &sequences(&mut Random(13), &case, 16, &[20])[0];
    for mut cpu in backends() {
        let limits = BackendLimits { max_tokens: 20, max_slots: 1, vocab_size: 1 };
        cpu.reserve(&limits).unwrap();
        let layout = KvLayout {
            num_layers: 1,
            num_blocks: NUM_BLOCKS,
            block_size: 16,
            num_kv_heads: 1,
            head_dim: 12,
            dtype: DType::F32,
        };
        let mut cache = cpu.alloc_kv_cache(&layout).unwrap();
        let batch = Batch {
            slots: vec![0],
            query_starts: vec![0, 3],
            context_lens: vec![20],
            tokens: vec![0; 3],
            block_starts: vec![0, 2],
            block_tables: sequence.blocks.clone(),
            sampled_rows: vec![],
        };
        cpu.load_batch(&batch).unwrap();
        let mut qkv = tensor(&mut cpu, DType::F32, width, &sequence.rows[..4 * width]);
        let table = tensor(&mut cpu, DType::F32, 8, &angles(&case, 20));
        let transform = QkvTransform::rotate(&table, RopePairing::Half);
        cpu.rope_and_write_kv(&mut qkv, &transform, &case.shape, &mut cache, 0).unwrap();
        let out = read(&mut cpu, &qkv);
        for t in 0..3 {
            let angles = &angles(&case, 20)[(17 + t) * 8..][..8];
            for head in 0..3 {
                let at = t * width + head * 12;
                let expected = rotated(&case, &sequence.rows[at..at + 12], angles);
                for (actual, expected) in out[at..at + 12].iter().zip(expected) {
                    assert!((f64::from(*actual) - expected).abs() < 1e-6);
                }
            }
        }
        assert_eq!(out[3 * width..], sequence.rows[3 * width..4 * width], "wrote beyond its rows");
        assert_eq!(out[3 * 12..4 * 12], sequence.rows[3 * 12..4 * 12], "changed a value");
        // Position 17 is token 1 of the second block, in which keys come before values.
        let block = sequence.blocks[1] as usize * 2 * 16 * 12;
        let elements = cache.elements::<f32>();
        assert_eq!(elements[block + 12..block + 24], out[24..36]);
        assert_eq!(elements[block + 16 * 12 + 12..][..12], out[36..48]);
    }
}

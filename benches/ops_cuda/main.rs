//! Times the CUDA backend's operations and whole decode steps of the Llama-3-8B shape with random weights, and
//! prints each as a share of what the card can do. Operations are launched one by one, so their figures include that;
//! steps replay what was recorded, and print how long the device has nothing to compute between two of them.
//!
//! `cargo bench --bench ops_cuda`; arguments choose sections: `linear`, `projection`, `experts`, `decode`, `prompt`,
//! `small`, `step`.

mod experts;
mod projection;
mod step;

use std::time::Instant;

use inflight::backend::cuda::{Cuda, KvCache, Tensor};
use inflight::backend::{
    Activate, Activation, AttentionShape, Backend, BackendLimits, Batch, DType, Delta, KvLayout, Norm,
    QkvTransform, RopePairing, Scoring, SlotState,
};

/// Measured on an H100 SXM: a copy's bytes read and written, and a large BF16 product.
const BYTES_PER_SECOND: f64 = 3.0e12;
const FLOPS: f64 = 798e12;
const BF16: DType = DType::Bf16;
const GREEDY: SlotState = SlotState::GREEDY;

fn main() {
    let sections: Vec<String> = std::env::args().skip(1).filter(|name| !name.starts_with('-')).collect();
    let wants = |name: &str| sections.is_empty() || sections.iter().any(|section| section == name);
    println!("{}", Cuda::new(0).expect("a CUDA device").device_name());
    if wants("linear") {
        bench_linear();
    }
    if wants("projection") {
        projection::bench();
    }
    if wants("experts") {
        experts::bench();
    }
    if wants("decode") {
        bench_decode();
    }
    if wants("prompt") {
        bench_prompt();
    }
    if wants("small") {
        bench_small();
    }
    if wants("step") {
        step::bench();
    }
}

/// Bytes of pseudorandom BF16 values in about [-scale, scale).
fn noise(count: usize, scale: f32) -> Vec<u8> {
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..count).flat_map(|_| half::bf16::from_f32(next() * scale).to_le_bytes()).collect()
}

/// A tensor filled with repetitions of the same megabytes of noise.
fn random_tensor(gpu: &mut Cuda, noise: &[u8], rows: usize, columns: usize) -> Tensor {
    let mut tensor = gpu.alloc(BF16, rows, columns).unwrap();
    let row_bytes = 2 * columns;
    let chunk_rows = (noise.len() / row_bytes).max(1);
    for first in (0..rows).step_by(chunk_rows) {
        let count = chunk_rows.min(rows - first);
        gpu.write_rows(&mut tensor, first, &noise[..count * row_bytes]).unwrap();
    }
    tensor
}

/// Median microseconds of a call, over batches of calls that are long against a synchronisation.
fn time(gpu: &mut Cuda, marker: &Tensor, mut call: impl FnMut(&mut Cuda, usize)) -> f64 {
    let mut run = |gpu: &mut Cuda, count: usize| {
        let start = Instant::now();
        (0..count).for_each(|index| call(gpu, index));
        gpu.read_rows(marker, 1).unwrap();
        start.elapsed().as_secs_f64()
    };
    run(gpu, 3);
    let once = run(gpu, 10) / 10.0;
    let count = ((0.1 / once) as usize).clamp(5, 2000);
    let mut times: Vec<f64> = (0..7).map(|_| run(gpu, count) / count as f64).collect();
    times.sort_by(f64::total_cmp);
    times[3] * 1e6
}

fn bench_linear() {
    let mut gpu = Cuda::new(0).unwrap();
    gpu.reserve(&BackendLimits { max_tokens: 16, max_slots: 16, vocab_size: 16 }).unwrap();
    let noise = noise(4 << 20, 0.05);
    println!("linear: rows, out x in | us | TB/s of weights | % of copy | TFLOP/s");
    for (out_features, in_features) in
        [(4096, 4096), (6144, 4096), (28672, 4096), (4096, 14336), (128_256, 4096)]
    {
        let weight_bytes = 2 * out_features * in_features;
        // Weights rotate, so that none are found in the second-level cache.
        let num_weights = (256usize << 20).div_ceil(weight_bytes).max(2);
        let weights: Vec<Tensor> =
            (0..num_weights).map(|_| random_tensor(&mut gpu, &noise, out_features, in_features)).collect();
        // 2048 comes before 1152 and 1664, which share its algorithm and show what part of a wave costs.
        for rows in [1, 4, 8, 16, 32, 64, 256, 512, 1024, 2048, 1152, 1664, 8192] {
            let input = random_tensor(&mut gpu, &noise, rows, in_features);
            let mut out = gpu.alloc(BF16, rows, out_features).unwrap();
            let marker = gpu.alloc(DType::F32, 1, 1).unwrap();
            let micros = time(&mut gpu, &marker, |gpu, index| {
                gpu.linear(&input, &weights[index % num_weights], &mut out, rows).unwrap();
            });
            let rate = weight_bytes as f64 / micros * 1e6;
            let flops = 2.0 * (rows * out_features * in_features) as f64 / micros * 1e6;
            println!(
                "{rows:5}, {out_features} x {in_features} | {micros:8.1} | {:.2} | {:.0} % | {:.0}",
                rate / 1e12,
                rate / BYTES_PER_SECOND * 100.0,
                flops / 1e12
            );
        }
    }
}

struct AttentionBench {
    gpu: Cuda,
    shape: AttentionShape,
    cache: KvCache,
    qkv: Tensor,
    out: Tensor,
    marker: Tensor,
}

const BLOCK: usize = 64;

impl AttentionBench {
    /// A cache of random keys and values for rows of `(new tokens, context)`, and the batch of these rows.
    fn new(heads: (usize, usize), head_dim: usize, rows: &[(usize, usize)]) -> AttentionBench {
        let mut gpu = Cuda::new(0).unwrap();
        let num_blocks: usize = rows.iter().map(|row| row.1.div_ceil(BLOCK)).sum();
        let layout = KvLayout {
            num_layers: 4,
            num_blocks,
            block_size: BLOCK,
            num_kv_heads: heads.1,
            head_dim,
            dtype: BF16,
        };
        let mut cache = gpu.alloc_kv_cache(&layout).unwrap();
        let max_tokens = rows.iter().map(|row| row.0).sum::<usize>().max(4096);
        let max_slots = rows.len() + 1;
        gpu.reserve(&BackendLimits { max_tokens, max_slots, vocab_size: 8 }).unwrap();
        let scale = 1.0 / (head_dim as f32).sqrt();
        let shape = AttentionShape { num_heads: heads.0, num_kv_heads: heads.1, head_dim, scale };
        let noise = noise(1 << 20, 1.0);
        let mut qkv = random_tensor(&mut gpu, &noise, max_tokens, shape.qkv_width());
        let out = gpu.alloc(BF16, max_tokens, heads.0 * head_dim).unwrap();
        let marker = gpu.alloc(DType::F32, 1, 1).unwrap();
        let table = gpu.alloc(DType::F32, num_blocks * BLOCK, 2).unwrap();
        for first in (0..num_blocks * BLOCK).step_by(4096) {
            let count = 4096.min(num_blocks * BLOCK - first);
            let mut batch = Batch::new();
            push(&mut batch, 0, vec![0; count], first + count, (0..num_blocks as u32).collect());
            gpu.load_batch(&batch).unwrap();
            for layer in 0..layout.num_layers {
                let transform = QkvTransform::rotate(&table, RopePairing::Half);
                gpu.rope_and_write_kv(&mut qkv, &transform, &shape, &mut cache, layer).unwrap();
            }
        }
        let qkv = random_tensor(&mut gpu, &noise, max_tokens, shape.qkv_width());
        let mut bench = AttentionBench { gpu, shape, cache, qkv, out, marker };
        let mut batch = Batch::new();
        let mut next_block = 0;
        for (slot, &(num_tokens, context_len)) in rows.iter().enumerate() {
            let end = next_block + context_len.div_ceil(BLOCK) as u32;
            push(&mut batch, slot as u32, vec![0; num_tokens], context_len, (next_block..end).collect());
            next_block = end;
        }
        // The first attention tells how many shares decodes are cut into, from the next batch on.
        for _ in 0..2 {
            bench.gpu.load_batch(&batch).unwrap();
            let AttentionBench { gpu, shape, cache, qkv, out, .. } = &mut bench;
            gpu.attention(qkv, shape, &Scoring::default(), cache, 0, out).unwrap();
        }
        bench
    }

    fn micros(&mut self) -> f64 {
        let AttentionBench { gpu, shape, cache, qkv, out, marker } = self;
        let plain = Scoring::default();
        time(gpu, marker, |gpu, index| gpu.attention(qkv, shape, &plain, cache, index % 4, out).unwrap())
    }
}

fn push(batch: &mut Batch, slot: u32, tokens: Vec<u32>, context_len: usize, blocks: Vec<u32>) {
    batch.slots.push(slot);
    batch.tokens.extend(tokens);
    batch.query_starts.push(batch.tokens.len() as u32);
    batch.context_lens.push(context_len as u32);
    batch.block_tables.extend(blocks);
    batch.block_starts.push(batch.block_tables.len() as u32);
}

fn bench_decode() {
    println!("decode attention: heads, head size, rows | us | TB/s of keys and values | % of copy");
    let skewed = |count: usize| -> Vec<usize> {
        (0..count).map(|row| if row % 16 == 0 { 8192 } else { 546 + row }).collect()
    };
    // What it shows, heads, size of a head, contexts.
    type Case = (&'static str, (usize, usize), usize, Vec<usize>);
    let cases: [Case; 12] = [
        ("1 x 1024", (32, 8), 128, vec![1024]),
        ("1 x 16384", (32, 8), 128, vec![16_384]),
        ("16 x 1024", (32, 8), 128, vec![1024; 16]),
        ("64 x 1024", (32, 8), 128, vec![1024; 64]),
        ("256 x 450", (32, 8), 128, vec![450; 256]),
        ("512 x 192", (32, 8), 128, vec![192; 512]),
        ("64 mixed, 8192 and about 580", (32, 8), 128, skewed(64)),
        ("64 x 1055, as many bytes", (32, 8), 128, vec![1055; 64]),
        ("64 x 1024, MHA", (16, 16), 256, vec![1024; 64]),
        ("150 x 830, MHA", (16, 16), 256, vec![830; 150]),
        ("512 x 192, MHA", (16, 16), 256, vec![192; 512]),
        ("64 x 1024, MHA", (32, 32), 64, vec![1024; 64]),
    ];
    for (name, heads, head_dim, lengths) in cases {
        let rows: Vec<(usize, usize)> = lengths.iter().map(|&length| (1, length)).collect();
        let micros = AttentionBench::new(heads, head_dim, &rows).micros();
        let bytes = (lengths.iter().sum::<usize>() * 2 * heads.1 * head_dim * 2) as f64;
        let rate = bytes / micros * 1e6;
        let (tera, share) = (rate / 1e12, rate / BYTES_PER_SECOND * 100.0);
        println!("{heads:?}, {head_dim}, {name} | {micros:8.1} | {tera:.2} | {share:.0} %");
    }
}

fn bench_prompt() {
    println!("prompt attention, causal: heads, head size, rows | us | TFLOP/s | % of product");
    for (heads, head_dim) in [((32, 8), 128), ((32, 32), 64), ((16, 16), 256)] {
        for (count, length) in [(8, 512), (4, 1024), (2, 2048), (1, 8192)] {
            let micros = AttentionBench::new(heads, head_dim, &vec![(length, length); count]).micros();
            let flops = (2 * count * length * length * heads.0 * head_dim) as f64 / micros * 1e6;
            let (tera, share) = (flops / 1e12, flops / FLOPS * 100.0);
            println!("{heads:?}, {head_dim}, {count} x {length} | {micros:8.1} | {tera:.0} | {share:.0} %");
        }
    }
}

fn bench_small() {
    let mut gpu = Cuda::new(0).unwrap();
    let noise = noise(4 << 20, 1.0);
    let vocab_size = 128_256;
    gpu.reserve(&BackendLimits { max_tokens: 8192, max_slots: 256, vocab_size }).unwrap();
    let marker = gpu.alloc(DType::F32, 1, 1).unwrap();
    println!("norm and activation of width 4096 and 14336: rows | us norm | us activation");
    for rows in [1, 64, 2048, 8192] {
        let mut residual = random_tensor(&mut gpu, &noise, rows, 4096);
        let delta = random_tensor(&mut gpu, &noise, rows, 4096);
        let weight = gpu.alloc(DType::F32, 1, 4096).unwrap();
        let mut out = gpu.alloc(BF16, rows, 4096).unwrap();
        let norm = time(&mut gpu, &marker, |gpu, _| {
            let deltas = [Some(Delta::plain(&delta)), None];
            gpu.add_norm(&mut residual, deltas, &Norm::rms(&weight, 1e-5), &mut out, rows).unwrap();
        });
        let gate_up = random_tensor(&mut gpu, &noise, rows, 2 * 14_336);
        let mut gated = gpu.alloc(BF16, rows, 14_336).unwrap();
        let activation = time(&mut gpu, &marker, |gpu, _| {
            gpu.activate(&gate_up, &Activate::gated(Activation::Silu), &mut gated, rows).unwrap();
        });
        println!("{rows} | {norm:.1} | {activation:.1}");
    }
    println!("sampling, vocabulary {vocab_size}: rows | us greedy | us temperature | us top-k 50, top-p 0.9");
    let mut logits = gpu.alloc(DType::F32, 256, vocab_size).unwrap();
    let row: Vec<u8> = (0..vocab_size as u32)
        .flat_map(|token| ((token.wrapping_mul(2_654_435_761) >> 12) as f32 / 1e5).to_le_bytes())
        .collect();
    (0..256).for_each(|first| gpu.write_rows(&mut logits, first, &row).unwrap());
    for rows in [1usize, 64, 256] {
        let warm = SlotState { temperature: 0.8, ..GREEDY };
        let filtered = SlotState { top_k: 50, top_p: 0.9, ..warm.clone() };
        let micros = [GREEDY, warm, filtered].map(|state| {
            (0..rows as u32).for_each(|slot| gpu.reset_slot(slot, &state).unwrap());
            let mut batch = Batch::new();
            (0..rows as u32).for_each(|slot| push(&mut batch, slot, vec![0], 1, vec![]));
            batch.sampled_rows = (0..rows as u32).collect();
            gpu.load_batch(&batch).unwrap();
            time(&mut gpu, &marker, |gpu, _| {
                gpu.sample(&logits).unwrap();
                gpu.collect().unwrap();
            })
        });
        println!("{rows} | {:.1} | {:.1} | {:.1}", micros[0], micros[1], micros[2]);
    }
}

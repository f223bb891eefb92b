//! Mixtures of experts: the layers of Mixtral-8x7B and Qwen3-30B-A3B, random weights, rows that choose at random.

use inflight::backend::cuda::{Cuda, Tensor};
use inflight::backend::{
    Activation, Backend, BackendLimits, DType, ExpertLimits, ExpertWeighting, Gating, Mixture, RouterScoring,
};

use super::{BF16, BYTES_PER_SECOND, noise, random_tensor, time};

/// Router's products of different rows, so that calls in turn choose other experts.
const NUM_PRODUCTS: usize = 8;

/// Name, experts, chosen experts, and widths.
type Shape = (&'static str, usize, usize, usize, usize);

pub fn bench() {
    println!(
        "experts: layer, rows | us | chosen experts | TB/s of their weights | % of copy | TFLOP/s of the products"
    );
    let shapes: [Shape; 2] = [("Mixtral-8x7B", 8, 2, 4096, 14_336), ("Qwen3-30B-A3B", 128, 8, 2048, 768)];
    for shape in shapes {
        bench_layer(shape);
    }
}

fn bench_layer((name, num_experts, num_chosen, hidden, width): Shape) {
    let mut gpu = Cuda::new(0).unwrap();
    gpu.reserve(&BackendLimits { max_tokens: 16, max_slots: 16, vocab_size: 16 }).unwrap();
    gpu.reserve_experts(&ExpertLimits { max_tokens: 8192, num_experts, num_chosen, hidden, width }).unwrap();
    let noise = noise(4 << 20, 0.05);
    let up = random_tensor(&mut gpu, &noise, num_experts * 2 * width, hidden);
    let down = random_tensor(&mut gpu, &noise, num_experts * hidden, width);
    let marker = gpu.alloc(DType::F32, 1, 1).unwrap();
    let mixture = Mixture {
        up: &up,
        down: &down,
        num_experts,
        num_chosen,
        scoring: RouterScoring::Softmax,
        weighting: ExpertWeighting::Normalized,
        scale: 1.0,
        function: Activation::Silu,
        gating: Gating::Gated,
        shared: None,
    };
    let mut seed = 1;
    for rows in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192] {
        let input = random_tensor(&mut gpu, &noise, rows, hidden);
        let mut out = gpu.alloc(BF16, rows, hidden).unwrap();
        let mut touched = 0;
        let products: Vec<Tensor> = (0..NUM_PRODUCTS)
            .map(|_| {
                let (values, chosen) = products(&mut seed, rows, num_experts, num_chosen);
                touched += chosen;
                let mut tensor = gpu.alloc(DType::F32, rows, num_experts).unwrap();
                gpu.write_rows(&mut tensor, 0, &values).unwrap();
                tensor
            })
            .collect();
        let micros = time(&mut gpu, &marker, |gpu, index| {
            gpu.mix_experts(&input, &products[index % NUM_PRODUCTS], &mixture, &mut out, rows).unwrap();
        });
        let touched = touched as f64 / NUM_PRODUCTS as f64;
        let expert_weights = (3 * hidden * width) as f64;
        let rate = touched * expert_weights * 2.0 / micros * 1e6;
        let flops = 2.0 * (rows * num_chosen) as f64 * expert_weights / micros * 1e6;
        let (tera, share) = (rate / 1e12, rate / BYTES_PER_SECOND * 100.0);
        println!(
            "{name}, {rows:4} | {micros:8.1} | {touched:5.1} | {tera:.2} | {share:.0} % | {:.0}",
            flops / 1e12
        );
    }
}

/// Random products of `rows` rows as bytes, and how many experts they choose.
fn products(seed: &mut u64, rows: usize, num_experts: usize, num_chosen: usize) -> (Vec<u8>, usize) {
    let mut bytes = Vec::new();
    let mut is_chosen = vec![false; num_experts];
    for _ in 0..rows {
        let values: Vec<f32> = (0..num_experts)
            .map(|_| {
                *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (*seed >> 40) as f32 / (1u64 << 22) as f32
            })
            .collect();
        let mut order: Vec<usize> = (0..num_experts).collect();
        order.sort_by(|&left, &right| values[right].total_cmp(&values[left]));
        order[..num_chosen].iter().for_each(|&expert| is_chosen[expert] = true);
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    (bytes, is_chosen.into_iter().filter(|&is_chosen| is_chosen).count())
}

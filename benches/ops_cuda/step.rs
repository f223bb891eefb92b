//! Whole decode steps of the Llama-3-8B shape, with random weights.

use std::time::Instant;

use inflight::backend::cuda::{Cuda, KvCache, Tensor};
use inflight::backend::{
    Activate, Activation, AttentionShape, Backend, BackendLimits, BackendResult, Batch, DType, Delta,
    Embedding, Head, KvLayout, Norm, Projection, QkvProjection, QkvTransform, RopePairing, Scoring,
    TOKEN_FROM_SLOT,
};

use crate::{BF16, BLOCK, BYTES_PER_SECOND, GREEDY, noise, push, random_tensor};

struct Layer {
    norms: [Tensor; 2],
    qkv: Tensor,
    attention_output: Tensor,
    gate_up: Tensor,
    down: Tensor,
}

/// The decoder's operations, in its order, on weights that were never loaded from anywhere.
struct Llama8B {
    gpu: Cuda,
    model: Model,
}

struct Model {
    shape: AttentionShape,
    table: Tensor,
    cache: KvCache,
    embedding: Tensor,
    head: Tensor,
    final_norm: Tensor,
    layers: Vec<Layer>,
    buffers: [Tensor; 8],
}

const HIDDEN: usize = 4096;
const INTERMEDIATE: usize = 14_336;
const VOCAB: usize = 128_256;
const MAX_LEN: usize = 1024;
const MAX_ROWS: usize = 256;

impl Llama8B {
    fn new() -> Llama8B {
        let mut gpu = Cuda::new(0).unwrap();
        let noise = noise(4 << 20, 0.02);
        let ones: Vec<u8> = (0..HIDDEN).flat_map(|_| 1.0f32.to_le_bytes()).collect();
        let shape = AttentionShape { num_heads: 32, num_kv_heads: 8, head_dim: 128, scale: 0.088 };
        let norm = |gpu: &mut Cuda| {
            let mut tensor = gpu.alloc(DType::F32, 1, HIDDEN).unwrap();
            gpu.write_rows(&mut tensor, 0, &ones).unwrap();
            tensor
        };
        let layers = (0..32)
            .map(|_| Layer {
                norms: [norm(&mut gpu), norm(&mut gpu)],
                qkv: random_tensor(&mut gpu, &noise, shape.qkv_width(), HIDDEN),
                attention_output: random_tensor(&mut gpu, &noise, HIDDEN, HIDDEN),
                gate_up: random_tensor(&mut gpu, &noise, 2 * INTERMEDIATE, HIDDEN),
                down: random_tensor(&mut gpu, &noise, HIDDEN, INTERMEDIATE),
            })
            .collect();
        let final_norm = norm(&mut gpu);
        let embedding = random_tensor(&mut gpu, &noise, VOCAB, HIDDEN);
        let head = random_tensor(&mut gpu, &noise, VOCAB, HIDDEN);
        let num_blocks = MAX_ROWS * MAX_LEN / BLOCK;
        let layout = KvLayout {
            num_layers: 32,
            num_blocks,
            block_size: BLOCK,
            num_kv_heads: 8,
            head_dim: 128,
            dtype: BF16,
        };
        let cache = gpu.alloc_kv_cache(&layout).unwrap();
        gpu.reserve(&BackendLimits { max_tokens: 2048, max_slots: MAX_ROWS, vocab_size: VOCAB }).unwrap();
        let table = gpu.alloc(DType::F32, MAX_LEN, 128).unwrap();
        let widths = [HIDDEN, HIDDEN, shape.qkv_width(), HIDDEN, 2 * INTERMEDIATE, INTERMEDIATE, HIDDEN];
        let mut buffers: Vec<Tensor> =
            widths.iter().map(|&width| gpu.alloc(BF16, 2048, width).unwrap()).collect();
        buffers.push(gpu.alloc(DType::F32, MAX_ROWS, VOCAB).unwrap());
        let Ok(buffers) = buffers.try_into() else { unreachable!("eight buffers") };
        let mut model = Model { shape, table, cache, embedding, head, final_norm, layers, buffers };
        let start = Instant::now();
        let free_bytes = gpu.memory_info().unwrap().0;
        gpu.warm_up(MAX_LEN, &mut |gpu, rows| model.run(gpu, rows)).unwrap();
        let taken = (free_bytes - gpu.memory_info().unwrap().0) >> 20;
        println!("warm-up: {:.2} s, {taken} MiB of the device", start.elapsed().as_secs_f64());
        Llama8B { gpu, model }
    }

    fn forward(&mut self, batch: &Batch) {
        let Llama8B { gpu, model } = self;
        gpu.run_step(batch, &mut |gpu, rows| model.run(gpu, rows)).unwrap();
    }
}

impl Model {
    fn run(&mut self, gpu: &mut Cuda, rows: usize) -> BackendResult<()> {
        let Model { shape, table, cache, embedding, head, final_norm, layers, buffers } = self;
        let [residual, normed, qkv, attention, gate_up, gated, delta, logits] = buffers;
        gpu.embed(&Embedding::plain(embedding), residual)?;
        let mut waits = false;
        for (index, layer) in layers.iter().enumerate() {
            let added = [waits.then(|| Delta::plain(&*delta)), None];
            gpu.add_norm(residual, added, &Norm::rms(&layer.norms[0], 1e-5), normed, rows)?;
            let transform = QkvTransform::rotate(table, RopePairing::Half);
            let projection = QkvProjection { weight: &layer.qkv, transform, shape };
            gpu.linear_qkv(normed, &projection, qkv, cache, index, rows)?;
            gpu.attention(qkv, shape, &Scoring::default(), cache, index, attention)?;
            waits = project(gpu, (attention, &layer.attention_output), residual, delta, rows)?;
            let added = [waits.then(|| Delta::plain(&*delta)), None];
            gpu.add_norm(residual, added, &Norm::rms(&layer.norms[1], 1e-5), normed, rows)?;
            let activate = Activate::gated(Activation::Silu);
            gpu.linear_activate(normed, &layer.gate_up, &activate, (gate_up, gated), rows)?;
            waits = project(gpu, (gated, &layer.down), residual, delta, rows)?;
        }
        let added = [waits.then(|| Delta::plain(&*delta)), None];
        gpu.add_norm(residual, added, &Norm::rms(final_norm, 1e-5), normed, rows)?;
        gpu.logits(normed, &Head::plain(head), logits)?;
        gpu.sample(logits)
    }
}

/// Whether the product waits in `delta`.
fn project(
    gpu: &mut Cuda,
    (input, weight): (&Tensor, &Tensor),
    residual: &mut Tensor,
    delta: &mut Tensor,
    rows: usize,
) -> BackendResult<bool> {
    let projection = Projection { input, weight, bias: None, delta };
    Ok(!gpu.project([Some(projection), None], residual, rows)?)
}

const NUM_STEPS: usize = 128;
/// Context of the first step.
const FIRST_CONTEXT: usize = 129;

/// `rows` decodes whose contexts have `context_len` tokens; tokens are fed back on the device.
fn decodes(rows: usize, context_len: usize) -> Batch {
    let mut batch = Batch::new();
    for slot in 0..rows as u32 {
        let first = slot * (MAX_LEN / BLOCK) as u32;
        let blocks = (first..first + context_len.div_ceil(BLOCK) as u32).collect();
        push(&mut batch, slot, vec![TOKEN_FROM_SLOT], context_len, blocks);
    }
    batch.sampled_rows = (0..rows as u32).collect();
    batch
}

impl Llama8B {
    /// Runs steps of `rows` decodes, two in flight; seconds per step, on the whole and to submit it.
    fn decode(&mut self, rows: usize, num_steps: usize) -> (f64, f64) {
        let (start, mut host) = (Instant::now(), 0.0);
        for step in 0..num_steps {
            let batch = decodes(rows, FIRST_CONTEXT + step);
            let submitted = Instant::now();
            self.forward(&batch);
            host += submitted.elapsed().as_secs_f64();
            if step > 0 {
                self.gpu.collect().unwrap();
            }
        }
        self.gpu.collect().unwrap();
        (start.elapsed().as_secs_f64() / num_steps as f64, host / num_steps as f64)
    }

    /// Median and largest time in microseconds that the device has nothing to compute between two steps.
    fn gaps(&mut self, rows: usize) -> (f64, f64) {
        self.gpu.watch_gaps();
        self.decode(rows, NUM_STEPS);
        let mut gaps = self.gpu.take_gaps().unwrap();
        assert_eq!(gaps.len(), NUM_STEPS - 1, "every step replays what was recorded");
        gaps.sort_by(f64::total_cmp);
        (gaps[gaps.len() / 2], gaps[gaps.len() - 1])
    }
}

/// Decode steps at contexts 129 to 256.
pub fn bench() {
    let mut model = Llama8B::new();
    println!(
        "Llama-3-8B shape, decode at contexts 129 to 256: rows | ms/step | tok/s | host us/step | % of copy | \
         us between steps, median and largest"
    );
    for rows in [1usize, 4, 16, 64, 256] {
        (0..rows as u32).for_each(|slot| model.gpu.reset_slot(slot, &GREEDY).unwrap());
        model.decode(rows, 8);
        let (seconds, host) = model.decode(rows, NUM_STEPS);
        let (median, largest) = model.gaps(rows);
        let weights = 32 * 2 * HIDDEN * (6144 + 4096 + 3 * INTERMEDIATE) + 2 * VOCAB * HIDDEN;
        let keys_and_values = rows * 192 * 32 * 2 * 8 * 128 * 2;
        let share = (weights + keys_and_values) as f64 / seconds / BYTES_PER_SECOND * 100.0;
        let (millis, rate, host) = (seconds * 1e3, rows as f64 / seconds, host * 1e6);
        println!("{rows} | {millis:.2} | {rate:.0} | {host:.0} | {share:.0} % | {median:.1}, {largest:.1}");
    }
}

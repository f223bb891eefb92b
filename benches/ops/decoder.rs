//! The operations of a decoder of SmolLM2-135M's shape, with random weights.

use std::time::Instant;

use half::{bf16, f16};
use inflight::backend::cpu::{Cpu, KvCache, Tensor};
use inflight::backend::{
    Activate, Activation, AttentionShape, Backend, BackendLimits, Batch, DType, Delta, Embedding, Head,
    KvLayout, Norm, QkvTransform, RopePairing, Scoring,
};

const NUM_LAYERS: usize = 30;
const HIDDEN: usize = 576;
const INTERMEDIATE: usize = 1536;
const VOCAB: usize = 49152;
const SHAPE: AttentionShape = AttentionShape { num_heads: 9, num_kv_heads: 3, head_dim: 64, scale: 0.125 };
const BLOCK_SIZE: usize = 64;
const MAX_CONTEXT: usize = 1024;
const MAX_SEQUENCES: usize = 16;
const MAX_TOKENS: usize = 512;

/// A batch of equal sequences.
pub struct Workload {
    pub name: &'static str,
    pub num_sequences: usize,
    pub tokens_each: usize,
    /// Tokens in the cache after the step.
    pub context_len: usize,
}

impl Workload {
    pub fn num_tokens(&self) -> usize {
        self.num_sequences * self.tokens_each
    }

    fn batch(&self) -> Batch {
        let mut batch = Batch::new();
        let blocks_each = self.context_len.div_ceil(BLOCK_SIZE);
        for sequence in 0..self.num_sequences {
            batch.slots.push(sequence as u32);
            batch
                .tokens
                .extend((0..self.tokens_each).map(|i| ((sequence * 7919 + i * 104_729) % VOCAB) as u32));
            batch.query_starts.push(batch.tokens.len() as u32);
            batch.context_lens.push(self.context_len as u32);
            let first = sequence * (MAX_CONTEXT / BLOCK_SIZE);
            batch.block_tables.extend((first..first + blocks_each).map(|block| block as u32));
            batch.block_starts.push(batch.block_tables.len() as u32);
            batch.sampled_rows.push(sequence as u32);
        }
        batch
    }

    /// Pairs of a token and a token that it sees.
    fn attended(&self) -> usize {
        let first = self.context_len - self.tokens_each;
        (0..self.tokens_each).map(|i| first + i + 1).sum::<usize>() * self.num_sequences
    }
}

/// Calls of one operation in one step: time, memory traffic of weights and cache, and arithmetic.
#[derive(Clone)]
pub struct Op {
    pub name: &'static str,
    pub seconds: f64,
    pub bytes: f64,
    pub flops: f64,
}

pub struct Report {
    /// Time of the fastest step.
    pub step_s: f64,
    /// Operations by name; each call counts with its fastest time, so that a busy host disturbs little.
    pub ops: Vec<Op>,
}

struct Layer {
    input_norm: Tensor,
    qkv: Tensor,
    attention_out: Tensor,
    post_norm: Tensor,
    gate_up: Tensor,
    down: Tensor,
}

struct Activations {
    residual: Tensor,
    normed: Tensor,
    qkv: Tensor,
    heads: Tensor,
    delta: Tensor,
    gate_up: Tensor,
    gated: Tensor,
    logits: Tensor,
}

pub struct Decoder {
    cpu: Cpu,
    layers: Vec<Layer>,
    embedding: Tensor,
    rope: Tensor,
    cache: KvCache,
    activations: Activations,
    weight_bytes: usize,
}

/// A tensor of uniform values in [-1, 1) times `scale`.
fn random(cpu: &mut Cpu, dtype: DType, rows: usize, columns: usize, scale: f32) -> Tensor {
    let mut tensor = cpu.alloc(dtype, rows, columns).expect("memory");
    let mut state = (rows * 31 + columns) as u32;
    for row in 0..rows {
        let values = (0..columns).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * scale
        });
        let bytes: Vec<u8> = match dtype {
            DType::F32 => values.flat_map(|x| x.to_le_bytes()).collect(),
            DType::F16 => values.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
            DType::Bf16 => values.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
        };
        cpu.write_rows(&mut tensor, row, &bytes).expect("a row");
    }
    tensor
}

/// Cosines and sines of all positions, so that rotating the same rows again and again keeps their size.
fn rope_table(cpu: &mut Cpu) -> Tensor {
    let mut table = cpu.alloc(DType::F32, MAX_CONTEXT, SHAPE.head_dim).expect("memory");
    let half = SHAPE.head_dim / 2;
    for position in 0..MAX_CONTEXT {
        let angle = |i: usize| position as f32 / 10000f32.powf(i as f32 / half as f32);
        let cosines = (0..half).map(|i| angle(i).cos());
        let row: Vec<u8> =
            cosines.chain((0..half).map(|i| angle(i).sin())).flat_map(|x| x.to_le_bytes()).collect();
        cpu.write_rows(&mut table, position, &row).expect("a row");
    }
    table
}

/// The calls of a step, in order.
#[derive(Default)]
struct Clock {
    calls: Vec<Op>,
}

impl Clock {
    fn time(&mut self, name: &'static str, bytes: usize, flops: usize, run: impl FnOnce()) {
        let start = Instant::now();
        run();
        let seconds = start.elapsed().as_secs_f64();
        self.calls.push(Op { name, seconds, bytes: bytes as f64, flops: flops as f64 });
    }

    /// Keeps the faster of each call.
    fn keep_fastest(&mut self, other: Clock) {
        if self.calls.is_empty() {
            *self = other;
            return;
        }
        for (call, other) in self.calls.iter_mut().zip(other.calls) {
            call.seconds = call.seconds.min(other.seconds);
        }
    }

    /// Adds up the calls of one name, in order of first use.
    fn by_name(self) -> Vec<Op> {
        let mut ops: Vec<Op> = Vec::new();
        for call in self.calls {
            match ops.iter_mut().find(|op| op.name == call.name) {
                None => ops.push(call),
                Some(op) => {
                    op.seconds += call.seconds;
                    op.bytes += call.bytes;
                    op.flops += call.flops;
                }
            }
        }
        ops
    }
}

impl Decoder {
    pub fn new(mut cpu: Cpu, dtype: DType) -> Self {
        let limits = BackendLimits { max_tokens: MAX_TOKENS, max_slots: MAX_SEQUENCES, vocab_size: VOCAB };
        cpu.reserve(&limits).expect("a workspace");
        let layout = KvLayout {
            num_layers: NUM_LAYERS,
            num_blocks: MAX_SEQUENCES * MAX_CONTEXT / BLOCK_SIZE,
            block_size: BLOCK_SIZE,
            num_kv_heads: SHAPE.num_kv_heads,
            head_dim: SHAPE.head_dim,
            dtype,
        };
        let cache = cpu.alloc_kv_cache(&layout).expect("a cache");
        let c = &mut cpu;
        let layers = (0..NUM_LAYERS)
            .map(|_| Layer {
                input_norm: random(c, DType::F32, 1, HIDDEN, 1.0),
                qkv: random(c, dtype, SHAPE.qkv_width(), HIDDEN, 0.05),
                attention_out: random(c, dtype, HIDDEN, SHAPE.num_heads * SHAPE.head_dim, 0.05),
                post_norm: random(c, DType::F32, 1, HIDDEN, 1.0),
                gate_up: random(c, dtype, 2 * INTERMEDIATE, HIDDEN, 0.05),
                down: random(c, dtype, HIDDEN, INTERMEDIATE, 0.03),
            })
            .collect();
        let activations = Activations {
            residual: random(c, DType::F32, MAX_TOKENS, HIDDEN, 1.0),
            normed: random(c, DType::F32, MAX_TOKENS, HIDDEN, 1.0),
            qkv: random(c, DType::F32, MAX_TOKENS, SHAPE.qkv_width(), 1.0),
            heads: random(c, DType::F32, MAX_TOKENS, SHAPE.num_heads * SHAPE.head_dim, 1.0),
            delta: random(c, DType::F32, MAX_TOKENS, HIDDEN, 1.0),
            gate_up: random(c, DType::F32, MAX_TOKENS, 2 * INTERMEDIATE, 1.0),
            gated: random(c, DType::F32, MAX_TOKENS, INTERMEDIATE, 1.0),
            logits: random(c, DType::F32, MAX_SEQUENCES, VOCAB, 1.0),
        };
        let rope = rope_table(c);
        let embedding = random(c, dtype, VOCAB, HIDDEN, 0.1);
        let weight_bytes = dtype.size_bytes();
        let mut decoder = Self { cpu, layers, embedding, rope, cache, activations, weight_bytes };
        decoder.fill_cache();
        decoder
    }

    /// Writes keys and values to all of the cache, so that its pages exist before a decode reads them.
    fn fill_cache(&mut self) {
        let Self { cpu, rope, cache, activations, .. } = self;
        for sequence in 0..MAX_SEQUENCES {
            for context_len in [MAX_TOKENS, 2 * MAX_TOKENS] {
                let workload = Workload { name: "", num_sequences: 1, tokens_each: MAX_TOKENS, context_len };
                let mut batch = workload.batch();
                let first = sequence * (MAX_CONTEXT / BLOCK_SIZE);
                batch.block_tables.iter_mut().for_each(|block| *block += first as u32);
                cpu.load_batch(&batch).expect("a batch");
                for layer in 0..NUM_LAYERS {
                    let qkv = &mut activations.qkv;
                    let transform = QkvTransform::rotate(rope, RopePairing::Half);
                    cpu.rope_and_write_kv(qkv, &transform, &SHAPE, cache, layer).expect("rope");
                }
            }
        }
    }

    /// Times some seconds of steps.
    pub fn measure(&mut self, workload: &Workload) -> Report {
        let batch = workload.batch();
        let (mut step_s, mut fastest) = (f64::INFINITY, Clock::default());
        let started = Instant::now();
        while fastest.calls.is_empty() || started.elapsed().as_secs_f64() < 3.0 {
            let mut clock = Clock::default();
            let start = Instant::now();
            self.step(&batch, workload.attended(), &mut clock);
            step_s = step_s.min(start.elapsed().as_secs_f64());
            fastest.keep_fastest(clock);
        }
        Report { step_s, ops: fastest.by_name() }
    }

    fn step(&mut self, batch: &Batch, attended: usize, clock: &mut Clock) {
        let Self { cpu, layers, embedding, rope, cache, activations: a, weight_bytes } = self;
        let rows = batch.num_tokens();
        let attention_flops = 4 * attended * SHAPE.num_heads * SHAPE.head_dim;
        let contexts: usize = batch.context_lens.iter().map(|&len| len as usize).sum();
        let cache_bytes = 2 * contexts * SHAPE.num_kv_heads * SHAPE.head_dim * *weight_bytes;
        let cost = |weight: &Tensor, rows: usize| {
            let elements = weight.rows() * weight.columns();
            (elements * *weight_bytes, 2 * elements * rows)
        };
        cpu.load_batch(batch).expect("a batch");
        clock
            .time("embed", 0, 0, || cpu.embed(&Embedding::plain(embedding), &mut a.residual).expect("embed"));
        for (index, layer) in layers.iter().enumerate() {
            let linear = |clock: &mut Clock,
                          cpu: &mut Cpu,
                          name,
                          input: &Tensor,
                          weight: &Tensor,
                          out: &mut Tensor| {
                let (bytes, flops) = cost(weight, rows);
                clock.time(name, bytes, flops, || cpu.linear(input, weight, out, rows).expect(name));
            };
            let deltas = [(index > 0).then(|| Delta::plain(&a.delta)), None];
            let norm = Norm::rms(&layer.input_norm, 1e-5);
            clock.time("add_norm", 0, 0, || {
                cpu.add_norm(&mut a.residual, deltas, &norm, &mut a.normed, rows).expect("norm");
            });
            linear(clock, cpu, "linear qkv", &a.normed, &layer.qkv, &mut a.qkv);
            clock.time("rope", 0, 0, || {
                let transform = QkvTransform::rotate(rope, RopePairing::Half);
                cpu.rope_and_write_kv(&mut a.qkv, &transform, &SHAPE, cache, index).expect("rope");
            });
            clock.time("attention", cache_bytes, attention_flops, || {
                cpu.attention(&a.qkv, &SHAPE, &Scoring::default(), cache, index, &mut a.heads)
                    .expect("attention");
            });
            linear(clock, cpu, "linear out", &a.heads, &layer.attention_out, &mut a.delta);
            let (deltas, norm) = ([Some(Delta::plain(&a.delta)), None], Norm::rms(&layer.post_norm, 1e-5));
            clock.time("add_norm", 0, 0, || {
                cpu.add_norm(&mut a.residual, deltas, &norm, &mut a.normed, rows).expect("norm");
            });
            linear(clock, cpu, "linear gate_up", &a.normed, &layer.gate_up, &mut a.gate_up);
            clock.time("activate", 0, 0, || {
                cpu.activate(&a.gate_up, &Activate::gated(Activation::Silu), &mut a.gated, rows)
                    .expect("activation");
            });
            linear(clock, cpu, "linear down", &a.gated, &layer.down, &mut a.delta);
        }
        let (deltas, norm) = ([Some(Delta::plain(&a.delta)), None], Norm::rms(&layers[0].input_norm, 1e-5));
        clock.time("add_norm", 0, 0, || {
            cpu.add_norm(&mut a.residual, deltas, &norm, &mut a.normed, rows).expect("norm");
        });
        let (bytes, flops) = cost(embedding, batch.num_sampled());
        clock.time("logits", bytes, flops, || {
            cpu.logits(&a.normed, &Head::plain(embedding), &mut a.logits).expect("logits");
        });
    }
}

//! The operations of a decoder of SmolLM2-135M's shape, with random weights.

use std::time::Instant;

use half::{bf16, f16};
use inflight::backend::cpu::{Cpu, KvCache, Tensor};
use inflight::backend::{
    Activation, AttentionShape, Backend, BackendLimits, Batch, DType, KvLayout, RopePairing,
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

/// One operation's time, memory traffic of weights and cache, and arithmetic in one step.
pub struct Op {
    pub name: &'static str,
    pub seconds: f64,
    pub bytes: f64,
    pub flops: f64,
}

pub struct Report {
    /// Time of the fastest step.
    pub step_s: f64,
    /// Operations of that step.
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

/// Times of one step by operation, in order of first use.
#[derive(Default)]
struct Clock {
    ops: Vec<Op>,
}

impl Clock {
    fn time(&mut self, name: &'static str, bytes: usize, flops: usize, run: impl FnOnce()) {
        let start = Instant::now();
        run();
        let seconds = start.elapsed().as_secs_f64();
        let index = self.ops.iter().position(|op| op.name == name).unwrap_or_else(|| {
            self.ops.push(Op { name, seconds: 0.0, bytes: 0.0, flops: 0.0 });
            self.ops.len() - 1
        });
        let op = &mut self.ops[index];
        op.seconds += seconds;
        op.bytes += bytes as f64;
        op.flops += flops as f64;
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
                input_norm: random(c, dtype, 1, HIDDEN, 1.0),
                qkv: random(c, dtype, SHAPE.qkv_width(), HIDDEN, 0.05),
                attention_out: random(c, dtype, HIDDEN, SHAPE.num_heads * SHAPE.head_dim, 0.05),
                post_norm: random(c, dtype, 1, HIDDEN, 1.0),
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
        let rope = random(c, DType::F32, MAX_CONTEXT, SHAPE.head_dim, 1.0);
        let embedding = random(c, dtype, VOCAB, HIDDEN, 0.1);
        let mut decoder =
            Self { cpu, layers, embedding, rope, cache, activations, weight_bytes: dtype.size_bytes() };
        // The cache's pages exist, and hold what prompts wrote, before a decode reads them.
        for sequence in 0..MAX_SEQUENCES {
            for end in [512, 1024] {
                let mut batch =
                    Workload { name: "", num_sequences: 1, tokens_each: 512, context_len: end }.batch();
                let first = sequence * (MAX_CONTEXT / BLOCK_SIZE);
                batch.block_tables.iter_mut().for_each(|block| *block += first as u32);
                decoder.step(&batch, 0, &mut Clock::default());
            }
        }
        decoder
    }

    /// The fastest of some steps.
    pub fn measure(&mut self, workload: &Workload) -> Report {
        let batch = workload.batch();
        let mut best = Report { step_s: f64::INFINITY, ops: Vec::new() };
        let started = Instant::now();
        while best.ops.is_empty() || started.elapsed().as_secs_f64() < 3.0 {
            let mut clock = Clock::default();
            let start = Instant::now();
            self.step(&batch, workload.attended(), &mut clock);
            let step_s = start.elapsed().as_secs_f64();
            if step_s < best.step_s {
                best = Report { step_s, ops: clock.ops };
            }
        }
        best
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
        clock.time("embed", 0, 0, || cpu.embed(embedding, &mut a.residual).expect("embed"));
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
            let delta = (index > 0).then_some(&a.delta);
            clock.time("add_rms_norm", 0, 0, || {
                cpu.add_rms_norm(&mut a.residual, delta, &layer.input_norm, 1e-5, &mut a.normed, rows)
                    .expect("norm");
            });
            linear(clock, cpu, "linear qkv", &a.normed, &layer.qkv, &mut a.qkv);
            clock.time("rope", 0, 0, || {
                cpu.rope_and_write_kv(&mut a.qkv, rope, RopePairing::Half, &SHAPE, cache, index)
                    .expect("rope");
            });
            clock.time("attention", cache_bytes, attention_flops, || {
                cpu.attention(&a.qkv, &SHAPE, cache, index, &mut a.heads).expect("attention");
            });
            linear(clock, cpu, "linear out", &a.heads, &layer.attention_out, &mut a.delta);
            clock.time("add_rms_norm", 0, 0, || {
                cpu.add_rms_norm(
                    &mut a.residual,
                    Some(&a.delta),
                    &layer.post_norm,
                    1e-5,
                    &mut a.normed,
                    rows,
                )
                .expect("norm");
            });
            linear(clock, cpu, "linear gate_up", &a.normed, &layer.gate_up, &mut a.gate_up);
            clock.time("gated_activation", 0, 0, || {
                cpu.gated_activation(&a.gate_up, Activation::Silu, &mut a.gated, rows).expect("activation");
            });
            linear(clock, cpu, "linear down", &a.gated, &layer.down, &mut a.delta);
        }
        clock.time("add_rms_norm", 0, 0, || {
            let weight = &layers[0].input_norm;
            cpu.add_rms_norm(&mut a.residual, Some(&a.delta), weight, 1e-5, &mut a.normed, rows)
                .expect("norm");
        });
        let (bytes, flops) = cost(embedding, batch.num_sampled());
        clock.time("logits", bytes, flops, || {
            cpu.logits(&a.normed, embedding, &mut a.logits).expect("logits");
        });
    }
}

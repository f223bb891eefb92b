//! The decoder and the engine on a small random Llama, against the CPU.

use std::collections::BTreeMap;
use std::path::Path;

use inflight::backend::{Backend, BackendLimits, Batch, DType, TOKEN_FROM_SLOT};
use inflight::format::Checkpoint;
use inflight::model::decoder::{Decoder, DecoderConfig};
use inflight::model::families::load_spec;
use inflight::model::load::LoadOptions;
use inflight::model::spec::ModelSpec;
use safetensors::tensor::{Dtype, TensorView};

use crate::rig::*;

pub const VOCAB: usize = 1000;
pub const HIDDEN: usize = 256;
const INTERMEDIATE: usize = 512;
pub const LAYERS: usize = 3;
pub const HEADS: (usize, usize) = (4, 2);
pub const HEAD_DIM: usize = 64;

/// Writes a checkpoint of random weights with Hugging Face's names.
fn write_checkpoint(folder: &Path) {
    let mut random = Random(10);
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    let mut add = |name: String, shape: &[usize], offset: f32, scale: f32| {
        let values = random.values(shape.iter().product(), scale);
        let values: Vec<f32> = values.iter().map(|x| x + offset).collect();
        tensors.insert(name, (shape.to_vec(), bytes(DType::Bf16, &values)));
    };
    let (query, kv) = (HEADS.0 * HEAD_DIM, HEADS.1 * HEAD_DIM);
    add("model.embed_tokens.weight".into(), &[VOCAB, HIDDEN], 0.0, 1.0);
    add("lm_head.weight".into(), &[VOCAB, HIDDEN], 0.0, 0.3);
    add("model.norm.weight".into(), &[HIDDEN], 1.0, 0.2);
    for layer in 0..LAYERS {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        add(name("input_layernorm"), &[HIDDEN], 1.0, 0.2);
        add(name("post_attention_layernorm"), &[HIDDEN], 1.0, 0.2);
        add(name("self_attn.q_proj"), &[query, HIDDEN], 0.0, 0.15);
        add(name("self_attn.k_proj"), &[kv, HIDDEN], 0.0, 0.15);
        add(name("self_attn.v_proj"), &[kv, HIDDEN], 0.0, 0.15);
        add(name("self_attn.o_proj"), &[HIDDEN, query], 0.0, 0.15);
        add(name("mlp.gate_proj"), &[INTERMEDIATE, HIDDEN], 0.0, 0.15);
        add(name("mlp.up_proj"), &[INTERMEDIATE, HIDDEN], 0.0, 0.15);
        add(name("mlp.down_proj"), &[HIDDEN, INTERMEDIATE], 0.0, 0.15);
    }
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        (name.clone(), TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS.0, "num_key_value_heads": HEADS.1, "head_dim": HEAD_DIM,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

fn config(dtype: DType) -> DecoderConfig {
    DecoderConfig {
        weight_dtype: dtype,
        kv_dtype: dtype,
        num_kv_blocks: 64,
        kv_block_size: 32,
        max_model_len: 1024,
        limits: BackendLimits { max_tokens: 512, max_slots: 48, vocab_size: VOCAB },
    }
}

fn decoder<B: Backend>(backend: B, spec: &ModelSpec, checkpoint: &Checkpoint, dtype: DType) -> Decoder<B> {
    let mut decoder =
        Decoder::load(backend, spec, checkpoint, &config(dtype), &LoadOptions::default()).unwrap();
    for slot in 0..48 {
        decoder.reset_slot(slot, &GREEDY).unwrap();
    }
    decoder
}

/// Prompts whole and in chunks, then decodes, then both.
pub fn batches(random: &mut Random) -> Vec<Batch> {
    let mut tokens = |count: usize| -> Vec<u32> { (0..count).map(|_| random.below(VOCAB) as u32).collect() };
    let row = |slot: u32, tokens: Vec<u32>, past: usize| BatchRow {
        slot,
        context_len: past + tokens.len(),
        tokens,
        blocks: (0..6).map(|block| slot * 6 + block).collect(),
    };
    vec![
        batch(&[row(0, tokens(100), 0), row(1, tokens(3), 0), row(2, tokens(65), 0)], &[0, 1]),
        batch(&[row(1, tokens(1), 3), row(2, tokens(64), 65), row(0, tokens(1), 100)], &[0, 1, 2]),
        batch(&[row(0, tokens(1), 101), row(1, tokens(1), 4), row(2, tokens(1), 129)], &[0, 1, 2]),
        batch(&[row(3, tokens(17), 0), row(1, tokens(1), 5)], &[0, 1]),
    ]
}

/// Many short prompts, then their decodes beside a longer prompt.
pub fn crowded_batches(random: &mut Random) -> Vec<Batch> {
    let mut row = |slot: u32, count: usize, past: usize| BatchRow {
        slot,
        tokens: (0..count).map(|_| random.below(VOCAB) as u32).collect(),
        context_len: past + count,
        blocks: if slot == 40 { (40..48).collect() } else { vec![slot] },
    };
    let prompts: Vec<BatchRow> = (0..40).map(|slot| row(slot, 9, 0)).collect();
    let mut mixed: Vec<BatchRow> = (0..40).map(|slot| row(slot, 1, 9)).collect();
    mixed.push(row(40, 230, 0));
    let decodes: Vec<BatchRow> = (0..40).map(|slot| row(slot, 1, 10)).collect();
    let all = |rows: &[BatchRow]| (0..rows.len() as u32).collect::<Vec<_>>();
    [prompts, mixed, decodes].map(|rows| batch(&rows, &all(&rows))).into()
}

pub fn compare_logits(checkpoint: &Checkpoint, dtype: DType, batches: &[Batch]) {
    let spec = load_spec(checkpoint).unwrap();
    let mut on_cpu = decoder(cpu(), &spec, checkpoint, dtype);
    let mut on_gpus = [gpu(), narrow_gpu(), wide_gpu()].map(|gpu| decoder(gpu, &spec, checkpoint, dtype));
    for (step, batch) in batches.iter().enumerate() {
        let num_sampled = batch.num_sampled();
        on_cpu.forward(batch).unwrap();
        let expected = on_cpu.read_logits(num_sampled).unwrap();
        assert_eq!(on_cpu.collect().unwrap().len(), num_sampled);
        for (on_gpu, how) in on_gpus.iter_mut().zip(["", ", in narrow tiles", ", in wide tiles"]) {
            on_gpu.forward(batch).unwrap();
            let actual = on_gpu.read_logits(num_sampled).unwrap();
            assert_close(&format!("logits {dtype:?}, step {step}{how}"), &actual, &expected, 2e-2);
            assert_eq!(on_gpu.collect().unwrap().len(), num_sampled);
        }
    }
}

#[test]
fn logits_are_the_cpus() {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    compare_logits(&checkpoint, DType::Bf16, &batches(&mut Random(11)));
    compare_logits(&checkpoint, DType::F16, &batches(&mut Random(11)));
}

/// The block of GPT-J, whose branches run at the same time, with heads of its size.
#[test]
fn logits_of_a_parallel_block_are_the_cpus() {
    let mut spec: serde_json::Value =
        serde_json::from_str(include_str!("../../benches/specs/gpt_j_6b.json")).unwrap();
    spec["num_layers"] = 2.into();
    spec["hidden_size"] = 512.into();
    spec["intermediate_size"] = 1024.into();
    spec["vocab_size"] = VOCAB.into();
    spec["heads"]["num_heads"] = 2.into();
    spec["heads"]["num_kv_heads"] = 2.into();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("spec.json");
    std::fs::write(&path, spec.to_string()).unwrap();
    let checkpoint = Checkpoint::random(&path, 5);
    compare_logits(&checkpoint, DType::Bf16, &batches(&mut Random(11)));
    compare_logits(&checkpoint, DType::F16, &batches(&mut Random(11)));
    compare_logits(&checkpoint, DType::Bf16, &crowded_batches(&mut Random(14)));
}

/// Two steps in flight give the tokens of one step at a time: the second reads its tokens on the device. One decoder
/// runs them all, since each times by itself which way of multiplying is fastest, and their sums differ. Every run has
/// other blocks of the cache, where a read that comes too early finds another sequence's keys.
#[test]
fn steps_in_flight_give_the_same_tokens() {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let spec = load_spec(&checkpoint).unwrap();
    let mut random = Random(12);
    let prompts: Vec<Vec<u32>> =
        (0..10).map(|row| (0..5 + 7 * row).map(|_| random.below(VOCAB) as u32).collect()).collect();
    let mut decoder = decoder(gpu(), &spec, &checkpoint, DType::Bf16);
    let mut run = |depth: usize| {
        (0..prompts.len() as u32).for_each(|slot| decoder.reset_slot(slot, &GREEDY).unwrap());
        let mut tokens = vec![Vec::new(); prompts.len()];
        let mut in_flight = 0;
        for step in 0..40 {
            let rows: Vec<BatchRow> = prompts
                .iter()
                .enumerate()
                .map(|(slot, prompt)| BatchRow {
                    slot: slot as u32,
                    tokens: if step == 0 { prompt.clone() } else { vec![TOKEN_FROM_SLOT] },
                    context_len: prompt.len() + step,
                    blocks: (0..6).map(|block| ((slot + 3 * depth) % 10 * 6 + block) as u32).collect(),
                })
                .collect();
            let sampled: Vec<u32> = (0..rows.len() as u32).collect();
            decoder.forward(&batch(&rows, &sampled)).unwrap();
            in_flight += 1;
            while in_flight >= depth || (step == 39 && in_flight > 0) {
                for sampled in decoder.collect().unwrap() {
                    tokens[sampled.slot as usize].push(sampled.token.unwrap());
                }
                in_flight -= 1;
            }
        }
        tokens
    };
    let one_by_one = run(1);
    assert!(one_by_one.iter().all(|tokens| tokens.len() == 40));
    assert_eq!(one_by_one, run(2));
    assert_eq!(one_by_one, run(3));
}

//! Whole models of every block shape and of what else the device runs, with random weights, against the CPU.

use std::collections::BTreeMap;
use std::path::Path;

use inflight::backend::{Backend, BackendLimits, Batch, DType};
use inflight::format::Checkpoint;
use inflight::model::decoder::{Decoder, DecoderConfig};
use inflight::model::families::load_spec;
use inflight::model::load::LoadOptions;
use inflight::model::spec::ModelSpec;
use inflight::model::weights::Weights;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::rig::*;

const VOCAB: usize = 504;

fn names(stem: &str) -> Value {
    json!({"weight": format!("{stem}.weight"), "bias": format!("{stem}.bias")})
}

/// GPT-J's block in small, with every bias that it could have.
fn gpt_j() -> Value {
    json!({
        "family": "test", "num_layers": 3, "hidden_size": 320, "intermediate_size": 704, "vocab_size": VOCAB,
        "max_positions": 512,
        "positions": {"kind": "rope", "theta": 10000.0, "rotary_dim": 64, "pairing": "interleaved"},
        "norm": {"kind": "layer", "epsilon": 1e-5},
        "block": "parallel",
        "heads": {"num_heads": 2, "num_kv_heads": 2, "head_dim": 256},
        "mlp": {"kind": "plain", "activation": "gelu_tanh"},
        "output": "untied",
        "weights": {
            "embedding": "wte.weight",
            "attention_norm": names("h.{layer}.ln_1"),
            "qkv": {"kind": "fused", "qkv": names("h.{layer}.qkv"), "order": "groups"},
            "attention_output": names("h.{layer}.o"),
            "mlp": {"kind": "plain", "up": names("h.{layer}.up"), "down": names("h.{layer}.down")},
            "final_norm": names("ln_f"),
            "head": names("lm_head"),
        },
    })
}

/// [`gpt_j`] with other values at the top.
fn changed(changes: &[(&str, Value)], weights: &[(&str, Value)]) -> Value {
    let mut spec = gpt_j();
    changes.iter().for_each(|(field, value)| spec[*field] = value.clone());
    for (field, value) in weights {
        match value {
            Value::Null => drop(spec["weights"].as_object_mut().unwrap().shift_remove(*field)),
            value => spec["weights"][*field] = value.clone(),
        }
    }
    spec
}

fn write_checkpoint(folder: &Path, spec: &Value) -> ModelSpec {
    std::fs::write(folder.join("model_spec.json"), spec.to_string()).unwrap();
    let spec: ModelSpec = serde_json::from_value(spec.clone()).unwrap();
    spec.validate().unwrap();
    let mut random = Random(31);
    let mut tensors = BTreeMap::new();
    for tensor in Weights::plan(&spec, DType::Bf16).expected_tensors() {
        let count = tensor.shape.iter().product();
        let (offset, scale) = match (tensor.shape.len(), tensor.name.ends_with("bias")) {
            (1, false) => (1.0, 0.3),
            (1, true) => (0.0, 0.5),
            _ => (0.0, 0.12),
        };
        let values: Vec<f32> = random.values(count, scale).iter().map(|value| value + offset).collect();
        tensors.insert(tensor.name.clone(), (tensor.shape.clone(), bytes(DType::Bf16, &values)));
    }
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        (name.clone(), TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    spec
}

fn decoder<B: Backend>(backend: B, spec: &ModelSpec, checkpoint: &Checkpoint, dtype: DType) -> Decoder<B> {
    let config = DecoderConfig {
        weight_dtype: dtype,
        kv_dtype: dtype,
        num_kv_blocks: 16,
        kv_block_size: 32,
        max_model_len: 256,
        limits: BackendLimits { max_tokens: 128, max_slots: 4, vocab_size: VOCAB },
    };
    let mut decoder = Decoder::load(backend, spec, checkpoint, &config, &LoadOptions::default()).unwrap();
    (0..4).for_each(|slot| decoder.reset_slot(slot, &GREEDY).unwrap());
    decoder
}

/// Two prompts, one of them in two pieces, then decodes.
fn batches(random: &mut Random) -> Vec<Batch> {
    let mut row = |slot: u32, count: usize, past: usize| BatchRow {
        slot,
        tokens: (0..count).map(|_| random.below(VOCAB) as u32).collect(),
        context_len: past + count,
        blocks: (0..4).map(|block| slot * 4 + block).collect(),
    };
    vec![
        batch(&[row(0, 70, 0), row(2, 5, 0)], &[0, 1]),
        batch(&[row(2, 1, 5), row(0, 33, 70)], &[0, 1]),
        batch(&[row(0, 1, 103), row(2, 1, 6)], &[0, 1]),
    ]
}

fn check(what: &str, spec: &Value, dtype: DType) {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), spec);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let spec = load_spec(&checkpoint).unwrap();
    let mut on_cpu = decoder(cpu(), &spec, &checkpoint, dtype);
    let mut on_gpus = [gpu(), narrow_gpu()].map(|gpu| decoder(gpu, &spec, &checkpoint, dtype));
    for (step, batch) in batches(&mut Random(32)).iter().enumerate() {
        on_cpu.forward(batch).unwrap();
        let expected = on_cpu.read_logits(batch.num_sampled()).unwrap();
        on_cpu.collect().unwrap();
        for (on_gpu, how) in on_gpus.iter_mut().zip(["", ", in tiles"]) {
            on_gpu.forward(batch).unwrap();
            let actual = on_gpu.read_logits(batch.num_sampled()).unwrap();
            assert_close(&format!("{what} {dtype:?}, step {step}{how}"), &actual, &expected, 2e-2);
            on_gpu.collect().unwrap();
        }
    }
}

#[test]
fn blocks_and_extras_are_the_cpus() {
    let mlp_norm = ("mlp_norm", names("h.{layer}.ln_2"));
    let post =
        [("post_attention_norm", names("h.{layer}.post_1")), ("post_mlp_norm", names("h.{layer}.post_2"))];
    let sandwich = [mlp_norm.clone(), post[0].clone(), post[1].clone()];
    let post_norm = [("attention_norm", Value::Null), post[0].clone(), post[1].clone()];
    let learned = [("position_embedding", json!("wpe.weight")), ("embedding_norm", names("ln_e"))];
    let qk_norm = [("query_norm", names("h.{layer}.qn")), ("key_norm", names("h.{layer}.kn"))];
    let block = |name: &str| [("block", json!(name))];
    let models = [
        ("parallel", gpt_j()),
        ("sequential", changed(&block("sequential"), std::slice::from_ref(&mlp_norm))),
        ("parallel, two norms", changed(&block("parallel_two_norms"), &[mlp_norm])),
        ("sandwich", changed(&block("sandwich"), &sandwich)),
        ("post-norm", changed(&block("post_norm"), &post_norm)),
        (
            "learned positions and scaled, normalised embeddings",
            changed(
                &[
                    ("positions", json!({"kind": "learned", "offset": 2})),
                    ("embedding", json!({"scale": 3.0, "norm": "normalized"})),
                ],
                &learned,
            ),
        ),
        ("norms of queries and keys", changed(&[("attention", json!({"qk_norm": "head"}))], &qk_norm)),
        (
            "heads and MLPs of other sizes",
            changed(
                &[
                    ("heads", json!({"num_heads": 4, "num_kv_heads": 2, "head_dim": 72})),
                    ("intermediate_size", json!(701)),
                    ("attention", json!({"qk_norm": "width"})),
                ],
                &qk_norm,
            ),
        ),
        (
            "clamp, scale and cap",
            changed(
                &[
                    ("attention", json!({"qkv_clamp": 1.0})),
                    ("logits", json!({"scale": 0.5, "soft_cap": 8.0})),
                ],
                &[],
            ),
        ),
        (
            "window and soft cap of scores",
            changed(&[("attention", json!({"sliding_window": {"size": 20}, "score_soft_cap": 2.0}))], &[]),
        ),
        ("linear biases", changed(&[("positions", json!({"kind": "alibi"}))], &[])),
    ];
    for (what, spec) in models {
        check(what, &spec, DType::Bf16);
    }
    check("parallel", &gpt_j(), DType::F16);
}

/// What the device cannot do is refused when a model is loaded, by the field's name.
#[test]
fn what_has_no_kernels_is_refused() {
    let refused = [
        (
            changed(&[("heads", json!({"num_heads": 2, "num_kv_heads": 2, "head_dim": 264}))], &[]),
            "heads.head_dim",
        ),
        (changed(&[("hidden_size", json!(36))], &[]), "hidden_size"),
    ];
    for (spec, field) in refused {
        let folder = tempfile::tempdir().unwrap();
        write_checkpoint(folder.path(), &spec);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let spec = load_spec(&checkpoint).unwrap();
        let config = DecoderConfig {
            weight_dtype: DType::Bf16,
            kv_dtype: DType::Bf16,
            num_kv_blocks: 4,
            kv_block_size: 32,
            max_model_len: 64,
            limits: BackendLimits { max_tokens: 8, max_slots: 2, vocab_size: VOCAB },
        };
        let error =
            Decoder::load(gpu(), &spec, &checkpoint, &config, &LoadOptions::default()).err().expect(field);
        assert!(error.message().starts_with(field), "{error}");
    }
}

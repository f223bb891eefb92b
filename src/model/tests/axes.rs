//! Random models along every axis, on the CPU backend and the plain one, against the whole-model reference.

use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use super::golden::{config, single};
use super::naive::Naive;
use super::reference::{Reference, Tensors};
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, DType};
use crate::error::Status;
use crate::format::Checkpoint;
use crate::model::decoder::Decoder;
use crate::model::load::LoadOptions;
use crate::model::memory::memory_plan;
use crate::model::spec::ModelSpec;
use crate::model::weights::Weights;

/// Elements of padding behind heads and MLPs.
const PADDING: (usize, usize) = (5, 3);

/// A model with odd sizes: GPT-J's block with everything that has a bias.
fn base() -> Value {
    json!({
        "family": "test", "num_layers": 2, "hidden_size": 20, "intermediate_size": 28, "vocab_size": 37,
        "max_positions": 40,
        "positions": {"kind": "rope", "theta": 100.0, "rotary_dim": 4, "pairing": "interleaved"},
        "norm": {"kind": "layer", "epsilon": 1e-5},
        "block": "parallel",
        "heads": {"num_heads": 6, "num_kv_heads": 3, "head_dim": 8},
        "mlp": {"kind": "plain", "activation": "gelu_tanh"},
        "output": "untied",
        "weights": {
            "embedding": "wte.weight",
            "attention_norm": {"weight": "h.{layer}.ln_1.weight", "bias": "h.{layer}.ln_1.bias"},
            "qkv": {
                "kind": "separate",
                "query": {"weight": "h.{layer}.q.weight", "bias": "h.{layer}.q.bias"},
                "key": {"weight": "h.{layer}.k.weight", "bias": "h.{layer}.k.bias"},
                "value": {"weight": "h.{layer}.v.weight", "bias": "h.{layer}.v.bias"},
            },
            "attention_output": {"weight": "h.{layer}.o.weight", "bias": "h.{layer}.o.bias"},
            "mlp": {
                "kind": "plain",
                "up": {"weight": "h.{layer}.up.weight", "bias": "h.{layer}.up.bias"},
                "down": {"weight": "h.{layer}.down.weight", "bias": "h.{layer}.down.bias"},
            },
            "final_norm": {"weight": "ln_f.weight", "bias": "ln_f.bias"},
            "head": {"weight": "lm_head.weight", "bias": "lm_head.bias"},
        },
    })
}

/// The base spec with some values replaced; null removes. Keys are paths with dots.
pub(super) fn changed(changes: &[(&str, Value)]) -> Value {
    let mut spec = base();
    for (path, value) in changes {
        let (parent, field) = path.rsplit_once('.').unwrap_or(("", path));
        let mut target = &mut spec;
        for part in parent.split('.').filter(|part| !part.is_empty()) {
            target = &mut target[part];
        }
        match value {
            Value::Null => drop(target.as_object_mut().unwrap().shift_remove(field)),
            value => target[field] = value.clone(),
        }
    }
    spec
}

/// Random tensors for all that the spec names.
fn random_tensors(spec: &ModelSpec) -> Tensors {
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut tensors = Tensors::new();
    Weights::plan(spec, DType::F32).for_each(&mut |source| {
        for part in &source.parts {
            let shape = &part.tensor.shape;
            let count = shape.iter().product();
            let scale = if shape.len() == 1 { 1.0 } else { 0.4 };
            let mut values = || (0..count).map(|_| random() * scale).collect();
            tensors.entry(part.tensor.name.clone()).or_insert_with(|| (shape.clone(), values()));
        }
    });
    tensors
}

fn write_checkpoint(folder: &Path, tensors: &Tensors) {
    let bytes: Vec<Vec<u8>> =
        tensors.values().map(|(_, values)| values.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, (shape, _)), bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
}

/// Logits at the end of each chunk of a prompt.
fn run<B: Backend>(backend: B, spec: &ModelSpec, folder: &Path, prompt: &[u32]) -> Vec<(usize, Vec<f32>)> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    let config = config(spec, DType::F32, 17);
    let mut decoder = Decoder::load(backend, spec, &checkpoint, &config, &LoadOptions::default()).unwrap();
    let (mut num_cached, mut logits) = (0, Vec::new());
    for chunk_len in [1, 4, 13, 1, 1] {
        let chunk = &prompt[num_cached..][..chunk_len];
        decoder.forward(&single(chunk, num_cached, config.num_kv_blocks as u32)).unwrap();
        num_cached += chunk_len;
        logits.push((num_cached - 1, decoder.read_logits(1).unwrap()));
        decoder.collect().unwrap();
    }
    logits
}

fn check(what: &str, changes: &[(&str, Value)]) {
    let spec: ModelSpec =
        serde_json::from_value(changed(changes)).unwrap_or_else(|error| panic!("{what}: {error}"));
    spec.validate().unwrap_or_else(|error| panic!("{what}: {error}"));
    let again: ModelSpec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
    assert_eq!(again, spec, "{what}: read as written");
    let tensors = random_tensors(&spec);
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), &tensors);
    let prompt: Vec<u32> = (0..20).map(|i| (i * 11 + 5) % 37).collect();
    let expected = Reference { spec: &spec, tensors: &tensors }.logits(&prompt);
    let on_naive = run(Naive::default(), &spec, folder.path(), &prompt);
    let on_adding_naive = run(Naive::adding(), &spec, folder.path(), &prompt);
    let on_forking_naive = run(Naive::forking(), &spec, folder.path(), &prompt);
    let on_cpu = run(Cpu::new(2).unwrap(), &spec, folder.path(), &prompt);
    let (head, mlp) = PADDING;
    let on_padded_naive = run(Naive::padded(head, mlp), &spec, folder.path(), &prompt);
    let on_padded_cpu = run(Cpu::new(2).unwrap().padded(head, mlp), &spec, folder.path(), &prompt);
    for (backend, logits) in [
        ("naive", on_naive),
        ("naive that adds projections", on_adding_naive),
        ("naive that forks", on_forking_naive),
        ("cpu", on_cpu),
        ("naive with padding", on_padded_naive),
        ("cpu with padding", on_padded_cpu),
    ] {
        for (position, logits) in logits {
            let expected = &expected[position];
            let largest = expected.iter().fold(0.0f64, |max, x| max.max(x.abs()));
            for (token, (actual, expected)) in logits.iter().zip(expected).enumerate() {
                let error = (f64::from(*actual) - expected).abs() / largest;
                assert!(
                    error <= 2e-5,
                    "{what} on {backend}, position {position}, token {token}: {actual}, not {expected}"
                );
            }
        }
    }
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let config = config(&spec, DType::F32, 17);
    for backend in [Naive::default(), Naive::padded(head, mlp)] {
        let plan = memory_plan(&backend, &spec, &config).unwrap();
        let decoder = Decoder::load(backend, &spec, &checkpoint, &config, &LoadOptions::default()).unwrap();
        assert_eq!(decoder.backend().allocated_bytes, plan.total_bytes(), "{what}");
    }
}

/// Names of a gated MLP.
fn gated() -> Value {
    json!({
        "kind": "gated", "gate": {"weight": "h.{layer}.gate.weight", "bias": "h.{layer}.gate.bias"},
        "up": {"weight": "h.{layer}.up.weight", "bias": "h.{layer}.up.bias"}, "down": "h.{layer}.down.weight",
    })
}

fn norm_names(stem: &str) -> Value {
    json!({"weight": format!("{stem}.weight"), "bias": format!("{stem}.bias")})
}

#[test]
fn blocks() {
    let mlp_norm = ("weights.mlp_norm", norm_names("h.{layer}.ln_2"));
    let post = [
        ("weights.post_attention_norm", norm_names("h.{layer}.post_1")),
        ("weights.post_mlp_norm", norm_names("h.{layer}.post_2")),
    ];
    check("parallel", &[]);
    check("sequential", &[("block", json!("sequential")), mlp_norm.clone()]);
    check("parallel, two norms", &[("block", json!("parallel_two_norms")), mlp_norm.clone()]);
    let [first, second] = post;
    let sandwich = [("block", json!("sandwich")), mlp_norm, first.clone(), second.clone()];
    check("sandwich", &sandwich);
    let rms = [("norm", json!({"kind": "rms", "epsilon": 1e-5, "weight": "one_plus"}))];
    check("sandwich, 1 + w", &[&sandwich[..], &rms].concat());
    check(
        "post-norm",
        &[("block", json!("post_norm")), ("weights.attention_norm", Value::Null), first, second],
    );
}

#[test]
fn norms() {
    for kind in ["rms", "layer"] {
        for weight in ["plain", "one_plus"] {
            check(kind, &[("norm", json!({"kind": kind, "epsilon": 1e-3, "weight": weight}))]);
        }
        check(
            "without weights",
            &[
                ("norm", json!({"kind": kind, "epsilon": 1e-3, "weight": "absent"})),
                ("weights.attention_norm", Value::Null),
                ("weights.final_norm", Value::Null),
            ],
        );
    }
}

#[test]
fn activations_and_mlps() {
    for activation in ["silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "relu_squared"] {
        check(activation, &[("mlp.activation", json!(activation))]);
        let gated = [("mlp", json!({"kind": "gated", "activation": activation})), ("weights.mlp", gated())];
        check(activation, &gated);
    }
    let fused = json!({"kind": "fused_gated", "gate_up": "h.{layer}.gate_up.weight", "down": "h.{layer}.down.weight"});
    check("fused", &[("mlp", json!({"kind": "gated", "activation": "gelu"})), ("weights.mlp", fused)]);
}

#[test]
fn positions_and_embeddings() {
    check("none", &[("positions", json!({"kind": "none"}))]);
    for offset in [0, 2] {
        let learned = json!({"kind": "learned", "offset": offset});
        check("learned", &[("positions", learned), ("weights.position_embedding", json!("wpe.weight"))]);
    }
    for (pairing, rotary_dim) in [("half", 8), ("half", 2), ("interleaved", 8)] {
        let rope = json!({"kind": "rope", "theta": 50.0, "rotary_dim": rotary_dim, "pairing": pairing});
        check("rope", &[("positions", rope)]);
    }
    check("scale", &[("embedding", json!({"scale": 4.5}))]);
    let norm = ("weights.embedding_norm", norm_names("ln_e"));
    check("embedding norm", &[("embedding", json!({"norm": "normalized"})), norm]);
}

#[test]
fn scores() {
    for num_heads in [3, 6, 12] {
        let heads = json!({"num_heads": num_heads, "num_kv_heads": 3, "head_dim": 8});
        for positions in [json!({"kind": "alibi"}), json!({"kind": "alibi", "max_bias": 4.0, "scale": 0.3})] {
            check("alibi", &[("positions", positions), ("heads", heads.clone())]);
        }
    }
    check("soft cap", &[("attention", json!({"score_soft_cap": 0.5})), ("heads.scale", json!(1.0))]);
    for size in [1, 3, 7, 19, 100] {
        check("window", &[("attention", json!({"sliding_window": {"size": size}}))]);
    }
    for layers in [
        json!({"kind": "from", "first": 1}),
        json!({"kind": "periodic", "period": 2, "remainders": [0]}),
        json!({"kind": "listed", "layers": [1]}),
    ] {
        let window = json!({"sliding_window": {"size": 4, "layers": layers}});
        let local = json!({"theta": 7.0, "scaling": {"kind": "linear", "factor": 2.0}});
        check("window of some layers", &[("attention", window.clone())]);
        check("frequencies by layer", &[("attention", window), ("positions.local", local)]);
    }
}

#[test]
fn norms_of_queries_and_keys() {
    let names = |names: [&str; 2], extent: &str, kind: &str| {
        [
            ("attention", json!({"qk_norm": extent})),
            ("norm", json!({"kind": kind, "epsilon": 1e-5, "weight": "plain"})),
            ("weights.query_norm", norm_names(names[0])),
            ("weights.key_norm", norm_names(names[1])),
        ]
    };
    for kind in ["rms", "layer"] {
        check("shared by heads", &names(["h.{layer}.qn", "h.{layer}.kn"], "head", kind));
        check("of each head", &names(["h.{layer}.qn.{head}", "h.{layer}.kn.{head}"], "head", kind));
        check("of the width", &names(["h.{layer}.qn", "h.{layer}.kn"], "width", kind));
    }
    let mut one_plus = names(["h.{layer}.qn", "h.{layer}.kn"], "head", "rms").to_vec();
    one_plus[1].1["weight"] = json!("one_plus");
    check("1 + w", &one_plus);
}

#[test]
fn heads_and_outputs() {
    check("clamp", &[("attention", json!({"qkv_clamp": 0.75}))]);
    check("scale", &[("heads.scale", json!(0.7))]);
    check("tied", &[("output", json!("tied")), ("weights.head", Value::Null)]);
    check("tied with a bias", &[("output", json!("tied"))]);
    check("unit rows", &[("output", json!("untied_unit_rows"))]);
    check("logits", &[("logits", json!({"scale": 0.3, "soft_cap": 2.0}))]);
}

/// An expert's names under `stem`, each expert in tensors of its own or all stacked.
fn expert_names(stem: &str) -> Value {
    json!({
        "kind": "gated", "gate": format!("{stem}.gate"), "up": format!("{stem}.up"), "down": format!("{stem}.down"),
    })
}

#[test]
fn experts() {
    let gated_mlp = [("mlp", json!({"kind": "gated", "activation": "silu"}))];
    let router = "h.{layer}.router.weight";
    for (stem, num_experts, num_chosen) in
        [("h.{layer}.e.{expert}", 5, 2), ("h.{layer}.stacked", 3, 1), ("h.{layer}.e.{expert}", 4, 4)]
    {
        for (scoring, weighting, scale) in
            [("softmax", "normalized", 1.0), ("softmax", "as_scored", 2.5), ("sigmoid", "normalized", 1.0)]
        {
            let experts = json!({
                "num_experts": num_experts, "num_chosen": num_chosen, "intermediate_size": 11,
                "scoring": scoring, "weighting": weighting, "scale": scale,
            });
            let names = json!({"router": router, "experts": expert_names(stem)});
            let changes = [("experts", experts), ("weights.mlp", Value::Null), ("weights.experts", names)];
            check(&format!("{stem} {scoring} {weighting}"), &[&gated_mlp[..], &changes].concat());
        }
    }
    let plain =
        json!({"kind": "plain", "up": "h.{layer}.e.{expert}.up", "down": "h.{layer}.e.{expert}.down"});
    let few = |extra: (&str, Value)| {
        let mut experts = json!({
            "num_experts": 3, "num_chosen": 2, "intermediate_size": 9, "weighting": "normalized",
        });
        experts[extra.0] = extra.1;
        experts
    };
    let names = json!({"router": router, "experts": plain});
    let from = json!({"kind": "from", "first": 1});
    check("experts after a dense layer", &[("experts", few(("layers", from))), ("weights.experts", names)]);
    for gate in ["none", "sigmoid"] {
        let shared = few(("shared", json!({"intermediate_size": 13, "gate": gate})));
        let mut names = json!({
            "router": router, "experts": expert_names("h.{layer}.e.{expert}"),
            "shared": expert_names("h.{layer}.shared"),
        });
        if gate == "sigmoid" {
            names["shared_gate"] = json!("h.{layer}.shared_gate.weight");
        }
        for block in ["parallel", "sequential"] {
            let mut changes = gated_mlp.to_vec();
            changes.extend([
                ("experts", shared.clone()),
                ("weights.mlp", Value::Null),
                ("weights.experts", names.clone()),
                ("block", json!(block)),
            ]);
            if block == "sequential" {
                changes.push(("weights.mlp_norm", norm_names("h.{layer}.ln_2")));
            }
            check(&format!("shared expert, {gate} {block}"), &changes);
        }
    }
}

#[test]
fn packings() {
    for kv_heads in [1, 2, 6] {
        for order in ["blocks", "groups"] {
            for orientation in ["out_in", "in_out"] {
                let qkv = norm_names("h.{layer}.qkv");
                let changes = [
                    ("heads.num_kv_heads", json!(kv_heads)),
                    ("weights.qkv", json!({"kind": "fused", "qkv": qkv, "order": order})),
                    ("weights.orientation", json!(orientation)),
                ];
                check(&format!("{kv_heads} {order} {orientation}"), &changes);
            }
        }
    }
}

#[test]
fn contradictions_are_named() {
    for (changes, field) in [
        (vec![("block", json!("sequential"))], "weights.mlp_norm"),
        (vec![("weights.mlp_norm", json!("h.{layer}.ln_2.weight"))], "weights.mlp_norm"),
        (vec![("weights.final_norm", Value::Null)], "weights.final_norm"),
        (vec![("positions", json!({"kind": "learned"}))], "weights.position_embedding"),
        (vec![("mlp", json!({"kind": "gated", "activation": "silu"}))], "weights.mlp.kind"),
        (vec![("weights.mlp", Value::Null)], "weights.mlp"),
        (vec![("weights.qkv.key", json!("h.{layer}.k.weight"))], "weights.qkv"),
        (vec![("weights.head", Value::Null)], "weights.head"),
        (vec![("attention", json!({"qk_norm": "head"}))], "weights.query_norm"),
        (vec![("attention", json!({"qkv_clamp": 0.0}))], "attention.qkv_clamp"),
        (vec![("attention", json!({"sliding_window": {"size": 0}}))], "attention.sliding_window.size"),
        (vec![("positions.local", json!({"theta": 10.0}))], "positions.local"),
        (vec![("positions.rotary_dim", json!(10))], "positions.rotary_dim"),
        (vec![("heads.num_heads", json!(1 << 20))], "heads.num_heads"),
        (vec![("weights.embedding", json!("h.{layer}.e"))], "weights.embedding"),
        (vec![("weights.head", json!("wte.weight"))], "weights."),
        (vec![("logits", json!({"soft_cap": -1.0}))], "logits.soft_cap"),
        (
            vec![
                ("positions", json!({"kind": "learned", "offset": usize::MAX})),
                ("weights.position_embedding", json!("wpe.weight")),
            ],
            "positions.offset",
        ),
        (
            vec![(
                "attention",
                json!({"sliding_window": {"size": 2, "layers": {"kind": "listed", "layers": [0, 1, 1]}}}),
            )],
            "attention.sliding_window.layers",
        ),
        (
            vec![(
                "experts",
                json!({
                    "num_experts": 4096, "num_chosen": 1, "intermediate_size": 1 << 20,
                    "weighting": "normalized",
                }),
            )],
            "experts.intermediate_size",
        ),
    ] {
        let spec: ModelSpec = serde_json::from_value(changed(&changes)).unwrap();
        let error = crate::error::Error::from(spec.validate().unwrap_err());
        assert_eq!(error.status(), Status::ModelInvalid, "{error}");
        assert!(error.message().starts_with(field), "{field}: {error}");
    }
    for changes in [
        [("block", json!("diagonal"))],
        [("weights.head", json!({"weight": "a", "bias": "b", "color": 1}))],
        [("weights.qkv.order", json!("blocks"))],
        [("positions.surprise", json!(1))],
        [("weights.attention_output", json!(7))],
    ] {
        assert!(serde_json::from_value::<ModelSpec>(changed(&changes)).is_err(), "{changes:?}");
    }
}

#[test]
fn the_benches_specs_are_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/specs");
    for (name, billions) in [("gpt_j_6b", 6.05), ("llama_3_8b", 8.03)] {
        let text = std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
        let spec: ModelSpec = serde_json::from_str(&text).unwrap();
        spec.validate().unwrap();
        let parameters = Weights::plan(&spec, DType::Bf16).num_bytes() as f64 / 2e9;
        assert!((parameters - billions).abs() < 0.01, "{name} has {parameters} billion parameters");
    }
}

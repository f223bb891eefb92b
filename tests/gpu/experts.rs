//! Mixtures of experts, the operation and the decoder.

use std::collections::BTreeMap;
use std::path::Path;

use inflight::backend::cuda::Cuda;
use inflight::backend::{
    Activation, Backend, BackendLimits, DType, ExpertLimits, ExpertWeighting, Gating, Mixture, RouterScoring,
    SharedResult,
};
use inflight::format::Checkpoint;
use inflight::model::{Decoder, DecoderConfig, LoadOptions, load_spec, memory_plan};
use safetensors::tensor::{Dtype, TensorView};

use crate::decoder::{self, HEAD_DIM, HEADS, HIDDEN, LAYERS, VOCAB};
use crate::rig::*;

const LIMITS: BackendLimits = BackendLimits { max_tokens: 1, max_slots: 1, vocab_size: 1 };

/// Experts, chosen experts, and widths.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    num_experts: usize,
    num_chosen: usize,
    hidden: usize,
    width: usize,
}

impl Sizes {
    fn limits(&self) -> ExpertLimits {
        let Sizes { num_experts, num_chosen, hidden, width } = *self;
        ExpertLimits { max_tokens: 300, num_experts, num_chosen, hidden, width }
    }
}

/// Which experts rows choose.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Routing {
    /// Each row at random; every fifth finds all experts equal.
    Spread,
    /// All rows the same ones, from the last expert down.
    Same,
    /// Only among the first half of the experts, or as many as are chosen.
    Half,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    rows: usize,
    routing: Routing,
    function: Activation,
    gating: Gating,
    scoring: RouterScoring,
    weighting: ExpertWeighting,
    scale: f32,
    /// Whether there is a shared expert, and whether it has a gate.
    shared: Option<bool>,
}

/// Cases that, with changing rows, go through all axes.
fn case(rows: usize, index: usize, gating: Gating) -> Case {
    Case {
        rows,
        routing: [Routing::Spread, Routing::Same, Routing::Half, Routing::Spread][index % 4],
        function: Activation::ALL[index % Activation::ALL.len()],
        gating,
        scoring: [RouterScoring::Softmax, RouterScoring::Sigmoid][index / 2 % 2],
        weighting: [ExpertWeighting::Normalized, ExpertWeighting::AsScored][index / 4 % 2],
        scale: [1.0, 2.5][index / 3 % 2],
        shared: [None, Some(false), Some(true)][index % 3],
    }
}

/// Products of a router for `rows` rows. Scores of two experts are far apart or equal, so that no rounding decides.
fn products(random: &mut Random, sizes: &Sizes, rows: usize, routing: Routing) -> Vec<f32> {
    let Sizes { num_experts, num_chosen, .. } = *sizes;
    let step = 8.0 / num_experts as f32;
    let mut products = Vec::new();
    for row in 0..rows {
        let order = random.permutation(num_experts);
        products.extend((0..num_experts).map(|expert| match routing {
            Routing::Spread if row % 5 == 4 => 0.75,
            Routing::Spread => order[expert] as f32 * step - 4.0,
            Routing::Same => expert as f32 * step - 4.0,
            Routing::Half if expert < num_chosen.max(num_experts / 2) => order[expert] as f32 * step,
            Routing::Half => (order[expert] as f32 - num_experts as f32) * step,
        }));
    }
    products
}

/// The experts' weights.
struct Weights {
    up: Pair,
    down: Pair,
}

impl Weights {
    fn new(rig: &mut Rig, random: &mut Random, sizes: &Sizes, gating: Gating) -> Weights {
        let Sizes { num_experts, hidden, width, .. } = *sizes;
        let up_width = gating.input_width(width);
        let scale = |inputs: usize| 1.7 / (inputs as f32).sqrt();
        let up = random.values(num_experts * up_width * hidden, scale(hidden));
        let down = random.values(num_experts * hidden * width, scale(width));
        Weights { up: rig.weight(hidden, &up), down: rig.weight(width, &down) }
    }
}

/// Runs a case on both backends and compares.
fn check(rig: &mut Rig, random: &mut Random, sizes: &Sizes, weights: &Weights, case: &Case) {
    let Sizes { num_experts, num_chosen, hidden, .. } = *sizes;
    let Case { rows, function, gating, scoring, weighting, scale, .. } = *case;
    let input = rig.activation(hidden, &random.values((rows + 2) * hidden, 1.0));
    let products = rig.single(num_experts, &products(random, sizes, rows, case.routing));
    let values = rig.activation(hidden, &random.values(rows * hidden, 1.0));
    let gate = rig.single(1, &random.values(rows, 2.0));
    let mut out = rig.poisoned(rows + 2, hidden);
    macro_rules! run {
        ($backend:ident) => {{
            let shared = case.shared.map(|has_gate| SharedResult {
                values: &values.$backend,
                gate: if has_gate { Some(&gate.$backend) } else { None },
            });
            let mixture = Mixture {
                up: &weights.up.$backend,
                down: &weights.down.$backend,
                num_experts,
                num_chosen,
                scoring,
                weighting,
                scale,
                function,
                gating,
                shared,
            };
            let (products, out) = (&products.$backend, &mut out.$backend);
            rig.$backend.mix_experts(&input.$backend, products, &mixture, out, rows).unwrap();
        }};
    }
    run!(cpu);
    run!(gpu);
    let tolerance = 2.0 * rig.tolerance();
    rig.assert_same(&format!("{:?} {sizes:?} {case:?}", rig.dtype), &out, tolerance);
    // The same bits again, over other contents.
    let first = rig.gpu.read_rows(&out.gpu, rows).unwrap();
    out = rig.poisoned(rows + 2, hidden);
    run!(gpu);
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&first), bits(&rig.gpu.read_rows(&out.gpu, rows).unwrap()), "{sizes:?} {case:?}");
}

#[test]
fn experts_are_mixed() {
    let sizes_of = |num_experts, num_chosen, hidden, width| Sizes { num_experts, num_chosen, hidden, width };
    let all = [
        sizes_of(1, 1, 40, 24),
        sizes_of(3, 1, 40, 24),
        sizes_of(3, 2, 136, 72),
        sizes_of(8, 2, 512, 256),
        sizes_of(8, 8, 64, 40),
        sizes_of(60, 4, 136, 72),
        sizes_of(128, 8, 64, 24),
        sizes_of(257, 16, 40, 24),
    ];
    for dtype in DTYPES {
        for (shape, sizes) in all.iter().enumerate() {
            if is_small() && sizes.hidden * sizes.num_experts > 10_000 {
                continue;
            }
            let mut rig = Rig::new(dtype);
            let mut random = Random(30 + shape as u64);
            rig.reserve(&LIMITS);
            rig.gpu.reserve_experts(&sizes.limits()).unwrap();
            for gating in [Gating::Gated, Gating::Plain] {
                let weights = Weights::new(&mut rig, &mut random, sizes, gating);
                let counts = crate::rig::sizes(&[1, 2, 3, 8, 9, 15, 16, 17, 33, 129, 300], 33);
                for (index, &rows) in counts.iter().enumerate() {
                    let case = case(rows, index + shape + 5 * usize::from(gating == Gating::Plain), gating);
                    check(&mut rig, &mut random, sizes, &weights, &case);
                }
            }
        }
    }
}

/// Every routing meets every size of tile, in the block's and the tile's last rows and columns. Where all rows choose
/// both of two experts, even few of them fill the largest tile.
#[test]
fn every_tile_takes_every_routing() {
    for dtype in DTYPES {
        for (num_experts, hidden, width) in [(6, 200, 136), (2, 72, 264)] {
            let sizes = Sizes { num_experts, num_chosen: 2, hidden, width };
            let (mut rig, mut random) = (Rig::new(dtype), Random(31));
            rig.reserve(&LIMITS);
            rig.gpu.reserve_experts(&sizes.limits()).unwrap();
            for gating in [Gating::Gated, Gating::Plain] {
                let weights = Weights::new(&mut rig, &mut random, &sizes, gating);
                for rows in crate::rig::sizes(&[7, 13, 26, 65, 70, 190, 195, 260], 70) {
                    for routing in [Routing::Spread, Routing::Same, Routing::Half] {
                        let case = Case { routing, ..case(rows, 0, gating) };
                        check(&mut rig, &mut random, &sizes, &weights, &case);
                    }
                }
            }
        }
    }
}

/// Room for a few rows makes more of them pass in parts.
#[test]
fn rows_pass_in_parts() {
    let sizes = Sizes { num_experts: 5, num_chosen: 2, hidden: 72, width: 40 };
    for dtype in DTYPES {
        let (mut rig, mut random) = (Rig::new(dtype), Random(32));
        rig.reserve(&LIMITS);
        // 40 MB a row: eight rows a part.
        rig.gpu.reserve_experts(&ExpertLimits { width: 10 << 20, ..sizes.limits() }).unwrap();
        let weights = Weights::new(&mut rig, &mut random, &sizes, Gating::Gated);
        for (index, rows) in [7, 8, 9, 50].into_iter().enumerate() {
            let case = case(rows, index + 1, Gating::Gated);
            check(&mut rig, &mut random, &sizes, &weights, &case);
        }
    }
}

#[test]
fn what_was_not_reserved_is_refused() {
    let sizes = Sizes { num_experts: 4, num_chosen: 2, hidden: 64, width: 32 };
    let mut gpu = gpu();
    let mut alloc = |dtype, rows, columns| gpu.alloc(dtype, rows, columns).unwrap();
    let (input, mut out) = (alloc(DType::Bf16, 4, 64), alloc(DType::Bf16, 4, 64));
    let (products, rounded) = (alloc(DType::F32, 4, 4), alloc(DType::Bf16, 4, 4));
    let (up, down) = (alloc(DType::Bf16, 4 * 64, 64), alloc(DType::Bf16, 4 * 64, 32));
    let short = alloc(DType::Bf16, 4 * 64 - 1, 64);
    let mixture = Mixture {
        up: &up,
        down: &down,
        num_experts: 4,
        num_chosen: 2,
        scoring: RouterScoring::Softmax,
        weighting: ExpertWeighting::Normalized,
        scale: 1.0,
        function: Activation::Silu,
        gating: Gating::Gated,
        shared: None,
    };
    gpu.reserve(&LIMITS).unwrap();
    let mut run = |gpu: &mut Cuda, products, mixture: &Mixture<'_, _>, rows| {
        gpu.mix_experts(&input, products, mixture, &mut out, rows).is_ok()
    };
    assert!(!run(&mut gpu, &products, &mixture, 4), "nothing was reserved");
    let too_many = ExpertLimits { num_experts: 5000, ..sizes.limits() };
    assert!(gpu.reserve_experts(&too_many).is_err());
    gpu.reserve_experts(&sizes.limits()).unwrap();
    assert!(!run(&mut gpu, &rounded, &mixture, 4), "products are rounded");
    assert!(!run(&mut gpu, &products, &mixture, 5), "more rows than there are");
    assert!(!run(&mut gpu, &products, &Mixture { num_chosen: 3, ..mixture }, 4), "more chosen");
    assert!(!run(&mut gpu, &products, &Mixture { num_chosen: 0, ..mixture }, 4), "none chosen");
    assert!(!run(&mut gpu, &products, &Mixture { up: &short, ..mixture }, 4), "a row is missing");
    assert!(run(&mut gpu, &products, &mixture, 4));
    assert!(run(&mut gpu, &products, &mixture, 0));
    gpu.read_rows(&up, 1).unwrap();
}

const NUM_EXPERTS: usize = 8;
const WIDTH: usize = 192;

/// Writes a Mixtral whose first elements of the residual name the two experts of a token: no layer adds to them and
/// the router reads them alone, so that rounding never decides which experts a token passes.
fn write_checkpoint(folder: &Path) {
    let mut random = Random(33);
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    let (query, kv) = (HEADS.0 * HEAD_DIM, HEADS.1 * HEAD_DIM);
    let mut add = |name: String, shape: [usize; 2], scale: f32, change: &dyn Fn(usize, usize, f32) -> f32| {
        let mut values = random.values(shape[0] * shape[1], scale);
        for (index, value) in values.iter_mut().enumerate() {
            *value = change(index / shape[1], index % shape[1], *value);
        }
        let shape = if shape[0] == 1 { vec![shape[1]] } else { shape.to_vec() };
        tensors.insert(name, (shape, bytes(DType::Bf16, &values)));
    };
    let same = |_: usize, _: usize, value: f32| value;
    let norm = |_: usize, column: usize, value: f32| if column < NUM_EXPERTS { 1.0 } else { 1.0 + value };
    // The residual's first elements stay as the embedding has them.
    let leave = |row: usize, _: usize, value: f32| if row < NUM_EXPERTS { 0.0 } else { value };
    let embed = |token: usize, column: usize, value: f32| {
        let second = (token + 1 + token / NUM_EXPERTS % (NUM_EXPERTS - 1)) % NUM_EXPERTS;
        match column {
            _ if column == token % NUM_EXPERTS => 4.0,
            _ if column == second => 2.0,
            _ if column < NUM_EXPERTS => 0.0,
            _ => value,
        }
    };
    let router =
        |row: usize, column: usize, _: f32| f32::from(u8::from(row == column && column < NUM_EXPERTS));
    add("model.embed_tokens.weight".into(), [VOCAB, HIDDEN], 1.0, &embed);
    add("lm_head.weight".into(), [VOCAB, HIDDEN], 0.3, &same);
    add("model.norm.weight".into(), [1, HIDDEN], 0.2, &norm);
    for layer in 0..LAYERS {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        add(name("input_layernorm"), [1, HIDDEN], 0.2, &norm);
        add(name("post_attention_layernorm"), [1, HIDDEN], 0.2, &norm);
        add(name("self_attn.q_proj"), [query, HIDDEN], 0.15, &same);
        add(name("self_attn.k_proj"), [kv, HIDDEN], 0.15, &same);
        add(name("self_attn.v_proj"), [kv, HIDDEN], 0.15, &same);
        add(name("self_attn.o_proj"), [HIDDEN, query], 0.15, &leave);
        add(name("block_sparse_moe.gate"), [NUM_EXPERTS, HIDDEN], 1.0, &router);
        for expert in 0..NUM_EXPERTS {
            let name = |part: &str| name(&format!("block_sparse_moe.experts.{expert}.{part}"));
            add(name("w1"), [WIDTH, HIDDEN], 0.15, &same);
            add(name("w3"), [WIDTH, HIDDEN], 0.15, &same);
            add(name("w2"), [HIDDEN, WIDTH], 0.2, &leave);
        }
    }
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        (name.clone(), TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    let config = serde_json::json!({
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu",
        "hidden_size": HIDDEN, "intermediate_size": WIDTH, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS.0, "num_key_value_heads": HEADS.1, "head_dim": HEAD_DIM,
        "num_local_experts": NUM_EXPERTS, "num_experts_per_tok": 2, "sliding_window": null,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

#[test]
fn logits_of_a_mixture_are_the_cpus() {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    for dtype in DTYPES {
        decoder::compare_logits(&checkpoint, dtype, &decoder::batches(&mut Random(11)));
        decoder::compare_logits(&checkpoint, dtype, &decoder::crowded_batches(&mut Random(14)));
    }
}

#[test]
fn the_plan_has_the_experts_buffers() {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let spec = load_spec(&checkpoint).unwrap();
    let config = DecoderConfig {
        weight_dtype: DType::Bf16,
        kv_dtype: DType::Bf16,
        num_kv_blocks: 16_384,
        kv_block_size: 16,
        max_model_len: 1024,
        limits: BackendLimits { max_tokens: 8192, max_slots: 16, vocab_size: VOCAB },
    };
    let plan = memory_plan(&gpu(), &spec, &config).unwrap();
    let pairs = 8192 * 2;
    assert!(plan.workspace_bytes > pairs * 2 * (HIDDEN + WIDTH) as u64);
    let decoder = Decoder::load(gpu(), &spec, &checkpoint, &config, &LoadOptions::default()).unwrap();
    let taken = decoder.backend().taken_bytes();
    assert_eq!(taken, plan.total_bytes());
}

//! GGUF files: one reader for all architectures, which takes from the tensors' presence what they tell, and from a
//! table what they do not.

mod keys;

use crate::error::Result;
use crate::format::GgufFile;
use crate::model::error::ModelError;
use crate::model::families::at;
use crate::model::families::parts::{DEFAULT_THETA, bare_names};
use crate::model::spec::{
    Activation, AttentionExtras, BlockShape, EmbeddingExtras, EmbeddingNorm, ExpertNames, ExpertWeighting,
    Experts, Heads, LayerSet, LocalRope, LogitExtras, Mlp, MlpNames, ModelSpec, Names, Norm, NormExtent,
    NormKind, NormWeight, OutputHead, Positions, QkvNames, QkvOrder, RopePairing, RopeScaling, RouterScoring,
    SharedExpert, SharedExpertGate, SlidingWindow, WeightNames,
};

use keys::{EMBEDDING, Keys};

/// What a file of an architecture does not say itself.
struct Architecture {
    /// `general.architecture`.
    name: &'static str,
    pairing: RopePairing,
    activation: Activation,
    has_alibi: bool,
    /// Whether embeddings are scaled by the root of the width.
    scales_embedding: bool,
    weighting: ExpertWeighting,
    /// Changes what is left.
    adjust: fn(&Keys, &mut ModelSpec) -> Result<()>,
}

/// Most architectures.
const USUAL: Architecture = Architecture {
    name: "",
    pairing: RopePairing::Half,
    activation: Activation::Silu,
    has_alibi: false,
    scales_embedding: false,
    weighting: ExpertWeighting::Normalized,
    adjust: |_, _| Ok(()),
};

const ARCHITECTURES: [Architecture; 16] = [
    // Rows of queries and keys lie in an order that makes RoPE's pairs neighbours. Mistral and Mixtral too.
    Architecture { name: "llama", pairing: RopePairing::Interleaved, ..USUAL },
    Architecture { name: "qwen2", ..USUAL },
    Architecture { name: "qwen3", ..USUAL },
    Architecture { name: "qwen2moe", weighting: ExpertWeighting::AsScored, ..USUAL },
    Architecture { name: "qwen3moe", ..USUAL },
    Architecture { name: "gemma", ..GEMMA },
    Architecture { name: "gemma2", adjust: adjust_gemma2, ..GEMMA },
    Architecture { name: "gemma3", adjust: adjust_gemma3, ..GEMMA },
    Architecture { name: "phi2", activation: Activation::GeluTanh, ..USUAL },
    Architecture { name: "phi3", adjust: add_window, ..USUAL },
    Architecture { name: "gpt2", activation: Activation::GeluTanh, ..USUAL },
    Architecture { name: "starcoder", activation: Activation::GeluTanh, ..USUAL },
    Architecture { name: "starcoder2", activation: Activation::GeluTanh, ..USUAL },
    Architecture { name: "falcon", activation: Activation::Gelu, ..USUAL },
    Architecture { name: "gptneox", activation: Activation::Gelu, adjust: adjust_gptneox, ..USUAL },
    Architecture { name: "bloom", activation: Activation::GeluTanh, has_alibi: true, ..USUAL },
];

const GEMMA: Architecture =
    Architecture { activation: Activation::GeluTanh, scales_embedding: true, ..USUAL };

/// Describes the model of a file, validated.
pub(super) fn load_spec(file: &GgufFile) -> Result<ModelSpec> {
    const KEY: &str = "general.architecture";
    let name = file.metadata().text(KEY)?;
    let name = name.ok_or_else(|| at(file.path(), ModelError::invalid(KEY, "is missing")))?;
    let architecture = ARCHITECTURES.iter().find(|architecture| architecture.name == name);
    let architecture = architecture.ok_or_else(|| {
        let known: Vec<&str> = ARCHITECTURES.iter().map(|architecture| architecture.name).collect();
        let message = format!("{name:?} is not supported; known are {}", known.join(", "));
        at(file.path(), ModelError::unsupported(KEY, message))
    })?;
    let keys = Keys::new(file, architecture.name);
    let mut spec = describe(&keys, architecture)?;
    (architecture.adjust)(&keys, &mut spec)?;
    spec.validate().map_err(|error| at(file.path(), error))?;
    Ok(spec)
}

fn describe(keys: &Keys, architecture: &Architecture) -> Result<ModelSpec> {
    let hidden_size = keys.required_size("embedding_length")?;
    let num_heads = keys.required_size("attention.head_count")?;
    let head_dim = keys.head_dim(hidden_size, num_heads)?;
    let intermediate_size = keys.required_size("feed_forward_length")?;
    let names = names(keys, intermediate_size);
    let (positions, max_positions) = positions(keys, architecture, &names, head_dim)?;
    let is_gated = !matches!(names.mlp, Some(MlpNames::Plain { .. }));
    let activation = architecture.activation;
    let (kind, epsilon) = match keys.number("attention.layer_norm_rms_epsilon")? {
        Some(epsilon) => (NormKind::Rms, epsilon),
        None => (NormKind::Layer, keys.required_number("attention.layer_norm_epsilon")?),
    };
    Ok(ModelSpec {
        family: architecture.name.to_owned(),
        num_layers: keys.required_size("block_count")?,
        hidden_size,
        intermediate_size,
        vocab_size: keys.vocab_size()?,
        max_positions,
        embedding: EmbeddingExtras {
            scale: if architecture.scales_embedding { (hidden_size as f64).sqrt() as f32 } else { 1.0 },
            norm: match names.embedding_norm {
                Some(_) => EmbeddingNorm::Normalized,
                None => EmbeddingNorm::None,
            },
        },
        positions,
        norm: Norm { kind, epsilon: epsilon as f32, weight: NormWeight::Plain },
        block: block(&names),
        heads: Heads::scaled(num_heads, keys.size("attention.head_count_kv")?, head_dim),
        attention: AttentionExtras {
            qk_norm: names.query_norm.as_ref().map(|_| NormExtent::Head),
            ..AttentionExtras::default()
        },
        mlp: if is_gated { Mlp::Gated { activation } } else { Mlp::Plain { activation } },
        experts: experts(keys, architecture, &names, intermediate_size)?,
        output: if names.head.is_some() { OutputHead::Untied } else { OutputHead::Tied },
        logits: LogitExtras::default(),
        weights: names,
    })
}

/// The block that has the norms that are there.
fn block(names: &WeightNames) -> BlockShape {
    let has_second_norm = names.attention_norm.as_ref().is_some_and(|norm| norm.weight.contains("norm_2"));
    match (&names.mlp_norm, &names.post_attention_norm) {
        (Some(_), _) if has_second_norm => BlockShape::ParallelTwoNorms,
        (None, _) => BlockShape::Parallel,
        (Some(_), Some(_)) => BlockShape::Sandwich,
        (Some(_), None) => BlockShape::Sequential,
    }
}

/// How positions enter, and the longest context.
fn positions(
    keys: &Keys,
    architecture: &Architecture,
    names: &WeightNames,
    head_dim: usize,
) -> Result<(Positions, usize)> {
    if architecture.has_alibi {
        return Ok((Positions::Alibi { max_bias: 8.0, scale: 1.0 }, keys.required_size("context_length")?));
    }
    if names.position_embedding.is_some() {
        return Ok((Positions::Learned { offset: 0 }, keys.required_size("context_length")?));
    }
    let rotary_dim = keys.size("rope.dimension_count")?.unwrap_or(head_dim);
    let rope = keys.rope(rotary_dim, DEFAULT_THETA)?;
    let max_positions = rope.max_positions;
    Ok((rope.positions(rotary_dim, architecture.pairing), max_positions))
}

fn experts(
    keys: &Keys,
    architecture: &Architecture,
    names: &WeightNames,
    intermediate_size: usize,
) -> Result<Option<Experts>> {
    let Some(expert_names) = &names.experts else { return Ok(None) };
    let shared = match expert_names.shared {
        Some(_) => Some(SharedExpert {
            intermediate_size: keys.required_size("expert_shared_feed_forward_length")?,
            gate: SharedExpertGate::Sigmoid,
        }),
        None => None,
    };
    Ok(Some(Experts {
        num_experts: keys.required_size("expert_count")?,
        num_chosen: keys.required_size("expert_used_count")?,
        intermediate_size: keys.size("expert_feed_forward_length")?.unwrap_or(intermediate_size),
        scoring: RouterScoring::Softmax,
        weighting: architecture.weighting,
        scale: 1.0,
        shared,
        layers: LayerSet::All,
    }))
}

/// Names of the weights: all architectures have the same, and each has some of them.
fn names(keys: &Keys, intermediate_size: usize) -> WeightNames {
    let there = |stem: &str| {
        let [weight, bias] = ["weight", "bias"].map(|kind| format!("{stem}.{kind}"));
        let is_there = keys.has_tensor(&weight);
        is_there.then(|| Names { bias: keys.has_tensor(&bias).then_some(bias), weight })
    };
    let layer = |part: &str| there(&format!("blk.{{layer}}.{part}"));
    // What every model has is named even if it is not there, so that loading says what is missing.
    let required =
        |part: &str| layer(part).unwrap_or_else(|| Names::weight(format!("blk.{{layer}}.{part}.weight")));
    let qkv = match layer("attn_qkv") {
        Some(qkv) => QkvNames::Fused { qkv, order: QkvOrder::Blocks },
        None => QkvNames::Separate {
            query: required("attn_q"),
            key: required("attn_k"),
            value: required("attn_v"),
        },
    };
    let mlp = |suffix: &str| {
        let part = |name: &str| required(&format!("ffn_{name}{suffix}"));
        if keys.has_tensor(&format!("blk.{{layer}}.ffn_gate{suffix}.weight")) {
            return MlpNames::Gated { gate: part("gate"), up: part("up"), down: part("down") };
        }
        match keys.tensor_rows("blk.{layer}.ffn_up.weight") {
            Some(rows) if rows / 2 == intermediate_size => {
                MlpNames::FusedGated { gate_up: part("up"), down: part("down") }
            }
            _ => MlpNames::Plain { up: part("up"), down: part("down") },
        }
    };
    let router = "blk.{layer}.ffn_gate_inp.weight";
    let shared_gate = "blk.{layer}.ffn_gate_inp_shexp.weight";
    let has_experts = keys.has_tensor(router);
    let has_shared = keys.has_tensor(shared_gate);
    let (attention_norm, mlp_norm) = match layer("attn_norm_2") {
        Some(norm) => (Some(norm), layer("attn_norm")),
        None => (Some(required("attn_norm")), layer("ffn_norm")),
    };
    WeightNames {
        position_embedding: there("position_embd").map(|names| names.weight),
        embedding_norm: there("token_embd_norm"),
        attention_norm,
        query_norm: layer("attn_q_norm"),
        key_norm: layer("attn_k_norm"),
        post_attention_norm: layer("post_attention_norm"),
        mlp_norm,
        mlp: (!has_experts).then(|| mlp("")),
        experts: has_experts.then(|| ExpertNames {
            router: router.to_owned(),
            experts: mlp("_exps"),
            shared: has_shared.then(|| mlp("_shexp")),
            shared_gate: has_shared.then(|| shared_gate.to_owned()),
        }),
        post_mlp_norm: layer("post_ffw_norm"),
        final_norm: there("output_norm").or_else(|| Some(Names::weight("output_norm.weight"))),
        head: there("output"),
        ..bare_names(EMBEDDING.to_owned(), qkv, required("attn_output"))
    }
}

fn adjust_gptneox(keys: &Keys, spec: &mut ModelSpec) -> Result<()> {
    if keys.flag("use_parallel_residual", true)? {
        spec.block = BlockShape::ParallelTwoNorms;
    }
    Ok(())
}

fn adjust_gemma2(keys: &Keys, spec: &mut ModelSpec) -> Result<()> {
    /// Layers of the 27B model, the one whose scale is not its heads' width.
    const LARGE: usize = 46;
    set_scale(spec, LARGE);
    spec.attention.score_soft_cap = Some(keys.number("attn_logit_softcapping")?.unwrap_or(50.0) as f32);
    spec.logits.soft_cap = Some(keys.number("final_logit_softcapping")?.unwrap_or(30.0) as f32);
    let size = keys.size("attention.sliding_window")?.unwrap_or(4096);
    let layers = LayerSet::Periodic { period: 2, remainders: vec![0] };
    spec.attention.sliding_window = Some(SlidingWindow { size, layers });
    Ok(())
}

fn adjust_gemma3(keys: &Keys, spec: &mut ModelSpec) -> Result<()> {
    /// Layers of the 27B model, the one whose scale is not its heads' width.
    const LARGE: usize = 62;
    set_scale(spec, LARGE);
    let size = keys.required_size("attention.sliding_window")?;
    let layers = LayerSet::Periodic { period: 6, remainders: (0..5).collect() };
    spec.attention.sliding_window = Some(SlidingWindow { size, layers });
    if let Positions::Rope { local, .. } = &mut spec.positions {
        *local = Some(LocalRope { theta: DEFAULT_THETA, scaling: RopeScaling::None });
    }
    Ok(())
}

/// Gemma's largest models divide scores by the root of the width that heads would have without their own.
fn set_scale(spec: &mut ModelSpec, num_layers: usize) {
    if spec.num_layers == num_layers && spec.heads.num_heads > 0 {
        let width = spec.hidden_size as f64 / spec.heads.num_heads as f64;
        spec.heads.scale = Some((1.0 / width.sqrt()) as f32);
    }
}

fn add_window(keys: &Keys, spec: &mut ModelSpec) -> Result<()> {
    let size = keys.size("attention.sliding_window")?.filter(|&size| size > 0 && size < spec.max_positions);
    spec.attention.sliding_window = size.map(|size| SlidingWindow { size, layers: LayerSet::All });
    Ok(())
}

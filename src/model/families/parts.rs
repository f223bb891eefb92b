//! What many families share: names of a projection, layers that are told apart, and the Llama way of writing a
//! configuration.

use crate::model::error::{ModelError, ModelResult};
use crate::model::families::config::Config;
use crate::model::spec::{
    Activation, AttentionExtras, BlockShape, EmbeddingExtras, Heads, LayerSet, LogitExtras, Mlp, MlpNames,
    ModelSpec, Names, Norm, NormKind, NormWeight, Orientation, QkvNames, RopePairing, SlidingWindow,
    WeightNames,
};

/// Base of RoPE's frequencies where a configuration does not say.
pub(super) const DEFAULT_THETA: f64 = 10_000.0;

/// Names of a projection or norm: `stem.weight`, and `stem.bias` if it has one.
pub(super) fn named(stem: impl AsRef<str>, has_bias: bool) -> Names {
    let stem = stem.as_ref();
    if has_bias { Names::with_bias(stem) } else { Names::weight(format!("{stem}.weight")) }
}

/// Which projections of a Llama-shaped family have a bias.
#[derive(Clone, Copy, Default)]
pub(super) struct Biases {
    pub(super) qkv: bool,
    pub(super) attention_output: bool,
    pub(super) mlp: bool,
}

impl Biases {
    pub(super) const ALL: Self = Self { qkv: true, attention_output: true, mlp: true };
}

/// Describes a model whose configuration has Llama's keys and whose tensors have Llama's names; families change
/// what is theirs.
pub(super) fn describe_llama(config: &Config, family: &str, biases: Biases) -> ModelResult<ModelSpec> {
    let hidden_size = config.required_size("hidden_size")?;
    let num_heads = config.required_size("num_attention_heads")?;
    let head_dim = config.head_dim(hidden_size, "num_attention_heads", num_heads)?;
    let rope = config.rope(DEFAULT_THETA, config.required_size("max_position_embeddings")?)?;
    Ok(ModelSpec {
        family: family.to_owned(),
        num_layers: config.required_size("num_hidden_layers")?,
        hidden_size,
        intermediate_size: config.required_size("intermediate_size")?,
        vocab_size: config.required_size("vocab_size")?,
        max_positions: rope.max_positions,
        embedding: EmbeddingExtras::default(),
        positions: rope.positions(head_dim, RopePairing::Half),
        norm: Norm {
            kind: NormKind::Rms,
            epsilon: config.epsilon("rms_norm_eps", 1e-6)?,
            weight: NormWeight::Plain,
        },
        block: BlockShape::Sequential,
        heads: Heads::scaled(num_heads, config.size("num_key_value_heads")?, head_dim),
        attention: AttentionExtras::default(),
        mlp: Mlp::Gated { activation: config.activation("hidden_act", Activation::Silu)? },
        experts: None,
        output: config.output(false)?,
        logits: LogitExtras::default(),
        weights: llama_names(biases),
    })
}

/// Llama's names of tensors.
fn llama_names(biases: Biases) -> WeightNames {
    let layer = "model.layers.{layer}.";
    let qkv = QkvNames::Separate {
        query: named(format!("{layer}self_attn.q_proj"), biases.qkv),
        key: named(format!("{layer}self_attn.k_proj"), biases.qkv),
        value: named(format!("{layer}self_attn.v_proj"), biases.qkv),
    };
    let output = named(format!("{layer}self_attn.o_proj"), biases.attention_output);
    WeightNames {
        attention_norm: Some(named(format!("{layer}input_layernorm"), false)),
        mlp_norm: Some(named(format!("{layer}post_attention_layernorm"), false)),
        mlp: Some(gated_names(&format!("{layer}mlp."), biases.mlp)),
        final_norm: Some(named("model.norm", false)),
        head: Some(named("lm_head", false)),
        ..bare_names("model.embed_tokens.weight".to_owned(), qkv, output)
    }
}

/// Llama's names of an MLP.
pub(super) fn gated_names(prefix: &str, has_bias: bool) -> MlpNames {
    MlpNames::Gated {
        gate: named(format!("{prefix}gate_proj"), has_bias),
        up: named(format!("{prefix}up_proj"), has_bias),
        down: named(format!("{prefix}down_proj"), has_bias),
    }
}

/// A sliding window on `layers`, unless there is none or it reaches as far as the model does.
pub(super) fn window(size: Option<usize>, max_positions: usize, layers: LayerSet) -> Option<SlidingWindow> {
    size.filter(|&size| size < max_positions).map(|size| SlidingWindow { size, layers })
}

/// The layers whose entry in `layer_types` is `wanted`; `None` where the field is absent.
pub(super) fn layers_of_type(
    config: &Config,
    num_layers: usize,
    wanted: &str,
) -> ModelResult<Option<LayerSet>> {
    const KNOWN: [&str; 2] = ["full_attention", "sliding_attention"];
    let Some(types) = config.texts("layer_types")? else { return Ok(None) };
    if types.len() != num_layers {
        let message = format!("has {} entries for {num_layers} layers", types.len());
        return Err(ModelError::invalid(config.name("layer_types"), message));
    }
    if let Some(unknown) = types.iter().find(|name| !KNOWN.contains(name)) {
        return Err(ModelError::unsupported(
            config.name("layer_types"),
            format!("{unknown:?} is not supported"),
        ));
    }
    let layers: Vec<usize> = (0..num_layers).filter(|&layer| types[layer] == wanted).collect();
    Ok(Some(if layers.len() == num_layers { LayerSet::All } else { LayerSet::Listed { layers } }))
}

/// Names of the tensors that every model has, in PyTorch's layout; families add what is theirs.
pub(super) fn bare_names(embedding: String, qkv: QkvNames, attention_output: Names) -> WeightNames {
    WeightNames {
        orientation: Orientation::OutIn,
        embedding,
        position_embedding: None,
        embedding_norm: None,
        attention_norm: None,
        qkv,
        query_norm: None,
        key_norm: None,
        attention_output,
        post_attention_norm: None,
        mlp_norm: None,
        mlp: None,
        experts: None,
        post_mlp_norm: None,
        final_norm: None,
        head: None,
    }
}

/// Makes the norms of a Llama-shaped model layer norms.
pub(super) fn use_layer_norms(spec: &mut ModelSpec, epsilon: f32, has_bias: bool) {
    spec.norm = Norm { kind: NormKind::Layer, epsilon, weight: NormWeight::Plain };
    let WeightNames { attention_norm, mlp_norm, final_norm, .. } = &mut spec.weights;
    for norm in [attention_norm, mlp_norm, final_norm].into_iter().flatten() {
        norm.bias = has_bias.then(|| norm.weight.replace(".weight", ".bias"));
    }
}

/// Makes the leading part of a Llama-shaped model's heads rotate: `partial_rotary_factor`, or `default_part`.
pub(super) fn rotate_part(
    config: &Config,
    spec: &mut ModelSpec,
    default_part: f64,
    pairing: RopePairing,
) -> ModelResult<()> {
    let rope = config.rope(DEFAULT_THETA, config.required_size("max_position_embeddings")?)?;
    let rotary_dim = rope.rotary_dim(spec.heads.head_dim, default_part);
    spec.positions = rope.positions(rotary_dim, pairing);
    Ok(())
}

//! ChatGLM 2 and 3, and GLM-4 as it was first published, with code of its own that is not run.

use crate::model::error::{ModelError, ModelResult};
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::gpt::megatron_names;
use crate::model::families::parts::{Biases, DEFAULT_THETA, named};
use crate::model::spec::{
    Activation, AttentionExtras, BlockShape, EmbeddingExtras, Heads, LogitExtras, Mlp, MlpNames, ModelSpec,
    Norm, NormKind, NormWeight, Positions, QkvOrder, RopePairing, RopeScaling, WeightNames,
};

pub(super) const FAMILY: Family = Family {
    name: "chatglm",
    architectures: &["ChatGLMModel", "ChatGLMForConditionalGeneration"],
    model_types: &["chatglm"],
    from_config,
};

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    if config.has("position_encoding_2d") {
        return Err(ModelError::unsupported("position_encoding_2d", "the first ChatGLM is not supported"));
    }
    for field in ["rmsnorm", "post_layer_norm", "original_rope"] {
        config.require_flag(field)?;
    }
    config.refuse_flag("apply_residual_connection_post_layernorm")?;
    let num_heads = config.required_size("num_attention_heads")?;
    let head_dim = config.required_size("kv_channels")?;
    let num_kv_heads = match config.flag("multi_query_attention", false)? {
        true => Some(config.required_size("multi_query_group_num")?),
        false => None,
    };
    let linear_bias = config.flag("add_bias_linear", false)?;
    let qkv_bias = config.flag("add_qkv_bias", false)? || linear_bias;
    Ok(ModelSpec {
        family: "chatglm".to_owned(),
        num_layers: config.required_size("num_layers")?,
        hidden_size: config.required_size("hidden_size")?,
        intermediate_size: config.required_size("ffn_hidden_size")?,
        vocab_size: config.required_size("padded_vocab_size")?,
        max_positions: config.required_size("seq_length")?,
        embedding: EmbeddingExtras::default(),
        positions: positions(config, head_dim)?,
        norm: Norm {
            kind: NormKind::Rms,
            epsilon: config.epsilon("layernorm_epsilon", 1e-5)?,
            weight: NormWeight::Plain,
        },
        block: BlockShape::Sequential,
        heads: Heads::scaled(num_heads, num_kv_heads, head_dim),
        attention: AttentionExtras::default(),
        mlp: Mlp::Gated { activation: Activation::Silu },
        experts: None,
        output: config.output(false)?,
        logits: LogitExtras::default(),
        weights: names(qkv_bias, linear_bias),
    })
}

/// Rotation in half of a head. Longer contexts come of a `rope_ratio`, by which ChatGLM 2 divides positions, while
/// ChatGLM 3 and GLM-4 multiply the base with it.
fn positions(config: &Config, head_dim: usize) -> ModelResult<Positions> {
    const FIELD: &str = "rope_ratio";
    /// Vocabulary of ChatGLM 2 and 3, whose configurations tell them apart by name alone.
    const SHARED_VOCAB_SIZE: usize = 65_024;
    let ratio = config.positive(FIELD)?.unwrap_or(1.0);
    let name = config.text("_name_or_path")?.unwrap_or_default().to_ascii_lowercase();
    let is_clear = ratio == 1.0 || config.size("padded_vocab_size")? != Some(SHARED_VOCAB_SIZE);
    let (theta, scaling) = if is_clear || name.contains("chatglm3") {
        (DEFAULT_THETA * ratio, RopeScaling::None)
    } else if name.contains("chatglm2") {
        (DEFAULT_THETA, RopeScaling::Linear { factor: ratio })
    } else {
        let message = format!(
            "ChatGLM 2 divides positions by it and ChatGLM 3 multiplies the base, but _name_or_path names neither; \
             write chatglm2 or chatglm3 there, or a model_spec.json with positions.scaling linear, factor {ratio}, or \
             with positions.theta {}",
            DEFAULT_THETA * ratio
        );
        return Err(ModelError::unsupported(FIELD, message));
    };
    let pairing = RopePairing::Interleaved;
    Ok(Positions::Rope { theta, rotary_dim: head_dim / 2, pairing, scaling, local: None })
}

fn names(qkv_bias: bool, linear_bias: bool) -> WeightNames {
    let embedding = "transformer.embedding.word_embeddings.weight".to_owned();
    let layer = "transformer.encoder.layers.{layer}.";
    let biases = Biases { qkv: qkv_bias, attention_output: linear_bias, mlp: linear_bias };
    WeightNames {
        attention_norm: Some(named(format!("{layer}input_layernorm"), false)),
        mlp_norm: Some(named(format!("{layer}post_attention_layernorm"), false)),
        mlp: Some(MlpNames::FusedGated {
            gate_up: named(format!("{layer}mlp.dense_h_to_4h"), linear_bias),
            down: named(format!("{layer}mlp.dense_4h_to_h"), linear_bias),
        }),
        final_norm: Some(named("transformer.encoder.final_layernorm", false)),
        head: Some(named("transformer.output_layer", false)),
        ..megatron_names(embedding, layer, "self_attention", QkvOrder::Blocks, biases)
    }
}

//! BLOOM: ALiBi, and a norm of the embedded tokens.

use crate::model::error::ModelResult;
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::parts::{bare_names, named};
use crate::model::spec::{
    Activation, AttentionExtras, BlockShape, EmbeddingExtras, EmbeddingNorm, Heads, LogitExtras, Mlp,
    MlpNames, ModelSpec, Norm, NormKind, NormWeight, Positions, QkvNames, QkvOrder, WeightNames,
};

pub(super) const FAMILY: Family = Family {
    name: "bloom",
    architectures: &["BloomForCausalLM", "BloomModel"],
    model_types: &["bloom"],
    from_config,
};

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    config.refuse_flag("apply_residual_connection_post_layernorm")?;
    let hidden_size = config.first_size(&["hidden_size", "n_embed"])?;
    let heads_field = config.first_of(&["n_head", "num_attention_heads"]);
    let num_heads = config.required_size(heads_field)?;
    let head_dim = config.head_dim(hidden_size, heads_field, num_heads)?;
    Ok(ModelSpec {
        family: "bloom".to_owned(),
        num_layers: config.first_size(&["n_layer", "num_hidden_layers"])?,
        hidden_size,
        intermediate_size: 4 * hidden_size,
        vocab_size: config.required_size("vocab_size")?,
        max_positions: config.size("seq_length")?.unwrap_or(2048),
        embedding: EmbeddingExtras { scale: 1.0, norm: EmbeddingNorm::Normalized },
        positions: Positions::Alibi { max_bias: 8.0, scale: 1.0 },
        norm: Norm {
            kind: NormKind::Layer,
            epsilon: config.epsilon("layer_norm_epsilon", 1e-5)?,
            weight: NormWeight::Plain,
        },
        block: BlockShape::Sequential,
        heads: Heads::scaled(num_heads, None, head_dim),
        attention: AttentionExtras::default(),
        mlp: Mlp::Plain { activation: Activation::GeluTanh },
        experts: None,
        output: config.output(true)?,
        logits: LogitExtras::default(),
        weights: names(config.find_prefix(&["transformer.", ""], "word_embeddings.weight")),
    })
}

fn names(prefix: &str) -> WeightNames {
    let layer = format!("{prefix}h.{{layer}}.");
    let embedding = format!("{prefix}word_embeddings.weight");
    let qkv = QkvNames::Fused {
        qkv: named(format!("{layer}self_attention.query_key_value"), true),
        order: QkvOrder::Groups,
    };
    let output = named(format!("{layer}self_attention.dense"), true);
    WeightNames {
        embedding_norm: Some(named(format!("{prefix}word_embeddings_layernorm"), true)),
        attention_norm: Some(named(format!("{layer}input_layernorm"), true)),
        mlp_norm: Some(named(format!("{layer}post_attention_layernorm"), true)),
        mlp: Some(MlpNames::Plain {
            up: named(format!("{layer}mlp.dense_h_to_4h"), true),
            down: named(format!("{layer}mlp.dense_4h_to_h"), true),
        }),
        final_norm: Some(named(format!("{prefix}ln_f"), true)),
        head: Some(named("lm_head", false)),
        ..bare_names(embedding, qkv, output)
    }
}

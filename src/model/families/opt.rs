//! OPT: learned positions that start at row 2, and ReLU. The variant of 350M, with norms after the blocks and narrow
//! embeddings, is refused.

use crate::model::error::{ModelError, ModelResult};
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::parts::{bare_names, named};
use crate::model::spec::{
    Activation, AttentionExtras, BlockShape, EmbeddingExtras, Heads, LogitExtras, Mlp, MlpNames, ModelSpec,
    Norm, NormKind, NormWeight, Positions, QkvNames, WeightNames,
};

pub(super) const FAMILY: Family =
    Family { name: "opt", architectures: &["OPTForCausalLM"], model_types: &["opt"], from_config };

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    config.require_flag("do_layer_norm_before")?;
    config.require_flag("layer_norm_elementwise_affine")?;
    config.refuse_flag("_remove_final_layer_norm")?;
    let hidden_size = config.required_size("hidden_size")?;
    if let Some(width) = config.size("word_embed_proj_dim")?.filter(|&width| width != hidden_size) {
        let message =
            format!("embeddings of another width than hidden_size are not supported, as {width} is");
        return Err(ModelError::unsupported("word_embed_proj_dim", message));
    }
    let num_heads = config.required_size("num_attention_heads")?;
    let head_dim = config.head_dim(hidden_size, "num_attention_heads", num_heads)?;
    Ok(ModelSpec {
        family: "opt".to_owned(),
        num_layers: config.required_size("num_hidden_layers")?,
        hidden_size,
        intermediate_size: config.required_size("ffn_dim")?,
        vocab_size: config.required_size("vocab_size")?,
        max_positions: config.required_size("max_position_embeddings")?,
        embedding: EmbeddingExtras::default(),
        positions: Positions::Learned { offset: 2 },
        norm: Norm { kind: NormKind::Layer, epsilon: 1e-5, weight: NormWeight::Plain },
        block: BlockShape::Sequential,
        heads: Heads::scaled(num_heads, None, head_dim),
        attention: AttentionExtras::default(),
        mlp: Mlp::Plain { activation: config.activation("activation_function", Activation::Relu)? },
        experts: None,
        output: config.output(true)?,
        logits: LogitExtras::default(),
        weights: names(
            config.find_prefix(&["model.decoder.", "decoder."], "embed_tokens.weight"),
            config.flag("enable_bias", true)?,
        ),
    })
}

fn names(prefix: &str, has_bias: bool) -> WeightNames {
    let layer = format!("{prefix}layers.{{layer}}.");
    let embedding = format!("{prefix}embed_tokens.weight");
    let qkv = QkvNames::Separate {
        query: named(format!("{layer}self_attn.q_proj"), has_bias),
        key: named(format!("{layer}self_attn.k_proj"), has_bias),
        value: named(format!("{layer}self_attn.v_proj"), has_bias),
    };
    let output = named(format!("{layer}self_attn.out_proj"), has_bias);
    WeightNames {
        position_embedding: Some(format!("{prefix}embed_positions.weight")),
        attention_norm: Some(named(format!("{layer}self_attn_layer_norm"), true)),
        mlp_norm: Some(named(format!("{layer}final_layer_norm"), true)),
        mlp: Some(MlpNames::Plain {
            up: named(format!("{layer}fc1"), has_bias),
            down: named(format!("{layer}fc2"), has_bias),
        }),
        final_norm: Some(named(format!("{prefix}final_layer_norm"), true)),
        head: Some(named("lm_head", false)),
        ..bare_names(embedding, qkv, output)
    }
}

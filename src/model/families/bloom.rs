//! BLOOM: ALiBi, and a norm of the embedded tokens.

use crate::model::error::ModelResult;
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::gpt::{Sizes, megatron_names};
use crate::model::families::parts::{Biases, named};
use crate::model::spec::{
    Activation, EmbeddingExtras, EmbeddingNorm, Mlp, ModelSpec, Positions, QkvOrder, WeightNames,
};

pub(super) const FAMILY: Family = Family {
    name: "bloom",
    architectures: &["BloomForCausalLM", "BloomModel"],
    model_types: &["bloom"],
    from_config,
};

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    config.refuse_flag("apply_residual_connection_post_layernorm")?;
    let sizes = Sizes::read(
        config,
        &["n_layer", "num_hidden_layers"],
        &["hidden_size", "n_embed"],
        &["n_head", "num_attention_heads"],
    )?;
    let max_positions = config.size("seq_length")?.unwrap_or(2048);
    let positions = Positions::Alibi { max_bias: 8.0, scale: 1.0 };
    let epsilon = config.epsilon("layer_norm_epsilon", 1e-5)?;
    let weights = names();
    Ok(ModelSpec {
        embedding: EmbeddingExtras { scale: 1.0, norm: EmbeddingNorm::Normalized },
        mlp: Mlp::Plain { activation: Activation::GeluTanh },
        output: config.output(true)?,
        ..sizes.describe("bloom", max_positions, positions, epsilon, weights)
    })
}

fn names() -> WeightNames {
    let embedding = "transformer.word_embeddings.weight".to_owned();
    let layer = "transformer.h.{layer}.";
    WeightNames {
        embedding_norm: Some(named("transformer.word_embeddings_layernorm", true)),
        final_norm: Some(named("transformer.ln_f", true)),
        head: Some(named("lm_head", false)),
        ..megatron_names(embedding, layer, "self_attention", QkvOrder::Groups, Biases::ALL)
    }
}

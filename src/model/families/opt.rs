//! OPT: learned positions that start at row 2, and ReLU. The variant of 350M, with norms after the blocks and narrow
//! embeddings, is refused.

use crate::model::error::{ModelError, ModelResult};
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::gpt::Sizes;
use crate::model::families::parts::{bare_names, named};
use crate::model::spec::{Activation, Mlp, MlpNames, ModelSpec, Positions, QkvNames, WeightNames};

pub(super) const FAMILY: Family =
    Family { name: "opt", architectures: &["OPTForCausalLM"], model_types: &["opt"], from_config };

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    config.require_flag("do_layer_norm_before")?;
    config.require_flag("layer_norm_elementwise_affine")?;
    config.refuse_flag("_remove_final_layer_norm")?;
    let sizes = Sizes::read(config, &["num_hidden_layers"], &["hidden_size"], &["num_attention_heads"])?;
    if let Some(width) = config.size("word_embed_proj_dim")?.filter(|&width| width != sizes.hidden_size) {
        let message =
            format!("embeddings of another width than hidden_size are not supported, as {width} is");
        return Err(ModelError::unsupported("word_embed_proj_dim", message));
    }
    let max_positions = config.required_size("max_position_embeddings")?;
    let weights = names(config.flag("enable_bias", true)?);
    Ok(ModelSpec {
        intermediate_size: config.required_size("ffn_dim")?,
        mlp: Mlp::Plain { activation: config.activation("activation_function", Activation::Relu)? },
        output: config.output(true)?,
        ..sizes.describe("opt", max_positions, Positions::Learned { offset: 2 }, 1e-5, weights)
    })
}

fn names(has_bias: bool) -> WeightNames {
    let layer = "model.decoder.layers.{layer}.";
    let embedding = "model.decoder.embed_tokens.weight".to_owned();
    let qkv = QkvNames::Separate {
        query: named(format!("{layer}self_attn.q_proj"), has_bias),
        key: named(format!("{layer}self_attn.k_proj"), has_bias),
        value: named(format!("{layer}self_attn.v_proj"), has_bias),
    };
    let output = named(format!("{layer}self_attn.out_proj"), has_bias);
    WeightNames {
        position_embedding: Some("model.decoder.embed_positions.weight".to_owned()),
        attention_norm: Some(named(format!("{layer}self_attn_layer_norm"), true)),
        mlp_norm: Some(named(format!("{layer}final_layer_norm"), true)),
        mlp: Some(MlpNames::Plain {
            up: named(format!("{layer}fc1"), has_bias),
            down: named(format!("{layer}fc2"), has_bias),
        }),
        final_norm: Some(named("model.decoder.final_layer_norm", true)),
        head: Some(named("lm_head", false)),
        ..bare_names(embedding, qkv, output)
    }
}

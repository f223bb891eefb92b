//! GPT-NeoX and Pythia: attention and MLP side by side, each after a norm of its own, and partial rotation.

use crate::model::error::ModelResult;
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::gpt::{Sizes, megatron_names};
use crate::model::families::parts::{Biases, DEFAULT_THETA, named};
use crate::model::spec::{Activation, BlockShape, Mlp, ModelSpec, QkvOrder, RopePairing, WeightNames};

pub(super) const FAMILY: Family = Family {
    name: "gpt_neox",
    architectures: &["GPTNeoXForCausalLM"],
    model_types: &["gpt_neox"],
    from_config,
};

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    let sizes = Sizes::read(config, &["num_hidden_layers"], &["hidden_size"], &["num_attention_heads"])?;
    let theta = config.positive("rotary_emb_base")?.unwrap_or(DEFAULT_THETA);
    let rope = config.rope(theta, config.required_size("max_position_embeddings")?)?;
    let max_positions = rope.max_positions;
    let part = config.positive("rotary_pct")?.unwrap_or(0.25);
    let rotary_dim = rope.rotary_dim(sizes.head_dim, part);
    let positions = rope.positions(rotary_dim, RopePairing::Half);
    let epsilon = config.epsilon("layer_norm_eps", 1e-5)?;
    let is_parallel = config.flag("use_parallel_residual", true)?;
    let weights = names(config.flag("attention_bias", true)?);
    Ok(ModelSpec {
        intermediate_size: config.required_size("intermediate_size")?,
        block: if is_parallel { BlockShape::ParallelTwoNorms } else { BlockShape::Sequential },
        mlp: Mlp::Plain { activation: config.activation("hidden_act", Activation::Gelu)? },
        output: config.output(false)?,
        ..sizes.describe("gpt_neox", max_positions, positions, epsilon, weights)
    })
}

fn names(attention_bias: bool) -> WeightNames {
    let embedding = "gpt_neox.embed_in.weight".to_owned();
    let layer = "gpt_neox.layers.{layer}.";
    let biases = Biases { qkv: attention_bias, attention_output: attention_bias, mlp: true };
    WeightNames {
        final_norm: Some(named("gpt_neox.final_layer_norm", true)),
        head: Some(named("embed_out", false)),
        ..megatron_names(embedding, layer, "attention", QkvOrder::Groups, biases)
    }
}

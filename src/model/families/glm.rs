//! GLM-4: Llama with a fused gate, biases on queries, keys and values, and rotation of neighbouring elements in half
//! of a head; the models of 2025 with norms around both blocks.

use crate::model::error::ModelResult;
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::parts::{Biases, describe_llama, named, rotate_part};
use crate::model::spec::{BlockShape, MlpNames, ModelSpec, RopePairing};

pub(super) const GLM: Family = Family {
    name: "glm",
    architectures: &["GlmForCausalLM"],
    model_types: &["glm"],
    from_config: |config| describe(config, "glm"),
};

pub(super) const GLM4: Family = Family {
    name: "glm4",
    architectures: &["Glm4ForCausalLM"],
    model_types: &["glm4"],
    from_config: from_glm4_config,
};

fn from_glm4_config(config: &Config) -> ModelResult<ModelSpec> {
    let mut spec = describe(config, "glm4")?;
    spec.block = BlockShape::Sandwich;
    spec.weights.post_attention_norm = Some(named("model.layers.{layer}.post_self_attn_layernorm", false));
    spec.weights.post_mlp_norm = Some(named("model.layers.{layer}.post_mlp_layernorm", false));
    Ok(spec)
}

fn describe(config: &Config, family: &str) -> ModelResult<ModelSpec> {
    let config = &config.with_defaults(&[("num_key_value_heads", 2), ("head_dim", 128)]);
    let qkv = config.flag("attention_bias", true)?;
    let mut spec = describe_llama(config, family, Biases { qkv, ..Biases::default() })?;
    spec.norm.epsilon = config.epsilon("rms_norm_eps", 1.5625e-7)?;
    rotate_part(config, &mut spec, 0.5, RopePairing::Interleaved)?;
    spec.weights.mlp = Some(MlpNames::FusedGated {
        gate_up: named("model.layers.{layer}.mlp.gate_up_proj", false),
        down: named("model.layers.{layer}.mlp.down_proj", false),
    });
    Ok(spec)
}

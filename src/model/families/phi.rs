//! Phi-1, 1.5 and 2: attention and MLP side by side after one norm, biases everywhere, and partial rotation.

use crate::model::error::ModelResult;
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::parts::{Biases, describe_llama, named, rotate_part, use_layer_norms};
use crate::model::spec::{Activation, BlockShape, Mlp, MlpNames, ModelSpec, NormExtent, RopePairing};

pub(super) const FAMILY: Family =
    Family { name: "phi", architectures: &["PhiForCausalLM"], model_types: &["phi"], from_config };

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    let biases = Biases { qkv: true, attention_output: true, mlp: true };
    let mut spec = describe_llama(config, "phi", biases)?;
    rotate_part(config, &mut spec, 0.5, RopePairing::Half)?;
    spec.block = BlockShape::Parallel;
    spec.mlp = Mlp::Plain { activation: config.activation("hidden_act", Activation::GeluTanh)? };
    let attention = "model.layers.{layer}.self_attn.";
    if config.flag("qk_layernorm", false)? {
        spec.attention.qk_norm = Some(NormExtent::Head);
        spec.weights.query_norm = Some(named(format!("{attention}q_layernorm"), true));
        spec.weights.key_norm = Some(named(format!("{attention}k_layernorm"), true));
    }
    spec.weights.attention_output = named(format!("{attention}dense"), true);
    spec.weights.mlp = Some(MlpNames::Plain {
        up: named("model.layers.{layer}.mlp.fc1", true),
        down: named("model.layers.{layer}.mlp.fc2", true),
    });
    spec.weights.mlp_norm = None;
    spec.weights.final_norm = Some(named("model.final_layernorm", true));
    spec.weights.head = Some(named("lm_head", true));
    use_layer_norms(&mut spec, config.epsilon("layer_norm_eps", 1e-5)?, true);
    Ok(spec)
}

//! StarCoder 2: Llama's attention with GPT-2's norms, MLP and biases.

use crate::model::error::ModelResult;
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::parts::{Biases, describe_llama, named, use_layer_norms, window};
use crate::model::spec::{Activation, LayerSet, Mlp, MlpNames, ModelSpec};

pub(super) const FAMILY: Family = Family {
    name: "starcoder2",
    architectures: &["Starcoder2ForCausalLM"],
    model_types: &["starcoder2"],
    from_config,
};

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    let config = &config.with_defaults(&[("num_key_value_heads", 2)]);
    let bias = config.flag("use_bias", true)?;
    let biases = Biases { qkv: bias, attention_output: bias, mlp: bias };
    let mut spec = describe_llama(config, "starcoder2", biases)?;
    spec.mlp = Mlp::Plain { activation: config.activation("hidden_act", Activation::GeluTanh)? };
    spec.output = config.output(true)?;
    spec.attention.sliding_window = window(config.size("sliding_window")?, spec.max_positions, LayerSet::All);
    spec.weights.mlp = Some(MlpNames::Plain {
        up: named("model.layers.{layer}.mlp.c_fc", bias),
        down: named("model.layers.{layer}.mlp.c_proj", bias),
    });
    use_layer_norms(&mut spec, config.epsilon("norm_epsilon", 1e-5)?, true);
    Ok(spec)
}

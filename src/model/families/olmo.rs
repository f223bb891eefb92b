//! OLMo 1: Llama whose norms have no weights. OLMo 2: Llama with norms after the blocks and of queries and keys.

use crate::model::error::ModelResult;
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::parts::{Biases, describe_llama, named};
use crate::model::spec::{BlockShape, ModelSpec, Norm, NormExtent, NormKind, NormWeight};

pub(super) const OLMO: Family = Family {
    name: "olmo",
    architectures: &["OlmoForCausalLM"],
    model_types: &["olmo"],
    from_config: from_olmo_config,
};

pub(super) const OLMO2: Family = Family {
    name: "olmo2",
    architectures: &["Olmo2ForCausalLM"],
    model_types: &["olmo2"],
    from_config: from_olmo2_config,
};

fn from_olmo_config(config: &Config) -> ModelResult<ModelSpec> {
    let mut spec = describe(config, "olmo")?;
    spec.norm = Norm { kind: NormKind::Layer, epsilon: 1e-5, weight: NormWeight::Absent };
    spec.attention.qkv_clamp = config.number("clip_qkv")?.map(|clamp| clamp as f32);
    spec.weights.attention_norm = None;
    spec.weights.mlp_norm = None;
    spec.weights.final_norm = None;
    Ok(spec)
}

fn from_olmo2_config(config: &Config) -> ModelResult<ModelSpec> {
    let mut spec = describe(config, "olmo2")?;
    spec.norm.epsilon = config.epsilon("rms_norm_eps", 1e-5)?;
    spec.block = BlockShape::PostNorm;
    spec.attention.qk_norm = Some(NormExtent::Width);
    let layer = "model.layers.{layer}.";
    spec.weights.query_norm = Some(named(format!("{layer}self_attn.q_norm"), false));
    spec.weights.key_norm = Some(named(format!("{layer}self_attn.k_norm"), false));
    spec.weights.attention_norm = None;
    spec.weights.post_attention_norm = Some(named(format!("{layer}post_attention_layernorm"), false));
    spec.weights.mlp_norm = None;
    spec.weights.post_mlp_norm = Some(named(format!("{layer}post_feedforward_layernorm"), false));
    Ok(spec)
}

fn describe(config: &Config, family: &str) -> ModelResult<ModelSpec> {
    let bias = config.flag("attention_bias", false)?;
    describe_llama(config, family, Biases { qkv: bias, attention_output: bias, mlp: false })
}

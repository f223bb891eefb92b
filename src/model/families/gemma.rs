//! Gemma 1 and 2: Llama with norms that multiply by one plus their weight and embeddings scaled by the root of the
//! width; Gemma 2 with norms around both blocks, soft caps and a window on every second layer.

use crate::model::error::ModelResult;
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::parts::{Biases, describe_llama, layers_of_type, named, window};
use crate::model::spec::{Activation, BlockShape, LayerSet, Mlp, ModelSpec, NormWeight};

pub(super) const GEMMA: Family = Family {
    name: "gemma",
    architectures: &["GemmaForCausalLM"],
    model_types: &["gemma"],
    from_config: from_gemma_config,
};

pub(super) const GEMMA2: Family = Family {
    name: "gemma2",
    architectures: &["Gemma2ForCausalLM"],
    model_types: &["gemma2"],
    from_config: from_gemma2_config,
};

fn from_gemma_config(config: &Config) -> ModelResult<ModelSpec> {
    let config = &config.with_defaults(&[("num_key_value_heads", 16), ("head_dim", 256)]);
    let mut spec = describe(config, "gemma")?;
    let activation = match config.text("hidden_act")? {
        // The first files say so and mean its approximation.
        Some("gelu") => Activation::GeluTanh,
        _ => config.activation("hidden_act", Activation::GeluTanh)?,
    };
    spec.mlp = Mlp::Gated { activation };
    Ok(spec)
}

fn from_gemma2_config(config: &Config) -> ModelResult<ModelSpec> {
    let config = &config.with_defaults(&[("num_key_value_heads", 4), ("head_dim", 256)]);
    let mut spec = describe(config, "gemma2")?;
    add_outer_norms(&mut spec);
    spec.heads.scale = query_scale(config)?;
    spec.attention.score_soft_cap =
        config.number_unless_null("attn_logit_softcapping", 50.0)?.map(|cap| cap as f32);
    spec.logits.soft_cap = config.number_unless_null("final_logit_softcapping", 30.0)?.map(|cap| cap as f32);
    let layers = match layers_of_type(config, spec.num_layers, "sliding_attention")? {
        Some(layers) => layers,
        None => LayerSet::Periodic { period: 2, remainders: vec![0] },
    };
    let size = config.size_unless_null("sliding_window", 4096)?;
    spec.attention.sliding_window = window(size, spec.max_positions, layers);
    Ok(spec)
}

/// What all Gemmas have in common.
pub(super) fn describe(config: &Config, family: &str) -> ModelResult<ModelSpec> {
    config.refuse_flag("use_bidirectional_attention")?;
    let bias = config.flag("attention_bias", false)?;
    let mut spec = describe_llama(config, family, Biases { qkv: bias, attention_output: bias, mlp: false })?;
    spec.norm.weight = NormWeight::OnePlus;
    spec.embedding.scale = (spec.hidden_size as f64).sqrt() as f32;
    spec.mlp = Mlp::Gated { activation: config.activation("hidden_activation", Activation::GeluTanh)? };
    spec.output = config.output(true)?;
    Ok(spec)
}

/// Norms before and after each block.
pub(super) fn add_outer_norms(spec: &mut ModelSpec) {
    let layer = "model.layers.{layer}.";
    spec.block = BlockShape::Sandwich;
    spec.weights.post_attention_norm = Some(named(format!("{layer}post_attention_layernorm"), false));
    spec.weights.mlp_norm = Some(named(format!("{layer}pre_feedforward_layernorm"), false));
    spec.weights.post_mlp_norm = Some(named(format!("{layer}post_feedforward_layernorm"), false));
}

/// Scores are divided by the root of `query_pre_attn_scalar`, whatever the heads' width.
pub(super) fn query_scale(config: &Config) -> ModelResult<Option<f32>> {
    let scalar = config.positive("query_pre_attn_scalar")?.unwrap_or(256.0);
    Ok(Some((1.0 / scalar.sqrt()) as f32))
}

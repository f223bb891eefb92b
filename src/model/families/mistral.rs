//! Mistral: Llama with a sliding window. Mixtral: Mistral with a mixture of experts.

use crate::model::error::ModelResult;
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::parts::{Biases, describe_llama, named, window};
use crate::model::spec::{
    ExpertNames, ExpertWeighting, Experts, LayerSet, MlpNames, ModelSpec, RouterScoring,
};

pub(super) const MISTRAL: Family = Family {
    name: "mistral",
    architectures: &["MistralForCausalLM"],
    model_types: &["mistral"],
    from_config: from_mistral_config,
};

pub(super) const MIXTRAL: Family = Family {
    name: "mixtral",
    architectures: &["MixtralForCausalLM"],
    model_types: &["mixtral"],
    from_config: from_mixtral_config,
};

fn from_mistral_config(config: &Config) -> ModelResult<ModelSpec> {
    let config = &config.with_defaults(&[("num_key_value_heads", 8)]);
    let mut spec = describe_llama(config, "mistral", Biases::default())?;
    let size = config.size_unless_null("sliding_window", 4096)?;
    spec.attention.sliding_window = window(size, spec.max_positions, LayerSet::All);
    Ok(spec)
}

fn from_mixtral_config(config: &Config) -> ModelResult<ModelSpec> {
    let config = &config.with_defaults(&[("num_key_value_heads", 8), ("rope_theta", 1_000_000)]);
    let mut spec = describe_llama(config, "mixtral", Biases::default())?;
    spec.norm.epsilon = config.epsilon("rms_norm_eps", 1e-5)?;
    spec.attention.sliding_window = window(config.size("sliding_window")?, spec.max_positions, LayerSet::All);
    spec.experts = Some(Experts {
        num_experts: config.size("num_local_experts")?.unwrap_or(8),
        num_chosen: config.size("num_experts_per_tok")?.unwrap_or(2),
        intermediate_size: spec.intermediate_size,
        scoring: RouterScoring::Softmax,
        weighting: ExpertWeighting::Normalized,
        scale: 1.0,
        shared: None,
        layers: LayerSet::All,
    });
    let moe = "model.layers.{layer}.block_sparse_moe.";
    spec.weights.mlp = None;
    spec.weights.experts = Some(ExpertNames {
        router: format!("{moe}gate.weight"),
        experts: MlpNames::Gated {
            gate: named(format!("{moe}experts.{{expert}}.w1"), false),
            up: named(format!("{moe}experts.{{expert}}.w3"), false),
            down: named(format!("{moe}experts.{{expert}}.w2"), false),
        },
        shared: None,
        shared_gate: None,
    });
    Ok(spec)
}

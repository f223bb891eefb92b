//! Qwen 1.5 and 2 with experts of which one is shared by all tokens, and Qwen 3 with experts alone.

use crate::model::error::{ModelError, ModelResult};
use crate::model::families::config::Config;
use crate::model::families::parts::{Biases, describe_llama, gated_names, window};
use crate::model::families::{Family, qwen};
use crate::model::spec::{
    ExpertNames, ExpertWeighting, Experts, LayerSet, ModelSpec, RouterScoring, SharedExpert, SharedExpertGate,
};

pub(super) const QWEN2_MOE: Family = Family {
    name: "qwen2_moe",
    architectures: &["Qwen2MoeForCausalLM"],
    model_types: &["qwen2_moe"],
    from_config: from_qwen2_config,
};

pub(super) const QWEN3_MOE: Family = Family {
    name: "qwen3_moe",
    architectures: &["Qwen3MoeForCausalLM"],
    model_types: &["qwen3_moe"],
    from_config: from_qwen3_config,
};

const MLP: &str = "model.layers.{layer}.mlp.";

fn from_qwen2_config(config: &Config) -> ModelResult<ModelSpec> {
    config.refuse_flag("use_sliding_window")?;
    let config = &config.with_defaults(&[("num_key_value_heads", 16)]);
    let qkv = config.flag("qkv_bias", true)?;
    let mut spec = describe_llama(config, "qwen2_moe", Biases { qkv, ..Biases::default() })?;
    let shared = SharedExpert {
        intermediate_size: config.required_size("shared_expert_intermediate_size")?,
        gate: SharedExpertGate::Sigmoid,
    };
    add_experts(config, &mut spec, Some(shared))?;
    Ok(spec)
}

fn from_qwen3_config(config: &Config) -> ModelResult<ModelSpec> {
    let config = &config.with_defaults(&[("num_key_value_heads", 4)]);
    let bias = config.flag("attention_bias", false)?;
    let biases = Biases { qkv: bias, attention_output: bias, mlp: false };
    let mut spec = describe_llama(config, "qwen3_moe", biases)?;
    qwen::normalise_heads(&mut spec);
    if config.flag("use_sliding_window", false)? {
        let size = config.size_unless_null("sliding_window", 4096)?;
        spec.attention.sliding_window = window(size, spec.max_positions, LayerSet::All);
    }
    add_experts(config, &mut spec, None)?;
    Ok(spec)
}

fn add_experts(config: &Config, spec: &mut ModelSpec, shared: Option<SharedExpert>) -> ModelResult<()> {
    let layers = sparse_layers(config, spec.num_layers)?;
    let is_normalized = config.flag("norm_topk_prob", false)?;
    spec.weights.experts = Some(ExpertNames {
        router: format!("{MLP}gate.weight"),
        experts: gated_names(&format!("{MLP}experts.{{expert}}."), false),
        shared: shared.map(|_| gated_names(&format!("{MLP}shared_expert."), false)),
        shared_gate: shared.map(|_| format!("{MLP}shared_expert_gate.weight")),
    });
    if layers == LayerSet::All {
        spec.weights.mlp = None;
    }
    spec.experts = Some(Experts {
        // The second name is transformers' since its version 5.
        num_experts: config.first_size(&["num_experts", "num_local_experts"])?,
        num_chosen: config.required_size("num_experts_per_tok")?,
        intermediate_size: config.required_size("moe_intermediate_size")?,
        scoring: RouterScoring::Softmax,
        weighting: if is_normalized { ExpertWeighting::Normalized } else { ExpertWeighting::AsScored },
        scale: 1.0,
        shared,
        layers,
    });
    Ok(())
}

/// Every `decoder_sparse_step`-th layer has experts, but for those in `mlp_only_layers`.
fn sparse_layers(config: &Config, num_layers: usize) -> ModelResult<LayerSet> {
    const MAX_LAYERS: usize = 1 << 12;
    let step = config.size("decoder_sparse_step")?.unwrap_or(1);
    let dense = config.counts("mlp_only_layers")?.unwrap_or_default();
    if let Some(layer) = dense.iter().find(|&&layer| layer >= num_layers) {
        let message = format!("layer {layer} is not one of {num_layers}");
        return Err(ModelError::invalid("mlp_only_layers", message));
    }
    if dense.is_empty() && step == 1 {
        return Ok(LayerSet::All);
    }
    if num_layers > MAX_LAYERS {
        return Err(ModelError::invalid("num_hidden_layers", format!("{num_layers} is above {MAX_LAYERS}")));
    }
    let is_sparse = |layer: &usize| (layer + 1).is_multiple_of(step) && !dense.contains(layer);
    Ok(LayerSet::Listed { layers: (0..num_layers).filter(is_sparse).collect() })
}

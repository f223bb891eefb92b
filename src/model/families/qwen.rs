//! Qwen 1.5, 2 and 2.5 (Llama with biases on queries, keys and values) and Qwen 3 (with norms on queries and keys).

use crate::model::error::ModelResult;
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::parts::{Biases, describe_llama, layers_of_type, named, window};
use crate::model::spec::{LayerSet, ModelSpec, NormExtent};

pub(super) const QWEN2: Family = Family {
    name: "qwen2",
    architectures: &["Qwen2ForCausalLM"],
    model_types: &["qwen2"],
    from_config: from_qwen2_config,
};

pub(super) const QWEN3: Family = Family {
    name: "qwen3",
    architectures: &["Qwen3ForCausalLM"],
    model_types: &["qwen3"],
    from_config: from_qwen3_config,
};

fn from_qwen2_config(config: &Config) -> ModelResult<ModelSpec> {
    let config = &config.with_defaults(&[("num_key_value_heads", 32)]);
    let mut spec = describe_llama(config, "qwen2", Biases { qkv: true, ..Biases::default() })?;
    read_window(config, &mut spec)?;
    Ok(spec)
}

fn from_qwen3_config(config: &Config) -> ModelResult<ModelSpec> {
    let config = &config.with_defaults(&[("num_key_value_heads", 32), ("head_dim", 128)]);
    let bias = config.flag("attention_bias", false)?;
    let biases = Biases { qkv: bias, attention_output: bias, mlp: false };
    let mut spec = describe_llama(config, "qwen3", biases)?;
    normalise_heads(&mut spec);
    read_window(config, &mut spec)?;
    Ok(spec)
}

/// Norms of queries and keys, as Qwen 3 has them.
pub(super) fn normalise_heads(spec: &mut ModelSpec) {
    let attention = "model.layers.{layer}.self_attn.";
    spec.attention.qk_norm = Some(NormExtent::Head);
    spec.weights.query_norm = Some(named(format!("{attention}q_norm"), false));
    spec.weights.key_norm = Some(named(format!("{attention}k_norm"), false));
}

/// The window holds for the layers from `max_window_layers` on, or for those of the type.
fn read_window(config: &Config, spec: &mut ModelSpec) -> ModelResult<()> {
    if !config.flag("use_sliding_window", false)? {
        return Ok(());
    }
    let layers = match layers_of_type(config, spec.num_layers, "sliding_attention")? {
        Some(layers) => layers,
        None => LayerSet::From { first: config.count("max_window_layers")?.unwrap_or(28) },
    };
    let is_empty = (0..spec.num_layers.min(1 << 12)).all(|layer| !layers.contains(layer));
    let size = config.size_unless_null("sliding_window", 4096)?.filter(|_| !is_empty);
    spec.attention.sliding_window = window(size, spec.max_positions, layers);
    Ok(())
}

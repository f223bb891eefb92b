//! Phi-3 and Phi-4: Llama with fused projections, a window and, for long contexts, LongRoPE.

use crate::model::error::ModelResult;
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::parts::{Biases, describe_llama, named, rotate_part, window};
use crate::model::spec::{LayerSet, MlpNames, ModelSpec, QkvNames, QkvOrder, RopePairing};

pub(super) const FAMILY: Family =
    Family { name: "phi3", architectures: &["Phi3ForCausalLM"], model_types: &["phi3"], from_config };

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    let mut spec = describe_llama(config, "phi3", Biases::default())?;
    rotate_part(config, &mut spec, 1.0, RopePairing::Half)?;
    spec.norm.epsilon = config.epsilon("rms_norm_eps", 1e-5)?;
    spec.attention.sliding_window = window(config.size("sliding_window")?, spec.max_positions, LayerSet::All);
    let layer = "model.layers.{layer}.";
    spec.weights.qkv =
        QkvNames::Fused { qkv: named(format!("{layer}self_attn.qkv_proj"), false), order: QkvOrder::Blocks };
    spec.weights.mlp = Some(MlpNames::FusedGated {
        gate_up: named(format!("{layer}mlp.gate_up_proj"), false),
        down: named(format!("{layer}mlp.down_proj"), false),
    });
    Ok(spec)
}

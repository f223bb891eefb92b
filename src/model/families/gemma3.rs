//! Gemma 3, the text model, alone or out of a checkpoint that sees images too: Gemma 2 without soft caps, with norms
//! of queries and keys, and with other frequencies in the layers that have a window.

use crate::model::error::{ModelError, ModelResult};
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::gemma::{add_outer_norms, describe, query_scale};
use crate::model::families::parts::{DEFAULT_THETA, layers_of_type};
use crate::model::families::qwen::normalise_heads;
use crate::model::spec::{LayerSet, LocalRope, ModelSpec, Positions, RopePairing, SlidingWindow};

pub(super) const FAMILY: Family = Family {
    name: "gemma3",
    architectures: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
    model_types: &["gemma3_text", "gemma3"],
    from_config,
};

/// What the published configurations leave out.
const DEFAULTS: [(&str, usize); 5] = [
    ("num_attention_heads", 8),
    ("num_key_value_heads", 4),
    ("head_dim", 256),
    ("vocab_size", 262_208),
    ("max_position_embeddings", 131_072),
];

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    let text = config.object("text_config")?;
    let config = &text.as_ref().unwrap_or(config).with_defaults(&DEFAULTS);
    let mut spec = describe(config, "gemma3")?;
    add_outer_norms(&mut spec);
    normalise_heads(&mut spec);
    spec.heads.scale = query_scale(config)?;
    // There is an attn_logit_softcapping too, which transformers does not use.
    spec.logits.soft_cap = config.number("final_logit_softcapping")?.map(|cap| cap as f32);
    let pattern = config.size("sliding_window_pattern")?.unwrap_or(6);
    let layers = match layers_of_type(config, spec.num_layers, "sliding_attention")? {
        Some(layers) => layers,
        None => every_but_last(pattern)?,
    };
    // Layers with a window have other frequencies, however far it reaches.
    let size = config.size("sliding_window")?.unwrap_or(4096);
    spec.attention.sliding_window = Some(SlidingWindow { size, layers });
    spec.positions = positions(config, spec.heads.head_dim, spec.max_positions)?;
    Ok(spec)
}

/// A pattern of layers of which the last sees everything.
fn every_but_last(period: usize) -> ModelResult<LayerSet> {
    const MAX_PERIOD: usize = 1 << 12;
    if period > MAX_PERIOD {
        let message = format!("{period} is above {MAX_PERIOD}");
        return Err(ModelError::invalid("sliding_window_pattern", message));
    }
    Ok(LayerSet::Periodic { period, remainders: (0..period - 1).collect() })
}

/// Frequencies of the layers that see everything, and of those with a window.
fn positions(config: &Config, head_dim: usize, max_positions: usize) -> ModelResult<Positions> {
    const GLOBAL_THETA: f64 = 1_000_000.0;
    let by_type = config.object_or_empty("rope_parameters")?;
    let full = match config.object("rope_scaling")? {
        Some(scaling) => Some(scaling),
        None => by_type.object("full_attention")?,
    };
    let theta = config.positive("rope_theta")?.unwrap_or(GLOBAL_THETA);
    let full = config.rope_in(full, theta, max_positions)?;
    let local_theta = config.positive("rope_local_base_freq")?.unwrap_or(DEFAULT_THETA);
    let local = config.rope_in(by_type.object("sliding_attention")?, local_theta, max_positions)?;
    Ok(Positions::Rope {
        theta: full.theta,
        rotary_dim: head_dim,
        pairing: RopePairing::Half,
        scaling: full.scaling,
        local: Some(LocalRope { theta: local.theta, scaling: local.scaling }),
    })
}

//! GPT-2, and what is shaped like GPT-3: Cerebras-GPT. Matrices are stored with inputs as rows.

use crate::model::error::ModelResult;
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::gpt::Sizes;
use crate::model::families::parts::{bare_names, named};
use crate::model::spec::{
    Activation, Mlp, MlpNames, ModelSpec, Orientation, Positions, QkvNames, QkvOrder, WeightNames,
};

pub(super) const FAMILY: Family =
    Family { name: "gpt2", architectures: &["GPT2LMHeadModel"], model_types: &["gpt2"], from_config };

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    config.refuse_flag("scale_attn_by_inverse_layer_idx")?;
    let mut spec = describe(config, "gpt2", Activation::GeluTanh)?;
    spec.weights.orientation = Orientation::InOut;
    Ok(spec)
}

/// Describes a model with GPT-2's keys and names, whose matrices lie the usual way and whose heads have keys and
/// values each.
pub(super) fn describe(config: &Config, family: &str, activation: Activation) -> ModelResult<ModelSpec> {
    config.refuse_flag("add_cross_attention")?;
    let sizes = Sizes::read(config, &["n_layer"], &["n_embd"], &["n_head"])?;
    let max_positions = config.required_size("n_positions")?;
    let epsilon = config.epsilon("layer_norm_epsilon", 1e-5)?;
    let weights = names();
    let mut spec = sizes.describe(family, max_positions, Positions::Learned { offset: 0 }, epsilon, weights);
    if !config.flag("scale_attn_weights", true)? {
        spec.heads.scale = Some(1.0);
    }
    Ok(ModelSpec {
        intermediate_size: config.size("n_inner")?.unwrap_or(spec.intermediate_size),
        mlp: Mlp::Plain { activation: config.activation("activation_function", activation)? },
        output: config.output(true)?,
        ..spec
    })
}

fn names() -> WeightNames {
    let layer = "transformer.h.{layer}.";
    let embedding = "transformer.wte.weight".to_owned();
    let qkv = QkvNames::Fused { qkv: named(format!("{layer}attn.c_attn"), true), order: QkvOrder::Blocks };
    let output = named(format!("{layer}attn.c_proj"), true);
    WeightNames {
        position_embedding: Some("transformer.wpe.weight".to_owned()),
        attention_norm: Some(named(format!("{layer}ln_1"), true)),
        mlp_norm: Some(named(format!("{layer}ln_2"), true)),
        mlp: Some(MlpNames::Plain {
            up: named(format!("{layer}mlp.c_fc"), true),
            down: named(format!("{layer}mlp.c_proj"), true),
        }),
        final_norm: Some(named("transformer.ln_f", true)),
        head: Some(named("lm_head", false)),
        ..bare_names(embedding, qkv, output)
    }
}

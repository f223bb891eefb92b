//! MPT: ALiBi, and norms and projections without biases. As in MosaicML's code, `logit_scale` and `alibi_bias_max` have
//! the meaning of their names; transformers reads neither.

use crate::model::error::ModelResult;
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::gpt::Sizes;
use crate::model::families::parts::{bare_names, named};
use crate::model::spec::{MlpNames, ModelSpec, Positions, QkvNames, QkvOrder, WeightNames};

pub(super) const FAMILY: Family = Family {
    name: "mpt",
    architectures: &["MptForCausalLM", "MPTForCausalLM"],
    model_types: &["mpt"],
    from_config,
};

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    config.require_flag("no_bias")?;
    let attention = config.object_or_empty("attn_config")?;
    attention.require_flag("alibi")?;
    attention.refuse_flag("qk_ln")?;
    attention.refuse_flag("prefix_lm")?;
    attention.require_text("attn_type", "multihead_attention")?;
    let sizes = Sizes::read(config, &["n_layers"], &["d_model"], &["n_heads"])?;
    let max_positions = config.required_size("max_seq_len")?;
    let max_bias = attention.number("alibi_bias_max")?.unwrap_or(8.0) as f32;
    let positions = Positions::Alibi { max_bias, scale: 1.0 };
    let epsilon = config.epsilon("layer_norm_epsilon", 1e-5)?;
    let mut spec = sizes.describe("mpt", max_positions, positions, epsilon, names());
    spec.intermediate_size = spec.hidden_size * config.bounded_size("expansion_ratio", 4, 1 << 10)?;
    spec.heads.scale = attention.number("softmax_scale")?.map(|scale| scale as f32);
    spec.attention.qkv_clamp = attention.number("clip_qkv")?.map(|clamp| clamp as f32);
    spec.output = config.output(true)?;
    spec.logits.scale = logit_scale(config, spec.hidden_size)?;
    Ok(spec)
}

/// A number, or the text that stands for the inverse root of the width.
fn logit_scale(config: &Config, hidden_size: usize) -> ModelResult<f32> {
    const FIELD: &str = "logit_scale";
    if config.has_text(FIELD) {
        config.require_text(FIELD, "inv_sqrt_d_model")?;
        return Ok((1.0 / (hidden_size as f64).sqrt()) as f32);
    }
    Ok(config.number(FIELD)?.unwrap_or(1.0) as f32)
}

fn names() -> WeightNames {
    let layer = "transformer.blocks.{layer}.";
    let embedding = "transformer.wte.weight".to_owned();
    let qkv = QkvNames::Fused { qkv: named(format!("{layer}attn.Wqkv"), false), order: QkvOrder::Blocks };
    let output = named(format!("{layer}attn.out_proj"), false);
    WeightNames {
        attention_norm: Some(named(format!("{layer}norm_1"), false)),
        mlp_norm: Some(named(format!("{layer}norm_2"), false)),
        mlp: Some(MlpNames::Plain {
            up: named(format!("{layer}ffn.up_proj"), false),
            down: named(format!("{layer}ffn.down_proj"), false),
        }),
        final_norm: Some(named("transformer.norm_f", false)),
        head: Some(named("lm_head", false)),
        ..bare_names(embedding, qkv, output)
    }
}

//! Falcon: 7B (one key and value for all heads), 40B and 180B (groups, two norms), 11B (groups, one norm), RW (ALiBi).

use crate::model::error::ModelResult;
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::gpt::{Sizes, megatron_names};
use crate::model::families::parts::{Biases, DEFAULT_THETA, named};
use crate::model::spec::{
    Activation, BlockShape, Mlp, ModelSpec, Positions, QkvOrder, RopePairing, WeightNames,
};

pub(super) const FAMILY: Family = Family {
    name: "falcon",
    architectures: &["FalconForCausalLM", "RWForCausalLM"],
    model_types: &["falcon", "RefinedWeb", "RefinedWebModel"],
    from_config,
};

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    let (layers, heads) = (["num_hidden_layers", "n_layer"], ["num_attention_heads", "n_head"]);
    let sizes = Sizes::read(config, &layers, &["hidden_size", "n_embed"], &heads)?;
    let rope = config.rope(DEFAULT_THETA, config.size("max_position_embeddings")?.unwrap_or(2048))?;
    let max_positions = rope.max_positions;
    let positions = if config.flag("alibi", false)? {
        // The biases are added before the scores are scaled.
        Positions::Alibi { max_bias: 8.0, scale: (1.0 / (sizes.head_dim as f64).sqrt()) as f32 }
    } else {
        rope.positions(sizes.head_dim, RopePairing::Half)
    };
    // The first files of the 40B and its kin tell it by their type alone.
    let is_refined_web = config.text("model_type")? == Some("RefinedWeb");
    let has_groups = config.flag("new_decoder_architecture", is_refined_web)?;
    let (order, num_kv_heads) = if has_groups {
        let num_kv_heads = config.size(config.first_of(&["num_kv_heads", "n_head_kv"]))?;
        (QkvOrder::Groups, num_kv_heads.unwrap_or(sizes.num_heads))
    } else if config.flag("multi_query", true)? {
        (QkvOrder::Blocks, 1)
    } else {
        (QkvOrder::Groups, sizes.num_heads)
    };
    let block = match (has_groups, config.flag("parallel_attn", true)?) {
        (true, _) if config.size("num_ln_in_parallel_attn")?.is_none_or(|num_norms| num_norms == 2) => {
            BlockShape::ParallelTwoNorms
        }
        (false, false) => BlockShape::Sequential,
        _ => BlockShape::Parallel,
    };
    let epsilon = config.epsilon("layer_norm_epsilon", 1e-5)?;
    let weights = names(block, order, config.flag("bias", false)?);
    let mut spec = sizes.describe("falcon", max_positions, positions, epsilon, weights);
    spec.intermediate_size = config.size("ffn_hidden_size")?.unwrap_or(spec.intermediate_size);
    spec.block = block;
    spec.heads.num_kv_heads = num_kv_heads;
    spec.mlp = Mlp::Plain { activation: config.activation("activation", Activation::Gelu)? };
    spec.output = config.output(true)?;
    Ok(spec)
}

fn names(block: BlockShape, order: QkvOrder, has_bias: bool) -> WeightNames {
    let embedding = "transformer.word_embeddings.weight".to_owned();
    let layer = "transformer.h.{layer}.";
    let biases = if has_bias { Biases::ALL } else { Biases::default() };
    let mut names = megatron_names(embedding, layer, "self_attention", order, biases);
    match block {
        BlockShape::ParallelTwoNorms => {
            names.attention_norm = Some(named(format!("{layer}ln_attn"), true));
            names.mlp_norm = Some(named(format!("{layer}ln_mlp"), true));
        }
        BlockShape::Parallel => names.mlp_norm = None,
        _ => {}
    }
    names.final_norm = Some(named("transformer.ln_f", true));
    names.head = Some(named("lm_head", false));
    names
}

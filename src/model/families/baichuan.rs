//! Baichuan 1 and 2, published with code of their own that is not run: Llama with a fused projection, ALiBi in the 13B
//! models, and in the second generation a head whose rows have length one.

use crate::model::error::ModelResult;
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::parts::{Biases, describe_llama, named};
use crate::model::spec::{ModelSpec, OutputHead, Positions, QkvNames, QkvOrder};

pub(super) const FAMILY: Family = Family {
    name: "baichuan",
    architectures: &["BaichuanForCausalLM", "BaiChuanForCausalLM"],
    model_types: &["baichuan"],
    from_config,
};

/// Vocabulary of the second generation.
const SECOND_VOCAB_SIZE: usize = 125_696;

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    // Only the 13B models, which have ALiBi, write their context under another key.
    let has_alibi = !config.has("max_position_embeddings");
    let context = config.first_size(&["max_position_embeddings", "model_max_length"])?;
    let config = &config.with_defaults(&[("max_position_embeddings", context)]);
    let mut spec = describe_llama(config, "baichuan", Biases::default())?;
    if has_alibi {
        spec.positions = Positions::Alibi { max_bias: 8.0, scale: 1.0 };
    }
    if config.has("z_loss_weight") || spec.vocab_size == SECOND_VOCAB_SIZE {
        spec.output = OutputHead::UntiedUnitRows;
    }
    spec.weights.qkv = QkvNames::Fused {
        qkv: named("model.layers.{layer}.self_attn.W_pack", false),
        order: QkvOrder::Blocks,
    };
    Ok(spec)
}

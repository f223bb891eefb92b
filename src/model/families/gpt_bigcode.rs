//! StarCoder and SantaCoder: GPT-2 whose heads share one key and value.

use crate::model::error::ModelResult;
use crate::model::families::config::Config;
use crate::model::families::{Family, gpt2};
use crate::model::spec::{Activation, ModelSpec, QkvNames, QkvOrder};

pub(super) const FAMILY: Family = Family {
    name: "gpt_bigcode",
    architectures: &["GPTBigCodeForCausalLM"],
    model_types: &["gpt_bigcode"],
    from_config,
};

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    let mut spec = gpt2::describe(config, "gpt_bigcode", Activation::GeluTanh)?;
    if config.flag("multi_query", true)? {
        spec.heads.num_kv_heads = 1;
    } else if let QkvNames::Fused { order, .. } = &mut spec.weights.qkv {
        *order = QkvOrder::Groups;
    }
    Ok(spec)
}

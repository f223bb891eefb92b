//! StableLM: Llama with layer norms and partial rotation; the 12B side by side and with norms of queries and keys, a
//! weight for each head.

use crate::model::error::ModelResult;
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::parts::{Biases, describe_llama, named, rotate_part, use_layer_norms};
use crate::model::spec::{BlockShape, ModelSpec, NormExtent, RopePairing};

pub(super) const FAMILY: Family = Family {
    name: "stablelm",
    architectures: &["StableLmForCausalLM"],
    model_types: &["stablelm"],
    from_config,
};

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    let config = &config.with_defaults(&[("num_key_value_heads", 32)]);
    let qkv = config.flag("use_qkv_bias", false)?;
    let mut spec = describe_llama(config, "stablelm", Biases { qkv, ..Biases::default() })?;
    rotate_part(config, &mut spec, 0.25, RopePairing::Half)?;
    if config.flag("use_parallel_residual", false)? {
        spec.block = BlockShape::Parallel;
        spec.weights.mlp_norm = None;
    }
    if config.flag("qk_layernorm", false)? {
        let attention = "model.layers.{layer}.self_attn.";
        spec.attention.qk_norm = Some(NormExtent::Head);
        spec.weights.query_norm = Some(named(format!("{attention}q_layernorm.norms.{{head}}"), false));
        spec.weights.key_norm = Some(named(format!("{attention}k_layernorm.norms.{{head}}"), false));
    }
    use_layer_norms(&mut spec, config.epsilon("layer_norm_eps", 1e-5)?, true);
    Ok(spec)
}

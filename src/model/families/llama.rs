//! Llama 1, 2 and 3, and what shares their architecture: Code Llama, SmolLM, TinyLlama, Yi, DeepSeek's dense models.

use crate::model::error::{ModelError, ModelResult};
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::parts::{Biases, describe_llama};
use crate::model::spec::ModelSpec;

pub(super) const FAMILY: Family = Family {
    name: "llama",
    architectures: &["LlamaForCausalLM", "LLaMAForCausalLM"],
    model_types: &["llama"],
    from_config,
};

/// DeepSeek's first models; the dense ones are Llama's.
pub(super) const DEEPSEEK: Family = Family {
    name: "deepseek",
    architectures: &["DeepseekForCausalLM"],
    model_types: &["deepseek"],
    from_config: from_deepseek_config,
};

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    // The first conversions have another name for it.
    let context = config.first_size(&["max_position_embeddings", "max_sequence_length"])?;
    let config = &config.with_defaults(&[("max_position_embeddings", context)]);
    let attention_bias = config.flag("attention_bias", false)?;
    let mlp = config.flag("mlp_bias", false)?;
    describe_llama(config, "llama", Biases { qkv: attention_bias, attention_output: attention_bias, mlp })
}

fn from_deepseek_config(config: &Config) -> ModelResult<ModelSpec> {
    if config.has("n_routed_experts") {
        return Err(ModelError::unsupported("n_routed_experts", "DeepSeek's experts are not supported"));
    }
    Ok(ModelSpec { family: "deepseek".to_owned(), ..from_config(config)? })
}

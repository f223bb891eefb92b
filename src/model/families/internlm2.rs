//! InternLM2, published with code of its own that is not run: Llama with a projection fused by groups, and other names.

use crate::model::error::ModelResult;
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::parts::{Biases, bare_names, describe_llama, named};
use crate::model::spec::{MlpNames, ModelSpec, QkvNames, QkvOrder, WeightNames};

pub(super) const FAMILY: Family = Family {
    name: "internlm2",
    architectures: &["InternLM2ForCausalLM"],
    model_types: &["internlm2"],
    from_config,
};

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    let spec = describe_llama(config, "internlm2", Biases::default())?;
    Ok(ModelSpec { weights: names(config.flag("bias", false)?), ..spec })
}

fn names(has_bias: bool) -> WeightNames {
    let layer = "model.layers.{layer}.";
    let embedding = "model.tok_embeddings.weight".to_owned();
    let qkv =
        QkvNames::Fused { qkv: named(format!("{layer}attention.wqkv"), has_bias), order: QkvOrder::Groups };
    let output = named(format!("{layer}attention.wo"), has_bias);
    WeightNames {
        attention_norm: Some(named(format!("{layer}attention_norm"), false)),
        mlp_norm: Some(named(format!("{layer}ffn_norm"), false)),
        mlp: Some(MlpNames::Gated {
            gate: named(format!("{layer}feed_forward.w1"), false),
            up: named(format!("{layer}feed_forward.w3"), false),
            down: named(format!("{layer}feed_forward.w2"), false),
        }),
        final_norm: Some(named("model.norm", false)),
        head: Some(named("output", false)),
        ..bare_names(embedding, qkv, output)
    }
}

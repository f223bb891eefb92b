//! GPT-NeoX and Pythia: attention and MLP side by side, each after a norm of its own, and partial rotation.

use crate::model::error::ModelResult;
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::parts::{DEFAULT_THETA, bare_names, named};
use crate::model::spec::{
    Activation, AttentionExtras, BlockShape, EmbeddingExtras, Heads, LogitExtras, Mlp, MlpNames, ModelSpec,
    Norm, NormKind, NormWeight, QkvNames, QkvOrder, RopePairing, WeightNames,
};

pub(super) const FAMILY: Family = Family {
    name: "gpt_neox",
    architectures: &["GPTNeoXForCausalLM"],
    model_types: &["gpt_neox"],
    from_config,
};

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    let hidden_size = config.required_size("hidden_size")?;
    let num_heads = config.required_size("num_attention_heads")?;
    let head_dim = config.head_dim(hidden_size, "num_attention_heads", num_heads)?;
    let theta = config.number("rotary_emb_base")?.unwrap_or(DEFAULT_THETA);
    let rope = config.rope(theta, config.required_size("max_position_embeddings")?)?;
    let is_parallel = config.flag("use_parallel_residual", true)?;
    Ok(ModelSpec {
        family: "gpt_neox".to_owned(),
        num_layers: config.required_size("num_hidden_layers")?,
        hidden_size,
        intermediate_size: config.required_size("intermediate_size")?,
        vocab_size: config.required_size("vocab_size")?,
        max_positions: rope.max_positions,
        embedding: EmbeddingExtras::default(),
        positions: rope.positions(head_dim, config.number("rotary_pct")?.unwrap_or(0.25), RopePairing::Half),
        norm: Norm {
            kind: NormKind::Layer,
            epsilon: config.epsilon("layer_norm_eps", 1e-5)?,
            weight: NormWeight::Plain,
        },
        block: if is_parallel { BlockShape::ParallelTwoNorms } else { BlockShape::Sequential },
        heads: Heads::scaled(num_heads, None, head_dim),
        attention: AttentionExtras::default(),
        mlp: Mlp::Plain { activation: config.activation("hidden_act", Activation::Gelu)? },
        experts: None,
        output: config.output(false)?,
        logits: LogitExtras::default(),
        weights: names(config.flag("attention_bias", true)?),
    })
}

fn names(attention_bias: bool) -> WeightNames {
    let layer = "gpt_neox.layers.{layer}.";
    let embedding = "gpt_neox.embed_in.weight".to_owned();
    let qkv = QkvNames::Fused {
        qkv: named(format!("{layer}attention.query_key_value"), attention_bias),
        order: QkvOrder::Groups,
    };
    let output = named(format!("{layer}attention.dense"), attention_bias);
    WeightNames {
        attention_norm: Some(named(format!("{layer}input_layernorm"), true)),
        mlp_norm: Some(named(format!("{layer}post_attention_layernorm"), true)),
        mlp: Some(MlpNames::Plain {
            up: named(format!("{layer}mlp.dense_h_to_4h"), true),
            down: named(format!("{layer}mlp.dense_4h_to_h"), true),
        }),
        final_norm: Some(named("gpt_neox.final_layer_norm", true)),
        head: Some(named("embed_out", false)),
        ..bare_names(embedding, qkv, output)
    }
}

//! Falcon: 7B (one key and value for all heads), 40B and 180B (groups, two norms), 11B (groups, one norm), RW (ALiBi).

use crate::model::error::ModelResult;
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::parts::{DEFAULT_THETA, bare_names, named};
use crate::model::spec::{
    Activation, AttentionExtras, BlockShape, EmbeddingExtras, Heads, LogitExtras, Mlp, MlpNames, ModelSpec,
    Norm, NormKind, NormWeight, Positions, QkvNames, QkvOrder, RopePairing, WeightNames,
};

pub(super) const FAMILY: Family = Family {
    name: "falcon",
    architectures: &["FalconForCausalLM", "RWForCausalLM"],
    model_types: &["falcon", "RefinedWeb", "RefinedWebModel"],
    from_config,
};

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    let hidden_size = config.first_size(&["hidden_size", "n_embed"])?;
    let heads_field = config.first_of(&["num_attention_heads", "n_head"]);
    let num_heads = config.required_size(heads_field)?;
    let head_dim = config.head_dim(hidden_size, heads_field, num_heads)?;
    let rope = config.rope(DEFAULT_THETA, config.size("max_position_embeddings")?.unwrap_or(2048))?;
    let layout = Layout::read(config)?;
    let num_kv_heads = match layout.order {
        QkvOrder::Groups if layout.is_new => config.first_size(&["num_kv_heads", "n_head_kv"])?,
        QkvOrder::Groups => num_heads,
        QkvOrder::Blocks => 1,
    };
    let max_positions = rope.max_positions;
    let positions = if config.flag("alibi", false)? {
        // The biases are added before the scores are scaled.
        Positions::Alibi { max_bias: 8.0, scale: (1.0 / (head_dim as f64).sqrt()) as f32 }
    } else {
        rope.positions(head_dim, 1.0, RopePairing::Half)
    };
    Ok(ModelSpec {
        family: "falcon".to_owned(),
        num_layers: config.first_size(&["num_hidden_layers", "n_layer"])?,
        hidden_size,
        intermediate_size: config.size("ffn_hidden_size")?.unwrap_or(4 * hidden_size),
        vocab_size: config.required_size("vocab_size")?,
        max_positions,
        embedding: EmbeddingExtras::default(),
        positions,
        norm: Norm {
            kind: NormKind::Layer,
            epsilon: config.epsilon("layer_norm_epsilon", 1e-5)?,
            weight: NormWeight::Plain,
        },
        block: layout.block,
        heads: Heads::scaled(num_heads, Some(num_kv_heads), head_dim),
        attention: AttentionExtras::default(),
        mlp: Mlp::Plain { activation: config.activation("activation", Activation::Gelu)? },
        experts: None,
        output: config.output(true)?,
        logits: LogitExtras::default(),
        weights: names(&layout, config.flag("bias", false)?),
    })
}

/// What the generations of Falcon differ in.
struct Layout {
    is_new: bool,
    order: QkvOrder,
    block: BlockShape,
}

impl Layout {
    fn read(config: &Config) -> ModelResult<Self> {
        let is_new = config.flag("new_decoder_architecture", false)?;
        let is_multi_query = config.flag("multi_query", true)?;
        let is_parallel = config.flag("parallel_attn", true)?;
        let num_norms = config.size("num_ln_in_parallel_attn")?.unwrap_or(2);
        Ok(Self {
            is_new,
            order: if is_multi_query && !is_new { QkvOrder::Blocks } else { QkvOrder::Groups },
            block: match (is_new, is_parallel) {
                (true, _) if num_norms == 2 => BlockShape::ParallelTwoNorms,
                (true, _) | (false, true) => BlockShape::Parallel,
                (false, false) => BlockShape::Sequential,
            },
        })
    }
}

fn names(layout: &Layout, has_bias: bool) -> WeightNames {
    let layer = "transformer.h.{layer}.";
    let (attention_norm, mlp_norm) = match layout.block {
        BlockShape::ParallelTwoNorms => ("ln_attn", Some("ln_mlp")),
        BlockShape::Sequential => ("input_layernorm", Some("post_attention_layernorm")),
        _ => ("input_layernorm", None),
    };
    let embedding = "transformer.word_embeddings.weight".to_owned();
    let qkv = QkvNames::Fused {
        qkv: named(format!("{layer}self_attention.query_key_value"), has_bias),
        order: layout.order,
    };
    let output = named(format!("{layer}self_attention.dense"), has_bias);
    WeightNames {
        attention_norm: Some(named(format!("{layer}{attention_norm}"), true)),
        mlp_norm: mlp_norm.map(|name| named(format!("{layer}{name}"), true)),
        mlp: Some(MlpNames::Plain {
            up: named(format!("{layer}mlp.dense_h_to_4h"), has_bias),
            down: named(format!("{layer}mlp.dense_4h_to_h"), has_bias),
        }),
        final_norm: Some(named("transformer.ln_f", true)),
        head: Some(named("lm_head", false)),
        ..bare_names(embedding, qkv, output)
    }
}

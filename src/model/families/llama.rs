//! Llama 1, 2 and 3 and what shares their architecture: SmolLM2, TinyLlama, Yi.

use crate::error::Result;
use crate::format::GgufFile;
use crate::model::error::{ModelError, ModelResult};
use crate::model::families::Family;
use crate::model::families::config::Config;
use crate::model::families::gguf::{Keys, weight_names};
use crate::model::spec::{
    Activation, AttentionExtras, BlockShape, EmbeddingExtras, Heads, LogitExtras, Mlp, MlpNames, ModelSpec,
    Names, Norm, NormKind, NormWeight, Orientation, OutputHead, Positions, QkvNames, RopePairing,
    WeightNames,
};

pub(super) const FAMILY: Family = Family {
    architectures: &["LlamaForCausalLM"],
    model_type: "llama",
    from_config,
    gguf_architecture: "llama",
    from_gguf,
};

/// Base of the frequencies where the file does not say.
const DEFAULT_THETA: f64 = 10_000.0;

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    config.refuse_flag("attention_bias")?;
    config.refuse_flag("mlp_bias")?;
    if config.has("quantization_config") {
        return Err(ModelError::unsupported(
            "quantization_config",
            "quantised safetensors are not supported",
        ));
    }
    match config.text("hidden_act")? {
        None | Some("silu" | "swish") => {}
        Some(name) => {
            return Err(ModelError::unsupported("hidden_act", format!("{name:?} is not supported")));
        }
    }
    if config.number("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(ModelError::unsupported(
            "partial_rotary_factor",
            "another value than 1 is not supported",
        ));
    }
    let hidden_size = config.required_size("hidden_size")?;
    let num_heads = config.required_size("num_attention_heads")?;
    let head_dim = match config.size("head_dim")? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        None => {
            let message =
                format!("{num_heads} does not divide hidden_size {hidden_size}, and head_dim is missing");
            return Err(ModelError::invalid("num_attention_heads", message));
        }
    };
    let rope = config.rope(DEFAULT_THETA)?;
    Ok(ModelSpec {
        family: "llama".to_owned(),
        num_layers: config.required_size("num_hidden_layers")?,
        hidden_size,
        intermediate_size: config.required_size("intermediate_size")?,
        vocab_size: config.required_size("vocab_size")?,
        max_positions: rope.max_positions,
        embedding: EmbeddingExtras::default(),
        positions: Positions::Rope {
            theta: rope.theta,
            rotary_dim: head_dim,
            pairing: RopePairing::Half,
            scaling: rope.scaling,
            local: None,
        },
        norm: Norm {
            kind: NormKind::Rms,
            epsilon: config.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            weight: NormWeight::Plain,
        },
        block: BlockShape::Sequential,
        heads: Heads::scaled(num_heads, config.size("num_key_value_heads")?, head_dim),
        attention: AttentionExtras::default(),
        mlp: Mlp::Gated { activation: Activation::Silu },
        experts: None,
        logits: LogitExtras::default(),
        output: match config.bool("tie_word_embeddings")? {
            Some(true) => OutputHead::Tied,
            _ => OutputHead::Untied,
        },
        weights: WeightNames {
            orientation: Orientation::OutIn,
            embedding: "model.embed_tokens.weight".to_owned(),
            position_embedding: None,
            embedding_norm: None,
            attention_norm: Some(Names::weight("model.layers.{layer}.input_layernorm.weight")),
            qkv: QkvNames::Separate {
                query: Names::weight("model.layers.{layer}.self_attn.q_proj.weight"),
                key: Names::weight("model.layers.{layer}.self_attn.k_proj.weight"),
                value: Names::weight("model.layers.{layer}.self_attn.v_proj.weight"),
            },
            query_norm: None,
            key_norm: None,
            attention_output: Names::weight("model.layers.{layer}.self_attn.o_proj.weight"),
            post_attention_norm: None,
            mlp_norm: Some(Names::weight("model.layers.{layer}.post_attention_layernorm.weight")),
            mlp: Some(MlpNames::Gated {
                gate: Names::weight("model.layers.{layer}.mlp.gate_proj.weight"),
                up: Names::weight("model.layers.{layer}.mlp.up_proj.weight"),
                down: Names::weight("model.layers.{layer}.mlp.down_proj.weight"),
            }),
            experts: None,
            post_mlp_norm: None,
            final_norm: Some(Names::weight("model.norm.weight")),
            head: Some(Names::weight("lm_head.weight")),
        },
    })
}

/// GGUF files hold query and key rows in an order that makes RoPE's pairs neighbours.
fn from_gguf(file: &GgufFile) -> Result<ModelSpec> {
    let keys = Keys::new(file, FAMILY.gguf_architecture);
    keys.refuse_count("expert_count", "a mixture of experts")?;
    let hidden_size = keys.required_size("embedding_length")?;
    let num_heads = keys.required_size("attention.head_count")?;
    let head_dim = keys.head_dim(hidden_size, num_heads)?;
    let rotary_dim = keys.size("rope.dimension_count")?.unwrap_or(head_dim);
    let rope = keys.rope(rotary_dim, DEFAULT_THETA)?;
    Ok(ModelSpec {
        family: "llama".to_owned(),
        num_layers: keys.required_size("block_count")?,
        hidden_size,
        intermediate_size: keys.required_size("feed_forward_length")?,
        vocab_size: keys.vocab_size()?,
        max_positions: rope.max_positions,
        embedding: EmbeddingExtras::default(),
        positions: Positions::Rope {
            theta: rope.theta,
            rotary_dim,
            pairing: RopePairing::Interleaved,
            scaling: rope.scaling,
            local: None,
        },
        norm: Norm {
            kind: NormKind::Rms,
            epsilon: keys.required_number("attention.layer_norm_rms_epsilon")? as f32,
            weight: NormWeight::Plain,
        },
        block: BlockShape::Sequential,
        heads: Heads::scaled(num_heads, keys.size("attention.head_count_kv")?, head_dim),
        attention: AttentionExtras::default(),
        mlp: Mlp::Gated { activation: Activation::Silu },
        experts: None,
        logits: LogitExtras::default(),
        output: if keys.has_head() { OutputHead::Untied } else { OutputHead::Tied },
        weights: weight_names(),
    })
}

//! What the families from before Llama share: sizes under names of their own, the shape of GPT-2, and the names that
//! Megatron gave to a layer's tensors.

use crate::model::error::ModelResult;
use crate::model::families::config::Config;
use crate::model::families::parts::{Biases, bare_names, named};
use crate::model::spec::{
    Activation, AttentionExtras, BlockShape, EmbeddingExtras, Heads, LogitExtras, Mlp, MlpNames, ModelSpec,
    Norm, NormKind, NormWeight, OutputHead, Positions, QkvNames, QkvOrder, WeightNames,
};

/// Sizes that every configuration gives, whatever it calls them.
pub(super) struct Sizes {
    pub(super) num_layers: usize,
    pub(super) hidden_size: usize,
    pub(super) num_heads: usize,
    /// `head_dim`, else the hidden size by the heads.
    pub(super) head_dim: usize,
    pub(super) vocab_size: usize,
}

impl Sizes {
    /// Reads them from the fields that are named; of several names the first that is there counts.
    pub(super) fn read(
        config: &Config,
        num_layers: &[&str],
        hidden_size: &[&str],
        num_heads: &[&str],
    ) -> ModelResult<Self> {
        let hidden_size = config.first_size(hidden_size)?;
        let heads_field = config.first_of(num_heads);
        let num_heads = config.required_size(heads_field)?;
        Ok(Self {
            num_layers: config.first_size(num_layers)?,
            hidden_size,
            num_heads,
            head_dim: config.head_dim(hidden_size, heads_field, num_heads)?,
            vocab_size: config.required_size("vocab_size")?,
        })
    }

    /// A model of GPT-2's shape, of which families change what is theirs: layer norms before attention and before an
    /// MLP of four times the width with GELU, keys and values for each head, an output head of its own.
    pub(super) fn describe(
        self,
        family: &str,
        max_positions: usize,
        positions: Positions,
        epsilon: f32,
        weights: WeightNames,
    ) -> ModelSpec {
        ModelSpec {
            family: family.to_owned(),
            num_layers: self.num_layers,
            hidden_size: self.hidden_size,
            intermediate_size: 4 * self.hidden_size,
            vocab_size: self.vocab_size,
            max_positions,
            embedding: EmbeddingExtras::default(),
            positions,
            norm: Norm { kind: NormKind::Layer, epsilon, weight: NormWeight::Plain },
            block: BlockShape::Sequential,
            heads: Heads::scaled(self.num_heads, None, self.head_dim),
            attention: AttentionExtras::default(),
            mlp: Mlp::Plain { activation: Activation::Gelu },
            experts: None,
            output: OutputHead::Untied,
            logits: LogitExtras::default(),
            weights,
        }
    }
}

/// Megatron's names under `layer`, with those of attention under `attention`; norms have biases.
pub(super) fn megatron_names(
    embedding: String,
    layer: &str,
    attention: &str,
    order: QkvOrder,
    biases: Biases,
) -> WeightNames {
    let qkv =
        QkvNames::Fused { qkv: named(format!("{layer}{attention}.query_key_value"), biases.qkv), order };
    let output = named(format!("{layer}{attention}.dense"), biases.attention_output);
    WeightNames {
        attention_norm: Some(named(format!("{layer}input_layernorm"), true)),
        mlp_norm: Some(named(format!("{layer}post_attention_layernorm"), true)),
        mlp: Some(MlpNames::Plain {
            up: named(format!("{layer}mlp.dense_h_to_4h"), biases.mlp),
            down: named(format!("{layer}mlp.dense_4h_to_h"), biases.mlp),
        }),
        ..bare_names(embedding, qkv, output)
    }
}

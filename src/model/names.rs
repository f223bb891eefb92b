//! Names of a model's weights in its checkpoint.
//!
//! `{layer}` stands for the layer's index, `{expert}` for the expert's, `{head}` for the head's.

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A weight and, where the model has one, its bias. In JSON a name alone, or `{"weight": …, "bias": …}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Name of the weight.
    pub weight: String,
    /// Name of the bias.
    pub bias: Option<String>,
}

impl Names {
    /// A weight without bias.
    pub fn weight(name: impl Into<String>) -> Self {
        Self { weight: name.into(), bias: None }
    }

    /// `stem.weight` and `stem.bias`.
    pub fn with_bias(stem: &str) -> Self {
        Self { weight: format!("{stem}.weight"), bias: Some(format!("{stem}.bias")) }
    }
}

/// The form of [`Names`] with a bias.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamesWithBias {
    weight: String,
    #[serde(default)]
    bias: Option<String>,
}

impl Serialize for Names {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.bias {
            None => serializer.serialize_str(&self.weight),
            bias => NamesWithBias { weight: self.weight.clone(), bias: bias.clone() }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrObject;

        impl<'de> Visitor<'de> for NameOrObject {
            type Value = Names;

            fn expecting(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
                formatter.write_str("a tensor's name, or an object of weight and bias")
            }

            fn visit_str<E>(self, name: &str) -> Result<Names, E> {
                Ok(Names::weight(name))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Names, A::Error> {
                let NamesWithBias { weight, bias } =
                    NamesWithBias::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Names { weight, bias })
            }
        }

        deserializer.deserialize_any(NameOrObject)
    }
}

/// Names of all weights. Which of the optional ones must be there follows from the spec's axes, and
/// [`crate::model::ModelSpec::validate`] refuses what is missing and what is too much; a bias is there where it
/// has a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightNames {
    /// How the layers' matrices lie in the checkpoint.
    #[serde(default, skip_serializing_if = "is_default")]
    pub orientation: Orientation,
    /// Embedding table, `[vocab_size, hidden_size]`.
    pub embedding: String,
    /// Table of learned positions, `[offset + max_positions, hidden_size]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position_embedding: Option<String>,
    /// Norm of the embedded tokens, `[hidden_size]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedding_norm: Option<Names>,
    /// Norm before attention, `[hidden_size]`; absent where norms have no weight and in post-norm blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_norm: Option<Names>,
    /// Query, key and value projections.
    pub qkv: QkvNames,
    /// Norm of queries: `[head_dim]` or, where it takes the whole width or is named by `{head}`, a weight for
    /// each head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_norm: Option<Names>,
    /// Norm of keys, like that of queries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_norm: Option<Names>,
    /// Output projection, `[hidden_size, num_heads * head_dim]`.
    pub attention_output: Names,
    /// Norm of attention's result, `[hidden_size]`; in sandwich and post-norm blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_attention_norm: Option<Names>,
    /// Norm before the MLP, `[hidden_size]`; absent where norms have no weight and where the block has one norm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlp_norm: Option<Names>,
    /// MLP of the layers that are no mixture of experts; absent where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlp: Option<MlpNames>,
    /// Mixture of experts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertNames>,
    /// Norm of the MLP's result, `[hidden_size]`; in sandwich and post-norm blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_mlp_norm: Option<Names>,
    /// Norm before the head, `[hidden_size]`; absent where norms have no weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_norm: Option<Names>,
    /// Output head, `[vocab_size, hidden_size]`. Where the head is tied it may stand in the checkpoint as a copy of
    /// the embedding.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Names>,
}

/// How matrices of layers lie in the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Orientation {
    /// `[out_features, in_features]`, PyTorch's `Linear`.
    #[default]
    OutIn,
    /// `[in_features, out_features]`, GPT-2's `Conv1D`.
    InOut,
}

/// Query, key and value projections in the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum QkvNames {
    /// A tensor each; all or none have a bias.
    Separate {
        /// `[num_heads * head_dim, hidden_size]`.
        query: Names,
        /// `[num_kv_heads * head_dim, hidden_size]`.
        key: Names,
        /// `[num_kv_heads * head_dim, hidden_size]`.
        value: Names,
    },
    /// One tensor, `[(num_heads + 2 * num_kv_heads) * head_dim, hidden_size]`.
    Fused {
        /// The tensor.
        qkv: Names,
        /// Order of its rows.
        order: QkvOrder,
    },
}

/// Order of the rows of a fused projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QkvOrder {
    /// All queries, all keys, all values: GPT-2, Phi-3, MPT, Baichuan's `W_pack`, ChatGLM, Falcon 7B, StarCoder.
    Blocks,
    /// For each key-value head its queries, its key and its value: GPT-NeoX and BLOOM (where every group has
    /// one query), Falcon 40B, InternLM2.
    Groups,
}

/// An MLP in the checkpoint. Matrices are `[out_features, in_features]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum MlpNames {
    /// Without a gate.
    Plain {
        /// `[intermediate_size, hidden_size]`.
        up: Names,
        /// `[hidden_size, intermediate_size]`.
        down: Names,
    },
    /// Gate and up in a tensor each; both or none have a bias.
    Gated {
        /// `[intermediate_size, hidden_size]`.
        gate: Names,
        /// `[intermediate_size, hidden_size]`.
        up: Names,
        /// `[hidden_size, intermediate_size]`.
        down: Names,
    },
    /// Gate and up in one tensor, the gate first: Phi-3, ChatGLM, GLM-4.
    FusedGated {
        /// `[2 * intermediate_size, hidden_size]`.
        gate_up: Names,
        /// `[hidden_size, intermediate_size]`.
        down: Names,
    },
}

impl MlpNames {
    /// The tensors, each with its field's name.
    pub(crate) fn parts(&self) -> Vec<(&'static str, &Names)> {
        match self {
            MlpNames::Plain { up, down } => vec![("up", up), ("down", down)],
            MlpNames::Gated { gate, up, down } => vec![("gate", gate), ("up", up), ("down", down)],
            MlpNames::FusedGated { gate_up, down } => vec![("gate_up", gate_up), ("down", down)],
        }
    }
}

/// A mixture of experts in the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertNames {
    /// Router, `[num_experts, hidden_size]`.
    pub router: String,
    /// The experts: named by `{expert}`, or without it all stacked, `[num_experts, out_features, in_features]`.
    pub experts: MlpNames,
    /// The shared expert.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<MlpNames>,
    /// Gate of the shared expert, `[1, hidden_size]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared_gate: Option<String>,
}

/// Whether a field need not be written.
pub(super) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A name and where it stands in the spec.
pub(crate) struct NamedField<'a> {
    pub(crate) field: String,
    pub(crate) name: &'a str,
    /// Whether it must contain `{layer}`; else it must not.
    pub(crate) per_layer: bool,
    /// Another index that it may contain.
    pub(crate) index: Option<&'static str>,
}

/// Collects [`NamedField`]s.
struct Fields<'a>(Vec<NamedField<'a>>);

impl<'a> Fields<'a> {
    fn name(&mut self, field: &str, name: Option<&'a String>, per_layer: bool) {
        let field = format!("weights.{field}");
        self.0.extend(name.map(|name| NamedField { field, name, per_layer, index: None }));
    }

    fn names(&mut self, field: &str, names: Option<&'a Names>, per_layer: bool, index: Option<&'static str>) {
        let Some(names) = names else { return };
        let field = format!("weights.{field}");
        if let Some(bias) = &names.bias {
            self.0.push(NamedField { field: format!("{field}.bias"), name: bias, per_layer, index });
        }
        self.0.push(NamedField { field, name: &names.weight, per_layer, index });
    }

    fn mlp(&mut self, field: &str, mlp: Option<&'a MlpNames>, index: Option<&'static str>) {
        for (part, names) in mlp.into_iter().flat_map(MlpNames::parts) {
            self.names(&format!("{field}.{part}"), Some(names), true, index);
        }
    }
}

impl Names {
    fn rename(&mut self, change: &impl Fn(&mut String)) {
        change(&mut self.weight);
        self.bias.iter_mut().for_each(change);
    }
}

impl MlpNames {
    fn rename(&mut self, change: &impl Fn(&mut String)) {
        let parts = match self {
            MlpNames::Plain { up, down } => vec![up, down],
            MlpNames::Gated { gate, up, down } => vec![gate, up, down],
            MlpNames::FusedGated { gate_up, down } => vec![gate_up, down],
        };
        parts.into_iter().for_each(|names| names.rename(change));
    }
}

impl WeightNames {
    /// Changes every name that is there.
    pub(crate) fn rename(&mut self, change: &impl Fn(&mut String)) {
        let Self {
            orientation: _,
            embedding,
            position_embedding,
            embedding_norm,
            attention_norm,
            qkv,
            query_norm,
            key_norm,
            attention_output,
            post_attention_norm,
            mlp_norm,
            mlp,
            experts,
            post_mlp_norm,
            final_norm,
            head,
        } = self;
        [Some(embedding), position_embedding.as_mut()].into_iter().flatten().for_each(change);
        match qkv {
            QkvNames::Separate { query, key, value } => {
                [query, key, value].into_iter().for_each(|names| names.rename(change));
            }
            QkvNames::Fused { qkv, order: _ } => qkv.rename(change),
        }
        mlp.iter_mut().for_each(|mlp| mlp.rename(change));
        if let Some(ExpertNames { router, experts, shared, shared_gate }) = experts {
            experts.rename(change);
            shared.iter_mut().for_each(|mlp| mlp.rename(change));
            [Some(router), shared_gate.as_mut()].into_iter().flatten().for_each(change);
        }
        attention_output.rename(change);
        let norms = [embedding_norm, attention_norm, query_norm, key_norm, post_attention_norm, mlp_norm];
        let norms_and_head = norms.into_iter().chain([post_mlp_norm, final_norm, head]);
        norms_and_head.flatten().for_each(|names| names.rename(change));
    }

    /// Every name that is there.
    pub(crate) fn fields(&self) -> Vec<NamedField<'_>> {
        let mut fields = Fields(Vec::new());
        fields.name("embedding", Some(&self.embedding), false);
        fields.name("position_embedding", self.position_embedding.as_ref(), false);
        fields.names("embedding_norm", self.embedding_norm.as_ref(), false, None);
        fields.names("attention_norm", self.attention_norm.as_ref(), true, None);
        match &self.qkv {
            QkvNames::Separate { query, key, value } => {
                fields.names("qkv.query", Some(query), true, None);
                fields.names("qkv.key", Some(key), true, None);
                fields.names("qkv.value", Some(value), true, None);
            }
            QkvNames::Fused { qkv, order: _ } => fields.names("qkv.qkv", Some(qkv), true, None),
        }
        fields.names("query_norm", self.query_norm.as_ref(), true, Some("{head}"));
        fields.names("key_norm", self.key_norm.as_ref(), true, Some("{head}"));
        fields.names("attention_output", Some(&self.attention_output), true, None);
        fields.names("post_attention_norm", self.post_attention_norm.as_ref(), true, None);
        fields.names("mlp_norm", self.mlp_norm.as_ref(), true, None);
        fields.mlp("mlp", self.mlp.as_ref(), None);
        if let Some(experts) = &self.experts {
            fields.name("experts.router", Some(&experts.router), true);
            fields.mlp("experts.experts", Some(&experts.experts), Some("{expert}"));
            fields.mlp("experts.shared", experts.shared.as_ref(), None);
            fields.name("experts.shared_gate", experts.shared_gate.as_ref(), true);
        }
        fields.names("post_mlp_norm", self.post_mlp_norm.as_ref(), true, None);
        fields.names("final_norm", self.final_norm.as_ref(), false, None);
        fields.names("head", self.head.as_ref(), false, None);
        fields.0
    }
}

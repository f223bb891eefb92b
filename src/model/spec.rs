//! A model's architecture, as data.
//!
//! One generic decoder runs every [`ModelSpec`]; a family file turns a `config.json` into one.

use serde::{Deserialize, Serialize};

use crate::backend::{self, AttentionShape};

/// The architecture of a decoder-only transformer. Every field is an axis on which families differ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Name of the family it was made from, for people.
    pub family: String,
    /// Decoder layers.
    pub num_layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Positions the model was trained for.
    pub max_positions: usize,
    /// How positions enter.
    pub positions: Positions,
    /// Normalisation.
    pub norm: Norm,
    /// How attention and MLP share the residual.
    pub block: BlockShape,
    /// Attention heads.
    pub heads: Heads,
    /// MLP.
    pub mlp: Mlp,
    /// Output head.
    pub output: OutputHead,
    /// Names of the weights.
    pub weights: WeightNames,
}

/// How positions enter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Positions {
    /// Rotary embedding of queries and keys (Su et al. 2021).
    Rope {
        /// Base of the frequencies.
        theta: f64,
        /// Elements of a head that rotate; even.
        rotary_dim: usize,
        /// Which elements form a pair.
        pairing: RopePairing,
        /// Stretching of the frequencies for longer contexts.
        scaling: RopeScaling,
    },
}

/// Which elements of a head form a rotating pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopePairing {
    /// Element `i` with `i + rotary_dim / 2` (Hugging Face checkpoints).
    Half,
    /// Element `2 i` with `2 i + 1` (GGUF files of the Llama architecture, GPT-J).
    Interleaved,
}

impl From<RopePairing> for backend::RopePairing {
    fn from(pairing: RopePairing) -> Self {
        match pairing {
            RopePairing::Half => Self::Half,
            RopePairing::Interleaved => Self::Interleaved,
        }
    }
}

/// Stretching of RoPE's frequencies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RopeScaling {
    /// None.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// Divisor, above 0.
        factor: f64,
    },
    /// Base raised for contexts past the original (`dynamic` NTK, applied at the longest supported context).
    DynamicNtk {
        /// Stretch, above 0.
        factor: f64,
        /// Context that the model was trained for before stretching.
        original_max_positions: usize,
    },
    /// Llama 3.1's blend by wavelength.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths longer than `original_max_positions / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths shorter than `original_max_positions / high_freq_factor` stay.
        high_freq_factor: f64,
        /// Context that the model was trained for before stretching.
        original_max_positions: usize,
    },
    /// YaRN (Peng et al. 2023).
    Yarn {
        /// Divisor of the interpolated frequencies.
        factor: f64,
        /// Context that the model was trained for before stretching.
        original_max_positions: usize,
        /// Rotations above which a frequency stays.
        beta_fast: f64,
        /// Rotations below which a frequency is divided.
        beta_slow: f64,
        /// Factor on cosines and sines.
        attention_factor: f64,
    },
    /// One divisor per frequency, `[rotary_dim / 2]` (GGUF `rope_freqs.weight`, LongRoPE).
    PerFrequency {
        /// Divisors.
        factors: Vec<f32>,
    },
}

/// Normalisation before attention and MLP and at the end.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Norm {
    /// Root mean square (Zhang and Sennrich 2019).
    Rms {
        /// Added to the mean square.
        epsilon: f32,
    },
}

/// How attention and MLP share the residual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockShape {
    /// `x += attention(norm(x)); x += mlp(norm(x))`.
    Sequential,
}

/// Attention heads. `num_kv_heads == num_heads` is multi-head, 1 multi-query, anything between grouped-query.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heads {
    /// Query heads.
    pub num_heads: usize,
    /// Key-value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor on the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f32,
}

impl Heads {
    /// Heads with the usual scale, `1 / sqrt(head_dim)`; multi-head where `num_kv_heads` is not given.
    pub fn scaled(num_heads: usize, num_kv_heads: Option<usize>, head_dim: usize) -> Self {
        let num_kv_heads = num_kv_heads.unwrap_or(num_heads);
        Self { num_heads, num_kv_heads, head_dim, scale: (1.0 / (head_dim as f64).sqrt()) as f32 }
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of all key heads together.
    pub fn kv_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }
}

impl From<Heads> for AttentionShape {
    fn from(heads: Heads) -> Self {
        let Heads { num_heads, num_kv_heads, head_dim, scale } = heads;
        Self { num_heads, num_kv_heads, head_dim, scale }
    }
}

/// The MLP of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Mlp {
    /// `down(activation(gate(x)) * up(x))`.
    Gated {
        /// Activation.
        activation: Activation,
    },
}

/// Activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
}

impl From<Activation> for backend::Activation {
    fn from(activation: Activation) -> Self {
        match activation {
            Activation::Silu => Self::Silu,
        }
    }
}

/// What turns the last hidden state into logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputHead {
    /// The embedding table.
    Tied,
    /// A matrix of its own.
    Untied,
}

/// Names of the weights in the checkpoint; `{layer}` stands for the layer's index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightNames {
    /// Embedding table, `[vocab_size, hidden_size]`.
    pub embedding: String,
    /// Norm before attention, `[hidden_size]`.
    pub attention_norm: String,
    /// Query projection, `[num_heads * head_dim, hidden_size]`.
    pub query: String,
    /// Key projection, `[num_kv_heads * head_dim, hidden_size]`.
    pub key: String,
    /// Value projection, `[num_kv_heads * head_dim, hidden_size]`.
    pub value: String,
    /// Output projection, `[hidden_size, num_heads * head_dim]`.
    pub attention_output: String,
    /// Norm before the MLP, `[hidden_size]`.
    pub mlp_norm: String,
    /// Gate projection, `[intermediate_size, hidden_size]`.
    pub gate: String,
    /// Up projection, `[intermediate_size, hidden_size]`.
    pub up: String,
    /// Down projection, `[hidden_size, intermediate_size]`.
    pub down: String,
    /// Norm before the head, `[hidden_size]`.
    pub final_norm: String,
    /// Output head, `[vocab_size, hidden_size]`; unused where tied.
    pub head: String,
}

impl WeightNames {
    /// Every field: its name, its value, and whether there is one such weight per layer.
    pub(crate) fn fields(&self) -> [(&'static str, &str, bool); 12] {
        [
            ("embedding", &self.embedding, false),
            ("attention_norm", &self.attention_norm, true),
            ("query", &self.query, true),
            ("key", &self.key, true),
            ("value", &self.value, true),
            ("attention_output", &self.attention_output, true),
            ("mlp_norm", &self.mlp_norm, true),
            ("gate", &self.gate, true),
            ("up", &self.up, true),
            ("down", &self.down, true),
            ("final_norm", &self.final_norm, false),
            ("head", &self.head, false),
        ]
    }
}

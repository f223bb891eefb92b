//! A model's architecture, as data.
//!
//! One generic decoder runs every [`ModelSpec`]; a family file turns a `config.json` into one. Fields that most
//! models leave at their usual value need not be written in a `model_spec.json`.

use serde::{Deserialize, Serialize};

pub use crate::backend::{
    Activation, ExpertWeighting, Gating, NormExtent, NormKind, RopePairing, RouterScoring,
};
use crate::backend::{Alibi, AttentionShape, Scoring};
use crate::model::names::is_default;
pub use crate::model::names::{ExpertNames, MlpNames, Names, Orientation, QkvNames, QkvOrder, WeightNames};

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
    /// What happens to embedded tokens.
    #[serde(default, skip_serializing_if = "is_default")]
    pub embedding: EmbeddingExtras,
    /// How positions enter.
    pub positions: Positions,
    /// Normalisation, at every place.
    pub norm: Norm,
    /// How attention and MLP share the residual.
    #[serde(default, skip_serializing_if = "is_default")]
    pub block: BlockShape,
    /// Attention heads.
    pub heads: Heads,
    /// What attention does beyond the usual.
    #[serde(default, skip_serializing_if = "is_default")]
    pub attention: AttentionExtras,
    /// MLP, and form of the experts.
    pub mlp: Mlp,
    /// Mixture of experts in place of some layers' MLP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<Experts>,
    /// Output head.
    pub output: OutputHead,
    /// What happens to the head's products.
    #[serde(default, skip_serializing_if = "is_default")]
    pub logits: LogitExtras,
    /// Names of the weights.
    pub weights: WeightNames,
}

/// What happens to embedded tokens before the first layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmbeddingExtras {
    /// Factor on the table's rows; Gemma's is the root of the hidden size. Learned positions are added to the
    /// product.
    #[serde(skip_serializing_if = "is_one")]
    pub scale: f32,
    /// Whether they are normalised.
    #[serde(skip_serializing_if = "is_default")]
    pub norm: EmbeddingNorm,
}

impl Default for EmbeddingExtras {
    fn default() -> Self {
        Self { scale: 1.0, norm: EmbeddingNorm::None }
    }
}

/// Normalisation of embedded tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmbeddingNorm {
    /// None.
    #[default]
    None,
    /// The model's norm, with a weight of its own (BLOOM).
    Normalized,
}

/// How positions enter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Positions {
    /// By the causal mask alone.
    None,
    /// A table of embeddings, added to the tokens'.
    Learned {
        /// Row of position 0 (2 in OPT).
        #[serde(default, skip_serializing_if = "is_default")]
        offset: usize,
    },
    /// Linear biases on the scores (Press et al. 2022): slopes are a geometric sequence for the largest power of
    /// two of heads, and heads beyond it take every second slope of the sequence for twice as many.
    Alibi {
        /// The last slope of a power of two of heads is `2^-max_bias`.
        #[serde(default = "alibi_max_bias", skip_serializing_if = "is_alibi_max_bias")]
        max_bias: f32,
        /// Factor on every slope: Falcon adds them to the scores before these are scaled.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        scale: f32,
    },
    /// Rotary embedding of queries and keys (Su et al. 2021).
    Rope {
        /// Base of the frequencies.
        theta: f64,
        /// Leading elements of a head that rotate; even.
        rotary_dim: usize,
        /// Which elements form a pair.
        #[serde(default, skip_serializing_if = "is_default")]
        pairing: RopePairing,
        /// Stretching of the frequencies for longer contexts.
        #[serde(default, skip_serializing_if = "is_default")]
        scaling: RopeScaling,
        /// Frequencies of the layers with a sliding window, where they differ (Gemma 3).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        local: Option<LocalRope>,
    },
}

/// Frequencies of the layers with a sliding window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocalRope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Stretching of the frequencies for longer contexts.
    #[serde(default, skip_serializing_if = "is_default")]
    pub scaling: RopeScaling,
}

/// Stretching of RoPE's frequencies.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RopeScaling {
    /// None.
    #[default]
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// Divisor, above 0.
        factor: f64,
    },
    /// Base raised for contexts past the original (`dynamic` NTK, applied at the longest context that the engine
    /// takes).
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
    /// One divisor per frequency, `[rotary_dim / 2]` (GGUF `rope_freqs.weight`).
    PerFrequency {
        /// Divisors.
        factors: Vec<f32>,
    },
    /// LongRoPE (Ding et al. 2024): one divisor per frequency, `[rotary_dim / 2]`, from one of two lists by the
    /// longest context that the engine takes (Phi-3, Phi-4).
    LongRope {
        /// Divisors for contexts up to `original_max_positions`.
        short_factors: Vec<f32>,
        /// Divisors for longer contexts.
        long_factors: Vec<f32>,
        /// Context that the model was trained for before stretching.
        original_max_positions: usize,
        /// Factor on cosines and sines.
        attention_factor: f64,
    },
}

/// Normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Norm {
    /// What it divides by.
    pub kind: NormKind,
    /// Added to the mean square or the variance.
    pub epsilon: f32,
    /// What it multiplies with. A bias follows where the weight names have one.
    #[serde(default, skip_serializing_if = "is_default")]
    pub weight: NormWeight,
}

/// What a norm multiplies with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormWeight {
    /// The weight in the checkpoint.
    #[default]
    Plain,
    /// 1 plus the weight in the checkpoint (Gemma; its GGUF files hold the sum, which is [`NormWeight::Plain`]).
    OnePlus,
    /// Nothing: the checkpoint has no weights of norms (OLMo 1).
    Absent,
}

/// How attention and MLP share the residual `x`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BlockShape {
    /// `x += attention(norm(x)); x += mlp(norm(x))`.
    #[default]
    Sequential,
    /// `x += attention(n) + mlp(n)` with `n = norm(x)` (GPT-J, Falcon 7B, Phi-1 and 2).
    Parallel,
    /// `x += attention(attention_norm(x)) + mlp(mlp_norm(x))` (GPT-NeoX, Falcon 40B).
    ParallelTwoNorms,
    /// `x += norm(attention(norm(x))); x += norm(mlp(norm(x)))` (Gemma 2 and 3, GLM-4).
    Sandwich,
    /// `x += norm(attention(x)); x += norm(mlp(x))` (OLMo 2).
    PostNorm,
}

impl BlockShape {
    /// Its name in a model's description.
    pub fn name(self) -> &'static str {
        match self {
            BlockShape::Sequential => "sequential",
            BlockShape::Parallel => "parallel",
            BlockShape::ParallelTwoNorms => "parallel_two_norms",
            BlockShape::Sandwich => "sandwich",
            BlockShape::PostNorm => "post_norm",
        }
    }
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
    /// Factor on the scores; absent: `1 / sqrt(head_dim)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<f32>,
}

impl Heads {
    /// Heads with the usual scale; multi-head where `num_kv_heads` is not given.
    pub fn scaled(num_heads: usize, num_kv_heads: Option<usize>, head_dim: usize) -> Self {
        Self { num_heads, num_kv_heads: num_kv_heads.unwrap_or(num_heads), head_dim, scale: None }
    }

    /// Factor on the scores.
    pub fn score_scale(&self) -> f32 {
        self.scale.unwrap_or((1.0 / (self.head_dim as f64).sqrt()) as f32)
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of all key heads together.
    pub fn kv_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Width of queries, keys and values together.
    pub fn qkv_width(&self) -> usize {
        self.query_width() + 2 * self.kv_width()
    }
}

impl From<Heads> for AttentionShape {
    fn from(heads: Heads) -> Self {
        let Heads { num_heads, num_kv_heads, head_dim, scale: _ } = heads;
        Self { num_heads, num_kv_heads, head_dim, scale: heads.score_scale() }
    }
}

/// What attention does beyond the usual. Biases of its projections are there where the weight names have them.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttentionExtras {
    /// Limits the elements of queries, keys and values to `-qkv_clamp..=qkv_clamp` (`clip_qkv` of MPT and OLMo).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qkv_clamp: Option<f32>,
    /// The model's norm on queries and keys before positions enter: on each head (Qwen 3, Gemma 3, StableLM 2) or
    /// on the whole width (OLMo 2, MPT).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qk_norm: Option<NormExtent>,
    /// `cap * tanh(score / cap)` on the scores (Gemma 2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_soft_cap: Option<f32>,
    /// Limited sight of some layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sliding_window: Option<SlidingWindow>,
}

/// Limited sight: a token sees itself and the `size - 1` tokens before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlidingWindow {
    /// Tokens, at least 1.
    pub size: usize,
    /// Layers that it holds for.
    #[serde(default, skip_serializing_if = "is_default")]
    pub layers: LayerSet,
}

/// Some of a model's layers, counted from 0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum LayerSet {
    /// All.
    #[default]
    All,
    /// Layer `first` and those after it.
    From {
        /// The first.
        first: usize,
    },
    /// Layers whose index modulo `period` is one of `remainders`: Gemma 2 has its window where the index is even.
    Periodic {
        /// Length of the pattern, at least 1.
        period: usize,
        /// Indexes in the pattern, below `period`.
        remainders: Vec<usize>,
    },
    /// These.
    Listed {
        /// Indexes, below the number of layers.
        layers: Vec<usize>,
    },
}

impl LayerSet {
    /// Whether `layer` is one of them.
    pub fn contains(&self, layer: usize) -> bool {
        match self {
            LayerSet::All => true,
            LayerSet::From { first } => layer >= *first,
            LayerSet::Periodic { period, remainders } => remainders.contains(&(layer % (*period).max(1))),
            LayerSet::Listed { layers } => layers.contains(&layer),
        }
    }
}

/// The MLP of a layer, and of an expert. Biases are there where the weight names have them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Mlp {
    /// `down(activation(gate(x)) * up(x))`.
    Gated {
        /// Activation.
        activation: Activation,
    },
    /// `down(activation(up(x)))`.
    Plain {
        /// Activation.
        activation: Activation,
    },
}

impl Mlp {
    /// Its activation function.
    pub fn activation(self) -> Activation {
        let (Mlp::Gated { activation } | Mlp::Plain { activation }) = self;
        activation
    }

    /// Whether it has a gate.
    pub fn gating(self) -> Gating {
        match self {
            Mlp::Gated { .. } => Gating::Gated,
            Mlp::Plain { .. } => Gating::Plain,
        }
    }
}

/// A mixture of experts: `sum of score(e) * expert_e(x)` over the `num_chosen` best experts of a token, plus a
/// shared expert's result where there is one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experts {
    /// Experts of a layer.
    pub num_experts: usize,
    /// Experts that a token passes.
    pub num_chosen: usize,
    /// Width of an expert's MLP.
    pub intermediate_size: usize,
    /// What makes scores of the router's products.
    #[serde(default, skip_serializing_if = "is_default")]
    pub scoring: RouterScoring,
    /// What becomes of the chosen experts' scores.
    pub weighting: ExpertWeighting,
    /// Factor on the chosen experts' scores.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub scale: f32,
    /// An expert that all tokens pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<SharedExpert>,
    /// Layers that have experts; the others have the plain MLP.
    #[serde(default, skip_serializing_if = "is_default")]
    pub layers: LayerSet,
}

/// An expert that all tokens pass. Several that have one width each are one of the widths' sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedExpert {
    /// Width of its MLP.
    pub intermediate_size: usize,
    /// Factor on its result.
    #[serde(default, skip_serializing_if = "is_default")]
    pub gate: SharedExpertGate,
}

/// Factor on a shared expert's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SharedExpertGate {
    /// None.
    #[default]
    None,
    /// The logistic function of one product with the hidden state (Qwen MoE).
    Sigmoid,
}

/// What turns the last hidden state into logits. A bias follows where the weight names have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputHead {
    /// The embedding table.
    Tied,
    /// A matrix of its own.
    Untied,
    /// A matrix of its own whose rows are divided by their lengths (Baichuan 2).
    UntiedUnitRows,
}

/// What happens to the head's products.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogitExtras {
    /// Factor on products and bias (MPT).
    #[serde(skip_serializing_if = "is_one")]
    pub scale: f32,
    /// Then `cap * tanh(logit / cap)` (Gemma 2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soft_cap: Option<f32>,
}

impl Default for LogitExtras {
    fn default() -> Self {
        Self { scale: 1.0, soft_cap: None }
    }
}

impl ModelSpec {
    /// What the scores of layer `layer` pass.
    pub fn scoring(&self, layer: usize) -> Scoring {
        let window = self.attention.sliding_window.as_ref().filter(|window| window.layers.contains(layer));
        let alibi = match self.positions {
            Positions::Alibi { max_bias, scale } => Some(Alibi { max_bias, scale }),
            _ => None,
        };
        Scoring { soft_cap: self.attention.score_soft_cap, alibi, window: window.map(|window| window.size) }
    }

    /// The mixture of experts of layer `layer`, where it has one.
    pub fn experts_of(&self, layer: usize) -> Option<&Experts> {
        self.experts.as_ref().filter(|experts| experts.layers.contains(layer))
    }
}

fn one() -> f32 {
    1.0
}

fn is_one(value: &f32) -> bool {
    *value == 1.0
}

fn alibi_max_bias() -> f32 {
    8.0
}

fn is_alibi_max_bias(value: &f32) -> bool {
    *value == alibi_max_bias()
}

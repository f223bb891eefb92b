//! What the operations of [`super::Backend`] take beside tensors and rows.

use serde::{Deserialize, Serialize};

use super::{BackendError, BackendResult, KvLayout};

/// How RoPE pairs the elements of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopePairing {
    /// Element `i` with `i + rotary_dim / 2` (most Hugging Face checkpoints).
    #[default]
    Half,
    /// Element `2 i` with `2 i + 1` (GPT-J, ChatGLM, GGUF files of the Llama architecture).
    Interleaved,
}

/// What a norm divides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// The root of the mean square (Zhang and Sennrich 2019).
    Rms,
    /// The standard deviation, after the mean was subtracted (Ba et al. 2016).
    Layer,
}

/// Activation function of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * P(X <= x)` for a standard normal X, by the error function (Hendrycks and Gimpel 2016).
    Gelu,
    /// Their approximation with the hyperbolic tangent, `gelu_new` and `gelu_fast` of Hugging Face.
    GeluTanh,
    /// Their approximation `x * sigmoid(1.702 x)`.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)^2`.
    ReluSquared,
}

impl Activation {
    /// Every function.
    pub const ALL: [Activation; 6] = [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::QuickGelu,
        Activation::Relu,
        Activation::ReluSquared,
    ];

    /// Its name in a model's description.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Silu => "silu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_tanh",
            Activation::QuickGelu => "quick_gelu",
            Activation::Relu => "relu",
            Activation::ReluSquared => "relu_squared",
        }
    }
}

/// Whether an activation has a second input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gating {
    /// `activation(gate) * up` for rows `[gate | up]`.
    Gated,
    /// `activation(up)` for rows `[up]`.
    Plain,
}

impl Gating {
    /// Width of the input for an output of `width`.
    pub fn input_width(self, width: usize) -> usize {
        match self {
            Gating::Gated => width.saturating_mul(2),
            Gating::Plain => width,
        }
    }
}

/// Parameters of [`super::Backend::embed`].
#[derive(Debug)]
pub struct Embedding<'a, T> {
    /// Embedding table, `[vocab, hidden]`.
    pub table: &'a T,
    /// Factor on the table's rows.
    pub scale: f32,
    /// Rows that are added by position, `[positions, hidden]`, of the table's type.
    pub positions: Option<&'a T>,
}

impl<'a, T> Embedding<'a, T> {
    /// A table's rows as they are.
    pub fn plain(table: &'a T) -> Self {
        Self { table, scale: 1.0, positions: None }
    }
}

/// What is added to the residual: the output of a matrix product and its bias.
#[derive(Debug)]
pub struct Delta<'a, T> {
    /// `[rows, hidden]`.
    pub values: &'a T,
    /// `[1, hidden]`, in f32.
    pub bias: Option<&'a T>,
}

impl<'a, T> Delta<'a, T> {
    /// Values without a bias.
    pub fn plain(values: &'a T) -> Self {
        Self { values, bias: None }
    }
}

impl<T> Clone for Delta<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Delta<'_, T> {}

/// The last matrix product of a block, whose result belongs to the residual.
#[derive(Debug)]
pub struct Projection<'a, T> {
    /// `[rows, in_features]`.
    pub input: &'a T,
    /// `[hidden, in_features]`.
    pub weight: &'a T,
    /// `[1, hidden]`, in f32.
    pub bias: Option<&'a T>,
    /// Where the product goes unless it is added to the residual at once, `[rows, hidden]`.
    pub delta: &'a mut T,
}

/// Parameters of a norm: `(x - mean) / deviation * weight + bias`, both in f32.
#[derive(Debug)]
pub struct Norm<'a, T> {
    /// What it divides by.
    pub kind: NormKind,
    /// Added to the mean square or the variance.
    pub epsilon: f32,
    /// `[1, hidden]`.
    pub weight: &'a T,
    /// `[1, hidden]`.
    pub bias: Option<&'a T>,
}

impl<'a, T> Norm<'a, T> {
    /// Division by the root of the mean square.
    pub fn rms(weight: &'a T, epsilon: f32) -> Self {
        Self { kind: NormKind::Rms, epsilon, weight, bias: None }
    }
}

impl<T> Clone for Norm<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Norm<'_, T> {}

/// What happens to queries, keys and values between their projection and attention, in this order.
#[derive(Debug)]
pub struct QkvTransform<'a, T> {
    /// Added first, `[1, qkv_width]`, in f32.
    pub bias: Option<&'a T>,
    /// Limits all elements to `-clamp..=clamp`.
    pub clamp: Option<f32>,
    /// Norm of queries and keys.
    pub norm: Option<QkNorm<'a, T>>,
    /// Rotation of queries and keys.
    pub rope: Option<Rope<'a, T>>,
}

impl<'a, T> QkvTransform<'a, T> {
    /// A rotation alone.
    pub fn rotate(table: &'a T, pairing: RopePairing) -> Self {
        Self { bias: None, clamp: None, norm: None, rope: Some(Rope { table, pairing }) }
    }
}

/// The projection to queries, keys and values, and what happens to them before attention.
#[derive(Debug)]
pub struct QkvProjection<'a, T> {
    /// `[qkv_width, hidden]`.
    pub weight: &'a T,
    /// What follows the product.
    pub transform: QkvTransform<'a, T>,
    /// The heads.
    pub shape: &'a AttentionShape,
}

/// Norm of queries and keys.
#[derive(Debug)]
pub struct QkNorm<'a, T> {
    /// Kind and epsilon; the weight is `[1, num_heads * head_dim]`, a bias as wide.
    pub query: Norm<'a, T>,
    /// The same for `[1, num_kv_heads * head_dim]`.
    pub key: Norm<'a, T>,
    /// What is normalised together.
    pub extent: NormExtent,
    /// Leading elements of a head that are normalised. Those after them are padding: they do not count, and stay.
    pub head_len: usize,
}

/// What a norm of queries or keys takes together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormExtent {
    /// Every head by itself.
    Head,
    /// All heads of a token.
    Width,
}

/// Rotary position embedding (Su et al. 2021).
#[derive(Debug)]
pub struct Rope<'a, T> {
    /// Row `p` holds the `rotary_dim / 2` cosines of position `p`, then as many sines; f32.
    pub table: &'a T,
    /// Which elements form a pair.
    pub pairing: RopePairing,
}

/// What the scores of attention pass beside the scale, in this order: soft cap, ALiBi, window.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Scoring {
    /// `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// Added by distance.
    pub alibi: Option<Alibi>,
    /// A token sees itself and the `window - 1` tokens before it; at least 1.
    pub window: Option<usize>,
}

impl Scoring {
    /// Checks that a window is not empty and a cap above 0.
    pub fn check(&self, operation: &'static str) -> BackendResult<()> {
        if self.window == Some(0) || self.soft_cap.is_some_and(|cap| cap <= 0.0) {
            let message = format!("{self:?} has a window of 0 or a cap that is not above 0");
            return Err(BackendError::InvalidArgument { operation, message });
        }
        Ok(())
    }
}

/// Linear biases by distance (Press et al. 2022): a query sees a key `d` positions before it with
/// `-slope * d` added to the score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Alibi {
    /// The last head of a power of two of them has the slope `2^-max_bias`.
    pub max_bias: f32,
    /// Factor on every slope.
    pub scale: f32,
}

impl Alibi {
    /// Slope of head `head` of `num_heads`: a geometric sequence for the largest power of two of heads; heads
    /// beyond it take every second slope of the sequence for twice as many.
    pub fn slope(&self, head: usize, num_heads: usize) -> f32 {
        let power = if num_heads.is_power_of_two() { num_heads } else { num_heads.next_power_of_two() / 2 };
        let exponent = match head.checked_sub(power) {
            None => (head + 1) as f64 / power as f64,
            Some(extra) => (2 * extra + 1) as f64 / (2 * power) as f64,
        };
        ((-f64::from(self.max_bias) * exponent).exp2() * f64::from(self.scale)) as f32
    }
}

/// Parameters of [`super::Backend::activate`].
#[derive(Debug)]
pub struct Activate<'a, T> {
    /// The function.
    pub function: Activation,
    /// Whether the input has a gate.
    pub gating: Gating,
    /// Added to the input, as wide, in f32.
    pub bias: Option<&'a T>,
}

impl<T> Activate<'_, T> {
    /// A gated activation without a bias.
    pub fn gated(function: Activation) -> Self {
        Self { function, gating: Gating::Gated, bias: None }
    }
}

/// What makes scores of a router's products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterScoring {
    /// Softmax over all experts (Mixtral, Qwen).
    #[default]
    Softmax,
    /// The logistic function of each.
    Sigmoid,
}

/// What becomes of the chosen experts' scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpertWeighting {
    /// They stay (`norm_topk_prob` is false).
    AsScored,
    /// They are divided by their sum (Mixtral; `norm_topk_prob` is true).
    Normalized,
}

/// Sizes that [`super::Backend::reserve_experts`] reserves for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertLimits {
    /// Largest number of rows.
    pub max_tokens: usize,
    /// Experts.
    pub num_experts: usize,
    /// Experts that a row passes.
    pub num_chosen: usize,
    /// Width of a row.
    pub hidden: usize,
    /// Width of an expert's MLP.
    pub width: usize,
}

/// Parameters of [`super::Backend::mix_experts`].
#[derive(Debug)]
pub struct Mixture<'a, T> {
    /// Every expert's up projection (with a gate `[gate | up]`), one under the other:
    /// `[num_experts * input width of the activation, hidden]`.
    pub up: &'a T,
    /// Every expert's down projection, one under the other: `[num_experts * hidden, width of an expert]`.
    pub down: &'a T,
    /// Experts.
    pub num_experts: usize,
    /// Experts that a row passes: those with the largest scores, of equal ones the first.
    pub num_chosen: usize,
    /// What makes scores of the router's products.
    pub scoring: RouterScoring,
    /// What becomes of the chosen experts' scores.
    pub weighting: ExpertWeighting,
    /// Then a factor on them.
    pub scale: f32,
    /// The experts' activation.
    pub function: Activation,
    /// Whether it has a gate.
    pub gating: Gating,
    /// What is added to the experts' sum.
    pub shared: Option<SharedResult<'a, T>>,
}

impl<T> Clone for Mixture<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Mixture<'_, T> {}

/// Result of an expert that all rows pass.
#[derive(Debug)]
pub struct SharedResult<'a, T> {
    /// `[rows, hidden]`.
    pub values: &'a T,
    /// The logistic function of this product is a factor on a row, `[rows, 1]`, in f32.
    pub gate: Option<&'a T>,
}

impl<T> Clone for SharedResult<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SharedResult<'_, T> {}

/// Parameters of [`super::Backend::logits`].
#[derive(Debug)]
pub struct Head<'a, T> {
    /// `[vocab, hidden]`.
    pub weight: &'a T,
    /// `[1, vocab]`, in f32.
    pub bias: Option<&'a T>,
    /// Factor on products and bias.
    pub scale: f32,
    /// Then `cap * tanh(logit / cap)`.
    pub soft_cap: Option<f32>,
}

impl<'a, T> Head<'a, T> {
    /// A matrix alone.
    pub fn plain(weight: &'a T) -> Self {
        Self { weight, bias: None, scale: 1.0, soft_cap: None }
    }

    /// Whether logits are more than products.
    pub fn is_plain(&self) -> bool {
        self.bias.is_none() && self.scale == 1.0 && self.soft_cap.is_none()
    }
}

/// Heads of an attention layer. A row of the fused `qkv` tensor is
/// `[num_heads * head_dim | num_kv_heads * head_dim | num_kv_heads * head_dim]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads, a multiple of `num_kv_heads`.
    pub num_heads: usize,
    /// Key-value heads.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor on the scores before softmax.
    pub scale: f32,
}

impl AttentionShape {
    /// Width of a row of the fused `qkv` tensor.
    pub fn qkv_width(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Checks that there are heads, and that they were not mixed up with a cache of others.
    pub fn check(&self, operation: &'static str, layout: &KvLayout) -> BackendResult<()> {
        let fits = self.num_kv_heads > 0
            && self.num_heads > 0
            && self.num_heads.is_multiple_of(self.num_kv_heads)
            && (self.num_kv_heads, self.head_dim) == (layout.num_kv_heads, layout.head_dim);
        if !fits {
            let message = format!("{self:?} does not fit a cache of {layout:?}");
            return Err(BackendError::InvalidArgument { operation, message });
        }
        Ok(())
    }
}

/// What not every backend can do; see [`super::Backend::supports`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// [`Scoring::soft_cap`].
    ScoreSoftCap,
    /// [`Scoring::alibi`].
    Alibi,
    /// [`Scoring::window`].
    Window,
    /// [`QkvTransform::norm`].
    QkNorm,
    /// [`super::Backend::mix_experts`] with so many experts, of which a token's so many are chosen.
    Experts {
        /// Experts in all.
        num_experts: usize,
        /// Experts of one token.
        num_chosen: usize,
    },
    /// Heads of this many elements, as stored.
    HeadDim(usize),
    /// Rows of this many elements between operations, as stored.
    Width(usize),
}

//! Checks of a [`ModelSpec`] before anything is computed or allocated from it.
//!
//! The limits leave an order of magnitude above today's largest models; with them no product of sizes that
//! the decoder forms can overflow.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::error::{ModelError, ModelResult};
use crate::model::names::NamedField;
use crate::model::spec::{
    AttentionExtras, BlockShape, EmbeddingNorm, Experts, Gating, Heads, LayerSet, MlpNames, ModelSpec,
    NormWeight, OutputHead, Positions, QkvNames, RopeScaling, SharedExpertGate,
};

const MAX_LAYERS: usize = 1 << 12;
const MAX_HIDDEN: usize = 1 << 18;
const MAX_INTERMEDIATE: usize = 1 << 20;
const MAX_VOCAB: usize = 1 << 24;
const MAX_POSITIONS: usize = 1 << 26;
const MAX_HEADS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 1 << 10;
const MAX_EXPERTS: usize = 1 << 12;
/// Widths of all experts of a layer together.
const MAX_EXPERTS_WIDTH: usize = 1 << 24;
/// Heads or experts of all layers together: each may be a tensor of its own.
const MAX_NAMED_PARTS: usize = 1 << 18;
const MAX_THETA: f64 = 1e15;
const MAX_NAME_BYTES: usize = 256;
/// What indexes take the place of in names.
const PLACEHOLDERS: [&str; 3] = ["{layer}", "{expert}", "{head}"];

impl ModelSpec {
    /// Refuses values that are out of range or contradict each other; the error names the field.
    pub fn validate(&self) -> ModelResult<()> {
        check_size("num_layers", self.num_layers, MAX_LAYERS)?;
        check_size("hidden_size", self.hidden_size, MAX_HIDDEN)?;
        check_size("intermediate_size", self.intermediate_size, MAX_INTERMEDIATE)?;
        check_size("vocab_size", self.vocab_size, MAX_VOCAB)?;
        check_size("max_positions", self.max_positions, MAX_POSITIONS)?;
        check_factor("embedding.scale", self.embedding.scale.into())?;
        self.heads.validate()?;
        let num_heads = self.num_layers * self.heads.num_heads;
        check_size("num_layers times heads.num_heads", num_heads, MAX_NAMED_PARTS)?;
        check_factor("norm.epsilon", self.norm.epsilon.into())?;
        self.positions.validate(self)?;
        self.attention.validate(self.num_layers)?;
        if let Some(experts) = &self.experts {
            experts.validate(self.num_layers)?;
        }
        check_factor("logits.scale", self.logits.scale.into())?;
        check_optional("logits.soft_cap", self.logits.soft_cap)?;
        self.validate_names()?;
        self.validate_presence()
    }

    fn validate_names(&self) -> ModelResult<()> {
        let mut seen = BTreeSet::new();
        for NamedField { field, name, per_layer, index } in self.weights.fields() {
            if name.is_empty() || name.len() > MAX_NAME_BYTES {
                return Err(ModelError::invalid(field, format!("must have 1 to {MAX_NAME_BYTES} bytes")));
            }
            if name.contains("{layer}") != per_layer {
                let must = if per_layer { "must" } else { "must not" };
                return Err(ModelError::invalid(field, format!("{name:?} {must} contain {{layer}}")));
            }
            for other in ["{expert}", "{head}"] {
                if name.contains(other) && index != Some(other) {
                    return Err(ModelError::invalid(field, format!("{name:?} must not contain {other}")));
                }
            }
            if PLACEHOLDERS
                .iter()
                .fold(name.to_owned(), |name, other| name.replace(other, ""))
                .contains(['{', '}'])
            {
                let message = format!("{name:?}: braces stand for {} alone", PLACEHOLDERS.join(", "));
                return Err(ModelError::invalid(field, message));
            }
            if !seen.insert(name) {
                return Err(ModelError::invalid(field, format!("{name:?} stands for another weight too")));
            }
        }
        self.validate_tensor_names()
    }

    /// Refuses names that become one tensor's where indexes take the place of placeholders. Only those can that are
    /// alike but for their indexes.
    fn validate_tensor_names(&self) -> ModelResult<()> {
        let fields = self.weights.fields();
        let mut alike: BTreeMap<String, Vec<&NamedField>> = BTreeMap::new();
        for field in &fields {
            alike.entry(without_indexes(field.name)).or_default().push(field);
        }
        for group in alike.values().filter(|group| group.len() > 1 || group[0].name.contains("}{")) {
            let mut seen = BTreeSet::new();
            for NamedField { field, name, .. } in group {
                for tensor in self.tensor_names(name) {
                    if seen.contains(&tensor) {
                        let message = format!("{name:?}: tensor {tensor:?} stands for another weight too");
                        return Err(ModelError::invalid(field, message));
                    }
                    seen.insert(tensor);
                }
            }
        }
        Ok(())
    }

    /// What `name` is with every index.
    fn tensor_names(&self, name: &str) -> impl Iterator<Item = String> {
        let num = |placeholder: &str, num: usize| if name.contains(placeholder) { num } else { 1 };
        let num_layers = num("{layer}", self.num_layers);
        let num_experts = self.experts.as_ref().map_or(1, |experts| num("{expert}", experts.num_experts));
        let num_heads = num("{head}", self.heads.num_heads);
        (0..num_layers).flat_map(move |layer| {
            let name = name.replace("{layer}", &layer.to_string());
            (0..num_experts.max(num_heads)).map(move |index| {
                let index = index.to_string();
                name.replace("{expert}", &index).replace("{head}", &index)
            })
        })
    }

    /// Compares which optional names are there with what the other fields need.
    fn validate_presence(&self) -> ModelResult<()> {
        let names = &self.weights;
        let has_weights = self.norm.weight != NormWeight::Absent;
        let has_pre_norm = self.block != BlockShape::PostNorm;
        let has_mlp_norm = has_pre_norm && self.block != BlockShape::Parallel;
        let has_post_norms = matches!(self.block, BlockShape::Sandwich | BlockShape::PostNorm);
        let has_embedding_norm = self.embedding.norm == EmbeddingNorm::Normalized;
        let has_qk_norm = self.attention.qk_norm.is_some();
        let is_learned = matches!(self.positions, Positions::Learned { .. });
        let has_dense_layers = (0..self.num_layers).any(|layer| self.experts_of(layer).is_none());
        let expected = [
            ("position_embedding", names.position_embedding.is_some(), is_learned),
            ("embedding_norm", names.embedding_norm.is_some(), has_weights && has_embedding_norm),
            ("attention_norm", names.attention_norm.is_some(), has_weights && has_pre_norm),
            ("query_norm", names.query_norm.is_some(), has_weights && has_qk_norm),
            ("key_norm", names.key_norm.is_some(), has_weights && has_qk_norm),
            ("post_attention_norm", names.post_attention_norm.is_some(), has_weights && has_post_norms),
            ("mlp_norm", names.mlp_norm.is_some(), has_weights && has_mlp_norm),
            ("mlp", names.mlp.is_some(), has_dense_layers),
            ("experts", names.experts.is_some(), self.experts.is_some()),
            ("post_mlp_norm", names.post_mlp_norm.is_some(), has_weights && has_post_norms),
            ("final_norm", names.final_norm.is_some(), has_weights),
            ("head", names.head.is_some(), names.head.is_some() || self.output != OutputHead::Tied),
        ];
        for (field, is_there, is_needed) in expected {
            let message = match (is_there, is_needed) {
                (true, false) => "names a weight that the architecture has no use for",
                (false, true) => "is missing, but the architecture needs it",
                _ => continue,
            };
            return Err(ModelError::invalid(format!("weights.{field}"), message));
        }
        self.validate_packing()
    }

    /// Checks the names of projections that are stacked.
    fn validate_packing(&self) -> ModelResult<()> {
        let names = &self.weights;
        if let QkvNames::Separate { query, key, value } = &names.qkv
            && (query.bias.is_some() != key.bias.is_some() || key.bias.is_some() != value.bias.is_some())
        {
            let message = "query, key and value must all have a bias, or none";
            return Err(ModelError::invalid("weights.qkv", message));
        }
        let gating = self.mlp.gating();
        if let Some(mlp) = &names.mlp {
            check_mlp("weights.mlp", mlp, gating)?;
        }
        let Some((names, experts)) = names.experts.as_ref().zip(self.experts.as_ref()) else { return Ok(()) };
        check_mlp("weights.experts.experts", &names.experts, gating)?;
        let mut parts =
            names.experts.parts().into_iter().chain(names.shared.iter().flat_map(MlpNames::parts));
        if let Some((part, _)) = parts.find(|(_, names)| names.bias.is_some()) {
            let message = "biases of experts are not supported";
            return Err(ModelError::unsupported(format!("weights.experts: {part}.bias"), message));
        }
        if let Some(shared) = &names.shared {
            check_mlp("weights.experts.shared", shared, gating)?;
        }
        let has_gate = experts.shared.is_some_and(|shared| shared.gate == SharedExpertGate::Sigmoid);
        for (field, is_there, is_needed) in [
            ("shared", names.shared.is_some(), experts.shared.is_some()),
            ("shared_gate", names.shared_gate.is_some(), has_gate),
        ] {
            if is_there != is_needed {
                let message = "must be there where experts.shared asks for it, and only there";
                return Err(ModelError::invalid(format!("weights.experts.{field}"), message));
            }
        }
        Ok(())
    }
}

/// `name` with one mark for each run of digits and placeholders.
fn without_indexes(name: &str) -> String {
    let digits =
        PLACEHOLDERS.iter().fold(name.to_owned(), |name, placeholder| name.replace(placeholder, "0"));
    let mut marked = String::new();
    for c in digits.chars() {
        match c.is_ascii_digit() {
            false => marked.push(c),
            true if marked.ends_with('{') => {}
            true => marked.push('{'),
        }
    }
    marked
}

fn check_mlp(field: &str, names: &MlpNames, gating: Gating) -> ModelResult<()> {
    let is_gated = !matches!(names, MlpNames::Plain { .. });
    if is_gated != (gating == Gating::Gated) {
        let message = format!("mlp.kind is {gating:?}, but the names are those of another kind");
        return Err(ModelError::invalid(format!("{field}.kind"), message));
    }
    if let MlpNames::Gated { gate, up, .. } = names
        && gate.bias.is_some() != up.bias.is_some()
    {
        return Err(ModelError::invalid(field, "gate and up must both have a bias, or none"));
    }
    Ok(())
}

impl Heads {
    fn validate(&self) -> ModelResult<()> {
        check_size("heads.num_heads", self.num_heads, MAX_HEADS)?;
        check_size("heads.num_kv_heads", self.num_kv_heads, MAX_HEADS)?;
        check_size("heads.head_dim", self.head_dim, MAX_HEAD_DIM)?;
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            let message = format!("{} does not divide num_heads {}", self.num_kv_heads, self.num_heads);
            return Err(ModelError::invalid("heads.num_kv_heads", message));
        }
        check_optional("heads.scale", self.scale)
    }
}

impl AttentionExtras {
    fn validate(&self, num_layers: usize) -> ModelResult<()> {
        check_optional("attention.qkv_clamp", self.qkv_clamp)?;
        check_optional("attention.score_soft_cap", self.score_soft_cap)?;
        let Some(window) = &self.sliding_window else { return Ok(()) };
        check_size("attention.sliding_window.size", window.size, MAX_POSITIONS)?;
        window.layers.validate("attention.sliding_window.layers", num_layers)
    }
}

impl LayerSet {
    fn validate(&self, field: &str, num_layers: usize) -> ModelResult<()> {
        let (name, index, end) = match self {
            LayerSet::All => return Ok(()),
            // A set may be empty: Qwen's window begins behind the last layer of some models.
            LayerSet::From { first } => ("first", Some(*first), MAX_LAYERS + 1),
            LayerSet::Periodic { period, remainders } => {
                check_size(&format!("{field}.period"), *period, MAX_LAYERS)?;
                check_length(&format!("{field}.remainders"), remainders, *period)?;
                ("remainders", remainders.iter().copied().max(), *period)
            }
            LayerSet::Listed { layers } => {
                check_length(&format!("{field}.layers"), layers, num_layers)?;
                ("layers", layers.iter().copied().max(), num_layers)
            }
        };
        match index.filter(|&index| index >= end) {
            Some(index) => {
                Err(ModelError::invalid(format!("{field}.{name}"), format!("{index} is not below {end}")))
            }
            None => Ok(()),
        }
    }
}

impl Experts {
    fn validate(&self, num_layers: usize) -> ModelResult<()> {
        check_size("experts.num_experts", self.num_experts, MAX_EXPERTS)?;
        check_size("experts.num_chosen", self.num_chosen, self.num_experts)?;
        let max_width = MAX_EXPERTS_WIDTH / self.num_experts;
        check_size("experts.intermediate_size", self.intermediate_size, max_width)?;
        check_size("num_layers times experts.num_experts", num_layers * self.num_experts, MAX_NAMED_PARTS)?;
        check_factor("experts.scale", self.scale.into())?;
        if let Some(shared) = &self.shared {
            check_size("experts.shared.intermediate_size", shared.intermediate_size, MAX_INTERMEDIATE)?;
        }
        self.layers.validate("experts.layers", num_layers)
    }
}

impl Positions {
    fn validate(&self, spec: &ModelSpec) -> ModelResult<()> {
        let (theta, rotary_dim, scaling, local) = match self {
            Positions::None => return Ok(()),
            Positions::Learned { offset } => {
                return check_size("positions.offset", offset.saturating_add(1), MAX_POSITIONS);
            }
            Positions::Alibi { max_bias, scale } => {
                check_factor("positions.max_bias", (*max_bias).into())?;
                return check_factor("positions.scale", (*scale).into());
            }
            Positions::Rope { theta, rotary_dim, pairing: _, scaling, local } => {
                (theta, *rotary_dim, scaling, local)
            }
        };
        check_theta("positions.theta", *theta)?;
        let head_dim = spec.heads.head_dim;
        if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) || rotary_dim > head_dim {
            let message = format!("{rotary_dim} is not an even number from 2 to head_dim {head_dim}");
            return Err(ModelError::invalid("positions.rotary_dim", message));
        }
        scaling.validate(rotary_dim)?;
        let Some(local) = local else { return Ok(()) };
        if spec.attention.sliding_window.is_none() {
            let message = "is for layers with a sliding window, but attention.sliding_window is missing";
            return Err(ModelError::invalid("positions.local", message));
        }
        check_theta("positions.local.theta", local.theta)?;
        local.scaling.validate(rotary_dim)
    }
}

impl RopeScaling {
    fn validate(&self, rotary_dim: usize) -> ModelResult<()> {
        let original = |value| check_size("positions.scaling.original_max_positions", value, MAX_POSITIONS);
        let factor = |value| check_factor("positions.scaling.factor", value);
        let divisors = |field: &str, factors: &[f32]| {
            if factors.len() != rotary_dim / 2 {
                let message = format!("{} factors for {} frequencies", factors.len(), rotary_dim / 2);
                return Err(ModelError::invalid(field, message));
            }
            factors.iter().try_for_each(|&value| check_factor(field, value.into()))
        };
        match self {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor: stretch } => factor(*stretch),
            RopeScaling::DynamicNtk { factor: stretch, original_max_positions } => {
                if rotary_dim < 4 {
                    let message = format!("{rotary_dim} is below 4, which dynamic scaling needs");
                    return Err(ModelError::invalid("positions.rotary_dim", message));
                }
                if *stretch < 1.0 {
                    return Err(ModelError::invalid("positions.scaling.factor", "must be at least 1"));
                }
                factor(*stretch).and(original(*original_max_positions))
            }
            RopeScaling::Llama3 {
                factor: stretch,
                low_freq_factor,
                high_freq_factor,
                original_max_positions,
            } => {
                check_factor("positions.scaling.low_freq_factor", *low_freq_factor)?;
                check_factor("positions.scaling.high_freq_factor", *high_freq_factor)?;
                if low_freq_factor >= high_freq_factor {
                    let message =
                        format!("{high_freq_factor} is not above low_freq_factor {low_freq_factor}");
                    return Err(ModelError::invalid("positions.scaling.high_freq_factor", message));
                }
                factor(*stretch).and(original(*original_max_positions))
            }
            RopeScaling::Yarn {
                factor: stretch,
                original_max_positions,
                beta_fast,
                beta_slow,
                attention_factor,
            } => {
                check_factor("positions.scaling.beta_slow", *beta_slow)?;
                check_factor("positions.scaling.beta_fast", *beta_fast)?;
                if beta_slow > beta_fast {
                    let message = format!("{beta_fast} is below beta_slow {beta_slow}");
                    return Err(ModelError::invalid("positions.scaling.beta_fast", message));
                }
                check_factor("positions.scaling.attention_factor", *attention_factor)?;
                factor(*stretch).and(original(*original_max_positions))
            }
            RopeScaling::PerFrequency { factors } => divisors("positions.scaling.factors", factors),
            RopeScaling::LongRope {
                short_factors,
                long_factors,
                original_max_positions,
                attention_factor,
            } => {
                divisors("positions.scaling.short_factors", short_factors)?;
                divisors("positions.scaling.long_factors", long_factors)?;
                check_factor("positions.scaling.attention_factor", *attention_factor)?;
                original(*original_max_positions)
            }
        }
    }
}

/// Lists are searched once per layer.
fn check_length(field: &str, indexes: &[usize], max: usize) -> ModelResult<()> {
    if indexes.len() > max {
        return Err(ModelError::invalid(field, format!("has {} entries, more than {max}", indexes.len())));
    }
    Ok(())
}

fn check_theta(field: &str, theta: f64) -> ModelResult<()> {
    if !(theta > 1.0 && theta <= MAX_THETA) {
        return Err(ModelError::invalid(field, format!("{theta} is not above 1 and at most {MAX_THETA}")));
    }
    Ok(())
}

fn check_optional(field: &str, value: Option<f32>) -> ModelResult<()> {
    value.map_or(Ok(()), |value| check_factor(field, value.into()))
}

fn check_size(field: &str, value: usize, max: usize) -> ModelResult<()> {
    if value == 0 || value > max {
        return Err(ModelError::invalid(field, format!("{value} is not in 1..={max}")));
    }
    Ok(())
}

fn check_factor(field: &str, value: f64) -> ModelResult<()> {
    const MAX: f64 = 1e9;
    if !(value > 0.0 && value <= MAX) {
        return Err(ModelError::invalid(field, format!("{value} is not above 0 and at most {MAX}")));
    }
    Ok(())
}

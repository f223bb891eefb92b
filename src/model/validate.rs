//! Checks of a [`ModelSpec`] before anything is computed or allocated from it.
//!
//! The limits leave an order of magnitude above today's largest models; with them no product of sizes that
//! the decoder forms can overflow.

use std::collections::BTreeSet;

use crate::model::error::{ModelError, ModelResult};
use crate::model::spec::{Heads, ModelSpec, Norm, Positions, RopeScaling};

const MAX_LAYERS: usize = 1 << 12;
const MAX_HIDDEN: usize = 1 << 18;
const MAX_INTERMEDIATE: usize = 1 << 20;
const MAX_VOCAB: usize = 1 << 24;
const MAX_POSITIONS: usize = 1 << 26;
const MAX_HEADS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 1 << 10;
const MAX_THETA: f64 = 1e15;
const MAX_NAME_BYTES: usize = 256;

impl ModelSpec {
    /// Refuses values that are out of range or contradict each other; the error names the field.
    pub fn validate(&self) -> ModelResult<()> {
        check_size("num_layers", self.num_layers, MAX_LAYERS)?;
        check_size("hidden_size", self.hidden_size, MAX_HIDDEN)?;
        check_size("intermediate_size", self.intermediate_size, MAX_INTERMEDIATE)?;
        check_size("vocab_size", self.vocab_size, MAX_VOCAB)?;
        check_size("max_positions", self.max_positions, MAX_POSITIONS)?;
        self.heads.validate()?;
        let Norm::Rms { epsilon } = self.norm;
        check_factor("norm.epsilon", epsilon.into())?;
        self.positions.validate(self.heads.head_dim)?;
        self.validate_names()
    }

    fn validate_names(&self) -> ModelResult<()> {
        let mut seen = BTreeSet::new();
        for (field, name, per_layer) in self.weights.fields() {
            let field = format!("weights.{field}");
            if name.is_empty() || name.len() > MAX_NAME_BYTES {
                return Err(ModelError::invalid(field, format!("must have 1 to {MAX_NAME_BYTES} bytes")));
            }
            if name.contains("{layer}") != per_layer {
                let must = if per_layer { "must" } else { "must not" };
                return Err(ModelError::invalid(field, format!("{name:?} {must} contain {{layer}}")));
            }
            if !seen.insert(name) {
                return Err(ModelError::invalid(field, format!("{name:?} stands for another weight too")));
            }
        }
        Ok(())
    }
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
        check_factor("heads.scale", self.scale.into())
    }
}

impl Positions {
    fn validate(&self, head_dim: usize) -> ModelResult<()> {
        let Positions::Rope { theta, rotary_dim, pairing: _, scaling } = self;
        if !(*theta > 1.0 && *theta <= MAX_THETA) {
            let message = format!("{theta} is not above 1 and at most {MAX_THETA}");
            return Err(ModelError::invalid("positions.theta", message));
        }
        if *rotary_dim == 0 || !rotary_dim.is_multiple_of(2) || *rotary_dim > head_dim {
            let message = format!("{rotary_dim} is not an even number from 2 to head_dim {head_dim}");
            return Err(ModelError::invalid("positions.rotary_dim", message));
        }
        if *rotary_dim != head_dim {
            let message = format!("{rotary_dim} of {head_dim} elements; a partial rotation is not supported");
            return Err(ModelError::unsupported("positions.rotary_dim", message));
        }
        scaling.validate(*rotary_dim)
    }
}

impl RopeScaling {
    fn validate(&self, rotary_dim: usize) -> ModelResult<()> {
        let original = |value| check_size("positions.scaling.original_max_positions", value, MAX_POSITIONS);
        let factor = |value| check_factor("positions.scaling.factor", value);
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
            RopeScaling::PerFrequency { factors } => {
                let field = "positions.scaling.factors";
                if factors.len() != rotary_dim / 2 {
                    let message = format!("{} factors for {} frequencies", factors.len(), rotary_dim / 2);
                    return Err(ModelError::invalid(field, message));
                }
                factors.iter().try_for_each(|&value| check_factor(field, value.into()))
            }
        }
    }
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

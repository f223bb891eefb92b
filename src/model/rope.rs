//! Frequencies of rotary position embeddings (Su et al. 2021) and their scalings.
//!
//! Everything is computed in f64 from the same formulas as transformers' `ROPE_INIT_FUNCTIONS`, and rounded
//! once.

use std::f64::consts::TAU;

use crate::model::spec::{ModelSpec, Positions, RopeScaling};

/// The frequencies that a validated spec's layers use: none, one, or one for all and one for the layers with a
/// sliding window.
pub fn tables(spec: &ModelSpec, max_model_len: usize) -> Vec<Rope> {
    let Positions::Rope { theta, rotary_dim, scaling, local, .. } = &spec.positions else {
        return Vec::new();
    };
    let global = Rope::new(*theta, *rotary_dim, scaling, max_model_len);
    let local = local.iter().map(|local| Rope::new(local.theta, *rotary_dim, &local.scaling, max_model_len));
    [global].into_iter().chain(local).collect()
}

/// The context that an engine has where nobody asks for another: the longest, but no longer than one for which the
/// base is not raised yet.
pub fn default_context(spec: &ModelSpec) -> usize {
    match &spec.positions {
        Positions::Rope { scaling: RopeScaling::DynamicNtk { original_max_positions, .. }, .. } => {
            spec.max_positions.min(*original_max_positions)
        }
        _ => spec.max_positions,
    }
}

/// For people: which of a model's frequencies contexts of up to `max_model_len` tokens get, and how to get others.
/// `None` where there is no choice. All sequences share them, since the keys of one cache must agree.
pub fn choice(spec: &ModelSpec, max_model_len: usize) -> Option<String> {
    let Positions::Rope { scaling, .. } = &spec.positions else { return None };
    match scaling {
        RopeScaling::LongRope { original_max_positions: original, .. } => {
            let (taken, other, how) = match max_model_len > *original {
                true => ("long", "short", "at most"),
                false => ("short", "long", "more than"),
            };
            Some(format!(
                "rope: the {taken} factors of LongRoPE, for max_model_len {max_model_len}, whatever a request's \
                 length; a max_model_len of {how} {original} takes the {other} ones"
            ))
        }
        RopeScaling::DynamicNtk { original_max_positions: original, .. } if max_model_len > *original => {
            Some(format!(
                "rope: the base is raised for max_model_len {max_model_len}, whatever a request's length; a \
                 max_model_len of at most {original} leaves it as it is"
            ))
        }
        _ => None,
    }
}

/// Which of [`tables`] layer `layer` uses.
pub fn table_of_layer(spec: &ModelSpec, layer: usize) -> Option<usize> {
    let Positions::Rope { local, .. } = &spec.positions else { return None };
    let is_local = local.is_some() && spec.scoring(layer).window.is_some();
    Some(usize::from(is_local))
}

/// Angles per position of every rotating pair.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Radians per position, `[rotary_dim / 2]`.
    pub inverse_frequencies: Vec<f64>,
    /// Factor on cosines and sines.
    pub magnitude: f64,
}

impl Rope {
    /// The frequencies of `dim` elements for contexts of up to `max_model_len` tokens; all of it validated.
    pub fn new(theta: f64, dim: usize, scaling: &RopeScaling, max_model_len: usize) -> Self {
        let mut magnitude = 1.0;
        let inverse_frequencies = match scaling {
            RopeScaling::None => base_frequencies(theta, dim),
            RopeScaling::Linear { factor } => scaled(base_frequencies(theta, dim), |_, f| f / factor),
            RopeScaling::DynamicNtk { factor, original_max_positions } => {
                let original = *original_max_positions as f64;
                let context = (max_model_len as f64).max(original);
                let stretch = factor * context / original - (factor - 1.0);
                base_frequencies(theta * stretch.powf(dim as f64 / (dim as f64 - 2.0)), dim)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let original = *original_max_positions as f64;
                scaled(base_frequencies(theta, dim), |_, frequency| {
                    // Rotations within the original context, 0 at `low_freq_factor` and 1 at
                    // `high_freq_factor`.
                    let rotations = original * frequency / TAU;
                    let keep = (rotations - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    blend(frequency, frequency / factor, keep)
                })
            }
            RopeScaling::Yarn { factor, original_max_positions, beta_fast, beta_slow, attention_factor } => {
                magnitude = *attention_factor;
                let pair_of = |rotations: f64| {
                    let original = *original_max_positions as f64;
                    dim as f64 * (original / (rotations * TAU)).ln() / (2.0 * theta.ln())
                };
                let low = pair_of(*beta_fast).floor().max(0.0);
                let high = pair_of(*beta_slow).ceil().min(dim as f64 - 1.0);
                let width = if high == low { 0.001 } else { high - low };
                scaled(base_frequencies(theta, dim), |pair, frequency| {
                    blend(frequency, frequency / factor, 1.0 - (pair as f64 - low) / width)
                })
            }
            RopeScaling::PerFrequency { factors } => divided(base_frequencies(theta, dim), factors),
            RopeScaling::LongRope {
                short_factors,
                long_factors,
                original_max_positions,
                attention_factor,
            } => {
                magnitude = *attention_factor;
                let is_long = max_model_len > *original_max_positions;
                divided(base_frequencies(theta, dim), if is_long { long_factors } else { short_factors })
            }
        };
        Self { inverse_frequencies, magnitude }
    }

    /// Width of a row of the table, `rotary_dim`.
    pub fn row_width(&self) -> usize {
        2 * self.inverse_frequencies.len()
    }

    /// Fills whole rows `[cosines | sines]` for the positions from `first_position` on.
    pub fn fill_rows(&self, first_position: usize, rows: &mut [f32]) {
        let num_pairs = self.inverse_frequencies.len();
        for (index, row) in rows.chunks_exact_mut(2 * num_pairs).enumerate() {
            let position = (first_position + index) as f64;
            let (cosines, sines) = row.split_at_mut(num_pairs);
            for (pair, frequency) in self.inverse_frequencies.iter().enumerate() {
                let (sine, cosine) = (position * frequency).sin_cos();
                cosines[pair] = (cosine * self.magnitude) as f32;
                sines[pair] = (sine * self.magnitude) as f32;
            }
        }
    }
}

/// `theta^(-2 i / dim)` for every pair `i`.
fn base_frequencies(theta: f64, dim: usize) -> Vec<f64> {
    (0..dim / 2).map(|pair| theta.powf(-2.0 * pair as f64 / dim as f64)).collect()
}

fn scaled(mut frequencies: Vec<f64>, scale: impl Fn(usize, f64) -> f64) -> Vec<f64> {
    for (pair, frequency) in frequencies.iter_mut().enumerate() {
        *frequency = scale(pair, *frequency);
    }
    frequencies
}

fn divided(frequencies: Vec<f64>, factors: &[f32]) -> Vec<f64> {
    scaled(frequencies, |pair, frequency| frequency / f64::from(factors[pair]))
}

/// `kept` where `weight` is 1 or more, `divided` where it is 0 or less, between them in between.
fn blend(kept: f64, divided: f64, weight: f64) -> f64 {
    let weight = weight.clamp(0.0, 1.0);
    weight * kept + (1.0 - weight) * divided
}

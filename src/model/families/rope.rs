//! RoPE's parameters in a `config.json`, as they have been written over the years.

use crate::model::error::{ModelError, ModelResult};
use crate::model::families::config::Config;
use crate::model::spec::{Positions, RopePairing, RopeScaling};

impl Config<'_> {
    /// RoPE's base, scaling and the longest context that they support, from `rope_theta` with `rope_scaling`
    /// or from `rope_parameters`. Without stretching, that context is `max_positions`.
    pub(super) fn rope(&self, default_theta: f64, max_positions: usize) -> ModelResult<Rope> {
        let parameters = match self.object("rope_scaling")? {
            Some(parameters) => Some(parameters),
            None => self.object("rope_parameters")?,
        };
        let theta = self.positive("rope_theta")?.unwrap_or(default_theta);
        self.rope_in(parameters, theta, max_positions)
    }

    /// What `parameters` say. Where they do not, the base is `theta`, and this object says the rest.
    pub(super) fn rope_in(
        &self,
        parameters: Option<Config>,
        theta: f64,
        max_positions: usize,
    ) -> ModelResult<Rope> {
        let part = self.positive("partial_rotary_factor")?;
        let Some(parameters) = parameters else {
            return Ok(Rope { theta, scaling: RopeScaling::None, max_positions, part });
        };
        let original = self.size("original_max_position_embeddings")?.unwrap_or(max_positions);
        let (scaling, mut max_positions) = parameters.rope_scaling(max_positions, original)?;
        if let RopeScaling::Linear { .. } = scaling {
            // But the first such models (Vicuna) have the one before it there, and the longer one under this key.
            max_positions = max_positions.max(self.size("max_sequence_length")?.unwrap_or(0));
        }
        Ok(Rope {
            theta: parameters.positive("rope_theta")?.unwrap_or(theta),
            scaling,
            max_positions,
            part: parameters.positive("partial_rotary_factor")?.or(part),
        })
    }

    /// The scaling that this object describes, and the longest context with it. The context that the model was
    /// trained for before stretching is `outer_original` where this object does not say.
    fn rope_scaling(&self, max_positions: usize, outer_original: usize) -> ModelResult<(RopeScaling, usize)> {
        let kind_field = self.first_of(&["rope_type", "type"]);
        let kind = self.text(kind_field)?.unwrap_or("default");
        let factor = || self.required_positive("factor");
        let original = || -> ModelResult<usize> {
            Ok(self.size("original_max_position_embeddings")?.unwrap_or(outer_original))
        };
        match kind {
            "default" => Ok((RopeScaling::None, max_positions)),
            // The context of such files is the one after stretching.
            "linear" => Ok((RopeScaling::Linear { factor: factor()? }, max_positions)),
            "dynamic" => {
                let factor = factor()?;
                let scaling = RopeScaling::DynamicNtk { factor, original_max_positions: max_positions };
                Ok((scaling, stretched(max_positions, factor)))
            }
            "llama3" => {
                let scaling = RopeScaling::Llama3 {
                    factor: factor()?,
                    low_freq_factor: self.required_positive("low_freq_factor")?,
                    high_freq_factor: self.required_positive("high_freq_factor")?,
                    original_max_positions: original()?,
                };
                Ok((scaling, max_positions))
            }
            "yarn" => {
                let original_max_positions = original()?;
                let factor = match self.positive("factor")? {
                    // The two contexts give it, as in transformers.
                    None if original_max_positions < max_positions => {
                        max_positions as f64 / original_max_positions as f64
                    }
                    _ => factor()?,
                };
                let scaling = self.yarn(factor, original_max_positions)?;
                Ok((scaling, stretched(original_max_positions, factor)))
            }
            "longrope" | "su" => Ok((self.long_rope(max_positions, original()?)?, max_positions)),
            kind => Err(ModelError::unsupported(self.name(kind_field), format!("{kind:?} is not supported"))),
        }
    }

    fn yarn(&self, factor: f64, original_max_positions: usize) -> ModelResult<RopeScaling> {
        if self.bool("truncate")? == Some(false) {
            return Err(ModelError::unsupported(self.name("truncate"), "false is not supported"));
        }
        let attention_factor = match (self.number("attention_factor")?, self.mscales()?) {
            (Some(attention_factor), _) => attention_factor,
            (None, Some((mscale, all_dim))) => {
                yarn_magnitude(factor, mscale) / yarn_magnitude(factor, all_dim)
            }
            (None, None) => yarn_magnitude(factor, 1.0),
        };
        // transformers takes 0 for absent.
        let beta = |field, default| -> ModelResult<f64> {
            Ok(self.number(field)?.filter(|&beta| beta != 0.0).unwrap_or(default))
        };
        Ok(RopeScaling::Yarn {
            factor,
            original_max_positions,
            beta_fast: beta("beta_fast", 32.0)?,
            beta_slow: beta("beta_slow", 1.0)?,
            attention_factor,
        })
    }

    fn long_rope(&self, max_positions: usize, original_max_positions: usize) -> ModelResult<RopeScaling> {
        let stretch = max_positions as f64 / original_max_positions as f64;
        let stretch = self.number("factor")?.unwrap_or(stretch);
        let usual = long_rope_magnitude(stretch, original_max_positions);
        Ok(RopeScaling::LongRope {
            short_factors: self.required_numbers("short_factor")?,
            long_factors: self.required_numbers("long_factor")?,
            original_max_positions,
            attention_factor: self.number("attention_factor")?.unwrap_or(usual),
        })
    }

    fn required_numbers(&self, field: &str) -> ModelResult<Vec<f32>> {
        self.numbers(field)?.ok_or_else(|| ModelError::invalid(self.name(field), "is missing"))
    }

    /// `mscale` and `mscale_all_dim`, where both are there and not 0.
    fn mscales(&self) -> ModelResult<Option<(f64, f64)>> {
        let pair = self.number("mscale")?.zip(self.number("mscale_all_dim")?);
        Ok(pair.filter(|&(mscale, all_dim)| mscale != 0.0 && all_dim != 0.0))
    }
}

/// What [`Config::rope`] reads.
pub(super) struct Rope {
    pub(super) theta: f64,
    pub(super) scaling: RopeScaling,
    pub(super) max_positions: usize,
    /// `partial_rotary_factor`: the part of a head that rotates.
    pub(super) part: Option<f64>,
}

impl Rope {
    /// Elements that rotate of heads of `head_dim`; `default_part` of them where the file does not say.
    pub(super) fn rotary_dim(&self, head_dim: usize, default_part: f64) -> usize {
        (head_dim as f64 * self.part.unwrap_or(default_part)) as usize
    }

    /// The rotation of the first `rotary_dim` elements of heads.
    pub(super) fn positions(self, rotary_dim: usize, pairing: RopePairing) -> Positions {
        Positions::Rope { theta: self.theta, rotary_dim, pairing, scaling: self.scaling, local: None }
    }
}

/// YaRN's factor on cosines and sines for a stretch of `factor`.
pub(super) fn yarn_magnitude(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// LongRoPE's factor on cosines and sines for a stretch of `factor`.
pub(super) fn long_rope_magnitude(factor: f64, original_max_positions: usize) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original_max_positions as f64).ln()).sqrt() }
}

/// A context of `max_positions` times `factor`; a factor out of range is left to validation.
pub(super) fn stretched(max_positions: usize, factor: f64) -> usize {
    (max_positions as f64 * factor.max(1.0)) as usize
}

//! Checked reading of a `config.json`, and what its families share: RoPE parameters.

use serde_json::{Map, Value};

use crate::model::error::{ModelError, ModelResult};
use crate::model::spec::RopeScaling;

/// An object of a `config.json`. Getters treat null as absent, and name the field in errors.
pub(super) struct Config {
    /// What stands before field names in errors: empty, or `rope_scaling.`.
    prefix: String,
    fields: Map<String, Value>,
}

impl Config {
    pub(super) fn parse(bytes: &[u8]) -> ModelResult<Self> {
        let fields =
            serde_json::from_slice(bytes).map_err(|error| ModelError::invalid("JSON", error.to_string()))?;
        Ok(Self { prefix: String::new(), fields })
    }

    fn name(&self, field: &str) -> String {
        format!("{}{field}", self.prefix)
    }

    fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// Whether the field is there and not null.
    pub(super) fn has(&self, field: &str) -> bool {
        self.get(field).is_some()
    }

    fn typed<'a, T>(
        &'a self,
        field: &str,
        wanted: &str,
        convert: impl FnOnce(&'a Value) -> Option<T>,
    ) -> ModelResult<Option<T>> {
        let convert = |value: &'a Value| {
            convert(value).ok_or_else(|| {
                ModelError::invalid(self.name(field), format!("must be {wanted}, but is {value}"))
            })
        };
        self.get(field).map(convert).transpose()
    }

    fn required<T>(&self, field: &str, value: Option<T>) -> ModelResult<T> {
        value.ok_or_else(|| ModelError::invalid(self.name(field), "is missing"))
    }

    pub(super) fn text(&self, field: &str) -> ModelResult<Option<&str>> {
        self.typed(field, "text", Value::as_str)
    }

    /// First item of an array of text.
    pub(super) fn first_text(&self, field: &str) -> ModelResult<Option<&str>> {
        self.typed(field, "an array of text", |value| value.as_array()?.first()?.as_str())
    }

    pub(super) fn bool(&self, field: &str) -> ModelResult<Option<bool>> {
        self.typed(field, "true or false", Value::as_bool)
    }

    /// A finite number.
    pub(super) fn number(&self, field: &str) -> ModelResult<Option<f64>> {
        self.typed(field, "a finite number", |value| value.as_f64().filter(|number| number.is_finite()))
    }

    pub(super) fn required_number(&self, field: &str) -> ModelResult<f64> {
        let value = self.number(field)?;
        self.required(field, value)
    }

    /// An integer of at least 1, for which some files write a float.
    pub(super) fn size(&self, field: &str) -> ModelResult<Option<usize>> {
        /// Integers up to here are exact in a float, and no size comes near it.
        const MAX: f64 = (1u64 << 48) as f64;
        self.typed(field, "an integer of at least 1", |value| {
            let number = value.as_f64()?;
            ((1.0..=MAX).contains(&number) && number.fract() == 0.0).then_some(number as usize)
        })
    }

    pub(super) fn required_size(&self, field: &str) -> ModelResult<usize> {
        let value = self.size(field)?;
        self.required(field, value)
    }

    /// Refuses a field that is there with another value than `false`.
    pub(super) fn refuse_flag(&self, field: &str) -> ModelResult<()> {
        match self.bool(field)? {
            Some(true) => Err(ModelError::unsupported(self.name(field), "true is not supported")),
            _ => Ok(()),
        }
    }

    fn object(&self, field: &str) -> ModelResult<Option<Config>> {
        let fields = self.typed(field, "an object", Value::as_object)?;
        Ok(fields.map(|fields| Config { prefix: format!("{}{field}.", self.prefix), fields: fields.clone() }))
    }

    /// RoPE's base, scaling and the longest context that they support, from `rope_theta` with `rope_scaling`
    /// or from `rope_parameters`.
    pub(super) fn rope(&self, default_theta: f64) -> ModelResult<Rope> {
        let max_positions = self.required_size("max_position_embeddings")?;
        let parameters = match self.object("rope_scaling")? {
            Some(parameters) => Some(parameters),
            None => self.object("rope_parameters")?,
        };
        let own_theta =
            parameters.as_ref().map(|parameters| parameters.number("rope_theta")).transpose()?.flatten();
        let theta = match own_theta {
            Some(theta) => theta,
            None => self.number("rope_theta")?.unwrap_or(default_theta),
        };
        match parameters {
            None => Ok(Rope { theta, scaling: RopeScaling::None, max_positions }),
            Some(parameters) => {
                let (scaling, max_positions) = parameters.rope_scaling(max_positions)?;
                Ok(Rope { theta, scaling, max_positions })
            }
        }
    }

    /// The scaling that this object describes, and the longest context with it.
    fn rope_scaling(&self, max_positions: usize) -> ModelResult<(RopeScaling, usize)> {
        let kind = match self.text("rope_type")? {
            Some(kind) => kind,
            None => self.text("type")?.unwrap_or("default"),
        };
        let factor = || self.required_number("factor");
        let original = || -> ModelResult<usize> {
            Ok(self.size("original_max_position_embeddings")?.unwrap_or(max_positions))
        };
        match kind {
            "default" => Ok((RopeScaling::None, max_positions)),
            "linear" => {
                let factor = factor()?;
                Ok((RopeScaling::Linear { factor }, stretched(max_positions, factor)))
            }
            "dynamic" => {
                let factor = factor()?;
                let scaling = RopeScaling::DynamicNtk { factor, original_max_positions: max_positions };
                Ok((scaling, stretched(max_positions, factor)))
            }
            "llama3" => {
                let scaling = RopeScaling::Llama3 {
                    factor: factor()?,
                    low_freq_factor: self.required_number("low_freq_factor")?,
                    high_freq_factor: self.required_number("high_freq_factor")?,
                    original_max_positions: original()?,
                };
                Ok((scaling, max_positions))
            }
            "yarn" => {
                let (factor, original_max_positions) = (factor()?, original()?);
                let scaling = self.yarn(factor, original_max_positions)?;
                Ok((scaling, stretched(original_max_positions, factor)))
            }
            kind => {
                Err(ModelError::unsupported(self.name("rope_type"), format!("{kind:?} is not supported")))
            }
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
        Ok(RopeScaling::Yarn {
            factor,
            original_max_positions,
            beta_fast: self.number("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.number("beta_slow")?.unwrap_or(1.0),
            attention_factor,
        })
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
}

/// YaRN's factor on cosines and sines for a stretch of `factor`.
pub(super) fn yarn_magnitude(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// A context of `max_positions` times `factor`; a factor out of range is left to validation.
pub(super) fn stretched(max_positions: usize, factor: f64) -> usize {
    (max_positions as f64 * factor.max(1.0)) as usize
}

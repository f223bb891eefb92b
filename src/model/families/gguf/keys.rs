//! Checked reading of a GGUF file's model keys.

use crate::error::Result;
use crate::format::{Encoding, GgufFile};
use crate::model::error::{ModelError, ModelResult};
use crate::model::families::at;
use crate::model::families::rope::{Rope, long_rope_magnitude, stretched, yarn_magnitude};
use crate::model::spec::RopeScaling;
use crate::quant::decode_f32;

pub(super) const EMBEDDING: &str = "token_embd.weight";
const ROPE_FACTORS: &str = "rope_freqs.weight";
const SHORT_ROPE_FACTORS: &str = "rope_factors_short.weight";
const LONG_ROPE_FACTORS: &str = "rope_factors_long.weight";
/// More factors than any head that passes validation needs.
const MAX_FACTORS_BYTES: u64 = 1 << 16;

/// The keys `<architecture>.…` of a file. Errors name file and key.
pub(super) struct Keys<'a> {
    file: &'a GgufFile,
    architecture: &'static str,
}

impl<'a> Keys<'a> {
    pub(super) fn new(file: &'a GgufFile, architecture: &'static str) -> Self {
        Self { file, architecture }
    }

    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn check<T>(&self, value: ModelResult<T>) -> Result<T> {
        value.map_err(|error| at(self.file.path(), error))
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        self.check(value.ok_or_else(|| ModelError::invalid(self.name(key), "is missing")))
    }

    pub(super) fn size(&self, key: &str) -> Result<Option<usize>> {
        let name = self.name(key);
        let value = self.file.metadata().unsigned(&name)?;
        let convert = |value| {
            usize::try_from(value).map_err(|_| ModelError::invalid(&name, format!("{value} is too large")))
        };
        self.check(value.map(convert).transpose())
    }

    pub(super) fn required_size(&self, key: &str) -> Result<usize> {
        let value = self.size(key)?;
        self.required(key, value)
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.file.metadata().float(&self.name(key))
    }

    pub(super) fn required_number(&self, key: &str) -> Result<f64> {
        let value = self.number(key)?;
        self.required(key, value)
    }

    /// Elements of a head: `attention.key_length`, else the hidden size by the heads. Values must be as wide.
    pub(super) fn head_dim(&self, hidden_size: usize, num_heads: usize) -> Result<usize> {
        let head_dim = match self.size("attention.key_length")? {
            Some(head_dim) => head_dim,
            None => hidden_size.checked_div(num_heads).unwrap_or(0),
        };
        if self.size("attention.value_length")?.is_some_and(|value_length| value_length != head_dim) {
            let message = format!("another value than the key's {head_dim} is not supported");
            return self.check(Err(ModelError::unsupported(self.name("attention.value_length"), message)));
        }
        Ok(head_dim)
    }

    /// Rows of the embedding table.
    pub(super) fn vocab_size(&self) -> Result<usize> {
        let table = self.file.tensors().get(EMBEDDING);
        let rows = table.and_then(|table| table.shape.first().copied());
        self.check(rows.ok_or_else(|| ModelError::invalid(format!("tensor {EMBEDDING:?}"), "is missing")))
    }

    pub(super) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.file.metadata().bool(&self.name(key))?.unwrap_or(default))
    }

    /// Whether the file has a tensor, of the first layer where there is one for each.
    pub(super) fn has_tensor(&self, name: &str) -> bool {
        self.tensor_rows(name).is_some()
    }

    /// Rows of a tensor, of the first layer where there is one for each.
    pub(super) fn tensor_rows(&self, name: &str) -> Option<usize> {
        self.file.tensors().get(&name.replace("{layer}", "0"))?.shape.first().copied()
    }

    /// RoPE's base, scaling and the longest context that they support. The file's `context_length` has been
    /// stretched already.
    pub(super) fn rope(&self, rotary_dim: usize, default_theta: f64) -> Result<Rope> {
        let theta = self.number("rope.freq_base")?.unwrap_or(default_theta);
        let context = self.required_size("context_length")?;
        let factor = match self.number("rope.scaling.factor")? {
            Some(factor) => factor,
            None => self.number("rope.scale_linear")?.unwrap_or(1.0),
        };
        let original = self.size("rope.scaling.original_context_length")?.unwrap_or(context);
        let scaling_type = self.name("rope.scaling.type");
        let kind = self.file.metadata().text(&scaling_type)?;
        let mut max_positions = context;
        if let Some(scaling) = self.long_rope(rotary_dim, context, original)? {
            return Ok(Rope { theta, scaling, max_positions, part: None });
        }
        let scaling = match (kind, self.rope_factors(ROPE_FACTORS, rotary_dim)?) {
            (None | Some("none" | "linear" | "llama3"), Some(factors)) => {
                RopeScaling::PerFrequency { factors }
            }
            (Some("none"), None) => RopeScaling::None,
            (None | Some("linear"), None) if factor == 1.0 => RopeScaling::None,
            (None | Some("linear"), None) => RopeScaling::Linear { factor },
            (Some("yarn"), None) => {
                max_positions = context.max(stretched(original, factor));
                self.yarn(factor, original)?
            }
            (Some(kind), _) => {
                let message = format!("{kind:?} is not supported");
                return self.check(Err(ModelError::unsupported(scaling_type, message)));
            }
        };
        Ok(Rope { theta, scaling, max_positions, part: None })
    }

    fn yarn(&self, factor: f64, original_max_positions: usize) -> Result<RopeScaling> {
        let attention_factor = self.number("rope.scaling.attn_factor")?.unwrap_or(1.0);
        Ok(RopeScaling::Yarn {
            factor,
            original_max_positions,
            beta_fast: self.number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
            beta_slow: self.number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            attention_factor: attention_factor * yarn_magnitude(factor, 1.0),
        })
    }

    /// LongRoPE, where the file has its two lists of divisors.
    fn long_rope(&self, rotary_dim: usize, context: usize, original: usize) -> Result<Option<RopeScaling>> {
        let short_factors = self.rope_factors(SHORT_ROPE_FACTORS, rotary_dim)?;
        let long_factors = self.rope_factors(LONG_ROPE_FACTORS, rotary_dim)?;
        let Some((short_factors, long_factors)) = short_factors.zip(long_factors) else { return Ok(None) };
        let attention_factor = match self.number("rope.scaling.attn_factor")? {
            Some(factor) => factor,
            None => long_rope_magnitude(context as f64 / original as f64, original),
        };
        Ok(Some(RopeScaling::LongRope {
            short_factors,
            long_factors,
            original_max_positions: original,
            attention_factor,
        }))
    }

    /// The divisors of the frequencies, where the file has them as a tensor.
    fn rope_factors(&self, name: &str, rotary_dim: usize) -> Result<Option<Vec<f32>>> {
        let table = self.file.tensors();
        let Some(info) = table.get(name) else { return Ok(None) };
        if info.encoding != Encoding::F32
            || info.shape != [rotary_dim / 2]
            || info.num_bytes > MAX_FACTORS_BYTES
        {
            let message =
                format!("is {:?} {:?}, but must be F32 [{}]", info.encoding, info.shape, rotary_dim / 2);
            return self.check(Err(ModelError::invalid(format!("tensor {name:?}"), message)));
        }
        let mut factors = vec![0.0; rotary_dim / 2];
        let mut bytes = vec![0; 4 * factors.len()];
        table.read(info, 0, &mut bytes)?;
        decode_f32(&bytes, &mut factors);
        Ok(Some(factors))
    }
}

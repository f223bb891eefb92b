//! Checked reading of a `config.json`.

use serde_json::{Map, Value};

use crate::format::Checkpoint;
use crate::model::error::{ModelError, ModelResult};
use crate::model::spec::{Activation, OutputHead};
use crate::model::spec_file::without_byte_order_mark;

/// An object of a `config.json`. Getters treat null as absent unless they say otherwise, and name the field in
/// errors.
pub(super) struct Config<'a> {
    /// What stands before field names in errors: empty, or `rope_scaling.`.
    prefix: String,
    fields: Map<String, Value>,
    /// Where the file was found.
    checkpoint: &'a Checkpoint,
}

impl<'a> Config<'a> {
    pub(super) fn parse(bytes: &[u8], checkpoint: &'a Checkpoint) -> ModelResult<Self> {
        let fields = serde_json::from_slice(without_byte_order_mark(bytes))
            .map_err(|error| ModelError::invalid("JSON", error.to_string()))?;
        Ok(Self { prefix: String::new(), fields, checkpoint })
    }

    /// The same with values for fields that are absent; null stays null.
    pub(super) fn with_defaults(&self, defaults: &[(&str, usize)]) -> Self {
        let mut fields = self.fields.clone();
        for &(field, value) in defaults {
            fields.entry(field).or_insert_with(|| value.into());
        }
        Self { prefix: self.prefix.clone(), fields, checkpoint: self.checkpoint }
    }

    /// Whether the checkpoint has a tensor of this name.
    pub(super) fn has_tensor(&self, name: &str) -> bool {
        self.checkpoint.tensor(name).is_some()
    }

    /// A field's name with the objects that it is in.
    pub(super) fn name(&self, field: &str) -> String {
        format!("{}{field}", self.prefix)
    }

    fn get(&self, field: &str) -> Option<&Value> {
        self.fields.get(field).filter(|value| !value.is_null())
    }

    /// Whether the field is there, null or not.
    pub(super) fn has_key(&self, field: &str) -> bool {
        self.fields.contains_key(field)
    }

    /// Whether the field is there and not null.
    pub(super) fn has(&self, field: &str) -> bool {
        self.get(field).is_some()
    }

    fn typed<'v, T>(
        &'v self,
        field: &str,
        wanted: &str,
        convert: impl FnOnce(&'v Value) -> Option<T>,
    ) -> ModelResult<Option<T>> {
        let convert = |value: &'v Value| {
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

    /// First item of an array of text; an empty one counts as absent.
    pub(super) fn first_text(&self, field: &str) -> ModelResult<Option<&str>> {
        Ok(self.texts(field)?.and_then(|texts| texts.first().copied()))
    }

    pub(super) fn bool(&self, field: &str) -> ModelResult<Option<bool>> {
        self.typed(field, "true or false", Value::as_bool)
    }

    /// A finite number.
    pub(super) fn number(&self, field: &str) -> ModelResult<Option<f64>> {
        self.typed(field, "a finite number", |value| value.as_f64().filter(|number| number.is_finite()))
    }

    /// A finite number above 0.
    pub(super) fn positive(&self, field: &str) -> ModelResult<Option<f64>> {
        self.typed(field, "a finite number above 0", |value| {
            value.as_f64().filter(|number| number.is_finite() && *number > 0.0)
        })
    }

    pub(super) fn required_positive(&self, field: &str) -> ModelResult<f64> {
        let value = self.positive(field)?;
        self.required(field, value)
    }

    /// An integer of at least 1, for which some files write a float.
    pub(super) fn size(&self, field: &str) -> ModelResult<Option<usize>> {
        /// Integers up to here are exact in a float, and no size comes near it.
        const MAX: f64 = (1u64 << 48) as f64;
        self.typed(field, "an integer from 1 to 2^48", |value| {
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

    /// Refuses weights that the file says are quantised.
    pub(super) fn refuse_quantized(&self) -> ModelResult<()> {
        const FIELD: &str = "quantization_config";
        if self.has(FIELD) {
            return Err(ModelError::unsupported(FIELD, "quantised safetensors are not supported"));
        }
        Ok(())
    }

    /// Refuses `false`.
    pub(super) fn require_flag(&self, field: &str) -> ModelResult<()> {
        match self.bool(field)? {
            Some(false) => Err(ModelError::unsupported(self.name(field), "false is not supported")),
            _ => Ok(()),
        }
    }

    /// Refuses a text that is not `wanted`.
    pub(super) fn require_text(&self, field: &str, wanted: &str) -> ModelResult<()> {
        match self.text(field)? {
            Some(text) if text != wanted => {
                Err(ModelError::unsupported(self.name(field), format!("{text:?} is not supported")))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn has_text(&self, field: &str) -> bool {
        self.get(field).is_some_and(Value::is_string)
    }

    pub(super) fn flag(&self, field: &str, default: bool) -> ModelResult<bool> {
        Ok(self.bool(field)?.unwrap_or(default))
    }

    /// An array of text.
    pub(super) fn texts(&self, field: &str) -> ModelResult<Option<Vec<&str>>> {
        self.typed(field, "an array of text", |value| value.as_array()?.iter().map(Value::as_str).collect())
    }

    /// Finite numbers.
    pub(super) fn numbers(&self, field: &str) -> ModelResult<Option<Vec<f32>>> {
        self.typed(field, "an array of numbers", |value| {
            let number = |value: &Value| value.as_f64().map(|number| number as f32).filter(|x| x.is_finite());
            value.as_array()?.iter().map(number).collect()
        })
    }

    /// An integer of at least 0.
    pub(super) fn count(&self, field: &str) -> ModelResult<Option<usize>> {
        self.typed(field, "an integer of at least 0", as_count)
    }

    /// Integers of at least 0.
    pub(super) fn counts(&self, field: &str) -> ModelResult<Option<Vec<usize>>> {
        self.typed(field, "an array of integers of at least 0", |value| {
            value.as_array()?.iter().map(as_count).collect()
        })
    }

    /// The first of several names of a field that is there, else the first.
    pub(super) fn first_of<'n>(&self, names: &[&'n str]) -> &'n str {
        names.iter().find(|name| self.has(name)).unwrap_or(&names[0])
    }

    /// The size under the first of several names that is there.
    pub(super) fn first_size(&self, names: &[&str]) -> ModelResult<usize> {
        let size = self.size(self.first_of(names))?;
        size.ok_or_else(|| ModelError::invalid(self.name(&names.join(" or ")), "is missing"))
    }

    /// A size that is at most `max`.
    pub(super) fn bounded_size(&self, field: &str, default: usize, max: usize) -> ModelResult<usize> {
        match self.size(field)? {
            Some(size) if size > max => {
                Err(ModelError::invalid(self.name(field), format!("{size} is above {max}")))
            }
            size => Ok(size.unwrap_or(default)),
        }
    }

    /// A size where null means none and absence means `default`.
    pub(super) fn size_unless_null(&self, field: &str, default: usize) -> ModelResult<Option<usize>> {
        if self.fields.contains_key(field) { self.size(field) } else { Ok(Some(default)) }
    }

    /// A number where null means none and absence means `default`.
    pub(super) fn number_unless_null(&self, field: &str, default: f64) -> ModelResult<Option<f64>> {
        if self.fields.contains_key(field) { self.number(field) } else { Ok(Some(default)) }
    }

    /// What a norm adds to the variance.
    pub(super) fn epsilon(&self, field: &str, default: f64) -> ModelResult<f32> {
        let epsilon = self.typed(field, "a number above 0 in the range of f32", |value| {
            let epsilon = value.as_f64()? as f32;
            (epsilon > 0.0 && epsilon.is_finite()).then_some(epsilon)
        })?;
        Ok(epsilon.unwrap_or(default as f32))
    }

    /// Elements of a head: `head_dim`, else the hidden size by the heads, whose number is under `heads_field`.
    pub(super) fn head_dim(
        &self,
        hidden_size: usize,
        heads_field: &str,
        num_heads: usize,
    ) -> ModelResult<usize> {
        match self.size("head_dim")? {
            Some(head_dim) => Ok(head_dim),
            None if hidden_size.is_multiple_of(num_heads) => Ok(hidden_size / num_heads),
            None => {
                let message = format!("{num_heads} does not divide the hidden size {hidden_size}");
                Err(ModelError::invalid(self.name(heads_field), message))
            }
        }
    }

    /// The head, by `tie_word_embeddings`.
    pub(super) fn output(&self, is_tied: bool) -> ModelResult<OutputHead> {
        let is_tied = self.flag("tie_word_embeddings", is_tied)?;
        Ok(if is_tied { OutputHead::Tied } else { OutputHead::Untied })
    }

    /// An activation function, by the names that transformers has for them.
    pub(super) fn activation(&self, field: &str, default: Activation) -> ModelResult<Activation> {
        match self.text(field)? {
            None => Ok(default),
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu" | "gelu_python") => Ok(Activation::Gelu),
            Some("gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" | "gelu_accurate") => {
                Ok(Activation::GeluTanh)
            }
            Some("quick_gelu") => Ok(Activation::QuickGelu),
            Some("relu") => Ok(Activation::Relu),
            Some("relu2") => Ok(Activation::ReluSquared),
            Some(name) => {
                Err(ModelError::unsupported(self.name(field), format!("{name:?} is not supported")))
            }
        }
    }

    pub(super) fn object(&self, field: &str) -> ModelResult<Option<Self>> {
        let fields = self.typed(field, "an object", Value::as_object)?;
        Ok(fields.map(|fields| self.inner(field, fields.clone())))
    }

    /// An object, empty where it is absent.
    pub(super) fn object_or_empty(&self, field: &str) -> ModelResult<Self> {
        Ok(self.object(field)?.unwrap_or_else(|| self.inner(field, Map::new())))
    }

    fn inner(&self, field: &str, fields: Map<String, Value>) -> Self {
        Self { prefix: format!("{}{field}.", self.prefix), fields, checkpoint: self.checkpoint }
    }
}

fn as_count(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|count| usize::try_from(count).ok())
}

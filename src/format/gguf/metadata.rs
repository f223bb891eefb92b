//! Key-value metadata of a GGUF file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::format::error::{FormatError, FormatResult};

/// Metadata of a GGUF file. Getters return `None` for an absent key and a typed error that names file and key
/// for a value of another type or out of range.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    path: PathBuf,
    values: BTreeMap<String, MetadataValue>,
}

/// One metadata value; numbers are widened.
#[derive(Debug, Clone, PartialEq)]
pub enum MetadataValue {
    /// Any unsigned integer.
    Unsigned(u64),
    /// Any signed integer.
    Signed(i64),
    /// Any float.
    Float(f64),
    /// Boolean.
    Bool(bool),
    /// Text.
    Text(String),
    /// Array of text.
    Texts(Vec<String>),
    /// Array of any integers, or of booleans as 0 and 1.
    Integers(Vec<i64>),
    /// Array of any floats.
    Floats(Vec<f32>),
}

impl MetadataValue {
    fn type_name(&self) -> &'static str {
        match self {
            MetadataValue::Unsigned(_) => "an unsigned integer",
            MetadataValue::Signed(_) => "a signed integer",
            MetadataValue::Float(_) => "a float",
            MetadataValue::Bool(_) => "a boolean",
            MetadataValue::Text(_) => "text",
            MetadataValue::Texts(_) => "an array of text",
            MetadataValue::Integers(_) => "an array of integers",
            MetadataValue::Floats(_) => "an array of floats",
        }
    }
}

impl Metadata {
    /// No metadata; `path` is the file that errors name.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), values: BTreeMap::new() }
    }

    /// The file that errors name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets `key`; returns whether it is new.
    pub fn insert(&mut self, key: impl Into<String>, value: MetadataValue) -> bool {
        self.values.insert(key.into(), value).is_none()
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// Value of `key`, whatever its type.
    pub fn get(&self, key: &str) -> Option<&MetadataValue> {
        self.values.get(key)
    }

    /// Text value of `key`.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "text", |value| match value {
            MetadataValue::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// Integer value of `key` that is at least 0.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "an integer that is at least 0", |value| match *value {
            MetadataValue::Unsigned(number) => Some(number),
            MetadataValue::Signed(number) => u64::try_from(number).ok(),
            _ => None,
        })
    }

    /// Float (or integer) value of `key`.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", |value| match *value {
            MetadataValue::Float(number) => Some(number),
            MetadataValue::Unsigned(number) => Some(number as f64),
            MetadataValue::Signed(number) => Some(number as f64),
            _ => None,
        })
    }

    /// Boolean value of `key`.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a boolean", |value| match *value {
            MetadataValue::Bool(value) => Some(value),
            _ => None,
        })
    }

    /// Array of text of `key`.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "an array of text", |value| match value {
            MetadataValue::Texts(texts) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// Array of integers of `key`.
    pub fn integers(&self, key: &str) -> Result<Option<&[i64]>> {
        self.typed(key, "an array of integers", |value| match value {
            MetadataValue::Integers(numbers) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    /// Array of floats of `key`.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>> {
        self.typed(key, "an array of floats", |value| match value {
            MetadataValue::Floats(numbers) => Some(numbers.as_slice()),
            _ => None,
        })
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        convert: impl FnOnce(&'a MetadataValue) -> Option<T>,
    ) -> Result<Option<T>> {
        let convert = |value: &'a MetadataValue| -> FormatResult<T> {
            let type_name = value.type_name();
            convert(value).ok_or_else(|| {
                FormatError::invalid(&self.path, key, format!("must be {wanted}, but is {type_name}"))
            })
        };
        Ok(self.values.get(key).map(convert).transpose()?)
    }
}

//! GGUF v2 and v3 files.

use std::collections::BTreeMap;

use crate::error::Result;

/// Metadata of a GGUF file. Getters return `None` for an absent key and a typed error that names the key for a
/// value of another type or out of range.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
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
    /// Array of any integers.
    Integers(Vec<i64>),
    /// Array of any floats.
    Floats(Vec<f32>),
}

impl Metadata {
    /// Text value of `key`.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        let _ = (key, &self.values);
        Ok(None)
    }

    /// Integer value of `key` that is at least 0.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        let _ = key;
        Ok(None)
    }

    /// Float (or integer) value of `key`.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        let _ = key;
        Ok(None)
    }

    /// Boolean value of `key`.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        let _ = key;
        Ok(None)
    }

    /// Array of text of `key`.
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        let _ = key;
        Ok(None)
    }

    /// Array of integers of `key`.
    pub fn integers(&self, key: &str) -> Result<Option<&[i64]>> {
        let _ = key;
        Ok(None)
    }

    /// Array of floats of `key`.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>> {
        let _ = key;
        Ok(None)
    }
}

//! Reading a `model_spec.json`.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::format::read_small_file;
use crate::model::error::{ModelError, ModelResult};
use crate::model::form;
use crate::model::spec::ModelSpec;

/// Largest description of a model.
pub(super) const MAX_JSON_BYTES: u64 = 4 << 20;

/// The spec in a file, validated.
pub(super) fn read(path: &Path) -> Result<ModelSpec> {
    parse_validated(&read_small_file(path, MAX_JSON_BYTES)?)
        .map_err(|error| Error::from(error).context(path.display()))
}

/// The spec in the bytes of a file, validated.
pub(super) fn parse_validated(bytes: &[u8]) -> ModelResult<ModelSpec> {
    let spec = parse(bytes)?;
    spec.validate()?;
    Ok(spec)
}

/// The bytes behind a byte order mark, which editors on Windows put before text.
pub(super) fn without_byte_order_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

/// The spec in the bytes of a file, not validated yet.
pub(super) fn parse(bytes: &[u8]) -> ModelResult<ModelSpec> {
    let json = |error: serde_json::Error| ModelError::invalid("JSON", error.to_string());
    let bytes = without_byte_order_mark(bytes);
    if bytes.trim_ascii().is_empty() {
        return Err(ModelError::invalid("JSON", EMPTY));
    }
    let value: Value = serde_json::from_slice(bytes).map_err(json)?;
    form::check(&value)?;
    // What the value no longer tells, such as fields that are there twice, is found here.
    serde_json::from_slice(bytes).map_err(json)
}

/// A shell empties the file before the tool that is to fill it looks for one.
const EMPTY: &str = "the file is empty, as a shell leaves it that redirects `inflight inspect` into the model's \
                     directory: delete it; `inflight inspect MODEL --spec --output FILE` writes one";

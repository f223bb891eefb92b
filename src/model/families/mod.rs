//! Families of models: one file each, which turns a checkpoint's own description into a [`ModelSpec`].

mod config;
mod gguf;
mod llama;

use std::path::Path;

use crate::error::{Error, Result};
use crate::format::{Checkpoint, GgufFile, read_small_file};
use crate::model::error::{ModelError, ModelResult};
use crate::model::spec::ModelSpec;

use config::Config;

/// A family: the names it goes by, and the functions that describe its models.
struct Family {
    /// `architectures` entries of `config.json`.
    architectures: &'static [&'static str],
    /// `model_type` of `config.json`, for files without `architectures`.
    model_type: &'static str,
    from_config: fn(&Config) -> ModelResult<ModelSpec>,
    /// `general.architecture` of GGUF files.
    gguf_architecture: &'static str,
    from_gguf: fn(&GgufFile) -> Result<ModelSpec>,
}

const FAMILIES: [Family; 1] = [llama::FAMILY];

const SPEC_FILE: &str = "model_spec.json";
const CONFIG_FILE: &str = "config.json";
const MAX_JSON_BYTES: u64 = 4 << 20;

/// Describes the model of a checkpoint, validated: from `model_spec.json`, else from `config.json` or a GGUF
/// file's metadata. Code that a `config.json` refers to is never run.
pub fn load_spec(checkpoint: &Checkpoint) -> Result<ModelSpec> {
    let spec = match checkpoint {
        Checkpoint::Gguf(file) => from_gguf(file)?,
        Checkpoint::Directory(directory) => from_directory(directory.path())?,
        Checkpoint::Random(description) => from_description(description.path())?,
    };
    spec.validate().map_err(|error| Error::from(error).context(checkpoint.path().display()))?;
    Ok(spec)
}

fn from_directory(directory: &Path) -> Result<ModelSpec> {
    let spec_path = directory.join(SPEC_FILE);
    if spec_path.exists() {
        return parse_spec(&read_small_file(&spec_path, MAX_JSON_BYTES)?)
            .map_err(|error| at(&spec_path, error));
    }
    let config_path = directory.join(CONFIG_FILE);
    let bytes = read_small_file(&config_path, MAX_JSON_BYTES)?;
    let spec = Config::parse(&bytes).and_then(|config| from_config(&config));
    spec.map_err(|error| at(&config_path, error))
}

/// A file under any name tells by its fields what it is: a spec names its family, a `config.json` does not.
fn from_description(path: &Path) -> Result<ModelSpec> {
    if path.is_dir() {
        return from_directory(path);
    }
    let bytes = read_small_file(path, MAX_JSON_BYTES)?;
    let spec = Config::parse(&bytes).and_then(|config| match config.has("family") {
        true => parse_spec(&bytes),
        false => from_config(&config),
    });
    spec.map_err(|error| at(path, error))
}

fn parse_spec(bytes: &[u8]) -> ModelResult<ModelSpec> {
    serde_json::from_slice(bytes).map_err(|error| ModelError::invalid("JSON", error.to_string()))
}

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    (find_by_config(config)?.from_config)(config)
}

fn find_by_config(config: &Config) -> ModelResult<&'static Family> {
    let architecture = config.first_text("architectures")?;
    let model_type = config.text("model_type")?;
    let family = match (architecture, model_type) {
        (Some(name), _) => FAMILIES.iter().find(|family| family.architectures.contains(&name)),
        (None, Some(name)) => FAMILIES.iter().find(|family| family.model_type == name),
        (None, None) => return Err(ModelError::invalid("architectures", "is missing, and so is model_type")),
    };
    family.ok_or_else(|| {
        let name = architecture.or(model_type).unwrap_or_default();
        ModelError::unsupported("architectures", format!("{name:?} is not supported"))
    })
}

fn from_gguf(file: &GgufFile) -> Result<ModelSpec> {
    const KEY: &str = "general.architecture";
    let architecture = file.metadata().text(KEY)?;
    let architecture = architecture.ok_or_else(|| at(file.path(), ModelError::invalid(KEY, "is missing")))?;
    let family = FAMILIES.iter().find(|family| family.gguf_architecture == architecture);
    let family = family.ok_or_else(|| {
        at(file.path(), ModelError::unsupported(KEY, format!("{architecture:?} is not supported")))
    })?;
    (family.from_gguf)(file)
}

/// `error` with the file that it is about.
fn at(path: &Path, error: ModelError) -> Error {
    Error::from(error).context(path.display())
}

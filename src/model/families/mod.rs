//! Families of models: one file each, which turns a checkpoint's own description into a [`ModelSpec`].

mod baichuan;
mod bloom;
mod chatglm;
mod config;
mod falcon;
mod gemma;
mod gemma3;
mod gguf;
mod glm;
mod gpt;
mod gpt2;
mod gpt_bigcode;
mod gpt_neox;
mod gptj;
mod internlm2;
mod llama;
mod mistral;
mod mpt;
mod olmo;
mod opt;
mod parts;
mod phi;
mod phi3;
mod prefix;
mod qwen;
mod qwen_moe;
mod rope;
mod stablelm;
mod starcoder2;

use std::path::Path;

use crate::error::{Error, Result};
use crate::format::{Checkpoint, read_small_file};
use crate::model::error::{ModelError, ModelResult};
use crate::model::spec::ModelSpec;
use crate::model::spec_file::{self, MAX_JSON_BYTES};

use config::Config;

/// A family: the names it goes by, and the functions that describe its models.
struct Family {
    /// Name, for people.
    name: &'static str,
    /// `architectures` entries of `config.json`.
    architectures: &'static [&'static str],
    /// `model_type` of `config.json`, for files without `architectures`.
    model_types: &'static [&'static str],
    from_config: fn(&Config) -> ModelResult<ModelSpec>,
}

const FAMILIES: [Family; 30] = [
    llama::FAMILY,
    llama::DEEPSEEK,
    mistral::MISTRAL,
    mistral::MIXTRAL,
    qwen::QWEN2,
    qwen::QWEN3,
    qwen_moe::QWEN2_MOE,
    qwen_moe::QWEN3_MOE,
    gemma::GEMMA,
    gemma::GEMMA2,
    gemma3::FAMILY,
    phi::FAMILY,
    phi3::FAMILY,
    glm::GLM,
    glm::GLM4,
    chatglm::FAMILY,
    baichuan::FAMILY,
    internlm2::FAMILY,
    stablelm::FAMILY,
    olmo::OLMO,
    olmo::OLMO2,
    gpt2::FAMILY,
    gptj::FAMILY,
    gpt_neox::FAMILY,
    gpt_bigcode::FAMILY,
    starcoder2::FAMILY,
    falcon::FAMILY,
    mpt::FAMILY,
    bloom::FAMILY,
    opt::FAMILY,
];

const SPEC_FILE: &str = "model_spec.json";
const CONFIG_FILE: &str = "config.json";

/// Describes the model of a checkpoint, validated: from `model_spec.json`, else from `config.json` or a GGUF
/// file's metadata. Code that a `config.json` refers to is never run.
pub fn load_spec(checkpoint: &Checkpoint) -> Result<ModelSpec> {
    load_spec_from(checkpoint, None)
}

/// The same, or what the spec at `spec_path` says in place of the checkpoint's own description.
pub fn load_spec_from(checkpoint: &Checkpoint, spec_path: Option<&Path>) -> Result<ModelSpec> {
    match (spec_path, checkpoint) {
        (Some(path), _) => spec_file::read(path),
        (None, Checkpoint::Gguf(file)) => gguf::load_spec(file),
        (None, Checkpoint::Directory(directory)) => from_directory(directory.path(), checkpoint),
        (None, Checkpoint::Random(description)) => from_description(description.path(), checkpoint),
    }
}

fn from_directory(directory: &Path, checkpoint: &Checkpoint) -> Result<ModelSpec> {
    let spec_path = directory.join(SPEC_FILE);
    // A link that leads nowhere is there, and an error.
    if spec_path.symlink_metadata().is_ok() {
        return spec_file::read(&spec_path);
    }
    let config_path = directory.join(CONFIG_FILE);
    let bytes = read_small_file(&config_path, MAX_JSON_BYTES)?;
    let spec = Config::parse(&bytes, checkpoint).and_then(|config| from_config(&config));
    spec.map_err(|error| at(&config_path, error))
}

/// A file under any name tells by its fields what it is: a spec has its family, a `config.json` its architectures
/// or its type.
fn from_description(path: &Path, checkpoint: &Checkpoint) -> Result<ModelSpec> {
    if path.is_dir() {
        return from_directory(path, checkpoint);
    }
    let bytes = read_small_file(path, MAX_JSON_BYTES)?;
    let spec = Config::parse(&bytes, checkpoint).and_then(|config| {
        let is_config = config.has("architectures") || config.has("model_type");
        match !is_config && config.has_key("family") {
            true => spec_file::parse_validated(&bytes),
            false => from_config(&config),
        }
    });
    spec.map_err(|error| at(path, error))
}

fn from_config(config: &Config) -> ModelResult<ModelSpec> {
    let family = find_by_config(config)?;
    config.refuse_quantized()?;
    let mut spec = (family.from_config)(config)?;
    config.fit_names(&mut spec.weights);
    spec.validate().map_err(of_specification)?;
    Ok(spec)
}

fn find_by_config(config: &Config) -> ModelResult<&'static Family> {
    let architecture = config.first_text("architectures")?;
    let model_type = config.text("model_type")?;
    let (field, name) = match (architecture, model_type) {
        (Some(name), _) => ("architectures", name),
        (None, Some(name)) => ("model_type", name),
        (None, None) => return Err(ModelError::invalid("architectures", "is missing, and so is model_type")),
    };
    let is_named = |family: &&Family| match architecture {
        Some(name) => family.architectures.contains(&name),
        None => family.model_types.contains(&name),
    };
    FAMILIES.iter().find(is_named).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
        let message = format!(
            "{name:?} is not known; a {SPEC_FILE} beside it, or named in the options, can describe any decoder; \
             known are {}",
            known.join(", ")
        );
        ModelError::unsupported(field, message)
    })
}

/// An error about a field of a specification, for a reader who has only the `config.json` that it was made from.
fn of_specification(error: ModelError) -> ModelError {
    let named = |field| format!("{field} (in the specification made from this configuration)");
    match error {
        ModelError::Invalid { field, message } => ModelError::invalid(named(field), message),
        ModelError::Unsupported { field, message } => ModelError::unsupported(named(field), message),
    }
}

/// `error` with the file that it is about.
fn at(path: &Path, error: ModelError) -> Error {
    Error::from(error).context(path.display())
}

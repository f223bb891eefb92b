//! `inflight inspect`: what a model is, from its headers alone.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use inflight::backend::DType;
use inflight::format::{Checkpoint, TensorInfo};
use inflight::model::weights::Weights;
use inflight::model::{ModelSpec, check_weights, load_spec_from};
use inflight::token::Tokenizer;
use serde_json::{Value, json};

use crate::architecture::describe;
use crate::failure::Failure;
use crate::flight::error_json;
use crate::units::format_bytes;

const EXAMPLES: &str = "\
Examples:
  inflight inspect model.gguf
  inflight inspect model.gguf --tensors
  inflight inspect config.json
  inflight inspect model-directory --spec --output model-directory/model_spec.json
  inflight inspect model.gguf --spec-file my_spec.json

--spec prints the architecture as the engine uses it. A model directory may carry such a file under the name
model_spec.json, which then takes the place of what config.json says; other commands take one by --spec FILE.
The exit code is 1 where the weights are not those that the architecture names.";

/// Options of `inflight inspect`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct InspectArgs {
    /// Model: a directory in Hugging Face layout, a .gguf file, or a description in .json alone
    #[arg(value_name = "MODEL")]
    model: PathBuf,

    /// Print the architecture as JSON, and nothing else
    #[arg(long, conflicts_with_all = ["tensors", "json"])]
    spec: bool,

    /// Write the architecture to a file instead of printing it
    #[arg(long, value_name = "FILE", requires = "spec")]
    output: Option<PathBuf>,

    /// Architecture: a model_spec.json under any name, in place of what MODEL says of itself
    #[arg(long, value_name = "FILE")]
    spec_file: Option<PathBuf>,

    /// List every tensor
    #[arg(long)]
    tensors: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What there is of a model's weights.
struct Inventory<'a> {
    tensors: Vec<&'a TensorInfo>,
    /// Of the tensors that are there, or of those that the architecture names where none are.
    num_parameters: u64,
    /// Whether the tensors are those that the architecture names.
    fit: inflight::Result<()>,
}

impl<'a> Inventory<'a> {
    fn new(spec: &ModelSpec, checkpoint: &'a Checkpoint) -> Self {
        let tensors: Vec<&TensorInfo> =
            checkpoint.tensor_names().filter_map(|name| checkpoint.tensor(name)).collect();
        let num_parameters =
            if tensors.is_empty() { implied_parameters(spec) } else { num_parameters(&tensors) };
        Self { tensors, num_parameters, fit: check_weights(spec, checkpoint) }
    }
}

/// Runs the command.
pub fn run(args: &InspectArgs) -> Result<(), Failure> {
    let checkpoint = Checkpoint::open_description(&args.model)?;
    let spec = load_spec_from(&checkpoint, args.spec_file.as_deref())?;
    let mut stdout = std::io::stdout().lock();
    if args.spec {
        let text = serde_json::to_string_pretty(&spec).map_err(std::io::Error::from)? + "\n";
        return match &args.output {
            Some(path) => std::fs::write(path, text)
                .map_err(|error| Failure::Failed(format!("cannot write {}: {error}", path.display()))),
            None => Ok(stdout.write_all(text.as_bytes())?),
        };
    }
    let inventory = Inventory::new(&spec, &checkpoint);
    let tokenizer = match checkpoint {
        Checkpoint::Random(_) => None,
        Checkpoint::Directory(_) | Checkpoint::Gguf(_) => Some(Tokenizer::load(&checkpoint)),
    };
    if args.json {
        let mut object = to_json(&spec, &inventory, args.tensors)?;
        object["tokenizer"] = tokenizer_json(tokenizer.as_ref());
        writeln!(stdout, "{object}")?;
        return Ok(inventory.fit?);
    }
    let facts = [describe(&spec), weights(&inventory), text(tokenizer.as_ref())].concat();
    for (name, value) in facts {
        writeln!(stdout, "{name:<17}{value}")?;
    }
    if args.tensors {
        writeln!(stdout, "\n{:<36}{:<10}{:>12}  shape", "tensor", "type", "size")?;
        for tensor in &inventory.tensors {
            let TensorInfo { name, shape, num_bytes, .. } = tensor;
            let encoding = encoding_name(tensor);
            writeln!(stdout, "{name:<36}{encoding:<10}{:>12}  {shape:?}", format_bytes(*num_bytes))?;
        }
    }
    Ok(inventory.fit?)
}

fn to_json(spec: &ModelSpec, inventory: &Inventory<'_>, list: bool) -> Result<Value, Failure> {
    let Inventory { tensors, num_parameters, fit } = inventory;
    let spec = serde_json::to_value(spec).map_err(std::io::Error::from)?;
    let mut object = json!({
        "spec": spec,
        "num_tensors": tensors.len(),
        "num_parameters": num_parameters,
        "stored_bytes": stored_bytes(tensors),
    });
    if let Err(error) = fit {
        object["weights_error"] = error_json(error);
    }
    if list {
        let entry = |tensor: &&TensorInfo| {
            json!({
                "name": tensor.name,
                "type": encoding_name(tensor),
                "shape": tensor.shape,
                "num_bytes": tensor.num_bytes,
            })
        };
        object["tensors"] = tensors.iter().map(entry).collect();
    }
    Ok(object)
}

/// What the tokenizer is; a model without a usable one can still be inspected.
fn tokenizer_json(tokenizer: Option<&inflight::Result<Tokenizer>>) -> Value {
    match tokenizer {
        None => Value::Null,
        Some(Ok(tokenizer)) => json!({
            "vocab_size": tokenizer.vocab_size(),
            "eos_tokens": tokenizer.eos_tokens(),
            "has_chat_template": tokenizer.has_chat_template(),
        }),
        Some(Err(error)) => json!({"error": error_json(error)}),
    }
}

fn text(tokenizer: Option<&inflight::Result<Tokenizer>>) -> Vec<(&'static str, String)> {
    let tokenizer = match tokenizer {
        None => return Vec::new(),
        Some(Ok(tokenizer)) => tokenizer,
        Some(Err(error)) => return vec![("tokenizer", error.to_string())],
    };
    let template = if tokenizer.has_chat_template() { "yes" } else { "none" };
    vec![
        ("tokens", tokenizer.vocab_size().to_string()),
        ("end of sequence", format!("{:?}", tokenizer.eos_tokens())),
        ("chat template", template.to_owned()),
    ]
}

fn encoding_name(tensor: &TensorInfo) -> String {
    format!("{:?}", tensor.encoding)
}

fn num_parameters(tensors: &[&TensorInfo]) -> u64 {
    tensors.iter().map(|tensor| tensor.shape.iter().map(|&size| size as u64).product::<u64>()).sum()
}

fn stored_bytes(tensors: &[&TensorInfo]) -> u64 {
    tensors.iter().map(|tensor| tensor.num_bytes).sum()
}

/// Parameters of the tensors that the architecture names, each counted once.
fn implied_parameters(spec: &ModelSpec) -> u64 {
    let plan = Weights::plan(spec, DType::F32);
    let shapes: BTreeMap<&str, &[usize]> = plan
        .expected_tensors()
        .into_iter()
        .map(|tensor| (tensor.name.as_str(), tensor.shape.as_slice()))
        .collect();
    shapes.values().map(|shape| shape.iter().map(|&size| size as u64).product::<u64>()).sum()
}

fn weights(inventory: &Inventory<'_>) -> Vec<(&'static str, String)> {
    let Inventory { tensors, num_parameters, fit: _ } = inventory;
    let count = match *num_parameters {
        num @ 0..1_000_000 => num.to_string(),
        num => format!("{:.1} million", num as f64 / 1e6),
    };
    if tensors.is_empty() {
        return vec![("parameters", format!("{count}, by the architecture")), ("weights", "none".to_owned())];
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for tensor in tensors {
        *counts.entry(encoding_name(tensor)).or_default() += 1;
    }
    let encodings: Vec<String> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
    vec![
        ("parameters", count),
        ("tensors", format!("{} ({})", tensors.len(), encodings.join(", "))),
        ("stored", format_bytes(stored_bytes(tensors))),
    ]
}

//! `inflight inspect`: what a model is, from its headers alone.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use inflight::format::{Checkpoint, TensorInfo};
use inflight::model::load_spec;
use inflight::model::spec::{ModelSpec, OutputHead, Positions, RopeScaling};
use inflight::token::Tokenizer;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::flight::error_json;
use crate::units::format_bytes;

const EXAMPLES: &str = "\
Examples:
  inflight inspect model.gguf
  inflight inspect model.gguf --tensors
  inflight inspect model-directory --spec > model_spec.json

--spec prints the architecture as the engine uses it. A model directory may carry such a file under the name
model_spec.json, which then takes the place of what config.json says.";

/// Options of `inflight inspect`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct InspectArgs {
    /// Model: a directory in Hugging Face layout, or a .gguf file
    #[arg(value_name = "MODEL")]
    model: PathBuf,

    /// Print the architecture as JSON, and nothing else
    #[arg(long, conflicts_with_all = ["tensors", "json"])]
    spec: bool,

    /// List every tensor
    #[arg(long)]
    tensors: bool,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &InspectArgs) -> Result<(), Failure> {
    let checkpoint = Checkpoint::open(&args.model)?;
    let spec = load_spec(&checkpoint)?;
    let mut stdout = std::io::stdout().lock();
    if args.spec {
        serde_json::to_writer_pretty(&mut stdout, &spec).map_err(std::io::Error::from)?;
        return Ok(writeln!(stdout)?);
    }
    let tensors: Vec<&TensorInfo> =
        checkpoint.tensor_names().filter_map(|name| checkpoint.tensor(name)).collect();
    let tokenizer = Tokenizer::load(&checkpoint);
    if args.json {
        let mut object = to_json(&spec, &tensors, args.tensors)?;
        object["tokenizer"] = tokenizer_json(&tokenizer);
        return Ok(writeln!(stdout, "{object}")?);
    }
    let facts = [architecture(&spec), weights(&tensors), text(&tokenizer)].concat();
    for (name, value) in facts {
        writeln!(stdout, "{name:<17}{value}")?;
    }
    if args.tensors {
        writeln!(stdout, "\n{:<36}{:<10}{:>12}  shape", "tensor", "type", "size")?;
        for tensor in tensors {
            let TensorInfo { name, shape, num_bytes, .. } = tensor;
            let encoding = encoding_name(tensor);
            writeln!(stdout, "{name:<36}{encoding:<10}{:>12}  {shape:?}", format_bytes(*num_bytes))?;
        }
    }
    Ok(())
}

fn to_json(spec: &ModelSpec, tensors: &[&TensorInfo], list: bool) -> Result<Value, Failure> {
    let spec = serde_json::to_value(spec).map_err(std::io::Error::from)?;
    let mut object = json!({
        "spec": spec,
        "num_tensors": tensors.len(),
        "num_parameters": num_parameters(tensors),
        "stored_bytes": stored_bytes(tensors),
    });
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
fn tokenizer_json(tokenizer: &inflight::Result<Tokenizer>) -> Value {
    match tokenizer {
        Ok(tokenizer) => json!({
            "vocab_size": tokenizer.vocab_size(),
            "eos_tokens": tokenizer.eos_tokens(),
            "has_chat_template": tokenizer.has_chat_template(),
        }),
        Err(error) => json!({"error": error_json(error)}),
    }
}

fn text(tokenizer: &inflight::Result<Tokenizer>) -> Vec<(&'static str, String)> {
    let tokenizer = match tokenizer {
        Ok(tokenizer) => tokenizer,
        Err(error) => return vec![("tokenizer", error.to_string())],
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

fn weights(tensors: &[&TensorInfo]) -> Vec<(&'static str, String)> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for tensor in tensors {
        *counts.entry(encoding_name(tensor)).or_default() += 1;
    }
    let encodings: Vec<String> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
    vec![
        ("parameters", format!("{:.1} million", num_parameters(tensors) as f64 / 1e6)),
        ("tensors", format!("{} ({})", tensors.len(), encodings.join(", "))),
        ("stored", format_bytes(stored_bytes(tensors))),
    ]
}

fn architecture(spec: &ModelSpec) -> Vec<(&'static str, String)> {
    let heads = &spec.heads;
    let head = match spec.output {
        OutputHead::Tied => "the embedding table",
        OutputHead::Untied => "a matrix of its own",
        OutputHead::UntiedUnitRows => "a matrix of its own, its rows divided by their lengths",
    };
    vec![
        ("family", spec.family.clone()),
        ("layers", spec.num_layers.to_string()),
        ("hidden size", spec.hidden_size.to_string()),
        ("MLP size", spec.intermediate_size.to_string()),
        (
            "heads",
            format!("{} query, {} key-value, of {}", heads.num_heads, heads.num_kv_heads, heads.head_dim),
        ),
        ("block", spec.block.name().replace('_', " ")),
        ("activation", spec.mlp.activation().name().replace('_', " ")),
        ("positions", positions(&spec.positions)),
        ("context", format!("{} tokens", spec.max_positions)),
        ("vocabulary", spec.vocab_size.to_string()),
        ("output head", head.to_owned()),
    ]
}

fn positions(positions: &Positions) -> String {
    let (theta, rotary_dim, scaling) = match positions {
        Positions::None => return "none".to_owned(),
        Positions::Learned { .. } => return "learned".to_owned(),
        Positions::Alibi { .. } => return "ALiBi".to_owned(),
        Positions::Rope { theta, rotary_dim, scaling, .. } => (theta, rotary_dim, scaling),
    };
    let scaling = match scaling {
        RopeScaling::None => "no scaling".to_owned(),
        RopeScaling::Linear { factor } => format!("linear scaling by {factor}"),
        RopeScaling::DynamicNtk { factor, .. } => format!("dynamic NTK scaling by {factor}"),
        RopeScaling::Llama3 { factor, .. } => format!("Llama 3 scaling by {factor}"),
        RopeScaling::Yarn { factor, .. } => format!("YaRN scaling by {factor}"),
        RopeScaling::PerFrequency { .. } => "a factor per frequency".to_owned(),
        RopeScaling::LongRope { .. } => "LongRoPE".to_owned(),
    };
    format!("RoPE over {rotary_dim} elements, theta {theta}, {scaling}")
}

//! `inflight inspect`: what a model is, from its headers alone.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use inflight::format::Checkpoint;
use inflight::model::families::load_spec;
use inflight::model::spec::{ModelSpec, OutputHead, Positions, RopeScaling};

use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  inflight inspect model.gguf
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

    /// Print the architecture as JSON
    #[arg(long)]
    spec: bool,
}

/// Runs the command.
pub fn run(args: &InspectArgs) -> Result<(), Failure> {
    let checkpoint = Checkpoint::open(&args.model)?;
    let spec = load_spec(&checkpoint)?;
    let mut stdout = std::io::stdout().lock();
    if args.spec {
        let json = serde_json::to_string_pretty(&spec)
            .map_err(|error| Failure::Failed(format!("the spec cannot be written as JSON: {error}")))?;
        writeln!(stdout, "{json}")?;
        return Ok(());
    }
    for (name, value) in architecture(&spec) {
        writeln!(stdout, "{name:<16}{value}")?;
    }
    Ok(())
}

fn architecture(spec: &ModelSpec) -> Vec<(&'static str, String)> {
    let heads = &spec.heads;
    let Positions::Rope { theta, rotary_dim, scaling, .. } = &spec.positions;
    let scaling = match scaling {
        RopeScaling::None => "no scaling".to_owned(),
        RopeScaling::Linear { factor } => format!("linear scaling by {factor}"),
        RopeScaling::DynamicNtk { factor, .. } => format!("dynamic NTK scaling by {factor}"),
        RopeScaling::Llama3 { factor, .. } => format!("Llama 3 scaling by {factor}"),
        RopeScaling::Yarn { factor, .. } => format!("YaRN scaling by {factor}"),
        RopeScaling::PerFrequency { .. } => "a factor per frequency".to_owned(),
    };
    let head = match spec.output {
        OutputHead::Tied => "the embedding table",
        OutputHead::Untied => "a matrix of its own",
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
        ("positions", format!("RoPE over {rotary_dim} elements, theta {theta}, {scaling}")),
        ("context", format!("{} tokens", spec.max_positions)),
        ("vocabulary", spec.vocab_size.to_string()),
        ("output head", head.to_owned()),
    ]
}

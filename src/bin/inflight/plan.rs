//! `inflight plan`: what a model would take, without loading it.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use inflight::Engine;
use inflight::engine::MemoryPlan;
use serde_json::{Value, json};

use crate::failure::Failure;
use crate::options::EngineArgs;
use crate::units::format_bytes;

const EXAMPLES: &str = "\
Examples:
  inflight plan model.gguf
  inflight plan model.gguf --max-model-len 2048 --max-sequences 16 --memory-limit 2GiB
  inflight plan model.gguf --json
  inflight plan config.json

A config.json or model_spec.json, under any name in .json, is enough. Nothing is loaded or reserved. The exit code is 1
where the plan does not fit the limit or the free memory.";

/// Options of `inflight plan`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct PlanArgs {
    /// Model: a directory in Hugging Face layout, a .gguf file, or a description in .json alone
    #[arg(value_name = "MODEL")]
    model: PathBuf,

    #[command(flatten)]
    engine: EngineArgs,

    /// Print one JSON object, sizes in bytes
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &PlanArgs) -> Result<(), Failure> {
    let plan = Engine::plan(&args.engine.to_options(&args.model))?;
    let mut stdout = std::io::stdout().lock();
    if args.json {
        writeln!(stdout, "{}", to_json(&plan))?;
    } else {
        stdout.write_all(table(&plan).as_bytes())?;
    }
    if plan.fits {
        return Ok(());
    }
    Err(Failure::Failed(format!(
        "the plan needs {} and does not fit; lower --max-model-len, --max-sequences or --kv-cache, \
         or raise --memory-limit",
        format_bytes(plan.total_bytes())
    )))
}

fn to_json(plan: &MemoryPlan) -> Value {
    json!({
        "weights_bytes": plan.weights_bytes,
        "kv_cache_bytes": plan.kv_cache_bytes,
        "workspace_bytes": plan.workspace_bytes,
        "total_bytes": plan.total_bytes(),
        "available_bytes": plan.available_bytes,
        "num_kv_blocks": plan.num_kv_blocks,
        "kv_block_size": plan.kv_block_size,
        "max_model_len": plan.max_model_len,
        "fits": plan.fits,
    })
}

fn table(plan: &MemoryPlan) -> String {
    let free = match plan.available_bytes {
        0 => "unknown".to_owned(),
        bytes => format_bytes(bytes),
    };
    let num_cached_tokens = plan.num_kv_blocks.saturating_mul(plan.kv_block_size);
    let rows = [
        ("weights", format_bytes(plan.weights_bytes)),
        ("KV cache", format_bytes(plan.kv_cache_bytes)),
        ("workspace", format_bytes(plan.workspace_bytes)),
        ("total", format_bytes(plan.total_bytes())),
        ("free now", free),
        ("fits", if plan.fits { "yes" } else { "no" }.to_owned()),
        ("KV blocks", format!("{} of {} tokens", plan.num_kv_blocks, plan.kv_block_size)),
        ("cached tokens", num_cached_tokens.to_string()),
        ("longest request", format!("{} tokens", plan.max_model_len)),
    ];
    rows.iter().map(|(name, value)| format!("{name:<16} {value:>22}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_and_json_hold_the_same_plan() {
        let plan = MemoryPlan {
            weights_bytes: 269 << 20,
            kv_cache_bytes: 1 << 30,
            workspace_bytes: 12 << 20,
            num_kv_blocks: 728,
            kv_block_size: 64,
            max_model_len: 8192,
            available_bytes: 0,
            fits: true,
        };
        let table = table(&plan);
        for part in
            ["269 MiB", "1.00 GiB", "12.0 MiB", "1.27 GiB", "unknown", "yes", "728 of 64", "46592", "8192"]
        {
            assert!(table.contains(part), "{part} in\n{table}");
        }
        assert_eq!(to_json(&plan)["total_bytes"], (269u64 << 20) + (1 << 30) + (12 << 20));
    }
}

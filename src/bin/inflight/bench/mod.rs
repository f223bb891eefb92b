//! `inflight bench`: throughput and latency with exact lengths.

mod args;
mod figures;
mod load;
mod report;
mod run;

use std::io::Write;

pub use args::BenchArgs;

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::loading::load;
use crate::workload::Lengths;
use figures::{Figures, Goals};
use load::Load;
use report::{Report, Setting};

/// Runs the command.
pub fn run(args: &BenchArgs, interrupt: &Interrupt) -> Result<(), Failure> {
    let (workload, loads, num_runs) = (args.workload()?, args.loads()?, args.num_runs()?);
    let num_warmup = args.num_warmup(workload.len(), &loads);
    let mut options = args.engine.to_options(args.model());
    options.random_weights = args.random_weights.as_ref().map(|_| args.seed);
    options.max_queued_requests = options.max_queued_requests.max(workload.len()).max(num_warmup);
    let engine = load(options, args.json, interrupt)?;
    let mut bench = run::Bench::new(&engine, interrupt, args.seed);
    let warmup: Vec<Lengths> = workload.iter().cycle().take(num_warmup).copied().collect();
    if !warmup.is_empty() {
        bench.run(&warmup, Load::Burst)?;
    }
    let goals = Goals { ttft_ms: args.slo_ttft, tpot_ms: args.slo_tpot };
    let mut settings: Vec<Setting> = loads.into_iter().map(Setting::new).collect();
    // The loads take turns, so that a slow drift of the machine meets them all alike.
    for _ in 0..num_runs {
        for setting in &mut settings {
            let run = bench.run(&workload, setting.load)?;
            setting.runs.push(Figures::new(&workload, run, setting.load, goals));
        }
    }
    let report = Report::new(args, engine.model_info(), &workload, num_warmup, settings);
    let text = if args.json { report.to_json().to_string() + "\n" } else { report.to_text() };
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

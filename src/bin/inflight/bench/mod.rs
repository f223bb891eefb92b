//! `inflight bench`: throughput and latency with exact lengths.

mod args;
mod figures;
mod load;
mod meter;
mod report;
mod run;
mod work;

use std::io::Write;
use std::time::Instant;

use inflight::backend::DType;
use inflight::format::Checkpoint;
use inflight::model::load_spec_from;
use inflight::{DTypeChoice, EngineOptions};

pub use args::BenchArgs;

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::loading::load;
use crate::workload::Lengths;
use figures::{Figures, Goals, Yardstick};
use load::Load;
use meter::{Meter, cuda_device};
use report::{Report, Setting, Startup};
use run::{Bench, Run};
use work::{Ceilings, ModelCosts};

/// Runs the command.
pub fn run(args: &BenchArgs, interrupt: &Interrupt) -> Result<(), Failure> {
    let (workload, loads, num_runs) = (args.workload()?, args.loads()?, args.num_runs()?);
    let num_warmup = args.num_warmup(workload.len(), &loads);
    let mut options = args.engine.to_options(args.model());
    options.random_weights = args.random_weights.as_ref().map(|_| args.seed);
    options.max_queued_requests = options.max_queued_requests.max(workload.len()).max(num_warmup);
    let start = Instant::now();
    let engine = load(options.clone(), args.json, interrupt)?;
    let creation_s = start.elapsed().as_secs_f64();
    let device = &engine.model_info().device;
    let yardstick = yardstick(args, &options, device)?;
    let meter = cuda_device(device).map(|(ordinal, name)| Meter::open(ordinal, name));

    let mut bench = Bench::new(&engine, interrupt, args.seed);
    bench.run(&[Lengths { output: 1, ..workload[0] }], Load::Burst)?;
    let startup = Startup { creation_s, first_token_s: start.elapsed().as_secs_f64() };
    let warmup: Vec<Lengths> = workload.iter().cycle().take(num_warmup).copied().collect();
    if !warmup.is_empty() {
        bench.run(&warmup, Load::Burst)?;
    }
    let mut settings: Vec<Setting> = loads.into_iter().map(Setting::new).collect();
    // The loads take turns, so that a slow drift of the machine meets them all alike.
    for _ in 0..num_runs {
        for setting in &mut settings {
            let mut work = || bench.run(&workload, setting.load);
            let (run, usage) = match &meter {
                Some(Ok(meter)) => meter.measure(work),
                _ => (work(), None),
            };
            let run = Run { usage, ..run? };
            setting.runs.push(Figures::new(&workload, run, setting.load, &yardstick));
        }
    }
    let mut heading = report::heading(args, engine.model_info(), &workload);
    heading.push(("warmup", format!("{num_warmup} requests at once, not counted")));
    heading.extend(yardstick.ceilings.describe().map(|ceilings| ("ceilings", ceilings)));
    heading.extend(meter.map(|meter| match meter {
        Ok(_) => ("energy", "of the whole card, by NVML".to_owned()),
        Err(reason) => ("energy", format!("not available: {reason}")),
    }));
    let report = Report { heading, startup, settings };
    let text = if args.json { report.to_json().to_string() + "\n" } else { report.to_text() };
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

fn yardstick(args: &BenchArgs, options: &EngineOptions, device: &str) -> Result<Yardstick, Failure> {
    let goals = Goals { ttft_ms: args.slo_ttft, tpot_ms: args.slo_tpot };
    let ceilings = Ceilings::of(args, device);
    if ceilings == Ceilings::default() || device == "echo" {
        return Ok(Yardstick { goals, ceilings, costs: None });
    }
    let checkpoint = match options.random_weights {
        Some(seed) => Checkpoint::random(&options.model, seed),
        None => Checkpoint::open(&options.model)?,
    };
    let dtype = match options.dtype {
        DTypeChoice::Auto | DTypeChoice::Bf16 => DType::Bf16,
        DTypeChoice::F16 => DType::F16,
        DTypeChoice::F32 => DType::F32,
    };
    let spec = load_spec_from(&checkpoint, options.spec_path.as_deref())?;
    Ok(Yardstick { goals, ceilings, costs: Some(ModelCosts::new(&spec, dtype)) })
}

//! `inflight bench`: throughput and latency with exact lengths.

mod report;
mod run;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::loading::load;
use crate::options::EngineArgs;
use crate::workload::{Lengths, read_trace};

const EXAMPLES: &str = "\
Examples:
  inflight bench model.gguf --requests 16 --input-len 128 --output-len 128
  inflight bench model.gguf --trace lengths.json --limit 100 --json
  inflight bench model.gguf --single-stream --repeat 3
  inflight bench --random-weights config.json --device cuda --requests 512

All requests are enqueued at once, after a warm-up that is not counted. Prompts are random token ids of a
fixed seed; outputs have exactly the length asked for, greedy, end-of-sequence tokens ignored. A trace is a
JSON array of [input, output] lengths in tokens. --random-weights runs the architecture of a config.json or
model_spec.json without its weights: speed does not depend on what they are.

Figures, from times taken where events are polled:
  requests/s     requests / (end of the last - enqueueing of the first)
  output tok/s   output tokens / the same time
  total tok/s    (prompt + output tokens) / the same time
  TTFT           time to first token: enqueue to the request's first token event
  TPOT           time per output token: (E2E - TTFT) / (output tokens - 1), per request of 2 tokens and more
  ITL            inter-token latency: gaps between token events, of all requests together; an event of n
                 tokens counts as n gaps of a part each
  E2E            enqueue to the request's terminal event
  percentiles    linear interpolation between closest ranks, over the requests of the run shown
With --repeat, the run with the median output tok/s is shown, and every run's figure is listed.

--single-stream runs one request at a time and takes the phases apart:
  prompt tok/s   prompt tokens / TTFT
  decode tok/s   (output tokens - 1) / (last token event - first token event), at the depth of the prompt";

/// Options of `inflight bench`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct BenchArgs {
    /// Model: a directory in Hugging Face layout, or a .gguf file
    #[arg(value_name = "MODEL", required_unless_present = "random_weights")]
    model: Option<PathBuf>,

    /// Random weights instead of a model: a config.json or model_spec.json, under any name
    #[arg(long, value_name = "FILE.json", conflicts_with = "model")]
    random_weights: Option<PathBuf>,

    #[command(flatten)]
    engine: EngineArgs,

    /// Requests, enqueued at once [default: 64]
    #[arg(long, value_name = "N", conflicts_with_all = ["trace", "single_stream"])]
    requests: Option<usize>,

    /// Tokens of each prompt [default: 128; with --single-stream 512]
    #[arg(long, value_name = "I", conflicts_with = "trace")]
    input_len: Option<u32>,

    /// Tokens of each output [default: 128]
    #[arg(long, value_name = "O", conflicts_with = "trace")]
    output_len: Option<u32>,

    /// File of lengths to run instead
    #[arg(long, value_name = "FILE", conflicts_with = "single_stream")]
    trace: Option<PathBuf>,

    /// Requests to take from the start of the trace
    #[arg(long, value_name = "N", requires = "trace")]
    limit: Option<usize>,

    /// One request at a time; prompt and decode speed apart
    #[arg(long)]
    single_stream: bool,

    /// Runs to measure [default: 1; with --single-stream 3]
    #[arg(long, value_name = "R")]
    repeat: Option<usize>,

    /// Requests to run before measuring
    #[arg(long, value_name = "N", default_value_t = 1)]
    warmup: usize,

    /// Seed of random prompts, and of random weights
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl BenchArgs {
    /// The model, or the description of one with random weights. The command line has one of them.
    fn model(&self) -> &Path {
        self.random_weights.as_deref().or(self.model.as_deref()).unwrap_or(Path::new(""))
    }

    fn workload(&self) -> Result<Vec<Lengths>, Failure> {
        let workload = match &self.trace {
            Some(path) => read_trace(path, self.limit)?,
            None => {
                let default_input = if self.single_stream { 512 } else { 128 };
                let lengths = Lengths {
                    input: self.input_len.unwrap_or(default_input),
                    output: self.output_len.unwrap_or(128),
                };
                let num_requests = if self.single_stream { 1 } else { self.requests.unwrap_or(64) };
                vec![lengths; num_requests]
            }
        };
        if workload.is_empty() || workload.iter().any(|lengths| lengths.input == 0 || lengths.output == 0) {
            let message = "--requests, --limit, --input-len and --output-len are at least 1";
            return Err(Failure::Usage(message.to_owned()));
        }
        if self.single_stream && workload[0].output < 2 {
            return Err(Failure::Usage("--single-stream needs an --output-len of 2 or more".to_owned()));
        }
        Ok(workload)
    }

    fn num_runs(&self) -> Result<usize, Failure> {
        match self.repeat.unwrap_or(if self.single_stream { 3 } else { 1 }) {
            0 => Err(Failure::Usage("--repeat is at least 1".to_owned())),
            num_runs => Ok(num_runs),
        }
    }
}

/// Runs the command.
pub fn run(args: &BenchArgs, interrupt: &Interrupt) -> Result<(), Failure> {
    let workload = args.workload()?;
    let num_runs = args.num_runs()?;
    let mut options = args.engine.to_options(args.model());
    options.random_weights = args.random_weights.as_ref().map(|_| args.seed);
    options.max_queued_requests = options.max_queued_requests.max(workload.len());
    let engine = load(options, args.json, interrupt)?;
    let mut bench = run::Bench::new(&engine, interrupt, args.seed);
    let warmup: Vec<Lengths> = workload.iter().cycle().take(args.warmup).copied().collect();
    if !warmup.is_empty() {
        bench.run(&warmup)?;
    }
    let mut runs = Vec::with_capacity(num_runs);
    for _ in 0..num_runs {
        runs.push(bench.run(&workload)?);
    }
    let report = report::Report::new(args, engine.model_info(), &workload, runs);
    let text = if args.json { report.to_json().to_string() + "\n" } else { report.to_text() };
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

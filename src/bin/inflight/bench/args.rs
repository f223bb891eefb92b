//! The command line of `inflight bench`, and the workload and load shapes that it asks for.

use std::path::{Path, PathBuf};

use clap::Args;

use super::load::Load;
use crate::failure::Failure;
use crate::options::EngineArgs;
use crate::workload::{Lengths, read_trace};

/// Largest warm-up where the sequences in one step are left to the device.
const DEFAULT_WARMUP_MAX: usize = 256;

const EXAMPLES: &str = "\
Examples:
  inflight bench model.gguf --requests 16 --input-len 128 --output-len 128
  inflight bench model.gguf --trace lengths.json --requests 100 --json
  inflight bench model.gguf --single-stream --repeats 3
  inflight bench model.gguf --concurrency 1,8,64 --repeats 3
  inflight bench model.gguf --rate 2,4 --requests 200 --slo-ttft 500 --slo-tpot 50
  inflight bench --random-weights config.json --device cuda --requests 512 --max-sequences 512

Load shapes: by default all requests are enqueued at once. --concurrency keeps so many in flight, --rate lets
them arrive as a Poisson process, --single-stream runs one. Each of several values is a load of its own; with
--repeats the loads take turns. A warm-up that is not counted comes first.

Prompts are random token ids of a fixed seed; outputs have exactly the length asked for, greedy, end-of-sequence
tokens ignored. A trace is a JSON array of [input, output] lengths in tokens. --random-weights runs the
architecture of a config.json or model_spec.json without its weights, on token ids of any vocabulary: speed does
not depend on what they are.

Figures, from times taken where events are polled; a request starts when it is enqueued, with --rate when it is
due:
  requests/s     requests / (end of the last - start of the first)
  output tok/s   output tokens / the same time
  total tok/s    (prompt + output tokens) / the same time
  goodput        requests/s that kept to --slo-ttft and --slo-tpot, with either of them
  TTFT           time to first token: start to the request's first token event
  TPOT           time per output token: (E2E - TTFT) / (output tokens - 1), per request of 2 tokens and more
  ITL            inter-token latency: gaps between token events, of all requests together; an event of n
                 tokens counts as n gaps of a part each
  E2E            start to the request's terminal event
  creation       of the engine; and from its start to the first token of a request with the first prompt
  percentiles    linear interpolation between closest ranks, over the requests of the run shown
With --repeats, the run with the median output tok/s is shown, and every run's figure is listed.

--single-stream takes the phases apart:
  prompt tok/s   prompt tokens / TTFT
  decode tok/s   (output tokens - 1) / (last token event - first token event), at the depth of the prompt

Shares of the device's ceilings, where those are known (H100 80GB HBM3, H200) or given:
  prompt, % FLOP/s   with --single-stream, of --peak-flops: FLOP of the prompt / TTFT
  decode, % bytes/s  with --single-stream, of --peak-bandwidth: bytes / (last - first token event)
  MFU, %             otherwise, of --peak-flops: FLOP of all requests / duration
A request of I tokens in and O out takes T = I + O - 1 tokens through the layers:
  FLOP  = 2 T (weights of the layers) + 2 O (weights of the head) + 4 layers * heads * head_dim * T (T + 1) / 2;
          of its prompt, the same with T = I and O = 1
  bytes = (O - 1) (all weights but an untied embedding table) + (bytes of a token in the KV cache) * (sum of the
          contexts I + 1 to T)

On a CUDA device the driver's management library (NVML) tells energy, average power and clocks over each run.";

fn parse_peak(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| format!("{text:?} is not a number above 0"))
}

/// Options of `inflight bench`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct BenchArgs {
    /// Model: a directory in Hugging Face layout, or a .gguf file
    #[arg(value_name = "MODEL", required_unless_present = "random_weights")]
    model: Option<PathBuf>,

    /// Random weights instead of a model: a config.json or model_spec.json, under any name
    #[arg(long, value_name = "FILE.json", conflicts_with_all = ["model", "spec"])]
    pub random_weights: Option<PathBuf>,

    #[command(flatten)]
    pub engine: EngineArgs,

    /// Requests; of a trace, the first so many [default: 64, or four times the highest concurrency; of a
    /// trace: all]
    #[arg(long, value_name = "N", aliases = ["num-requests", "num-prompts", "limit"],
          conflicts_with = "single_stream")]
    requests: Option<usize>,

    /// Tokens of each prompt [default: 128; with --single-stream 512]
    #[arg(long, value_name = "I", conflicts_with = "trace")]
    input_len: Option<u32>,

    /// Tokens of each output [default: 128]
    #[arg(long, value_name = "O", conflicts_with = "trace")]
    output_len: Option<u32>,

    /// File of lengths to run instead
    #[arg(long, value_name = "FILE", conflicts_with = "single_stream")]
    pub trace: Option<PathBuf>,

    /// One request at a time; prompt and decode speed apart
    #[arg(long, group = "shape")]
    pub single_stream: bool,

    /// Closed loop: requests in flight at any time
    #[arg(long, value_name = "N,...", alias = "max-concurrency", value_delimiter = ',', group = "shape")]
    concurrency: Vec<usize>,

    /// Open loop: requests that arrive per second
    #[arg(long, value_name = "R,...", alias = "request-rate", value_delimiter = ',', group = "shape")]
    rate: Vec<f64>,

    /// Longest time to first token that counts as goodput, in ms
    #[arg(long, value_name = "MS")]
    pub slo_ttft: Option<f64>,

    /// Longest time per output token that counts as goodput, in ms
    #[arg(long, value_name = "MS")]
    pub slo_tpot: Option<f64>,

    /// Runs to measure of each load [default: 1; with --single-stream 3]
    #[arg(long, value_name = "R", alias = "repeat")]
    repeats: Option<usize>,

    /// Requests to run at once before measuring [default: as many as the load has in flight, at most
    /// --max-sequences]
    #[arg(long, value_name = "N")]
    warmup: Option<usize>,

    /// Seed of random prompts, arrivals and weights
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub seed: u64,

    /// Bytes per second that the memory reaches at most, in TB/s [default: measured, for known cards]
    #[arg(long, value_name = "TB/S", value_parser = parse_peak)]
    pub peak_bandwidth: Option<f64>,

    /// Floating point operations per second that matrix products reach at most, in TFLOP/s [default:
    /// measured, for known cards]
    #[arg(long, value_name = "TFLOP/S", value_parser = parse_peak)]
    pub peak_flops: Option<f64>,

    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

impl BenchArgs {
    /// The model, or the description of one with random weights. The command line has one of them.
    pub fn model(&self) -> &Path {
        self.random_weights.as_deref().or(self.model.as_deref()).unwrap_or(Path::new(""))
    }

    /// Lengths of all requests, at least one.
    pub fn workload(&self) -> Result<Vec<Lengths>, Failure> {
        let workload = match &self.trace {
            Some(path) => read_trace(path, self.requests)?,
            None => {
                let default_input = if self.single_stream { 512 } else { 128 };
                let lengths = Lengths {
                    input: self.input_len.unwrap_or(default_input),
                    output: self.output_len.unwrap_or(128),
                };
                let highest = self.concurrency.iter().copied().max().unwrap_or(0);
                let default_requests = highest.saturating_mul(4).max(64);
                let num_requests =
                    if self.single_stream { 1 } else { self.requests.unwrap_or(default_requests) };
                vec![lengths; num_requests]
            }
        };
        if workload.is_empty() || workload.iter().any(|lengths| lengths.input == 0 || lengths.output == 0) {
            let message = "--requests, --input-len and --output-len are at least 1";
            return Err(Failure::Usage(message.to_owned()));
        }
        if self.single_stream && workload[0].output < 2 {
            return Err(Failure::Usage("--single-stream needs an --output-len of 2 or more".to_owned()));
        }
        Ok(workload)
    }

    /// The load shapes to run, at least one.
    pub fn loads(&self) -> Result<Vec<Load>, Failure> {
        if self.concurrency.contains(&0) {
            return Err(Failure::Usage("--concurrency is at least 1".to_owned()));
        }
        if let Some(rate) = self.rate.iter().find(|rate| !(rate.is_finite() && **rate > 0.0)) {
            return Err(Failure::Usage(format!("--rate is {rate}; it must be above 0")));
        }
        let closed = self.concurrency.iter().map(|&concurrency| Load::Closed(concurrency));
        let mut loads: Vec<Load> = closed.chain(self.rate.iter().map(|&rate| Load::Open(rate))).collect();
        if loads.is_empty() {
            loads.push(if self.single_stream { Load::SingleStream } else { Load::Burst });
        }
        Ok(loads)
    }

    /// Measured runs of each load, at least one.
    pub fn num_runs(&self) -> Result<usize, Failure> {
        match self.repeats.unwrap_or(if self.single_stream { 3 } else { 1 }) {
            0 => Err(Failure::Usage("--repeats is at least 1".to_owned())),
            num_runs => Ok(num_runs),
        }
    }

    /// Requests of the warm-up, all at once: enough to bring a step to the size that the loads will reach.
    pub fn num_warmup(&self, num_requests: usize, loads: &[Load]) -> usize {
        let in_flight = loads.iter().map(|load| match load {
            Load::Burst | Load::Open(_) => num_requests,
            Load::SingleStream => 1,
            Load::Closed(concurrency) => *concurrency,
        });
        let max_sequences = match self.engine.max_sequences {
            0 => DEFAULT_WARMUP_MAX,
            max_sequences => max_sequences,
        };
        let highest = in_flight.max().unwrap_or(1).min(num_requests).min(max_sequences);
        self.warmup.unwrap_or(highest)
    }
}

//! What one run comes to: speeds, counts and latencies.

use serde_json::{Value, json};

use super::load::Load;
use super::meter::Usage;
use super::run::{RequestTimes, Run};
use super::work::{Ceilings, ModelCosts};
use crate::percentile::Summary;
use crate::workload::Lengths;

/// A figure of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// Name in JSON.
    pub key: &'static str,
    /// Name for people.
    pub label: &'static str,
    /// The value, in the unit that the names say.
    pub value: f64,
    /// Decimals for people.
    pub decimals: usize,
}

/// Latencies that a request must keep to, in milliseconds, to count as goodput.
#[derive(Debug, Clone, Copy, Default)]
pub struct Goals {
    pub ttft_ms: Option<f64>,
    pub tpot_ms: Option<f64>,
}

impl Goals {
    fn is_set(&self) -> bool {
        self.ttft_ms.is_some() || self.tpot_ms.is_some()
    }

    /// Whether a request with these latencies in seconds kept to the goals.
    fn are_met(&self, ttft: f64, tpot: Option<f64>) -> bool {
        let is_within = |goal: Option<f64>, value: f64| goal.is_none_or(|goal| value * 1e3 <= goal);
        is_within(self.ttft_ms, ttft) && tpot.is_none_or(|tpot| is_within(self.tpot_ms, tpot))
    }
}

/// What figures are held against.
#[derive(Debug, Clone, Copy, Default)]
pub struct Yardstick {
    pub goals: Goals,
    pub ceilings: Ceilings,
    /// `None` where they are not known, or nothing to hold against.
    pub costs: Option<ModelCosts>,
}

/// Figures of one run.
#[derive(Debug, Clone)]
pub struct Figures {
    /// Speeds and what follows from them, in the order of the report.
    pub figures: Vec<Figure>,
    /// Name and summary in milliseconds; `None` where no request was long enough.
    pub latencies: [(&'static str, Option<Summary>); 4],
    /// Name in JSON, name for people, count.
    pub counts: [(&'static str, &'static str, u64); 2],
}

impl Figures {
    /// Works out what `run` comes to.
    pub fn new(workload: &[Lengths], run: Run, load: Load, yardstick: &Yardstick) -> Self {
        let goals = &yardstick.goals;
        let tpots: Vec<Option<f64>> = workload.iter().zip(&run.requests).map(tpot).collect();
        let mut figures = speeds(workload, &run, load);
        if goals.is_set() {
            let requests = run.requests.iter().zip(&tpots);
            let num_good = requests.filter(|(times, tpot)| goals.are_met(times.first_token, **tpot)).count();
            let goodput = num_good as f64 / run.duration;
            figures.push(figure("goodput_requests_per_second", "goodput, req/s", goodput, 2));
        }
        if let Some(costs) = &yardstick.costs {
            figures.extend(shares(workload, &run, load, costs, &yardstick.ceilings));
        }
        if let Some(usage) = &run.usage {
            figures.extend(consumption(workload, usage));
        }
        let in_ms = |seconds: &mut dyn Iterator<Item = f64>| {
            Summary::of(&mut seconds.map(|seconds| seconds * 1e3).collect::<Vec<f64>>())
        };
        Self {
            figures,
            latencies: [
                ("ttft", in_ms(&mut run.requests.iter().map(|times| times.first_token))),
                ("tpot", in_ms(&mut tpots.iter().copied().flatten())),
                ("itl", in_ms(&mut run.gaps.iter().copied())),
                ("e2e", in_ms(&mut run.requests.iter().map(|times| times.end))),
            ],
            counts: [
                ("num_steps", "steps", run.num_steps),
                ("num_preemptions", "preemptions", run.num_preemptions),
            ],
        }
    }

    /// The figure of a name in JSON.
    pub fn value(&self, key: &str) -> Option<f64> {
        self.figures.iter().find(|figure| figure.key == key).map(|figure| figure.value)
    }

    /// An object of everything.
    pub fn to_json(&self) -> Value {
        let mut object = json!({});
        for figure in &self.figures {
            object[figure.key] = figure.value.into();
        }
        for (name, summary) in &self.latencies {
            object[format!("{name}_ms")] = json!(summary);
        }
        for (key, _, count) in self.counts {
            object[key] = count.into();
        }
        object
    }
}

fn figure(key: &'static str, label: &'static str, value: f64, decimals: usize) -> Figure {
    Figure { key, label, value, decimals }
}

/// Seconds per output token after the first, where there is one.
fn tpot((lengths, times): (&Lengths, &RequestTimes)) -> Option<f64> {
    (lengths.output > 1).then(|| (times.end - times.first_token) / f64::from(lengths.output - 1))
}

/// Percentages of what the device can do.
fn shares(
    workload: &[Lengths],
    run: &Run,
    load: Load,
    costs: &ModelCosts,
    ceilings: &Ceilings,
) -> Vec<Figure> {
    let percent = |amount: f64, seconds: f64, ceiling: f64| 100.0 * amount / seconds / ceiling;
    let mut figures = Vec::new();
    if load != Load::SingleStream {
        let flops: f64 = workload.iter().map(|&lengths| costs.request_flops(lengths)).sum();
        figures.extend(ceilings.flops.map(|ceiling| {
            figure("model_flops_percent", "MFU, %", percent(flops, run.duration, ceiling), 1)
        }));
        return figures;
    }
    figures.extend(ceilings.flops.map(|ceiling| {
        let share = percent(costs.prompt_flops(workload[0]), run.requests[0].first_token, ceiling);
        figure("prompt_flops_percent", "prompt, % FLOP/s", share, 1)
    }));
    figures.extend(ceilings.bytes_per_second.zip(decode_seconds(run)).map(|(ceiling, seconds)| {
        let share = percent(costs.decode_bytes(workload[0]), seconds, ceiling);
        figure("decode_bandwidth_percent", "decode, % bytes/s", share, 1)
    }));
    figures
}

/// Seconds between the first and the last token of a single stream; `None` where all came at once.
fn decode_seconds(run: &Run) -> Option<f64> {
    let RequestTimes { first_token, last_token, .. } = run.requests[0];
    (last_token > first_token).then_some(last_token - first_token)
}

fn consumption(workload: &[Lengths], usage: &Usage) -> Vec<Figure> {
    let num_output: f64 = workload.iter().map(|lengths| f64::from(lengths.output)).sum();
    let [multiprocessors, memory] = usage.clocks_mhz;
    vec![
        figure("joules_per_output_token", "J/output token", usage.energy_joules / num_output, 4),
        figure("average_power_w", "power, W", usage.energy_joules / usage.seconds, 0),
        figure("sm_clock_mhz", "SM clock, MHz", multiprocessors, 0),
        figure("memory_clock_mhz", "mem. clock, MHz", memory, 0),
    ]
}

fn speeds(workload: &[Lengths], run: &Run, load: Load) -> Vec<Figure> {
    let num_input: u64 = workload.iter().map(|lengths| u64::from(lengths.input)).sum();
    let num_output: u64 = workload.iter().map(|lengths| u64::from(lengths.output)).sum();
    let per_second = |count: u64| count as f64 / run.duration;
    let mut figures = vec![
        figure("duration_s", "duration, s", run.duration, 2),
        figure("requests_per_second", "requests/s", per_second(workload.len() as u64), 2),
        figure("output_tokens_per_second", "output tok/s", per_second(num_output), 1),
        figure("total_tokens_per_second", "total tok/s", per_second(num_input + num_output), 1),
    ];
    if load == Load::SingleStream {
        let prompt_speed = num_input as f64 / run.requests[0].first_token;
        figures.push(figure("prompt_tokens_per_second", "prompt tok/s", prompt_speed, 1));
        figures.extend(decode_seconds(run).map(|seconds| {
            let decode_speed = num_output.saturating_sub(1) as f64 / seconds;
            figure("decode_tokens_per_second", "decode tok/s", decode_speed, 1)
        }));
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Run {
        Run {
            duration: 2.0,
            requests: vec![
                RequestTimes { first_token: 0.5, last_token: 1.4, end: 1.5 },
                RequestTimes { first_token: 0.75, last_token: 0.75, end: 0.75 },
            ],
            gaps: vec![0.25, 0.25, 0.5],
            num_steps: 9,
            num_preemptions: 1,
            usage: None,
        }
    }

    const WORKLOAD: [Lengths; 2] = [Lengths { input: 10, output: 5 }, Lengths { input: 20, output: 1 }];

    #[test]
    fn figures_follow_their_formulas() {
        let figures = Figures::new(&WORKLOAD, run(), Load::Burst, &Yardstick::default());
        assert_eq!(figures.value("requests_per_second"), Some(1.0));
        assert_eq!(figures.value("output_tokens_per_second"), Some(3.0));
        assert_eq!(figures.value("total_tokens_per_second"), Some(18.0));
        assert_eq!(figures.value("goodput_requests_per_second"), None);
        assert_eq!(figures.value("decode_tokens_per_second"), None);
        let [ttft, tpot, itl, e2e] = figures.latencies.map(|(_, summary)| summary.unwrap());
        assert_eq!(ttft.p50, 625.0);
        // One request is too short to have a time per output token: (1.5 - 0.5) / 4.
        assert_eq!((tpot.p50, tpot.p99), (250.0, 250.0));
        assert_eq!((itl.p50, itl.p90), (250.0, 450.0));
        assert_eq!(e2e.mean, 1125.0);
    }

    #[test]
    fn goodput_counts_requests_that_keep_to_every_goal() {
        let goodput = |ttft_ms, tpot_ms| {
            let yardstick = Yardstick { goals: Goals { ttft_ms, tpot_ms }, ..Yardstick::default() };
            let figures = Figures::new(&WORKLOAD, run(), Load::Burst, &yardstick);
            figures.value("goodput_requests_per_second").unwrap()
        };
        assert_eq!(goodput(Some(750.0), None), 1.0);
        assert_eq!(goodput(Some(749.0), None), 0.5);
        // The request of one token has no time per output token to keep to.
        assert_eq!(goodput(None, Some(249.0)), 0.5);
        assert_eq!(goodput(Some(600.0), Some(249.0)), 0.0);
    }

    #[test]
    fn a_single_stream_takes_the_phases_apart() {
        let mut run = run();
        run.requests = vec![RequestTimes { first_token: 0.5, last_token: 1.5, end: 1.6 }];
        let workload = [Lengths { input: 512, output: 129 }];
        let json = Figures::new(&workload, run, Load::SingleStream, &Yardstick::default()).to_json();
        assert_eq!(json["prompt_tokens_per_second"], 1024.0);
        assert_eq!(json["decode_tokens_per_second"], 128.0);
        assert_eq!(json["output_tokens_per_second"], 64.5);
    }

    #[test]
    fn a_single_stream_whose_tokens_came_at_once_has_no_decode_speed() {
        let mut run = run();
        run.requests = vec![RequestTimes { first_token: 0.5, last_token: 0.5, end: 0.5 }];
        let workload = [Lengths { input: 512, output: 2 }];
        let json = Figures::new(&workload, run, Load::SingleStream, &Yardstick::default()).to_json();
        assert_eq!(json["prompt_tokens_per_second"], 1024.0);
        assert_eq!(json.get("decode_tokens_per_second"), None);
    }

    #[test]
    fn energy_is_told_per_output_token() {
        let usage = Usage { energy_joules: 1200.0, seconds: 2.5, clocks_mhz: [1900.0, 2600.0] };
        let run = Run { usage: Some(usage), ..run() };
        let figures = Figures::new(&WORKLOAD, run, Load::Burst, &Yardstick::default());
        assert_eq!(figures.value("joules_per_output_token"), Some(200.0));
        assert_eq!(figures.value("average_power_w"), Some(480.0));
        assert_eq!(figures.value("sm_clock_mhz"), Some(1900.0));
    }
}

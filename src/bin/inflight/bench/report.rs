//! Figures of the runs, as a table or as JSON.

use std::fmt::Write;

use inflight::engine::ModelInfo;
use serde_json::{Value, json};

use super::BenchArgs;
use super::run::Run;
use crate::percentile::{Summary, percentile};
use crate::workload::Lengths;

/// Everything a benchmark found out.
pub struct Report {
    heading: Vec<(&'static str, String)>,
    figures: Vec<Figures>,
    /// Which of the figures has the median output tokens/s (the upper of two).
    shown: usize,
    single_stream: bool,
}

/// Figures of one run.
#[derive(Debug, Clone)]
struct Figures {
    duration_s: f64,
    requests_per_second: f64,
    output_tokens_per_second: f64,
    total_tokens_per_second: f64,
    prompt_tokens_per_second: f64,
    decode_tokens_per_second: f64,
    /// Name and summary in milliseconds; `None` where no request was long enough.
    latencies: [(&'static str, Option<Summary>); 4],
    num_steps: u64,
    num_preemptions: u64,
}

impl Figures {
    fn new(workload: &[Lengths], run: Run) -> Self {
        let num_input: u64 = workload.iter().map(|lengths| u64::from(lengths.input)).sum();
        let num_output: u64 = workload.iter().map(|lengths| u64::from(lengths.output)).sum();
        let per_second = |count: u64| count as f64 / run.duration;
        let of = |values: &mut Vec<f64>| {
            values.iter_mut().for_each(|seconds| *seconds *= 1e3);
            Summary::of(values)
        };
        let decode_time = |(lengths, times): (&Lengths, &super::run::RequestTimes)| {
            (lengths.output > 1).then(|| (times.end - times.first_token) / f64::from(lengths.output - 1))
        };
        let mut ttft: Vec<f64> = run.requests.iter().map(|times| times.first_token).collect();
        let mut tpot: Vec<f64> = workload.iter().zip(&run.requests).filter_map(decode_time).collect();
        let mut e2e: Vec<f64> = run.requests.iter().map(|times| times.end).collect();
        let mut itl = run.gaps;
        // Meaningful for a single stream alone, where one request is the whole run.
        let (first, last) = (run.requests[0].first_token, run.requests[0].last_token);
        Self {
            duration_s: run.duration,
            requests_per_second: per_second(workload.len() as u64),
            output_tokens_per_second: per_second(num_output),
            total_tokens_per_second: per_second(num_input + num_output),
            prompt_tokens_per_second: num_input as f64 / first,
            decode_tokens_per_second: num_output.saturating_sub(1) as f64 / (last - first),
            latencies: [
                ("ttft", of(&mut ttft)),
                ("tpot", of(&mut tpot)),
                ("itl", of(&mut itl)),
                ("e2e", of(&mut e2e)),
            ],
            num_steps: run.num_steps,
            num_preemptions: run.num_preemptions,
        }
    }

    fn to_json(&self, single_stream: bool) -> Value {
        let mut object = json!({"duration_s": self.duration_s});
        if single_stream {
            object["prompt_tokens_per_second"] = self.prompt_tokens_per_second.into();
            object["decode_tokens_per_second"] = self.decode_tokens_per_second.into();
        } else {
            object["requests_per_second"] = self.requests_per_second.into();
            object["output_tokens_per_second"] = self.output_tokens_per_second.into();
            object["total_tokens_per_second"] = self.total_tokens_per_second.into();
        }
        for (name, summary) in &self.latencies {
            object[format!("{name}_ms")] = json!(summary);
        }
        object["num_steps"] = self.num_steps.into();
        object["num_preemptions"] = self.num_preemptions.into();
        object
    }
}

impl Report {
    /// Works out the figures of `runs`, at least one.
    pub fn new(args: &BenchArgs, model: &ModelInfo, workload: &[Lengths], runs: Vec<Run>) -> Self {
        let figures: Vec<Figures> = runs.into_iter().map(|run| Figures::new(workload, run)).collect();
        let mut order: Vec<usize> = (0..figures.len()).collect();
        let speed = |index: usize| figures[index].output_tokens_per_second;
        order.sort_by(|&a, &b| speed(a).total_cmp(&speed(b)));
        let shown = order[order.len() / 2];
        Self { heading: heading(args, model, workload), figures, shown, single_stream: args.single_stream }
    }

    /// One object: what was run, the run shown, and all runs.
    pub fn to_json(&self) -> Value {
        let heading: serde_json::Map<String, Value> =
            self.heading.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into())).collect();
        let runs: Vec<Value> = self.figures.iter().map(|run| run.to_json(self.single_stream)).collect();
        json!({"config": heading, "median_run": runs[self.shown].clone(), "runs": runs})
    }

    /// A table for people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.heading {
            line(&mut text, name, value);
        }
        if self.single_stream {
            self.speeds(&mut text, "prompt tok/s", |run| run.prompt_tokens_per_second);
            self.speeds(&mut text, "decode tok/s", |run| run.decode_tokens_per_second);
            return text;
        }
        let run = &self.figures[self.shown];
        line(&mut text, "duration", &format!("{:.2} s", run.duration_s));
        line(&mut text, "requests/s", &format!("{:.2}", run.requests_per_second));
        self.speeds(&mut text, "output tok/s", |run| run.output_tokens_per_second);
        line(&mut text, "total tok/s", &format!("{:.1}", run.total_tokens_per_second));
        line(&mut text, "steps", &run.num_steps.to_string());
        line(&mut text, "preemptions", &run.num_preemptions.to_string());
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<16}{:>10}{:>10}{:>10}{:>10}", "latency, ms", "mean", "p50", "p90", "p99");
        for (name, summary) in &run.latencies {
            if let Some(Summary { mean, p50, p90, p99 }) = summary {
                let name = name.to_uppercase();
                let _ = writeln!(text, "{name:<16}{mean:>10.2}{p50:>10.2}{p90:>10.2}{p99:>10.2}");
            }
        }
        text
    }

    /// The median of a speed over the runs, and all of them where there are several.
    fn speeds(&self, text: &mut String, name: &str, speed: impl Fn(&Figures) -> f64) {
        let speeds: Vec<f64> = self.figures.iter().map(speed).collect();
        let mut sorted = speeds.clone();
        sorted.sort_by(f64::total_cmp);
        let mut value = format!("{:.1}", percentile(&sorted, 50.0));
        if speeds.len() > 1 {
            let all: Vec<String> = speeds.iter().map(|speed| format!("{speed:.1}")).collect();
            let _ = write!(value, "   (runs: {})", all.join(", "));
        }
        line(text, name, &value);
    }
}

fn line(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "{name:<16}{value}");
}

/// What was run, enough to run it again.
fn heading(args: &BenchArgs, model: &ModelInfo, workload: &[Lengths]) -> Vec<(&'static str, String)> {
    let lengths = match &args.trace {
        Some(path) => format!("{} requests of {}", workload.len(), path.display()),
        None => {
            let Lengths { input, output } = workload[0];
            format!("{} x {input} in, {output} out", workload.len())
        }
    };
    let threads = match args.engine.threads {
        0 => "auto".to_owned(),
        threads => threads.to_string(),
    };
    vec![
        ("model", args.model().display().to_string()),
        ("weights", if args.random_weights.is_some() { "random" } else { "the model's" }.to_owned()),
        ("device", model.device.clone()),
        ("dtype", args.engine.dtype.name().to_owned()),
        ("threads", threads),
        ("max_sequences", args.engine.max_sequences.to_string()),
        ("requests", lengths),
        ("seed", args.seed.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::run::RequestTimes;
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
        }
    }

    #[test]
    fn figures_follow_their_formulas() {
        let workload = [Lengths { input: 10, output: 5 }, Lengths { input: 20, output: 1 }];
        let figures = Figures::new(&workload, run());
        assert_eq!(figures.requests_per_second, 1.0);
        assert_eq!(figures.output_tokens_per_second, 3.0);
        assert_eq!(figures.total_tokens_per_second, 18.0);
        let [ttft, tpot, itl, e2e] = figures.latencies.map(|(_, summary)| summary.unwrap());
        assert_eq!(ttft.p50, 625.0);
        // One request is too short to have a time per output token: (1.5 - 0.5) / 4.
        assert_eq!((tpot.p50, tpot.p99), (250.0, 250.0));
        assert_eq!((itl.p50, itl.p90), (250.0, 450.0));
        assert_eq!(e2e.mean, 1125.0);
    }

    #[test]
    fn a_single_stream_takes_the_phases_apart() {
        let mut run = run();
        run.requests = vec![RequestTimes { first_token: 0.5, last_token: 1.5, end: 1.6 }];
        let json = Figures::new(&[Lengths { input: 512, output: 129 }], run).to_json(true);
        assert_eq!(json["prompt_tokens_per_second"], 1024.0);
        assert_eq!(json["decode_tokens_per_second"], 128.0);
        assert!(json.get("requests_per_second").is_none());
    }
}

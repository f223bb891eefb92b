//! Figures of all runs, as a table or as JSON.

use std::fmt::Write;

use inflight::engine::ModelInfo;
use serde_json::{Map, Value, json};

use super::args::BenchArgs;
use super::figures::Figures;
use super::load::Load;
use crate::percentile::Summary;
use crate::workload::Lengths;

/// A load, and the figures of its runs.
pub struct Setting {
    pub load: Load,
    /// At least one when reported.
    pub runs: Vec<Figures>,
}

impl Setting {
    /// No runs yet.
    pub fn new(load: Load) -> Self {
        Self { load, runs: Vec::new() }
    }

    /// The run with the median output tokens/s, the upper of two.
    fn median_run(&self) -> &Figures {
        let speed = |run: &&Figures| run.value("output_tokens_per_second").unwrap_or_default();
        let mut runs: Vec<&Figures> = self.runs.iter().collect();
        runs.sort_by(|a, b| speed(a).total_cmp(&speed(b)));
        runs[runs.len() / 2]
    }

    /// The values of one figure over the runs, in their order.
    fn values(&self, key: &str) -> Vec<f64> {
        self.runs.iter().filter_map(|run| run.value(key)).collect()
    }

    fn to_json(&self) -> Value {
        let shown = self.median_run();
        let spread = |key: &str| {
            let values = self.values(key);
            let (low, high) = (f64::INFINITY, f64::NEG_INFINITY);
            json!({"min": values.iter().copied().fold(low, f64::min),
                   "max": values.iter().copied().fold(high, f64::max)})
        };
        let spreads: Map<String, Value> =
            shown.figures.iter().map(|figure| (figure.key.to_owned(), spread(figure.key))).collect();
        let runs: Vec<Value> = self.runs.iter().map(Figures::to_json).collect();
        json!({"load": self.load.to_json(), "median_run": shown.to_json(), "spread": spreads, "runs": runs})
    }

    fn write_text(&self, text: &mut String) {
        let shown = self.median_run();
        line(text, "load", &self.load.describe());
        for figure in &shown.figures {
            let decimals = figure.decimals;
            let mut value = format!("{:.decimals$}", figure.value);
            if self.runs.len() > 1 {
                let all: Vec<String> =
                    self.values(figure.key).iter().map(|value| format!("{value:.decimals$}")).collect();
                let _ = write!(value, "   (runs: {})", all.join(", "));
            }
            line(text, figure.label, &value);
        }
        for (_, label, count) in shown.counts {
            line(text, label, &count.to_string());
        }
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<20}{:>10}{:>10}{:>10}{:>10}", "latency, ms", "mean", "p50", "p90", "p99");
        for (name, summary) in &shown.latencies {
            if let Some(Summary { mean, p50, p90, p99 }) = summary {
                let name = name.to_uppercase();
                let _ = writeln!(text, "{name:<20}{mean:>10.2}{p50:>10.2}{p90:>10.2}{p99:>10.2}");
            }
        }
    }
}

/// Seconds from the start of the engine's creation.
pub struct Startup {
    /// To its end.
    pub creation_s: f64,
    /// To the first token of a request with the workload's first prompt.
    pub first_token_s: f64,
}

/// Everything a benchmark found out.
pub struct Report {
    /// What was run, and how.
    pub heading: Vec<(&'static str, String)>,
    pub startup: Startup,
    pub settings: Vec<Setting>,
}

impl Report {
    /// One object: what was run, and for each load the median run, the spread and all runs.
    pub fn to_json(&self) -> Value {
        let heading: Map<String, Value> =
            self.heading.iter().map(|(name, value)| ((*name).to_owned(), value.as_str().into())).collect();
        let results: Vec<Value> = self.settings.iter().map(Setting::to_json).collect();
        let Startup { creation_s, first_token_s } = self.startup;
        json!({"config": heading, "creation_s": creation_s, "first_token_s": first_token_s, "results": results})
    }

    /// Tables for people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.heading {
            line(&mut text, name, value);
        }
        let Startup { creation_s, first_token_s } = self.startup;
        line(&mut text, "creation, s", &format!("{creation_s:.2}; to the first token {first_token_s:.2}"));
        for setting in &self.settings {
            text.push('\n');
            setting.write_text(&mut text);
        }
        text
    }
}

fn line(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "{name:<20}{value}");
}

/// What was run, enough to run it again.
pub fn heading(args: &BenchArgs, model: &ModelInfo, workload: &[Lengths]) -> Vec<(&'static str, String)> {
    let lengths = match &args.trace {
        Some(path) => format!("{} requests of {}", workload.len(), path.display()),
        None => {
            let Lengths { input, output } = workload[0];
            format!("{} x {input} in, {output} out", workload.len())
        }
    };
    let or_auto = |number: usize| if number == 0 { "auto".to_owned() } else { number.to_string() };
    vec![
        ("model", args.model().display().to_string()),
        ("weights", if args.random_weights.is_some() { "random" } else { "the model's" }.to_owned()),
        ("device", model.device.clone()),
        ("dtype", args.engine.dtype.name().to_owned()),
        ("threads", or_auto(args.engine.threads)),
        ("max_sequences", or_auto(args.engine.max_sequences)),
        ("batched_tokens", or_auto(args.engine.max_batched_tokens)),
        ("requests", lengths),
        ("seed", args.seed.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::figures::Yardstick;
    use super::super::run::{RequestTimes, Run};
    use super::*;

    #[test]
    fn the_median_run_is_shown_and_the_spread_told() {
        let mut setting = Setting::new(Load::Burst);
        for duration in [4.0, 1.0, 2.0] {
            let times = RequestTimes { first_token: 0.5, last_token: 0.9, end: 1.0 };
            let run = Run { duration, requests: vec![times], ..Run::default() };
            let workload = [Lengths { input: 3, output: 8 }];
            setting.runs.push(Figures::new(&workload, run, Load::Burst, &Yardstick::default()));
        }
        let json = setting.to_json();
        assert_eq!(json["median_run"]["duration_s"], 2.0);
        assert_eq!(json["spread"]["output_tokens_per_second"], json!({"min": 2.0, "max": 8.0}));
        assert_eq!(json["runs"][0]["output_tokens_per_second"], 2.0);
        let mut text = String::new();
        setting.write_text(&mut text);
        assert!(text.contains("output tok/s        4.0   (runs: 2.0, 8.0, 4.0)"), "{text}");
    }
}

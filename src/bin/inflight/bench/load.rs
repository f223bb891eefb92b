//! Load shapes: when the requests of a workload start.

use std::time::Duration;

use serde_json::{Value, json};

use crate::workload::RandomNumbers;

/// A load shape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Load {
    /// All requests at once.
    Burst,
    /// One at a time, the phases of each taken apart.
    SingleStream,
    /// This many at a time: the next starts when one ends.
    Closed(usize),
    /// A Poisson process of this many arrivals per second, whatever has ended.
    Open(f64),
}

impl Load {
    /// For people.
    pub fn describe(self) -> String {
        match self {
            Load::Burst => "all requests at once".to_owned(),
            Load::SingleStream => "single stream".to_owned(),
            Load::Closed(concurrency) => format!("closed loop, {concurrency} at a time"),
            Load::Open(rate) => format!("open loop, {rate} requests/s"),
        }
    }

    /// For machines.
    pub fn to_json(self) -> Value {
        match self {
            Load::Burst => json!({"kind": "burst"}),
            Load::SingleStream => json!({"kind": "single_stream"}),
            Load::Closed(concurrency) => json!({"kind": "closed", "concurrency": concurrency}),
            Load::Open(rate) => json!({"kind": "open", "rate": rate}),
        }
    }

    /// When each of `num_requests` may start; `seed` fixes the arrivals of an open loop.
    pub fn pace(self, num_requests: usize, seed: u64) -> Pace {
        let (max_in_flight, arrivals) = match self {
            Load::Burst => (usize::MAX, None),
            Load::SingleStream => (1, None),
            Load::Closed(concurrency) => (concurrency, None),
            Load::Open(rate) => (usize::MAX, Some(poisson(rate, num_requests, seed))),
        };
        Pace { max_in_flight, arrivals }
    }
}

/// When requests may start.
#[derive(Debug)]
pub struct Pace {
    max_in_flight: usize,
    /// Ascending, from the start of the run.
    arrivals: Option<Vec<Duration>>,
}

impl Pace {
    /// How long request `index`, the next, has yet to wait at `elapsed` from the start; `None` until another
    /// of the `num_in_flight` has ended.
    pub fn wait(&self, index: usize, num_in_flight: usize, elapsed: Duration) -> Option<Duration> {
        let due = self.arrival(index).unwrap_or_default();
        (num_in_flight < self.max_in_flight).then(|| due.saturating_sub(elapsed))
    }

    /// When request `index` arrives, where that does not depend on the others.
    pub fn arrival(&self, index: usize) -> Option<Duration> {
        self.arrivals.as_ref().map(|arrivals| arrivals[index])
    }
}

/// Arrivals with independent, exponentially distributed gaps.
fn poisson(rate: f64, num_requests: usize, seed: u64) -> Vec<Duration> {
    // Not the stream that prompts come from.
    let mut random = RandomNumbers::new(!seed);
    let mut time = 0.0;
    let arrivals = (0..num_requests).map(|_| {
        time -= (1.0 - random.unit()).ln() / rate;
        Duration::try_from_secs_f64(time).unwrap_or(Duration::MAX)
    });
    arrivals.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn gaps_of_an_open_loop_are_exponential() {
        let arrivals = poisson(50.0, 20_000, 1);
        assert!(arrivals.is_sorted());
        assert_eq!(arrivals, poisson(50.0, 20_000, 1));
        assert_ne!(arrivals, poisson(50.0, 20_000, 2));
        let gaps: Vec<f64> = arrivals.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        assert!((mean * 50.0 - 1.0).abs() < 0.03, "{mean}");
        // A share of 1/e lies above the mean, and of 1/e^2 above twice the mean.
        let above = |limit: f64| gaps.iter().filter(|&&gap| gap > limit).count() as f64 / gaps.len() as f64;
        assert!((above(0.02) - 0.368).abs() < 0.02 && (above(0.04) - 0.135).abs() < 0.02);
    }

    #[test]
    fn a_closed_loop_waits_for_a_place() {
        let pace = Load::Closed(2).pace(9, 0);
        assert_eq!(pace.wait(1, 1, SECOND), Some(Duration::ZERO));
        assert_eq!(pace.wait(2, 2, SECOND), None);
        assert_eq!(pace.arrival(2), None);
        assert_eq!(Load::SingleStream.pace(9, 0).wait(1, 1, SECOND), None);
        assert_eq!(Load::Burst.pace(9, 0).wait(8, 8, SECOND), Some(Duration::ZERO));
    }

    #[test]
    fn an_open_loop_waits_for_the_clock_alone() {
        let pace = Load::Open(0.001).pace(2, 0);
        let arrival = pace.arrival(0).unwrap();
        assert!(arrival > SECOND);
        assert_eq!(pace.wait(0, 1000, SECOND), Some(arrival - SECOND));
        assert_eq!(pace.wait(0, 1000, arrival + SECOND), Some(Duration::ZERO));
    }
}

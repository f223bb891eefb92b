//! Percentiles of measured durations.

use serde::Serialize;

/// Mean and percentiles of a set of values, in the values' unit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl Summary {
    /// Summarises `values`; `None` where there are none. Sorts them in place.
    pub fn of(values: &mut [f64]) -> Option<Self> {
        if values.is_empty() {
            return None;
        }
        values.sort_by(f64::total_cmp);
        Some(Self {
            mean: values.iter().sum::<f64>() / values.len() as f64,
            p50: percentile(values, 50.0),
            p90: percentile(values, 90.0),
            p99: percentile(values, 99.0),
        })
    }
}

/// The `percent`-th percentile of ascending `sorted`, which holds at least one value: linear interpolation
/// between the two closest ranks, where rank 0 is the 0th and the last rank the 100th percentile.
pub fn percentile(sorted: &[f64], percent: f64) -> f64 {
    debug_assert!((0.0..=100.0).contains(&percent));
    let rank = percent / 100.0 * (sorted.len() - 1) as f64;
    let (below, above) = (rank.floor() as usize, rank.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * (rank - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_is_every_percentile() {
        for percent in [0.0, 50.0, 99.0, 100.0] {
            assert_eq!(percentile(&[7.5], percent), 7.5);
        }
    }

    #[test]
    fn percentiles_interpolate_between_ranks() {
        let sorted = [1.0, 2.0, 4.0, 8.0, 16.0];
        assert_eq!(percentile(&sorted, 0.0), 1.0);
        assert_eq!(percentile(&sorted, 50.0), 4.0);
        assert_eq!(percentile(&sorted, 90.0), 12.8);
        assert_eq!(percentile(&sorted, 100.0), 16.0);
        assert!((percentile(&[10.0, 20.0], 99.0) - 19.9).abs() < 1e-12);
    }

    #[test]
    fn a_summary_does_not_depend_on_the_order() {
        let mut forwards: Vec<f64> = (0..101).map(f64::from).collect();
        let mut backwards: Vec<f64> = forwards.iter().rev().copied().collect();
        let summary = Summary::of(&mut forwards);
        assert_eq!(summary, Some(Summary { mean: 50.0, p50: 50.0, p90: 90.0, p99: 99.0 }));
        assert_eq!(Summary::of(&mut backwards), summary);
    }

    #[test]
    fn nothing_has_no_summary() {
        assert_eq!(Summary::of(&mut []), None);
    }
}

//! Top-k, top-p and min-p: which tokens may be drawn. All three mask by a threshold, so nothing is sorted, time is
//! linear in the vocabulary, and tokens tied at the threshold are all kept.

use super::math::{self, WEIGHT_ONE};
use super::scan::max_of;

/// Logits that are looked at together: a group without a candidate costs one comparison of its maximum.
const GROUP: usize = 64;

/// Buffers of a row's size, kept from row to row.
#[derive(Debug, Default)]
pub(super) struct FilterScratch {
    weights: Vec<u32>,
    candidate_logits: Vec<f32>,
    candidate_weights: Vec<u32>,
}

/// Masks every logit below the `k`-th largest.
#[inline(always)]
pub(super) fn keep_top_k(logits: &mut [f32], k: usize, scratch: &mut FilterScratch) {
    if k == 0 || k >= logits.len() {
        return;
    }
    let threshold = kth_largest(logits, k, &mut scratch.candidate_logits);
    for logit in logits {
        *logit = if *logit < threshold { f32::NEG_INFINITY } else { *logit };
    }
}

/// The `k`-th largest value, or minus infinity where fewer than `k` are above it.
///
/// Keeps the `k` largest so far and up to as many candidates; each selection among these `2 k` is paid for by
/// the `k` candidates that came in since the last, so the whole is linear even where values only rise.
#[inline(always)]
fn kth_largest(values: &[f32], k: usize, largest: &mut Vec<f32>) -> f32 {
    largest.clear();
    let mut threshold = f32::NEG_INFINITY;
    for group in values.chunks(GROUP) {
        if max_of(group) <= threshold {
            continue;
        }
        largest.extend(group.iter().filter(|&&value| value > threshold));
        if largest.len() >= k + k.max(GROUP) {
            threshold = keep_largest(largest, k);
        }
    }
    if largest.len() < k { f32::NEG_INFINITY } else { keep_largest(largest, k) }
}

/// Cuts `values` down to its `k` largest and returns the smallest of them.
fn keep_largest(values: &mut Vec<f32>, k: usize) -> f32 {
    let (_, &mut kth, _) = values.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    values.truncate(k);
    kth
}

/// Masks what top-p and then min-p exclude. `max` is the largest logit, `temperature` positive.
///
/// Both work on the weights `e^((logit - max) / temperature)` in fixed point: top-p keeps the largest weights
/// until their sum reaches `top_p` times the sum of all, min-p those of at least `min_p` times the largest.
#[inline(always)]
pub(super) fn keep_probable(
    logits: &mut [f32],
    max: f32,
    temperature: f32,
    (top_p, min_p): (f32, f32),
    scratch: &mut FilterScratch,
) {
    scratch.weights.resize(logits.len(), 0);
    for (weight, &logit) in scratch.weights.iter_mut().zip(&*logits) {
        *weight = math::weight((logit - max) / temperature);
    }
    let mut threshold = (f64::from(min_p) * f64::from(WEIGHT_ONE)).ceil() as u32;
    if top_p < 1.0 {
        threshold = threshold.max(top_p_threshold(&scratch.weights, top_p, &mut scratch.candidate_weights));
    }
    for (logit, &weight) in logits.iter_mut().zip(&scratch.weights) {
        *logit = if weight < threshold { f32::NEG_INFINITY } else { *logit };
    }
}

/// The largest threshold whose weights, those at the threshold included, add up to `top_p` of the total.
#[inline(always)]
fn top_p_threshold(weights: &[u32], top_p: f32, candidates: &mut Vec<u32>) -> u32 {
    let total = sum_from(weights, 0);
    let target = ((f64::from(top_p) * total as f64).ceil() as u64).clamp(1, total);
    // Few large weights usually reach the target; the rest need not be looked at again.
    let mut reaching = [4, 8, 12, 16, 22]
        .into_iter()
        .map(|octaves| WEIGHT_ONE >> octaves)
        .find(|&floor| sum_from(weights, floor) >= target)
        .unwrap_or(1);
    let candidates = copy_from(weights, reaching, candidates);
    let mut missing = WEIGHT_ONE + 1;
    while missing - reaching > 1 {
        let middle = reaching + (missing - reaching) / 2;
        if sum_from(candidates, middle) >= target {
            reaching = middle;
        } else {
            missing = middle;
        }
    }
    reaching
}

/// The weights that are at least `floor`, copied to the start of `buffer`.
#[inline(always)]
fn copy_from<'a>(weights: &[u32], floor: u32, buffer: &'a mut Vec<u32>) -> &'a [u32] {
    buffer.resize(weights.len(), 0);
    let buffer = &mut buffer[..];
    let mut count = 0;
    for &weight in weights {
        // Without a branch, which could not be predicted.
        buffer[count] = weight;
        count += usize::from(weight >= floor);
    }
    &buffer[..count]
}

/// Sum of the weights that are at least `floor`.
#[inline(always)]
fn sum_from(weights: &[u32], floor: u32) -> u64 {
    weights.iter().map(|&weight| if weight >= floor { u64::from(weight) } else { 0 }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Rows that selection algorithms stumble over.
    fn awkward_rows() -> Vec<Vec<u32>> {
        let scattered = |modulus: u32| (0..3000u32).map(move |i| i.wrapping_mul(2_654_435_761) % modulus);
        vec![
            vec![5],
            vec![7; 1000],
            (0..2000).collect(),
            (0..2000).rev().collect(),
            scattered(3).collect(),
            scattered(1 << 30).collect(),
            scattered(100).chain([WEIGHT_ONE]).collect(),
        ]
    }

    fn sorted_kth_largest(values: &[f32], k: usize) -> f32 {
        let mut falling = values.to_vec();
        falling.sort_by(|a, b| b.total_cmp(a));
        falling[k - 1]
    }

    fn sorted_top_p_threshold(weights: &[u32], top_p: f32) -> u32 {
        let mut falling = weights.to_vec();
        falling.sort_by(|a, b| b.cmp(a));
        let total: u64 = weights.iter().map(|&weight| u64::from(weight)).sum();
        let target = (f64::from(top_p) * total as f64).ceil() as u64;
        let mut sum = 0;
        falling
            .into_iter()
            .find(|&weight| {
                sum += u64::from(weight);
                sum >= target
            })
            .unwrap()
    }

    #[test]
    fn kth_largest_is_that_of_a_sort() {
        let mut scratch = Vec::new();
        for row in awkward_rows() {
            let values: Vec<f32> = row.iter().map(|&value| value as f32 - 500.0).collect();
            for k in [1, 2, 50, 64, 999, 1999].into_iter().filter(|&k| k <= values.len()) {
                assert_eq!(kth_largest(&values, k, &mut scratch), sorted_kth_largest(&values, k), "k = {k}");
            }
        }
        let masked = [f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY];
        assert_eq!(kth_largest(&masked, 2, &mut scratch), f32::NEG_INFINITY);
    }

    #[test]
    fn top_p_threshold_is_that_of_a_sort() {
        let mut scratch = Vec::new();
        for row in awkward_rows() {
            for top_p in [1e-6, 0.1, 0.5, 0.9, 0.999, 1.0 - f32::EPSILON] {
                let threshold = top_p_threshold(&row, top_p, &mut scratch);
                assert_eq!(threshold, sorted_top_p_threshold(&row, top_p), "top_p = {top_p}");
            }
        }
    }

    proptest! {
        #[test]
        fn thresholds_are_those_of_a_sort(
            weights in prop::collection::vec(0..=WEIGHT_ONE, 1..400),
            shift in 0..30u32,
            k in 1..400usize,
            top_p in 1e-4f32..1.0,
        ) {
            let mut weights: Vec<u32> = weights.into_iter().map(|weight| weight >> shift).collect();
            let k = k.min(weights.len());
            let values: Vec<f32> = weights.iter().map(|&weight| weight as f32).collect();
            prop_assert_eq!(kth_largest(&values, k, &mut Vec::new()), sorted_kth_largest(&values, k));
            weights.push(WEIGHT_ONE);
            prop_assert_eq!(
                top_p_threshold(&weights, top_p, &mut Vec::new()),
                sorted_top_p_threshold(&weights, top_p)
            );
        }
    }
}

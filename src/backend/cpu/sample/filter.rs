//! Top-k, top-p and min-p: which tokens may be drawn. All three mask by a threshold that a selection finds, so
//! nothing is sorted, time is linear in the vocabulary, and tokens tied at the threshold are all kept.

use super::math::{WEIGHT_ONE, weight};
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
pub(super) fn keep_probable(
    logits: &mut [f32],
    max: f32,
    temperature: f32,
    (top_p, min_p): (f32, f32),
    scratch: &mut FilterScratch,
) {
    scratch.weights.clear();
    scratch.weights.extend(logits.iter().map(|&logit| weight((logit - max) / temperature)));
    let mut threshold = (f64::from(min_p) * f64::from(WEIGHT_ONE)).ceil() as u32;
    if top_p < 1.0 {
        threshold = threshold.max(top_p_threshold(&scratch.weights, top_p, &mut scratch.candidate_weights));
    }
    for (logit, &weight) in logits.iter_mut().zip(&scratch.weights) {
        *logit = if weight < threshold { f32::NEG_INFINITY } else { *logit };
    }
}

/// The largest threshold whose weights, those at the threshold included, add up to `top_p` of the total.
fn top_p_threshold(weights: &[u32], top_p: f32, candidates: &mut Vec<u32>) -> u32 {
    let total = sum_from(weights, 0);
    let mut target = ((f64::from(top_p) * total as f64).ceil() as u64).clamp(1, total);
    // Few large weights usually reach the target; the rest need not be copied then.
    let floor = [4, 8, 12, 16, 22]
        .into_iter()
        .map(|octaves| WEIGHT_ONE >> octaves)
        .find(|&floor| sum_from(weights, floor) >= target)
        .unwrap_or(1);
    candidates.clear();
    candidates.extend(weights.iter().filter(|&&weight| weight >= floor));

    let mut range = &mut candidates[..];
    while range.len() > 1 {
        let middle = range.len() / 2;
        range.select_nth_unstable(middle);
        let (lower, upper) = range.split_at_mut(middle);
        let upper_sum = sum_from(upper, 0);
        if upper_sum >= target {
            range = upper;
        } else {
            target -= upper_sum;
            range = lower;
        }
    }
    range[0]
}

/// Sum of the weights that are at least `floor`.
fn sum_from(weights: &[u32], floor: u32) -> u64 {
    weights.iter().map(|&weight| if weight >= floor { u64::from(weight) } else { 0 }).sum()
}

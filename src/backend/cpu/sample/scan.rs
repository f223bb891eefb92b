//! Single passes over a row of logits: validity and maximum, log-softmax, the largest few.

use crate::backend::TokenLogprob;

use super::math::exp_nonpositive;

/// Accumulators side by side, so that the compiler can use vector registers.
const LANES: usize = 16;

/// Logits between two looks at the running result.
const CHUNK: usize = 1024;

/// A token and its logit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Best {
    pub(super) token: u32,
    pub(super) logit: f32,
}

/// The largest logit, of equals the first; `None` where a logit is NaN or plus infinity, or all are masked.
#[inline(always)]
pub(super) fn argmax(logits: &[f32]) -> Option<Best> {
    let mut max = f32::NEG_INFINITY;
    let mut max_start = 0;
    for (index, chunk) in logits.chunks(CHUNK).enumerate() {
        let (chunk_max, is_valid) = max_and_validity(chunk);
        if !is_valid {
            return None;
        }
        if chunk_max > max {
            max = chunk_max;
            max_start = index * CHUNK;
        }
    }
    let offset = logits[max_start..].iter().position(|&logit| logit == max)?;
    (max > f32::NEG_INFINITY).then_some(Best { token: (max_start + offset) as u32, logit: max })
}

/// The maximum, and whether every value is below plus infinity, which NaN is not.
#[inline(always)]
fn max_and_validity(values: &[f32]) -> (f32, bool) {
    let mut maxima = [f32::NEG_INFINITY; LANES];
    let mut are_valid = [true; LANES];
    let (groups, rest) = values.as_chunks::<LANES>();
    for group in groups {
        for lane in 0..LANES {
            let value = group[lane];
            maxima[lane] = if value > maxima[lane] { value } else { maxima[lane] };
            are_valid[lane] &= value < f32::INFINITY;
        }
    }
    let all = maxima.iter().chain(rest);
    let max = all.fold(f32::NEG_INFINITY, |max, &value| if value > max { value } else { max });
    let is_valid = are_valid == [true; LANES] && rest.iter().all(|&value| value < f32::INFINITY);
    (max, is_valid)
}

/// The maximum of valid values; minus infinity for none.
#[inline(always)]
pub(super) fn max_of(values: &[f32]) -> f32 {
    max_and_validity(values).0
}

/// Log-probabilities of `token` and then of the `num_top` most probable tokens in falling order, equal ones by
/// rising id. Masked tokens are not reported. `max` is the largest logit.
#[inline(always)]
pub(super) fn logprobs(logits: &[f32], max: f32, token: u32, num_top: usize) -> Vec<TokenLogprob> {
    let log_sum = ln_sum_exp(logits, max);
    let of = |best: Best| TokenLogprob {
        token: best.token,
        logprob: (f64::from(best.logit) - f64::from(max) - log_sum) as f32,
    };
    let chosen = Best { token, logit: logits[token as usize] };
    std::iter::once(chosen).chain(largest(logits, num_top)).map(of).collect()
}

/// `ln(sum(e^(logit - max)))`. Chunks are summed in single, their sums in double precision.
#[inline(always)]
fn ln_sum_exp(logits: &[f32], max: f32) -> f64 {
    let mut total = 0.0;
    for chunk in logits.chunks(CHUNK) {
        let mut sums = [0.0f32; LANES];
        let (groups, rest) = chunk.as_chunks::<LANES>();
        for group in groups {
            for lane in 0..LANES {
                sums[lane] += exp_nonpositive(group[lane] - max);
            }
        }
        for (sum, &logit) in sums.iter_mut().zip(rest) {
            *sum += exp_nonpositive(logit - max);
        }
        total += sums.into_iter().map(f64::from).sum::<f64>();
    }
    total.ln()
}

/// The `count` largest logits that are not masked, in falling order, equal ones by rising id.
#[inline(always)]
fn largest(logits: &[f32], count: usize) -> Vec<Best> {
    const GROUP: usize = 4 * LANES;
    let mut top: Vec<Best> = Vec::with_capacity(count.min(logits.len()) + 1);
    let mut threshold = f32::NEG_INFINITY;
    for (index, group) in logits.chunks(GROUP).enumerate() {
        if count == 0 || max_of(group) <= threshold {
            continue;
        }
        for (offset, &logit) in group.iter().enumerate().filter(|&(_, &logit)| logit > f32::NEG_INFINITY) {
            let place = top.partition_point(|other| other.logit >= logit);
            top.insert(place, Best { token: (index * GROUP + offset) as u32, logit });
            top.truncate(count);
        }
        if top.len() == count {
            threshold = top[count - 1].logit;
        }
    }
    top
}

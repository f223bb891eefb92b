//! A few queries against one tile of keys and values: scores, softmax, weighted sums.

#![allow(clippy::needless_range_loop, reason = "indexes name the places of a register tile")]

use super::KEY_TILE;
use crate::backend::cpu::simd::{Simd, math};

/// `scores = queries · keys` for `[QUERIES, head_dim]` and `[head_dim, KEY_TILE]`, `VECTORS` vectors of keys at
/// a time. A score is summed from the first element of a head to its last.
#[inline(always)]
pub(super) fn compute_scores<S: Simd, const QUERIES: usize, const VECTORS: usize>(
    simd: S,
    queries: &[f32],
    keys: &[f32],
    scores: &mut [f32],
) {
    let head_dim = queries.len() / QUERIES;
    assert!(keys.len() >= head_dim * KEY_TILE && scores.len() >= QUERIES * KEY_TILE);
    assert!(KEY_TILE.is_multiple_of(VECTORS * S::LANES));
    let mut first = 0;
    while first < KEY_TILE {
        let mut sums = [[simd.splat(0.0); VECTORS]; QUERIES];
        for dim in 0..head_dim {
            let mut key = [simd.splat(0.0); VECTORS];
            for v in 0..VECTORS {
                // SAFETY: row `dim` of `keys` has `KEY_TILE` elements.
                key[v] = unsafe { simd.load(keys.as_ptr().add(dim * KEY_TILE + first + v * S::LANES)) };
            }
            for q in 0..QUERIES {
                // SAFETY: `queries` has `QUERIES` rows of `head_dim` elements.
                let query = simd.splat(unsafe { *queries.get_unchecked(q * head_dim + dim) });
                for v in 0..VECTORS {
                    sums[q][v] = simd.mul_add(query, key[v], sums[q][v]);
                }
            }
        }
        for q in 0..QUERIES {
            for v in 0..VECTORS {
                // SAFETY: row `q` of `scores` has `KEY_TILE` elements.
                unsafe {
                    simd.store(scores.as_mut_ptr().add(q * KEY_TILE + first + v * S::LANES), sums[q][v])
                };
            }
        }
        first += VECTORS * S::LANES;
    }
}

/// `cap * tanh(score / cap)`, by `tanh(y) = 1 - 2 / (e^(2 y) + 1)`.
#[inline(always)]
pub(super) fn soft_cap<S: Simd>(simd: S, scores: &mut [f32], cap: f32) {
    assert_eq!(scores.len(), KEY_TILE);
    for v in 0..KEY_TILE / S::LANES {
        // SAFETY: `scores` has `KEY_TILE` elements.
        unsafe {
            let score = simd.load(scores.as_ptr().add(v * S::LANES));
            let exponential = math::exp(simd, simd.mul(score, simd.splat(2.0 / cap)));
            let fraction = simd.div(simd.splat(2.0), simd.add(exponential, simd.splat(1.0)));
            let capped = simd.mul(simd.splat(cap), simd.sub(simd.splat(1.0), fraction));
            simd.store(scores.as_mut_ptr().add(v * S::LANES), capped);
        }
    }
}

/// Turns a query's scores into exponentials relative to the largest score so far. Returns the factor by which
/// what was summed before shrinks, and the sum of the exponentials.
#[inline(always)]
pub(super) fn softmax_tile<S: Simd>(simd: S, scores: &mut [f32], maximum: &mut f32) -> (f32, f32) {
    assert_eq!(scores.len(), KEY_TILE);
    let mut largest = simd.splat(f32::NEG_INFINITY);
    for v in 0..KEY_TILE / S::LANES {
        // SAFETY: `scores` has `KEY_TILE` elements.
        largest = simd.max(unsafe { simd.load(scores.as_ptr().add(v * S::LANES)) }, largest);
    }
    let old_maximum = *maximum;
    let tile_maximum = simd.max_lane(largest);
    *maximum = if tile_maximum > old_maximum { tile_maximum } else { old_maximum };
    let shift = simd.splat(*maximum);
    let mut sum = simd.splat(0.0);
    for v in 0..KEY_TILE / S::LANES {
        // SAFETY: `scores` has `KEY_TILE` elements.
        unsafe {
            let score = simd.load(scores.as_ptr().add(v * S::LANES));
            let exponential = math::exp(simd, simd.sub(score, shift));
            simd.store(scores.as_mut_ptr().add(v * S::LANES), exponential);
            sum = simd.add(sum, exponential);
        }
    }
    let correction = math::exp(simd, simd.splat(old_maximum - *maximum));
    (simd.max_lane(correction), simd.sum(sum))
}

/// `sums = sums * correction + weights · values` for `[QUERIES, KEY_TILE]` and `[keys, padded_dim]`. An element
/// is summed from the first key to the last.
#[inline(always)]
pub(super) fn accumulate<S: Simd, const QUERIES: usize, const VECTORS: usize>(
    simd: S,
    weights: &[f32],
    values: &[f32],
    corrections: &[f32; QUERIES],
    sums: &mut [f32],
) {
    let padded_dim = sums.len() / QUERIES;
    let mut dim = 0;
    while dim + VECTORS * S::LANES <= padded_dim {
        accumulate_columns::<S, QUERIES, VECTORS>(simd, weights, values, corrections, sums, dim);
        dim += VECTORS * S::LANES;
    }
    while dim < padded_dim {
        accumulate_columns::<S, QUERIES, 1>(simd, weights, values, corrections, sums, dim);
        dim += S::LANES;
    }
}

/// [`accumulate`] for `VECTORS` vectors of elements from `dim` on.
#[inline(always)]
fn accumulate_columns<S: Simd, const QUERIES: usize, const VECTORS: usize>(
    simd: S,
    weights: &[f32],
    values: &[f32],
    corrections: &[f32; QUERIES],
    sums: &mut [f32],
    dim: usize,
) {
    let padded_dim = sums.len() / QUERIES;
    let num_keys = values.len() / padded_dim;
    assert!(weights.len() >= QUERIES * KEY_TILE && num_keys <= KEY_TILE);
    assert!(dim + VECTORS * S::LANES <= padded_dim);
    let mut tile = [[simd.splat(0.0); VECTORS]; QUERIES];
    for q in 0..QUERIES {
        for v in 0..VECTORS {
            // SAFETY: row `q` of `sums` has `padded_dim` elements.
            let sum = unsafe { simd.load(sums.as_ptr().add(q * padded_dim + dim + v * S::LANES)) };
            tile[q][v] = simd.mul(sum, simd.splat(corrections[q]));
        }
    }
    for key in 0..num_keys {
        let mut value = [simd.splat(0.0); VECTORS];
        for v in 0..VECTORS {
            // SAFETY: row `key` of `values` has `padded_dim` elements.
            value[v] = unsafe { simd.load(values.as_ptr().add(key * padded_dim + dim + v * S::LANES)) };
        }
        for q in 0..QUERIES {
            // SAFETY: `weights` has `QUERIES` rows of `KEY_TILE` elements.
            let weight = simd.splat(unsafe { *weights.get_unchecked(q * KEY_TILE + key) });
            for v in 0..VECTORS {
                tile[q][v] = simd.mul_add(weight, value[v], tile[q][v]);
            }
        }
    }
    for q in 0..QUERIES {
        for v in 0..VECTORS {
            // SAFETY: row `q` of `sums` has `padded_dim` elements.
            unsafe { simd.store(sums.as_mut_ptr().add(q * padded_dim + dim + v * S::LANES), tile[q][v]) };
        }
    }
}

//! Elementary functions over vectors.

use super::Simd;

/// Largest argument that [`exp`] does not clamp; `exp(88)` is 1.7e38.
const EXP_MAX: f32 = 88.0;
/// Arguments at or below this give 0: their `2^n` factor has the exponent -127.
const EXP_MIN: f32 = -88.1;

/// `e^x` within 2 units in the last place for x in [-87.3, 88], 0 below, `e^88` above; NaN stays NaN.
/// `exp(0)` is exactly 1 and `exp(-inf)` exactly 0.
///
/// The argument is reduced to `r = x - n ln 2` with `|r| <= ln 2 / 2`, where `e^r` is a polynomial of degree 6
/// with the minimax coefficients of the Cephes library (Moshier).
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const COEFFICIENTS: [f32; 6] =
        [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];
    let x = simd.max(simd.splat(EXP_MIN), x);
    let x = simd.min(simd.splat(EXP_MAX), x);
    let n = simd.round(simd.mul(x, simd.splat(std::f32::consts::LOG2_E)));
    let r = simd.mul_add(n, simd.splat(-LN2_HIGH), x);
    let r = simd.mul_add(n, simd.splat(-LN2_LOW), r);
    let mut polynomial = simd.splat(COEFFICIENTS[0]);
    let mut i = 1;
    while i < COEFFICIENTS.len() {
        polynomial = simd.mul_add(polynomial, r, simd.splat(COEFFICIENTS[i]));
        i += 1;
    }
    let result = simd.add(simd.mul_add(polynomial, simd.mul(r, r), r), simd.splat(1.0));
    simd.scale_by_power_of_2(result, n)
}

/// The error function within 5e-7 of its value's range, by Abramowitz and Stegun 7.1.26; NaN stays NaN.
#[inline(always)]
pub(crate) fn erf<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
    const COEFFICIENTS: [f32; 5] = [1.061_405_4, -1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6];
    let zero = simd.splat(0.0);
    let one = simd.splat(1.0);
    let magnitude = simd.max(simd.sub(zero, x), x);
    let t = simd.div(one, simd.mul_add(magnitude, simd.splat(0.327_591_1), one));
    let mut polynomial = simd.splat(COEFFICIENTS[0]);
    let mut i = 1;
    while i < COEFFICIENTS.len() {
        polynomial = simd.mul_add(polynomial, t, simd.splat(COEFFICIENTS[i]));
        i += 1;
    }
    let tail = simd.mul(simd.mul(polynomial, t), exp(simd, simd.sub(zero, simd.mul(x, x))));
    let value = simd.sub(one, tail);
    // The sign of `x`, without a comparison: -1, 0 or 1 except next to 0, where erf is linear.
    let sign = simd.max(simd.splat(-1.0), simd.min(one, simd.mul(x, simd.splat(1e30))));
    simd.mul(value, sign)
}

//! Elementary functions as fixed sequences of IEEE single-precision additions, multiplications and divisions.
//!
//! A device that performs the same operations with round-to-nearest and without contracting them to fused
//! multiply-adds gets the same bits, so it draws the same tokens. The polynomials are minimax fits of our own.

/// 1 in the fixed-point format of [`weight`].
pub(super) const WEIGHT_ONE: u32 = 1 << 30;

/// No result of [`gumbel`] is larger: the largest is 32 ln 2, about 22.181.
pub(super) const GUMBEL_MAX: f32 = 22.2;

/// ln 2 in two parts; the first has 10 bits, so that its product with an exponent is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// `e^x` for `x <= 0`, to 2 units in the last place; everything below -87, minus infinity included, counts as
/// -87, which is about 1.6e-38.
#[inline(always)]
pub(super) fn exp_nonpositive(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    let x = if x > -87.0 { x } else { -87.0 };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let power = rounded - ROUND;
    let r = (x - power * LN_2_HIGH) - power * LN_2_LOW;
    let p = 1.381_459_9e-3;
    let p = p * r + 8.368_717e-3;
    let p = p * r + 4.166_839e-2;
    let p = p * r + 1.666_652_1e-1;
    let p = p * r + 4.999_999_3e-1;
    let mantissa = r * r * p + r + 1.0;
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    mantissa * f32::from_bits(exponent << 23)
}

/// `ln x` for positive normal `x`, to a relative error of 2e-7.
#[inline(always)]
fn ln_positive(x: f32) -> f32 {
    // Splits x into 2^power * (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)).
    const SQRT_HALF_BITS: u32 = 0x3f35_04f3;
    let offset = x.to_bits().wrapping_sub(SQRT_HALF_BITS);
    let power = ((offset as i32) >> 23) as f32;
    let f = f32::from_bits((offset & 0x007f_ffff) + SQRT_HALF_BITS) - 1.0;
    let p = -7.634_49e-2;
    let p = p * f + 1.276_197_3e-1;
    let p = p * f - 1.316_036_8e-1;
    let p = p * f + 1.420_171_8e-1;
    let p = p * f - 1.662_333_6e-1;
    let p = p * f + 2.000_122_8e-1;
    let p = p * f - 2.500_082_2e-1;
    let p = p * f + 3.333_333e-1;
    let tail = f * f * (f * p - 0.5) + power * LN_2_LOW;
    power * LN_2_HIGH + (f + tail)
}

/// A bound on how much a result of [`gumbel`] can exceed that of smaller bits: rounding, nothing else.
pub(super) const GUMBEL_SLACK: f32 = 1e-4;

/// A standard Gumbel variate, `-ln(-ln(1 - v))` with `v` the uniform number that `bits` stands for; it falls as
/// `bits` rise.
///
/// `v` lies in [2^-32, 1 - 2^-24] and has full relative precision near 0, where the large variates come from:
/// a token of probability 1e-8 is as faithfully drawn as one of 0.5.
#[inline(always)]
pub(super) fn gumbel(bits: u32) -> f32 {
    const BELOW_ONE: f32 = 1.0 - 1.0 / 16_777_216.0;
    const SCALE: f32 = 1.0 / 2_147_483_648.0;
    let v = ((bits >> 1) as i32 as f32 + 0.5) * SCALE;
    let v = if v < BELOW_ONE { v } else { BELOW_ONE };
    // -ln(1 - v) with the rounding of 1 - v divided out (Goldberg 1991, theorem 4).
    let rest = 1.0 - v;
    let exponential = -ln_positive(rest) * v / (1.0 - rest);
    let exponential = if rest == 1.0 { v } else { exponential };
    -ln_positive(exponential)
}

/// `e^x` for `x <= 0` in fixed point with 30 fractional bits, cut off. Sums of these are exact in 64 bits, so
/// they do not depend on the order of the summands.
#[inline(always)]
pub(super) fn weight(x: f32) -> u32 {
    // A conversion would saturate, which takes a branch per element; the value is known to be in range.
    let bits = exp_nonpositive(x).to_bits();
    let mantissa = (bits & 0x007f_ffff) | 0x0080_0000;
    (mantissa << 7) >> 127u32.wrapping_sub(bits >> 23).min(31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_double_precision_one() {
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert_eq!(exp_nonpositive(-0.0), 1.0);
        for step in 0..870_000 {
            let x = -step as f32 * 1e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp_nonpositive(x)) - exact).abs() / exact;
            assert!(error < 2.5e-7, "exp({x}): relative error {error}");
        }
        for x in [-87.5, -1e30, f32::NEG_INFINITY] {
            assert!(exp_nonpositive(x) < 1.7e-38);
            assert_eq!(weight(x), 0);
        }
    }

    #[test]
    fn ln_is_close_to_the_double_precision_one() {
        let mut x = 2.0f32.powi(-33);
        while x < 40.0 {
            let exact = f64::from(x).ln();
            let error = (f64::from(ln_positive(x)) - exact).abs();
            assert!(error <= 2e-7 * exact.abs(), "ln({x}): error {error}");
            x *= 1.000_01;
        }
        assert_eq!(ln_positive(1.0), 0.0);
    }

    #[test]
    fn gumbel_is_bounded_falls_with_its_bits_and_matches_its_definition() {
        assert!(gumbel(0) < GUMBEL_MAX && gumbel(0) > 22.1);
        assert!(gumbel(u32::MAX) > -2.9 && gumbel(u32::MAX) < -2.7);
        for index in 0..1_000_000u32 {
            let bits = index.wrapping_mul(2_654_435_761);
            let v = (f64::from(bits >> 1) + 0.5) / 2f64.powi(31);
            let exact = -(-(-v).ln_1p()).ln();
            // Near v = 1 single precision cannot tell 1 - v apart; those are the smallest variates.
            let tolerance = 3e-6 + 2f64.powi(-24) / (1.0 - v);
            let error = (f64::from(gumbel(bits)) - exact).abs();
            assert!(error <= tolerance, "gumbel({bits:#x}): error {error}");
            assert!(gumbel(bits) <= GUMBEL_MAX);
            assert!(gumbel(bits.saturating_add(index)) <= gumbel(bits) + GUMBEL_SLACK);
        }
    }

    #[test]
    fn weight_is_exact_at_powers_of_two() {
        assert_eq!(weight(0.0), WEIGHT_ONE);
        let half = weight(-std::f32::consts::LN_2);
        assert!(half.abs_diff(WEIGHT_ONE / 2) <= 64, "{half}");
    }
}

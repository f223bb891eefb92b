//! The interface in plain Rust, for processors without the x86 extensions and as the paths' common reference.

#![allow(clippy::needless_range_loop, reason = "indexes name the places of a register tile")]

use half::{bf16, f16};

use super::{MAX_LANES, Simd};

const LANES: usize = 8;

/// Plain Rust; every processor has it.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend::cpu) struct Portable;

/// Applies `f` lane by lane.
#[inline(always)]
fn map2(a: [f32; LANES], b: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type Vector = [f32; LANES];
    const LANES: usize = LANES;

    #[inline(always)]
    fn prefetch(self, _address: *const u8) {}

    #[inline(always)]
    fn splat(self, value: f32) -> [f32; LANES] {
        [value; LANES]
    }

    #[inline(always)]
    unsafe fn load(self, source: *const f32) -> [f32; LANES] {
        // SAFETY: the caller vouches for `LANES` values; an array has its element's alignment.
        unsafe { source.cast::<[f32; LANES]>().read() }
    }

    #[inline(always)]
    unsafe fn load_f16(self, source: *const f16) -> [f32; LANES] {
        // SAFETY: the caller vouches for `LANES` values; an array has its element's alignment.
        unsafe { source.cast::<[f16; LANES]>().read() }.map(f16::to_f32)
    }

    #[inline(always)]
    unsafe fn load_bf16(self, source: *const bf16) -> [f32; LANES] {
        // SAFETY: the caller vouches for `LANES` values; an array has its element's alignment.
        unsafe { source.cast::<[bf16; LANES]>().read() }.map(|x| f32::from_bits(u32::from(x.to_bits()) << 16))
    }

    #[inline(always)]
    unsafe fn store(self, target: *mut f32, value: [f32; LANES]) {
        // SAFETY: the caller vouches for `LANES` values; an array has its element's alignment.
        unsafe { target.cast::<[f32; LANES]>().write(value) }
    }

    #[inline(always)]
    fn add(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        map2(a, b, |a, b| a + b)
    }

    #[inline(always)]
    fn sub(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        map2(a, b, |a, b| a - b)
    }

    #[inline(always)]
    fn mul(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        map2(a, b, |a, b| a * b)
    }

    #[inline(always)]
    fn div(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        map2(a, b, |a, b| a / b)
    }

    /// Rounds twice: a fused one would be a library call where the processor has none.
    #[inline(always)]
    fn mul_add(self, a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn max(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        map2(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    fn min(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        map2(a, b, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    fn round(self, a: [f32; LANES]) -> [f32; LANES] {
        // Adding and subtracting 1.5 * 2^23 rounds by the addition's own rounding; exact for |a| < 2^22.
        const MAGIC: f32 = 12_582_912.0;
        a.map(|a| (a + MAGIC) - MAGIC)
    }

    #[inline(always)]
    fn scale_by_power_of_2(self, a: [f32; LANES], exponent: [f32; LANES]) -> [f32; LANES] {
        map2(a, exponent, |a, exponent| a * f32::from_bits(((exponent as i32 + 127) << 23) as u32))
    }

    #[inline(always)]
    fn sum(self, a: [f32; LANES]) -> f32 {
        let four: [f32; 4] = std::array::from_fn(|i| a[i] + a[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }

    #[inline(always)]
    fn sum4(self, vectors: [[f32; LANES]; 4]) -> [f32; 4] {
        vectors.map(|vector| self.sum(vector))
    }

    #[inline(always)]
    fn max_lane(self, a: [f32; LANES]) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn split_bf16_pairs(self, pairs: [f32; LANES]) -> [[f32; LANES]; 2] {
        let half = |pair: f32, shift: u32| f32::from_bits((pair.to_bits() >> shift) << 16);
        [pairs.map(|pair| half(pair, 0)), pairs.map(|pair| half(pair, 16))]
    }

    #[inline(always)]
    fn transpose(self, rows: &mut [[f32; LANES]; MAX_LANES]) {
        for i in 0..LANES {
            for j in i + 1..LANES {
                let upper = rows[i][j];
                rows[i][j] = rows[j][i];
                rows[j][i] = upper;
            }
        }
    }
}

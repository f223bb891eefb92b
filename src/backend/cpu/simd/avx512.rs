//! AVX-512 with its 16 lanes, and the bf16 dot product of AVX512-BF16.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::{Dot, DotKernel, Kernel, MAX_LANES, Simd};

/// Proof that the processor has AVX-512 F, BW, DQ and VL, and what came before them.
#[derive(Debug, Clone, Copy)]
pub(in crate::backend::cpu) struct Avx512(());

impl Avx512 {
    /// The proof, where it is true.
    #[inline]
    pub(super) fn detect() -> Option<Self> {
        let detected = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        detected.then_some(Self(()))
    }

    /// Runs `kernel` in a function that may use the instructions.
    pub(super) fn run<K: Kernel>(self, kernel: K) {
        // SAFETY: `self` exists only where all of the function's features were detected.
        unsafe { run(self, kernel) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
fn run<K: Kernel>(token: Avx512, kernel: K) {
    kernel.run(token);
}

impl Simd for Avx512 {
    type Vector = __m512;
    const LANES: usize = 16;

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        // SAFETY: a prefetch does not fault, and every x86-64 processor has it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(self, source: *const f32) -> __m512 {
        // SAFETY: `self` proves AVX-512, the caller the pointer.
        unsafe { _mm512_loadu_ps(source) }
    }

    #[inline(always)]
    unsafe fn load_f16(self, source: *const f16) -> __m512 {
        // SAFETY: `self` proves AVX-512, the caller the pointer to 32 bytes.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(source.cast())) }
    }

    #[inline(always)]
    unsafe fn load_bf16(self, source: *const bf16) -> __m512 {
        // SAFETY: `self` proves AVX-512, the caller the pointer to 32 bytes.
        unsafe {
            let values = _mm512_castsi256_si512(_mm256_loadu_si256(source.cast()));
            // Word i to the upper half of lane i, zero to the lower: one instruction beside the load, where
            // widening and shifting are two.
            let to_upper = _mm512_set_epi16(
                15, 0, 14, 0, 13, 0, 12, 0, 11, 0, 10, 0, 9, 0, 8, 0, 7, 0, 6, 0, 5, 0, 4, 0, 3, 0, 2, 0, 1,
                0, 0, 0,
            );
            _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaa_aaaa, to_upper, values))
        }
    }

    #[inline(always)]
    unsafe fn store(self, target: *mut f32, value: __m512) {
        // SAFETY: `self` proves AVX-512, the caller the pointer.
        unsafe { _mm512_storeu_ps(target, value) }
    }

    #[inline(always)]
    fn add(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn div(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_div_ps(a, b) }
    }

    #[inline(always)]
    fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn max(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn min(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    fn scale_by_power_of_2(self, a: __m512, exponent: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(exponent), _mm512_set1_epi32(127));
            _mm512_mul_ps(a, _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased)))
        }
    }

    #[inline(always)]
    fn sum(self, a: __m512) -> f32 {
        self.sum4([a; 4])[0]
    }

    #[inline(always)]
    fn sum4(self, vectors: [__m512; 4]) -> [f32; 4] {
        let [a, b, c, d] = vectors;
        // SAFETY: `self` proves AVX-512; the store writes the array's four values.
        unsafe {
            // Lane i + lane i + 8, as [a a b b] in quarters.
            let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
            let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xee>(c, d));
            // Lane i + lane i + 4, as [a b c d] in quarters; then i + 2 and i + 1 within them.
            let quarters =
                _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
            let pairs = _mm512_add_ps(quarters, _mm512_permute_ps::<0x4e>(quarters));
            let ones = _mm512_add_ps(pairs, _mm512_permute_ps::<0xb1>(pairs));
            let picked = _mm512_permutexvar_ps(
                _mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
                ones,
            );
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), _mm512_castps512_ps128(picked));
            sums
        }
    }

    #[inline(always)]
    fn max_lane(self, a: __m512) -> f32 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_reduce_max_ps(a) }
    }

    #[inline(always)]
    fn split_bf16_pairs(self, pairs: __m512) -> [__m512; 2] {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let pairs = _mm512_castps_si512(pairs);
            let second = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pairs)), _mm512_castsi512_ps(second)]
        }
    }

    /// Four rounds: pairs of rows by single values, then by pairs, then quarters of vectors twice.
    #[inline(always)]
    fn transpose(self, rows: &mut [__m512; MAX_LANES]) {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let mut pairs = *rows;
            for i in 0..8 {
                pairs[2 * i] = _mm512_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
                pairs[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
            }
            // Quarter q of fours[4 i + j] is column 4 q + j of rows 4 i to 4 i + 3.
            let mut fours = pairs;
            for i in 0..4 {
                for j in 0..2 {
                    let low = _mm512_castps_pd(pairs[4 * i + j]);
                    let high = _mm512_castps_pd(pairs[4 * i + j + 2]);
                    fours[4 * i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
                    fours[4 * i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
                }
            }
            for j in 0..4 {
                let (a, b, c, d) = (fours[j], fours[4 + j], fours[8 + j], fours[12 + j]);
                let even_ab = _mm512_shuffle_f32x4::<0x88>(a, b);
                let even_cd = _mm512_shuffle_f32x4::<0x88>(c, d);
                let odd_ab = _mm512_shuffle_f32x4::<0xdd>(a, b);
                let odd_cd = _mm512_shuffle_f32x4::<0xdd>(c, d);
                rows[j] = _mm512_shuffle_f32x4::<0x88>(even_ab, even_cd);
                rows[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd_ab, odd_cd);
                rows[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even_ab, even_cd);
                rows[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd_ab, odd_cd);
            }
        }
    }
}

/// Proof that the processor has AVX512-BF16 beside [`Avx512`].
#[derive(Debug, Clone, Copy)]
pub(in crate::backend::cpu) struct Avx512Bf16(Avx512);

impl Avx512Bf16 {
    /// The proof, where it is true.
    #[inline]
    pub(super) fn detect() -> Option<Self> {
        let base = Avx512::detect()?;
        is_x86_feature_detected!("avx512bf16").then_some(Self(base))
    }

    /// The proof of the rest.
    pub(super) fn base(self) -> Avx512 {
        self.0
    }

    /// Runs `kernel` in a function that may use the instructions.
    pub(super) fn run<K: DotKernel<bf16, bf16>>(self, kernel: K) {
        // SAFETY: `self` exists only where all of the function's features were detected.
        unsafe { run_bf16(self, kernel) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
fn run_bf16<K: DotKernel<bf16, bf16>>(token: Avx512Bf16, kernel: K) {
    kernel.run(token);
}

/// Elements of a bf16 operand.
const BF16_STEP: usize = 32;

/// Loads `count` elements and zeros after them.
///
/// # Safety
/// The processor has AVX-512, and `source` is valid for reads of `count < BF16_STEP` elements.
#[inline(always)]
unsafe fn load_bf16_partial(source: *const bf16, count: usize) -> __m512bh {
    let mut padded = [bf16::ZERO; BF16_STEP];
    // SAFETY: the caller vouches for `count` elements, which are fewer than the array has; the array is as
    // large as a vector.
    unsafe {
        std::ptr::copy_nonoverlapping(source, padded.as_mut_ptr(), count);
        load_bf16(padded.as_ptr())
    }
}

/// # Safety
/// The processor has AVX-512, and `source` is valid for reads of `BF16_STEP` elements.
#[inline(always)]
unsafe fn load_bf16(source: *const bf16) -> __m512bh {
    // SAFETY: the caller's promise; the two types are 64 bytes in which every pattern is valid.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(source.cast())) }
}

impl Dot for Avx512Bf16 {
    type Weight = bf16;
    type Input = bf16;
    type Operand = __m512bh;
    type Sums = __m512;
    const STEP: usize = BF16_STEP;
    const TILE_ROWS: usize = 4;

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        self.0.prefetch(address);
    }

    #[inline(always)]
    fn zero(self) -> __m512 {
        self.0.splat(0.0)
    }

    #[inline(always)]
    unsafe fn load_weight(self, source: *const bf16) -> __m512bh {
        // SAFETY: `self` proves AVX-512, the caller the pointer.
        unsafe { load_bf16(source) }
    }

    #[inline(always)]
    unsafe fn load_input(self, source: *const bf16) -> __m512bh {
        // SAFETY: `self` proves AVX-512, the caller the pointer.
        unsafe { load_bf16(source) }
    }

    #[inline(always)]
    unsafe fn load_weight_partial(self, source: *const bf16, count: usize) -> __m512bh {
        // SAFETY: `self` proves AVX-512, the caller pointer and count.
        unsafe { load_bf16_partial(source, count) }
    }

    #[inline(always)]
    unsafe fn load_input_partial(self, source: *const bf16, count: usize) -> __m512bh {
        // SAFETY: `self` proves AVX-512, the caller pointer and count.
        unsafe { load_bf16_partial(source, count) }
    }

    #[inline(always)]
    fn mul_add(self, sums: __m512, weight: __m512bh, input: __m512bh) -> __m512 {
        // SAFETY: `self` proves AVX512-BF16.
        unsafe { _mm512_dpbf16_ps(sums, weight, input) }
    }

    #[inline(always)]
    fn sum(self, sums: __m512) -> f32 {
        self.0.sum(sums)
    }

    #[inline(always)]
    fn sum4(self, sums: [__m512; 4]) -> [f32; 4] {
        self.0.sum4(sums)
    }
}

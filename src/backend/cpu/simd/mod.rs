//! Vector instruction sets behind one narrow interface.
//!
//! A kernel is written once, generic over [`Simd`] (elementwise work) or [`Dot`] (matrix products), and runs
//! through [`Isa`], which picks the instruction set that was detected when the backend was created. A value of
//! an instruction set's type is the proof that the processor has it, so that most operations are safe calls.
//! Everything on the way from [`Isa`] to an intrinsic is `#[inline(always)]`: only so do the intrinsics end up
//! in the function that enables their target features.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub(super) mod math;
mod portable;

use bytemuck::Pod;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::backend::DType;

/// The most lanes that any instruction set has.
pub(super) const MAX_LANES: usize = 16;

/// Vectors of `LANES` f32 values.
///
/// `max` and `min` return their second operand where either is NaN, as the x86 instructions do, so that
/// `max(limit, x)` keeps a NaN of `x`.
pub(super) trait Simd: Copy {
    /// A vector of `LANES` values.
    type Vector: Copy;
    /// 8 or 16.
    const LANES: usize;

    /// Asks for the cache line at `address`, which need not be valid.
    fn prefetch(self, address: *const u8);
    fn splat(self, value: f32) -> Self::Vector;
    /// # Safety
    /// `source` is valid for reads of `LANES` values; the same holds for the loads below. No alignment needed.
    unsafe fn load(self, source: *const f32) -> Self::Vector;
    /// # Safety
    /// See [`Simd::load`].
    unsafe fn load_f16(self, source: *const f16) -> Self::Vector;
    /// # Safety
    /// See [`Simd::load`].
    unsafe fn load_bf16(self, source: *const bf16) -> Self::Vector;
    /// # Safety
    /// `target` is valid for writes of `LANES` values.
    unsafe fn store(self, target: *mut f32, value: Self::Vector);
    fn add(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn sub(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn mul(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn div(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// `a * b + c`, rounded once where the instruction set can.
    fn mul_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;
    fn max(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    fn min(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::Vector) -> Self::Vector;
    /// `a * 2^exponent` for integral exponents in [-127, 127]; -127 gives 0 or a denormal.
    fn scale_by_power_of_2(self, a: Self::Vector, exponent: Self::Vector) -> Self::Vector;
    /// Sum of the lanes by halving: lane `i` with `i + LANES / 2`, and so on down to one.
    fn sum(self, a: Self::Vector) -> f32;
    /// [`Simd::sum`] of four vectors, with the same additions.
    fn sum4(self, vectors: [Self::Vector; 4]) -> [f32; 4];
    /// Largest lane, NaN lanes left out where that is cheap.
    fn max_lane(self, a: Self::Vector) -> f32;
    /// For lanes that hold two bf16 values each: the first ones and the second ones, widened.
    fn split_bf16_pairs(self, pairs: Self::Vector) -> [Self::Vector; 2];
    /// Transposes the leading `LANES` by `LANES` square. Moves bits, so that lanes may hold anything.
    fn transpose(self, rows: &mut [Self::Vector; MAX_LANES]);
}

/// Element types of weights and cache.
pub(super) trait Element: Pod + Send + Sync {
    const DTYPE: DType;

    /// # Safety
    /// `source` is valid for reads of `S::LANES` elements.
    unsafe fn load<S: Simd>(simd: S, source: *const Self) -> S::Vector;
    fn to_f32(self) -> f32;
    /// Rounds to nearest, ties to even; both slices have one length.
    fn narrow(source: &[f32], target: &mut [Self]);

    /// Loads `count < S::LANES` elements and zeros after them.
    ///
    /// # Safety
    /// `source` is valid for reads of `count` elements.
    #[inline(always)]
    unsafe fn load_partial<S: Simd>(simd: S, source: *const Self, count: usize) -> S::Vector {
        let mut padded = [Self::zeroed(); MAX_LANES];
        // SAFETY: the caller vouches for `count` elements; `count` is below the array's length, and the array
        // holds at least `S::LANES` elements.
        unsafe {
            std::ptr::copy_nonoverlapping(source, padded.as_mut_ptr(), count);
            Self::load(simd, padded.as_ptr())
        }
    }
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, source: *const f32) -> S::Vector {
        // SAFETY: the caller's promise is the callee's demand.
        unsafe { simd.load(source) }
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(source: &[f32], target: &mut [f32]) {
        target.copy_from_slice(source);
    }
}

impl Element for f16 {
    const DTYPE: DType = DType::F16;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, source: *const f16) -> S::Vector {
        // SAFETY: the caller's promise is the callee's demand.
        unsafe { simd.load_f16(source) }
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    #[inline(always)]
    fn narrow(source: &[f32], target: &mut [f16]) {
        target.convert_from_f32_slice(source);
    }
}

impl Element for bf16 {
    const DTYPE: DType = DType::Bf16;

    #[inline(always)]
    unsafe fn load<S: Simd>(simd: S, source: *const bf16) -> S::Vector {
        // SAFETY: the caller's promise is the callee's demand.
        unsafe { simd.load_bf16(source) }
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }

    /// Without a branch, so that the loop vectorises; a NaN stays one, made quiet.
    #[inline(always)]
    fn narrow(source: &[f32], target: &mut [bf16]) {
        assert_eq!(source.len(), target.len());
        for (target, source) in target.iter_mut().zip(source) {
            let bits = source.to_bits();
            let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
            let quiet = (bits >> 16) as u16 | 0x40;
            *target = bf16::from_bits(if source.is_nan() { quiet } else { rounded });
        }
    }
}

/// The inner step of a dot product: how `STEP` weights meet `STEP` inputs.
pub(super) trait Dot: Copy {
    type Weight: Element;
    type Input: Element;
    /// `STEP` weights or inputs in the form that `mul_add` takes.
    type Operand: Copy;
    /// Partial sums.
    type Sums: Copy;
    const STEP: usize;
    /// Input rows in a register tile of four weight rows.
    const TILE_ROWS: usize;

    /// Asks for the cache line at `address`, which need not be valid.
    fn prefetch(self, address: *const u8);
    fn zero(self) -> Self::Sums;
    /// # Safety
    /// `source` is valid for reads of `STEP` elements.
    unsafe fn load_weight(self, source: *const Self::Weight) -> Self::Operand;
    /// # Safety
    /// `source` is valid for reads of `STEP` elements.
    unsafe fn load_input(self, source: *const Self::Input) -> Self::Operand;
    /// # Safety
    /// `source` is valid for reads of `count < STEP` elements; zeros follow them.
    unsafe fn load_weight_partial(self, source: *const Self::Weight, count: usize) -> Self::Operand;
    /// # Safety
    /// `source` is valid for reads of `count < STEP` elements; zeros follow them.
    unsafe fn load_input_partial(self, source: *const Self::Input, count: usize) -> Self::Operand;
    fn mul_add(self, sums: Self::Sums, weight: Self::Operand, input: Self::Operand) -> Self::Sums;
    fn sum(self, sums: Self::Sums) -> f32;
    /// [`Dot::sum`] four times, with the same additions.
    fn sum4(self, sums: [Self::Sums; 4]) -> [f32; 4];
}

/// Products in f32 of weights of type `W`, widened when they are loaded.
#[derive(Clone, Copy)]
pub(super) struct Widening<S, W> {
    simd: S,
    weight: std::marker::PhantomData<W>,
}

impl<S: Simd, W: Element> Dot for Widening<S, W> {
    type Weight = W;
    type Input = f32;
    type Operand = S::Vector;
    type Sums = S::Vector;
    const STEP: usize = S::LANES;
    // AVX-512 has 32 registers, its elders 16.
    const TILE_ROWS: usize = if S::LANES == 16 { 6 } else { 2 };

    #[inline(always)]
    fn prefetch(self, address: *const u8) {
        self.simd.prefetch(address);
    }

    #[inline(always)]
    fn zero(self) -> S::Vector {
        self.simd.splat(0.0)
    }

    #[inline(always)]
    unsafe fn load_weight(self, source: *const W) -> S::Vector {
        // SAFETY: the caller's promise is the callee's demand.
        unsafe { W::load(self.simd, source) }
    }

    #[inline(always)]
    unsafe fn load_input(self, source: *const f32) -> S::Vector {
        // SAFETY: the caller's promise is the callee's demand.
        unsafe { self.simd.load(source) }
    }

    #[inline(always)]
    unsafe fn load_weight_partial(self, source: *const W, count: usize) -> S::Vector {
        // SAFETY: the caller's promise is the callee's demand.
        unsafe { W::load_partial(self.simd, source, count) }
    }

    #[inline(always)]
    unsafe fn load_input_partial(self, source: *const f32, count: usize) -> S::Vector {
        // SAFETY: the caller's promise is the callee's demand.
        unsafe { f32::load_partial(self.simd, source, count) }
    }

    #[inline(always)]
    fn mul_add(self, sums: S::Vector, weight: S::Vector, input: S::Vector) -> S::Vector {
        self.simd.mul_add(weight, input, sums)
    }

    #[inline(always)]
    fn sum(self, sums: S::Vector) -> f32 {
        self.simd.sum(sums)
    }

    #[inline(always)]
    fn sum4(self, sums: [S::Vector; 4]) -> [f32; 4] {
        self.simd.sum4(sums)
    }
}

/// Work that runs on any instruction set. Implementations of `run` are `#[inline(always)]`.
pub(super) trait Kernel {
    fn run<S: Simd>(self, simd: S);
}

/// Work over dot products. Implementations of `run` are `#[inline(always)]`.
pub(super) trait DotKernel<W: Element, I: Element> {
    fn run<D: Dot<Weight = W, Input = I>>(self, dot: D);
}

/// Runs a [`DotKernel`] with f32 inputs as a [`Kernel`].
struct WithWidening<K, W>(K, std::marker::PhantomData<W>);

impl<K: DotKernel<W, f32>, W: Element> Kernel for WithWidening<K, W> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.0.run(Widening::<S, W> { simd, weight: std::marker::PhantomData });
    }
}

/// An instruction set that the processor has.
#[derive(Debug, Clone, Copy)]
pub(super) enum Isa {
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(avx512::Avx512Bf16),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    Portable(portable::Portable),
}

impl Isa {
    /// The sets that this processor has, the best first.
    pub(super) fn supported() -> Vec<Isa> {
        let mut supported = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            supported.extend(avx512::Avx512Bf16::detect().map(Isa::Avx512Bf16));
            supported.extend(avx512::Avx512::detect().map(Isa::Avx512));
            supported.extend(avx2::Avx2::detect().map(Isa::Avx2));
        }
        supported.push(Isa::Portable(portable::Portable));
        supported
    }

    /// The best set that this processor has.
    ///
    /// That is decided by the vendor and not by a measurement, so that a machine always gives the same tokens:
    /// Intel's cores run the bf16 dot product at half the rate of f32 multiply-adds per element, AMD's at twice.
    pub(super) fn detect() -> Isa {
        let supported = Self::supported();
        let slow_bf16_dot = supported[0].has_bf16_dot() && is_intel();
        supported[usize::from(slow_bf16_dot)]
    }

    /// Name for people.
    pub(super) fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16(_) => "avx512-bf16",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            Isa::Portable(_) => "portable",
        }
    }

    /// Whether products with bf16 weights take inputs rounded to bf16.
    pub(super) fn has_bf16_dot(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return matches!(self, Isa::Avx512Bf16(_));
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Runs `kernel` with this set.
    pub(super) fn run<K: Kernel>(self, kernel: K) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16(token) => token.base().run(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(token) => token.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(token) => token.run(kernel),
            Isa::Portable(token) => kernel.run(token),
        }
    }

    /// Runs `kernel` with f32 inputs.
    pub(super) fn run_widening<W: Element, K: DotKernel<W, f32>>(self, kernel: K) {
        self.run(WithWidening(kernel, std::marker::PhantomData));
    }

    /// Runs `kernel` with bf16 inputs; only where [`Isa::has_bf16_dot`].
    pub(super) fn run_bf16<K: DotKernel<bf16, bf16>>(self, kernel: K) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16(token) => token.run(kernel),
            _ => unreachable!("{} has no bf16 dot product", self.name()),
        }
    }
}

/// Whether the processor is Intel's.
#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
}

/// Whether the processor is Intel's.
#[cfg(not(target_arch = "x86_64"))]
fn is_intel() -> bool {
    false
}

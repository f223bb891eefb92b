//! Activations of an MLP.

use std::marker::PhantomData;

use super::simd::{Isa, Kernel, MAX_LANES, Simd, math};
use super::threads::{Parts, Threads};
use crate::backend::{Activation, Gating};

/// One call's arguments; shapes are checked.
pub(super) struct Rows<'a> {
    /// `[gate | up]` or `[up]` per row.
    pub(super) input: &'a [f32],
    /// As wide as a row of the input.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) gating: Gating,
    /// `[rows, width]`.
    pub(super) out: &'a mut [f32],
    pub(super) width: usize,
}

impl Rows<'_> {
    /// `out = activation(gate) * up`, or `activation(up)`.
    pub(super) fn activate(self, threads: &mut Threads, isa: Isa, function: Activation) {
        match function {
            Activation::Silu => self.run::<Silu>(threads, isa),
            Activation::Gelu => self.run::<Gelu>(threads, isa),
            Activation::GeluTanh => self.run::<GeluTanh>(threads, isa),
            Activation::QuickGelu => self.run::<QuickGelu>(threads, isa),
            Activation::Relu => self.run::<Relu>(threads, isa),
            Activation::ReluSquared => self.run::<ReluSquared>(threads, isa),
        }
    }

    fn run<F: Function>(self, threads: &mut Threads, isa: Isa) {
        let Self { input, bias, gating, out, width } = self;
        let input_width = gating.input_width(width);
        let num_rows = out.len().checked_div(width).unwrap_or(0);
        let out = Parts::new(out);
        // An exponential costs about as much as eight loads and stores.
        threads.run_rows(num_rows, 8 * width, |rows| {
            for row in rows {
                let input = &input[row * input_width..(row + 1) * input_width];
                // SAFETY: every row belongs to one task.
                let out = unsafe { out.slice(row * width..(row + 1) * width) };
                let (argument, factor) = match gating {
                    Gating::Gated => {
                        let biases = bias.map(|bias| bias.split_at(width));
                        let (gate, up) = input.split_at(width);
                        let up = Biased { values: up, bias: biases.map(|(_, up)| up) };
                        (Biased { values: gate, bias: biases.map(|(gate, _)| gate) }, Some(up))
                    }
                    Gating::Plain => (Biased { values: input, bias }, None),
                };
                isa.run(ActivateRow { argument, factor, out, function: PhantomData::<F> });
            }
        });
    }
}

/// Elements, and what is added to them.
#[derive(Clone, Copy)]
struct Biased<'a> {
    values: &'a [f32],
    bias: Option<&'a [f32]>,
}

impl Biased<'_> {
    /// `LANES` elements from `i` on; past the end, zeros.
    #[inline(always)]
    fn load<S: Simd>(&self, simd: S, i: usize) -> S::Vector {
        let values = load(simd, self.values, i);
        match self.bias {
            Some(bias) => simd.add(values, load(simd, bias, i)),
            None => values,
        }
    }
}

#[inline(always)]
fn load<S: Simd>(simd: S, values: &[f32], i: usize) -> S::Vector {
    if i + S::LANES <= values.len() {
        // SAFETY: the slice has `LANES` elements from `i` on.
        return unsafe { simd.load(values.as_ptr().add(i)) };
    }
    let mut padded = [0.0; MAX_LANES];
    padded[..values.len() - i].copy_from_slice(&values[i..]);
    // SAFETY: the array holds at least `LANES` elements.
    unsafe { simd.load(padded.as_ptr()) }
}

/// One row.
struct ActivateRow<'a, F> {
    argument: Biased<'a>,
    factor: Option<Biased<'a>>,
    out: &'a mut [f32],
    function: PhantomData<F>,
}

impl<F: Function> Kernel for ActivateRow<'_, F> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let width = self.out.len();
        assert!(self.argument.values.len() == width);
        for i in (0..width).step_by(S::LANES) {
            let mut result = F::apply(simd, self.argument.load(simd, i));
            if let Some(factor) = &self.factor {
                result = simd.mul(result, factor.load(simd, i));
            }
            if i + S::LANES <= width {
                // SAFETY: the slice has `LANES` elements from `i` on.
                unsafe { simd.store(self.out.as_mut_ptr().add(i), result) };
            } else {
                let mut padded = [0.0; MAX_LANES];
                // SAFETY: the array holds at least `LANES` elements.
                unsafe { simd.store(padded.as_mut_ptr(), result) };
                self.out[i..].copy_from_slice(&padded[..width - i]);
            }
        }
    }
}

/// An [`Activation`] over vectors. Implementations are `#[inline(always)]`.
trait Function: Sync {
    fn apply<S: Simd>(simd: S, x: S::Vector) -> S::Vector;
}

/// `x / (1 + e^-y)`.
#[inline(always)]
fn times_sigmoid<S: Simd>(simd: S, x: S::Vector, y: S::Vector) -> S::Vector {
    let negated = simd.sub(simd.splat(0.0), y);
    simd.div(x, simd.add(simd.splat(1.0), math::exp(simd, negated)))
}

struct Silu;

impl Function for Silu {
    #[inline(always)]
    fn apply<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
        times_sigmoid(simd, x, x)
    }
}

struct Gelu;

impl Function for Gelu {
    #[inline(always)]
    fn apply<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
        let erf = math::erf(simd, simd.mul(x, simd.splat(std::f32::consts::FRAC_1_SQRT_2)));
        simd.mul(simd.mul(x, simd.splat(0.5)), simd.add(simd.splat(1.0), erf))
    }
}

struct GeluTanh;

impl Function for GeluTanh {
    /// `0.5 x (1 + tanh(y)) = x sigmoid(2 y)` with `y = sqrt(2 / pi) (x + 0.044715 x^3)`.
    #[inline(always)]
    fn apply<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
        const TWICE_ROOT: f32 = 1.595_769;
        let square = simd.mul(x, x);
        let factor = simd.mul_add(square, simd.splat(TWICE_ROOT * 0.044_715), simd.splat(TWICE_ROOT));
        times_sigmoid(simd, x, simd.mul(x, factor))
    }
}

struct QuickGelu;

impl Function for QuickGelu {
    #[inline(always)]
    fn apply<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
        times_sigmoid(simd, x, simd.mul(x, simd.splat(1.702)))
    }
}

struct Relu;

impl Function for Relu {
    #[inline(always)]
    fn apply<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
        simd.max(simd.splat(0.0), x)
    }
}

struct ReluSquared;

impl Function for ReluSquared {
    #[inline(always)]
    fn apply<S: Simd>(simd: S, x: S::Vector) -> S::Vector {
        let positive = simd.max(simd.splat(0.0), x);
        simd.mul(positive, positive)
    }
}

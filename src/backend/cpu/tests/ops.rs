//! Operations that work row by row.

use super::*;
use crate::backend::cpu::simd::{Kernel, MAX_LANES, Simd, math};
use crate::backend::{Activation, Alibi, ExpertWeighting, Gating, NormKind, RouterScoring};
use crate::error::{Error, Status};

/// Backend, name for messages.
fn each_backend(mut test: impl FnMut(&mut Cpu, &str)) {
    for mut cpu in backends() {
        let name = format!("{} on {} threads", cpu.instruction_set(), cpu.num_threads());
        test(&mut cpu, &name);
    }
}

/// Rows, features, depth: ones, odd, around the tiles' 4, the vectors' 8, 16 and 32, and a panel's edge.
const LINEAR_SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (1, 7, 33),
    (2, 3, 15),
    (3, 5, 16),
    (4, 4, 32),
    (5, 9, 31),
    (7, 13, 97),
    (1, 64, 576),
    (17, 67, 129),
    (129, 33, 64),
    (3, 1030, 160),
    (131, 517, 24),
];

#[test]
fn linear_is_the_dot_product_of_rows() {
    let mut random = Random(1);
    for (rows, features, depth) in LINEAR_SHAPES {
        for dtype in DTYPES {
            let input = random.values(rows * depth, 2.0);
            let weight = random.values(features * depth, 1.0);
            each_backend(|cpu, name| {
                let rounds_input = dtype == DType::Bf16 && cpu.isa.has_bf16_dot();
                let used = rounded(if rounds_input { DType::Bf16 } else { DType::F32 }, &input);
                let held = rounded(dtype, &weight);
                let mut expected = Vec::new();
                for row in used.chunks(depth) {
                    for weights in held.chunks(depth) {
                        let products = row.iter().zip(weights).map(|(&x, &w)| f64::from(x) * f64::from(w));
                        let (sum, size) =
                            products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
                        expected.push((sum, 1e-6 * size + 1e-30));
                    }
                }
                let input = tensor(cpu, DType::F32, depth, &input);
                let weight = tensor(cpu, dtype, depth, &weight);
                let mut out = poisoned(cpu, rows + 2, features);
                cpu.linear(&input, &weight, &mut out, rows).unwrap();
                let what = format!("linear [{rows}, {features}, {depth}] {dtype:?} {name}");
                assert_close(&what, &read(cpu, &out), &expected);
            });
        }
    }
}

#[test]
fn linear_gives_a_row_the_same_bits_in_any_batch() {
    let mut random = Random(2);
    for (features, depth) in [(70, 576), (9, 100)] {
        for dtype in DTYPES {
            let rows = 139;
            let input = random.values(rows * depth, 2.0);
            let weight = random.values(features * depth, 1.0);
            for isa in Isa::supported() {
                let mut results = Vec::new();
                for (num_threads, chunk) in [(1, rows), (3, rows), (2, 1), (3, 7), (1, 16)] {
                    let mut cpu = Cpu::with_isa(Threads::new(num_threads).unwrap(), isa);
                    let weight = tensor(&mut cpu, dtype, depth, &weight);
                    let mut result = Vec::new();
                    for chunk in input.chunks(chunk * depth) {
                        let input = tensor(&mut cpu, DType::F32, depth, chunk);
                        let mut out = poisoned(&mut cpu, chunk.len() / depth, features);
                        cpu.linear(&input, &weight, &mut out, chunk.len() / depth).unwrap();
                        result.extend(bits(&read(&mut cpu, &out)));
                    }
                    results.push(result);
                }
                assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{} {dtype:?}", isa.name());
            }
        }
    }
}

/// What a norm makes of a row, by the definition.
fn normed(kind: NormKind, row: &[f64], weight: &[f32], bias: Option<&[f32]>, epsilon: f32) -> Vec<f64> {
    let width = row.len() as f64;
    let mean = if kind == NormKind::Layer { row.iter().sum::<f64>() / width } else { 0.0 };
    let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width;
    let deviation = (variance + f64::from(epsilon)).sqrt();
    let bias = |i: usize| bias.map_or(0.0, |bias| f64::from(bias[i]));
    row.iter().enumerate().map(|(i, x)| (x - mean) / deviation * f64::from(weight[i]) + bias(i)).collect()
}

/// Rows of `residual` plus those of the deltas that are there, and their biases.
fn summed(width: usize, residual: &[f32], deltas: [Option<(&[f32], &[f32])>; 2]) -> Vec<f32> {
    let mut sums = residual.to_vec();
    for (values, bias) in deltas.into_iter().flatten() {
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = (*sum + values[i]) + bias[i % width];
        }
    }
    sums
}

const NORM_SHAPES: [(usize, usize); 7] = [(1, 1), (1, 7), (3, 16), (5, 31), (2, 33), (4, 576), (70, 640)];

#[test]
fn add_norm_adds_then_normalises() {
    let mut random = Random(3);
    for (rows, width) in NORM_SHAPES {
        for (kind, num_deltas, with_bias) in [
            (NormKind::Rms, 0, false),
            (NormKind::Rms, 1, false),
            (NormKind::Layer, 1, true),
            (NormKind::Layer, 2, true),
            (NormKind::Rms, 2, true),
        ] {
            let residual = random.values(rows * width, 3.0);
            let (first, second) = (random.values(rows * width, 3.0), random.values(rows * width, 3.0));
            let (biases, weight) = (random.values(width, 1.0), random.values(width, 2.0));
            let norm_bias = random.values(width, 1.0);
            let epsilon = 1e-5f32;
            let deltas = [(num_deltas > 0).then_some((&first[..], &biases[..])), {
                (num_deltas > 1).then_some((&second[..], &biases[..]))
            }];
            let sums = summed(width, &residual, deltas);
            let mut expected = Vec::new();
            for row in sums.chunks(width) {
                let row: Vec<f64> = row.iter().map(|&x| f64::from(x)).collect();
                let normed = normed(kind, &row, &weight, with_bias.then_some(&norm_bias), epsilon);
                // A mean subtracted leaves the rounding of what it was subtracted from.
                expected.extend(normed.into_iter().map(|value| (value, 5e-6 * (1.0 + value.abs()))));
            }
            each_backend(|cpu, name| {
                let mut row = |width: usize, values: &[f32]| tensor(cpu, DType::F32, width, values);
                let (first, second) = (row(width, &first), row(width, &second));
                let (biases, norm_bias) = (row(width, &biases), row(width, &norm_bias));
                let (weight, mut residual) = (row(width, &weight), row(width, &residual));
                let mut out = poisoned(cpu, rows + 1, width);
                let delta = |values| Delta { values, bias: Some(&biases) };
                let deltas =
                    [(num_deltas > 0).then(|| delta(&first)), (num_deltas > 1).then(|| delta(&second))];
                let norm = Norm { kind, epsilon, weight: &weight, bias: with_bias.then_some(&norm_bias) };
                cpu.add_norm(&mut residual, deltas, &norm, &mut out, rows).unwrap();
                let what = format!("add_norm [{rows}, {width}] {kind:?} {num_deltas} {name}");
                if width > 1 || kind == NormKind::Rms {
                    assert_close(&what, &read(cpu, &out), &expected);
                }
                assert_eq!(bits(&read(cpu, &residual)), bits(&sums), "{what}: residual");
            });
        }
    }
}

#[test]
fn norm_add_normalises_then_adds() {
    let mut random = Random(9);
    for (rows, width) in NORM_SHAPES {
        for kind in [NormKind::Rms, NormKind::Layer] {
            let (residual, delta) = (random.values(rows * width, 3.0), random.values(rows * width, 3.0));
            let (biases, weight) = (random.values(width, 1.0), random.values(width, 2.0));
            let mut expected = Vec::new();
            for (row, residual) in delta.chunks(width).zip(residual.chunks(width)) {
                let row: Vec<f64> = row.iter().zip(&biases).map(|(&x, &b)| f64::from(x + b)).collect();
                let normed = normed(kind, &row, &weight, Some(&biases), 1e-5);
                let sums = normed.iter().zip(residual).map(|(x, &r)| x + f64::from(r));
                expected.extend(sums.map(|value| (value, 1e-5 * (1.0 + value.abs()))));
            }
            each_backend(|cpu, name| {
                let mut row = |values: &[f32]| tensor(cpu, DType::F32, width, values);
                let (delta, biases, weight) = (row(&delta), row(&biases), row(&weight));
                let mut residual = row(&residual);
                let norm = Norm { kind, epsilon: 1e-5, weight: &weight, bias: Some(&biases) };
                let delta = Delta { values: &delta, bias: Some(&biases) };
                cpu.norm_add(delta, &norm, &mut residual, rows).unwrap();
                let what = format!("norm_add [{rows}, {width}] {kind:?} {name}");
                if width > 1 || kind == NormKind::Rms {
                    assert_close(&what, &read(cpu, &residual), &expected);
                }
            });
        }
    }
}

#[test]
fn add_norm_leaves_rows_beyond_alone() {
    each_backend(|cpu, name| {
        let values = Random(4).values(3 * 20, 1.0);
        let mut residual = tensor(cpu, DType::F32, 20, &values);
        let delta = tensor(cpu, DType::F32, 20, &values);
        let weight = tensor(cpu, DType::F32, 20, &values[..20]);
        let mut out = poisoned(cpu, 3, 20);
        let deltas = [Some(Delta::plain(&delta)), None];
        cpu.add_norm(&mut residual, deltas, &Norm::rms(&weight, 1e-5), &mut out, 2).unwrap();
        assert_eq!(read(cpu, &residual)[40..], values[40..], "{name}");
        assert!(read(cpu, &out)[40..].iter().all(|x| x.is_nan()), "{name}");
    });
}

/// An activation by its definition.
fn activated(function: Activation, x: f64) -> f64 {
    let sigmoid = |y: f64| 1.0 / (1.0 + (-y).exp());
    match function {
        Activation::Silu => x * sigmoid(x),
        Activation::Gelu => x * normal_cdf(x),
        Activation::GeluTanh => {
            x * sigmoid(2.0 * (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x))
        }
        Activation::QuickGelu => x * sigmoid(1.702 * x),
        Activation::Relu => x.max(0.0),
        Activation::ReluSquared => x.max(0.0).powi(2),
    }
}

/// `P(X <= x)` for a standard normal X: Simpson's rule from 0.
fn normal_cdf(x: f64) -> f64 {
    const STEPS: usize = 2000;
    let x = x.clamp(-12.0, 12.0);
    let density = |y: f64| (-y * y / 2.0).exp() / std::f64::consts::TAU.sqrt();
    let width = x / STEPS as f64;
    let weight = |i: usize| if i == 0 || i == STEPS { 1.0 } else { 2.0 * (1 + i % 2) as f64 };
    0.5 + (0..=STEPS).map(|i| weight(i) * density(width * i as f64)).sum::<f64>() * width / 3.0
}

#[test]
fn activations_follow_their_definitions() {
    let mut random = Random(5);
    for function in Activation::ALL {
        for (rows, width) in [(1, 1), (1, 15), (3, 16), (2, 17), (5, 100)] {
            for (gating, with_bias) in [(Gating::Gated, false), (Gating::Gated, true), (Gating::Plain, true)]
            {
                let input_width = gating.input_width(width);
                let mut input = random.values(rows * input_width, 12.0);
                if width == 100 {
                    input[..8].copy_from_slice(&[0.0, -0.0, 88.5, -88.5, -300.0, 300.0, 1e-30, -87.0]);
                }
                let biases = random.values(input_width, if with_bias { 2.0 } else { 0.0 });
                let mut expected = Vec::new();
                for row in input.chunks(input_width) {
                    let row: Vec<f64> = row.iter().zip(&biases).map(|(&x, &b)| f64::from(x + b)).collect();
                    for i in 0..width {
                        let factor = if gating == Gating::Gated { row[width + i] } else { 1.0 };
                        let value = activated(function, row[i]) * factor;
                        // The error function is within 5e-7 of 1; an exponent of 20 carries the rounding of
                        // its argument, in tails that are nearly 0.
                        let tail = if function == Activation::Gelu { 5e-7 } else { 1e-8 };
                        let tolerance = 1e-6 * value.abs() + tail * (row[i] * factor).abs();
                        expected.push((value, tolerance + 1e-34));
                    }
                }
                each_backend(|cpu, name| {
                    let input = tensor(cpu, DType::F32, input_width, &input);
                    let biases = tensor(cpu, DType::F32, input_width, &biases);
                    let mut out = poisoned(cpu, rows + 1, width);
                    let activate = Activate { function, gating, bias: with_bias.then_some(&biases) };
                    cpu.activate(&input, &activate, &mut out, rows).unwrap();
                    let what = format!("{} [{rows}, {width}] {gating:?} {name}", function.name());
                    assert_close(&what, &read(cpu, &out), &expected);
                });
            }
        }
    }
}

#[test]
fn experts_give_a_row_the_same_bits_in_any_batch() {
    let (rows, hidden, width, num_experts) = (23, 40, 24, 7);
    let mut random = Random(10);
    let (input, products) = (random.values(rows * hidden, 1.0), random.values(rows * num_experts, 2.0));
    let up = random.values(num_experts * 2 * width * hidden, 0.5);
    let down = random.values(num_experts * hidden * width, 0.5);
    for dtype in DTYPES {
        for isa in Isa::supported() {
            let mut results = Vec::new();
            for chunk in [rows, 1, 5] {
                let mut cpu = Cpu::with_isa(Threads::new(3).unwrap(), isa);
                let up = tensor(&mut cpu, dtype, hidden, &up);
                let down = tensor(&mut cpu, dtype, width, &down);
                let mixture = Mixture {
                    up: &up,
                    down: &down,
                    num_experts,
                    num_chosen: 3,
                    scoring: RouterScoring::Softmax,
                    weighting: ExpertWeighting::Normalized,
                    scale: 1.0,
                    function: Activation::Silu,
                    gating: Gating::Gated,
                    shared: None,
                };
                let mut result = Vec::new();
                for (input, products) in
                    input.chunks(chunk * hidden).zip(products.chunks(chunk * num_experts))
                {
                    let input = tensor(&mut cpu, DType::F32, hidden, input);
                    let products = tensor(&mut cpu, DType::F32, num_experts, products);
                    let count = input.rows();
                    let mut out = poisoned(&mut cpu, count, hidden);
                    cpu.mix_experts(&input, &products, &mixture, &mut out, count).unwrap();
                    result.extend(bits(&read(&mut cpu, &out)));
                }
                results.push(result);
            }
            assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{} {dtype:?}", isa.name());
        }
    }
}

#[test]
fn slopes_are_those_of_the_paper() {
    let slopes = |num_heads: usize| -> Vec<f32> {
        let alibi = Alibi { max_bias: 8.0, scale: 1.0 };
        (0..num_heads).map(|head| alibi.slope(head, num_heads)).collect()
    };
    assert_eq!(slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
    assert_eq!(slopes(1), [0.00390625]);
    // Heads 8 and 9 take the first and the third slope of 16.
    assert_eq!(slopes(10)[..8], slopes(8));
    assert_eq!(slopes(10)[8..], [slopes(16)[0], slopes(16)[2]]);
}

#[test]
fn a_nan_stays_one() {
    each_backend(|cpu, name| {
        let mut values = Random(6).values(40, 1.0);
        values[3] = f32::NAN;
        let row = tensor(cpu, DType::F32, 40, &values);
        let mut out = poisoned(cpu, 1, 20);
        for function in Activation::ALL {
            cpu.activate(&row, &Activate::gated(function), &mut out, 1).unwrap();
            let nans: Vec<_> = read(cpu, &out).iter().map(|x| x.is_nan()).collect();
            assert_eq!(nans, (0..20).map(|i| i == 3).collect::<Vec<_>>(), "{name} {function:?}");
        }
        for dtype in DTYPES {
            let weight = tensor(cpu, dtype, 40, &Random(7).values(40, 1.0));
            let mut out = tensor(cpu, DType::F32, 1, &[0.0]);
            cpu.linear(&row, &weight, &mut out, 1).unwrap();
            assert!(read(cpu, &out)[0].is_nan(), "{name} {dtype:?}");
        }
    });
}

#[test]
fn widths_that_do_not_match_are_refused() {
    let cpu = &mut Cpu::new(1).unwrap();
    let invalid = |result: BackendResult<()>, word: &str| match result {
        Err(BackendError::InvalidArgument { message, .. }) => assert!(message.contains(word), "{message}"),
        other => panic!("{other:?}"),
    };
    let (narrow, wide) = (cpu.alloc(DType::F32, 2, 8).unwrap(), cpu.alloc(DType::F32, 2, 9).unwrap());
    let half = cpu.alloc(DType::F16, 2, 8).unwrap();
    let mut out = cpu.alloc(DType::F32, 2, 8).unwrap();
    invalid(cpu.linear(&narrow, &wide, &mut out, 1), "input is [2, 8]");
    invalid(cpu.linear(&narrow, &narrow, &mut out, 1), "out is [2, 8] and must be [1 or more, 2]");
    invalid(cpu.linear(&half, &narrow, &mut out, 1), "input is F16");
    invalid(cpu.linear(&narrow, &narrow, &mut out, 3), "must be [3 or more, 8]");
    invalid(cpu.activate(&narrow, &Activate::gated(Activation::Silu), &mut out, 1), "input");
    let mut residual = cpu.alloc(DType::F32, 2, 8).unwrap();
    let norm = Norm::rms(&narrow, 1e-5);
    invalid(cpu.add_norm(&mut residual, [Some(Delta::plain(&wide)), None], &norm, &mut out, 1), "delta");
    let bias = Delta { values: &narrow, bias: Some(&wide) };
    invalid(cpu.add_norm(&mut residual, [None, Some(bias)], &norm, &mut out, 1), "bias of the delta");
    invalid(cpu.norm_add(Delta::plain(&wide), &norm, &mut residual, 1), "delta");
    let norm = Norm::rms(&wide, 1e-5);
    invalid(cpu.add_norm(&mut residual, [None; 2], &norm, &mut out, 1), "weight");
    invalid(cpu.write_rows(&mut out, 0, &[0; 31]), "31 bytes");
    invalid(cpu.write_rows(&mut out, 1, &[0; 64]), "2 rows from row 1");
    invalid(cpu.write_rows(&mut out, usize::MAX, &[0; 64]), "2 rows");
    assert!(cpu.read_rows(&out, 3).is_err());
    assert!(matches!(
        cpu.alloc(DType::F32, usize::MAX / 2, 4),
        Err(BackendError::HostOutOfMemory { bytes: u64::MAX, .. })
    ));
    assert!(matches!(cpu.alloc(DType::F32, 1 << 40, 1 << 10), Err(BackendError::HostOutOfMemory { .. })));
}

#[test]
fn rows_are_read_as_written() {
    let cpu = &mut Cpu::new(1).unwrap();
    let values = Random(8).values(5 * 3, 10.0);
    for dtype in DTYPES {
        let mut tensor = cpu.alloc(dtype, 5, 3).unwrap();
        cpu.write_rows(&mut tensor, 3, &bytes(dtype, &values[9..])).unwrap();
        cpu.write_rows(&mut tensor, 0, &bytes(dtype, &values[..9])).unwrap();
        assert_eq!(cpu.read_rows(&tensor, 5).unwrap(), rounded(dtype, &values));
        assert_eq!(cpu.read_rows(&tensor, 2).unwrap(), rounded(dtype, &values[..6]));
    }
}

#[test]
fn rows_are_filled_where_they_lie() {
    let cpu = &mut Cpu::new(1).unwrap();
    let mut tensor = cpu.alloc(DType::F32, 4, 3).unwrap();
    let values = Random(9).values(2 * 3, 10.0);
    let mut fill = |target: &mut [u8]| {
        target.copy_from_slice(&bytes(DType::F32, &values));
        Ok(())
    };
    cpu.fill_rows(&mut tensor, 1, 24, &mut fill).unwrap();
    let expected = [[0.0; 3].as_slice(), &values, &[0.0; 3]].concat();
    assert_eq!(cpu.read_rows(&tensor, 4).unwrap(), expected);
    for (first_row, num_bytes) in [(3, 24), (0, 23), (usize::MAX, 12)] {
        let error = cpu.fill_rows(&mut tensor, first_row, num_bytes, &mut |_| panic!("filled")).unwrap_err();
        assert_eq!(error.status(), Status::Internal, "{error}");
    }
    let mut fail = |_: &mut [u8]| Err(Error::new(Status::Aborted, "no more"));
    assert_eq!(cpu.fill_rows(&mut tensor, 0, 12, &mut fail).unwrap_err().status(), Status::Aborted);
}

/// Exponentials of a slice of whole vectors, in place.
struct Exponentials<'a>(&'a mut [f32]);

impl Kernel for Exponentials<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for vector in self.0.chunks_exact_mut(S::LANES) {
            // SAFETY: a chunk is one vector.
            unsafe { simd.store(vector.as_mut_ptr(), math::exp(simd, simd.load(vector.as_ptr()))) };
        }
    }
}

#[test]
fn exp_is_exact_to_two_units_in_the_last_place() {
    for isa in Isa::supported() {
        let arguments: Vec<f32> =
            (0..1 << 20).map(|i| -87.0 + i as f32 * (175.0 / (1 << 20) as f32)).collect();
        let mut results = arguments.clone();
        isa.run(Exponentials(&mut results));
        for (x, result) in arguments.iter().zip(results) {
            let expected = f64::from(*x).exp();
            let error = (f64::from(result) / expected - 1.0).abs();
            assert!(error <= 2.0 * f64::from(f32::EPSILON), "{} exp({x}) is {result}", isa.name());
        }
        let mut special = [0.0; MAX_LANES];
        special[..5].copy_from_slice(&[0.0, f32::NEG_INFINITY, f32::NAN, -1e30, f32::INFINITY]);
        isa.run(Exponentials(&mut special));
        assert_eq!((special[0], special[1], special[3]), (1.0, 0.0, 0.0), "{}", isa.name());
        assert!(special[2].is_nan() && special[4] > 1e38, "{}", isa.name());
    }
}

//! Operations that work row by row.

use super::*;
use crate::backend::cpu::simd::{Kernel, MAX_LANES, Simd, math};

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

#[test]
fn add_rms_norm_adds_then_normalises() {
    let mut random = Random(3);
    for (rows, width) in [(1, 1), (1, 7), (3, 16), (5, 31), (2, 33), (4, 576), (70, 640)] {
        for dtype in DTYPES {
            for with_delta in [false, true] {
                let residual = random.values(rows * width, 3.0);
                let delta = random.values(rows * width, 3.0);
                let weight = random.values(width, 2.0);
                let epsilon = 1e-5f32;
                let sums: Vec<f32> =
                    residual.iter().zip(&delta).map(|(r, d)| if with_delta { r + d } else { *r }).collect();
                let held = rounded(dtype, &weight);
                let mut expected = Vec::new();
                for row in sums.chunks(width) {
                    let square = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / width as f64;
                    let rms = (square + f64::from(epsilon)).sqrt();
                    expected.extend(row.iter().zip(&held).map(|(&x, &w)| {
                        let value = f64::from(x) / rms * f64::from(w);
                        (value, 2e-6 * value.abs())
                    }));
                }
                each_backend(|cpu, name| {
                    let mut residual = tensor(cpu, DType::F32, width, &residual);
                    let delta = tensor(cpu, DType::F32, width, &delta);
                    let weight = tensor(cpu, dtype, width, &weight);
                    let mut out = poisoned(cpu, rows + 1, width);
                    let delta = with_delta.then_some(&delta);
                    cpu.add_rms_norm(&mut residual, delta, &weight, epsilon, &mut out, rows).unwrap();
                    let what = format!("add_rms_norm [{rows}, {width}] {dtype:?} {name}");
                    assert_close(&what, &read(cpu, &out), &expected);
                    assert_eq!(bits(&read(cpu, &residual)), bits(&sums), "{what}: residual");
                });
            }
        }
    }
}

#[test]
fn add_rms_norm_leaves_rows_beyond_alone() {
    each_backend(|cpu, name| {
        let values = Random(4).values(3 * 20, 1.0);
        let mut residual = tensor(cpu, DType::F32, 20, &values);
        let delta = tensor(cpu, DType::F32, 20, &values);
        let weight = tensor(cpu, DType::F32, 20, &values[..20]);
        let mut out = poisoned(cpu, 3, 20);
        cpu.add_rms_norm(&mut residual, Some(&delta), &weight, 1e-5, &mut out, 2).unwrap();
        assert_eq!(read(cpu, &residual)[40..], values[40..], "{name}");
        assert!(read(cpu, &out)[40..].iter().all(|x| x.is_nan()), "{name}");
    });
}

#[test]
fn gated_activation_is_silu_times_up() {
    let mut random = Random(5);
    for (rows, width) in [(1, 1), (1, 15), (3, 16), (2, 17), (5, 100), (40, 1536)] {
        let mut gate_up = random.values(rows * 2 * width, 20.0);
        if width == 100 {
            gate_up[..8].copy_from_slice(&[0.0, -0.0, 88.5, -88.5, -300.0, 300.0, 1e-30, -87.0]);
        }
        let mut expected = Vec::new();
        for row in gate_up.chunks(2 * width) {
            for i in 0..width {
                let (gate, up) = (f64::from(row[i]), f64::from(row[width + i]));
                let value = gate / (1.0 + (-gate).exp()) * up;
                expected.push((value, 1e-6 * value.abs() + 1e-34));
            }
        }
        each_backend(|cpu, name| {
            let gate_up = tensor(cpu, DType::F32, 2 * width, &gate_up);
            let mut out = poisoned(cpu, rows + 1, width);
            cpu.gated_activation(&gate_up, Activation::Silu, &mut out, rows).unwrap();
            assert_close(&format!("gated_activation [{rows}, {width}] {name}"), &read(cpu, &out), &expected);
        });
    }
}

#[test]
fn a_nan_stays_one() {
    each_backend(|cpu, name| {
        let mut values = Random(6).values(40, 1.0);
        values[3] = f32::NAN;
        let row = tensor(cpu, DType::F32, 40, &values);
        let mut out = poisoned(cpu, 1, 20);
        cpu.gated_activation(&row, Activation::Silu, &mut out, 1).unwrap();
        let nans: Vec<_> = read(cpu, &out).iter().map(|x| x.is_nan()).collect();
        assert_eq!(nans, (0..20).map(|i| i == 3).collect::<Vec<_>>(), "{name}");
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
    invalid(cpu.gated_activation(&narrow, Activation::Silu, &mut out, 1), "gate_up");
    let mut residual = cpu.alloc(DType::F32, 2, 8).unwrap();
    invalid(cpu.add_rms_norm(&mut residual, Some(&wide), &narrow, 1e-5, &mut out, 1), "delta");
    invalid(cpu.add_rms_norm(&mut residual, None, &wide, 1e-5, &mut out, 1), "weight");
    invalid(cpu.write_rows(&mut out, 0, &[0; 31]), "31 bytes");
    invalid(cpu.write_rows(&mut out, 1, &[0; 64]), "2 rows from row 1");
    invalid(cpu.write_rows(&mut out, usize::MAX, &[0; 64]), "2 rows");
    assert!(cpu.read_rows(&out, 3).is_err());
    assert!(matches!(
        cpu.alloc(DType::F32, usize::MAX / 2, 4),
        Err(BackendError::OutOfMemory { bytes: u64::MAX, .. })
    ));
    assert!(matches!(cpu.alloc(DType::F32, 1 << 40, 1 << 10), Err(BackendError::OutOfMemory { .. })));
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

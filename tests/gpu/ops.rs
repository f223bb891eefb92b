//! Operations other than attention and sampling.

use inflight::backend::{Activation, Backend, BackendLimits, DType};

use crate::rig::*;

#[test]
fn embed() {
    for dtype in DTYPES {
        let (vocab_size, max_tokens) = (300, 200);
        for width in sizes(&[8, 576, 4096], 576) {
            let mut rig = Rig::new(dtype);
            let mut random = Random(1);
            rig.reserve(&BackendLimits { max_tokens, max_slots: 2, vocab_size });
            let table = rig.weight(width, &random.values(vocab_size * width, 1.0));
            for num_tokens in [1, 7, 129] {
                let tokens = (0..num_tokens).map(|_| random.below(vocab_size) as u32).collect();
                let row = BatchRow { slot: 1, tokens, context_len: num_tokens, blocks: vec![] };
                rig.load_batch(&batch(&[row], &[]));
                let mut out = rig.poisoned(max_tokens, width);
                rig.cpu.embed(&table.cpu, &mut out.cpu).unwrap();
                rig.gpu.embed(&table.gpu, &mut out.gpu).unwrap();
                rig.assert_same(&format!("embed {dtype:?} {num_tokens} x {width}"), &out, 0.0);
            }
        }
    }
}

#[test]
fn add_rms_norm() {
    for dtype in DTYPES {
        let mut rig = Rig::new(dtype);
        let mut random = Random(2);
        for width in sizes(&[8, 72, 576, 4096, 8192, 8200, 12288], 600) {
            let weight = rig.single(width, &random.values(width, 1.0));
            for (rows, with_delta) in [(1, true), (3, false), (130, true)] {
                let mut residual = rig.activation(width, &random.values((rows + 2) * width, 3.0));
                let delta = rig.activation(width, &random.values((rows + 2) * width, 3.0));
                let mut out = rig.poisoned(rows + 2, width);
                let (epsilon, what) = (1e-5, format!("add_rms_norm {dtype:?} {rows} x {width}"));
                let cpu_delta = with_delta.then_some(&delta.cpu);
                let gpu_delta = with_delta.then_some(&delta.gpu);
                rig.cpu
                    .add_rms_norm(&mut residual.cpu, cpu_delta, &weight.cpu, epsilon, &mut out.cpu, rows)
                    .unwrap();
                rig.gpu
                    .add_rms_norm(&mut residual.gpu, gpu_delta, &weight.gpu, epsilon, &mut out.gpu, rows)
                    .unwrap();
                rig.assert_same(&what, &out, rig.tolerance());
                rig.assert_same(&format!("{what}: residual"), &residual, rig.tolerance());
            }
        }
    }
}

#[test]
fn gated_activation() {
    for dtype in DTYPES {
        let mut rig = Rig::new(dtype);
        let mut random = Random(3);
        for width in sizes(&[8, 1536, 14336], 1536) {
            for rows in [1, 5, 130] {
                let gate_up = rig.activation(2 * width, &random.values((rows + 1) * 2 * width, 8.0));
                let mut out = rig.poisoned(rows + 1, width);
                rig.cpu.gated_activation(&gate_up.cpu, Activation::Silu, &mut out.cpu, rows).unwrap();
                rig.gpu.gated_activation(&gate_up.gpu, Activation::Silu, &mut out.gpu, rows).unwrap();
                rig.assert_same(&format!("gated {dtype:?} {rows} x {width}"), &out, rig.tolerance());
            }
        }
    }
}

#[test]
fn linear() {
    for dtype in DTYPES {
        let mut rig = Rig::new(dtype);
        rig.reserve(&BackendLimits { max_tokens: 1, max_slots: 1, vocab_size: 1 });
        let mut random = Random(4);
        for (out_features, in_features) in
            [(1, 8), (16, 8), (17, 40), (72, 576), (576, 1536), (1000, 264), (1024, 4096)]
        {
            if is_small() && out_features * in_features > 50_000 {
                continue;
            }
            let weight = rig.weight(in_features, &random.values(out_features * in_features, 1.0));
            for rows in sizes(&[1, 2, 7, 8, 9, 15, 16, 17, 33, 130, 512], 20) {
                let input = rig.activation(in_features, &random.values((rows + 3) * in_features, 1.0));
                let mut out = rig.poisoned(rows + 3, out_features);
                rig.cpu.linear(&input.cpu, &weight.cpu, &mut out.cpu, rows).unwrap();
                rig.gpu.linear(&input.gpu, &weight.gpu, &mut out.gpu, rows).unwrap();
                let what = format!("linear {dtype:?} {rows} x {out_features} x {in_features}");
                rig.assert_same(&what, &out, rig.tolerance());
            }
        }
    }
}

#[test]
fn logits_of_sampled_rows() {
    for dtype in DTYPES {
        for (vocab_size, width) in [(1000, 576), (49_153, 64)] {
            if is_small() && vocab_size > 1000 {
                continue;
            }
            let mut rig = Rig::new(dtype);
            let mut random = Random(5);
            let (max_tokens, max_slots) = (150, 64);
            rig.reserve(&BackendLimits { max_tokens, max_slots, vocab_size });
            let head = rig.weight(width, &random.values(vocab_size * width, 1.0));
            let hidden = rig.activation(width, &random.values(max_tokens * width, 1.0));
            // Decodes alone need no gathering; a prompt among them does; forty rows go through cuBLASLt.
            let cases: [(Vec<usize>, Vec<u32>); 4] = [
                (vec![1, 1, 1], vec![0, 1, 2]),
                (vec![1, 70, 1, 1], vec![0, 1, 3]),
                (vec![1; 40], (0..40).collect()),
                ((0..40).map(|row| 1 + row % 3).collect(), (0..40).filter(|row| row % 5 > 0).collect()),
            ];
            for (lengths, sampled) in cases {
                let row = |(slot, &length): (usize, &usize)| BatchRow {
                    slot: slot as u32,
                    tokens: vec![0; length],
                    context_len: length,
                    blocks: vec![],
                };
                let rows: Vec<_> = lengths.iter().enumerate().map(row).collect();
                rig.load_batch(&batch(&rows, &sampled));
                let mut out = rig.single(vocab_size, &vec![f32::NAN; max_slots * vocab_size]);
                rig.cpu.logits(&hidden.cpu, &head.cpu, &mut out.cpu).unwrap();
                rig.gpu.logits(&hidden.gpu, &head.gpu, &mut out.gpu).unwrap();
                let what = format!("logits {dtype:?} {} of {} rows, {vocab_size}", sampled.len(), rows.len());
                rig.assert_same(&what, &out, 1e-5);
            }
        }
    }
}

#[test]
fn arguments_that_do_not_fit_are_refused() {
    let mut gpu = gpu();
    let mut other = Rig::new(DType::Bf16);
    let mut alloc = |dtype, rows, columns| gpu.alloc(dtype, rows, columns).unwrap();
    let input = alloc(DType::Bf16, 4, 64);
    let narrow = alloc(DType::Bf16, 4, 12);
    let weight = alloc(DType::Bf16, 32, 64);
    let half_weight = alloc(DType::F16, 32, 64);
    let mut out = alloc(DType::Bf16, 4, 32);
    let foreign = other.gpu.alloc(DType::Bf16, 4, 64).unwrap();
    assert!(gpu.linear(&input, &weight, &mut out, 5).is_err(), "more rows than there are");
    assert!(gpu.linear(&narrow, &weight, &mut out, 4).is_err(), "widths differ");
    assert!(gpu.linear(&input, &half_weight, &mut out, 4).is_err(), "types differ");
    assert!(gpu.linear(&foreign, &weight, &mut out, 4).is_err(), "another backend's tensor");
    assert!(gpu.linear(&input, &weight, &mut out, 4).is_ok());
}

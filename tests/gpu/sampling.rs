//! Sampling on the device against the CPU's sampler on the same logits: the same tokens, exactly.

use inflight::backend::{Backend, BackendLimits, DType, Embedding, Sampled, SlotState, TOKEN_FROM_SLOT};

use crate::rig::*;

/// Logits of a few shapes: spread, flat, with ties, with masks.
fn logits(random: &mut Random, kind: usize, vocab_size: usize) -> Vec<f32> {
    let scale = [8.0, 0.5, 20.0, 3.0, 8.0][kind % 5];
    let mut row = random.values(vocab_size, scale);
    match kind % 5 {
        2 => row.iter_mut().for_each(|x| *x = x.round()),
        3 => row.iter_mut().step_by(3).for_each(|x| *x = f32::NEG_INFINITY),
        4 => row.iter_mut().for_each(|x| *x = if *x < 0.0 { -0.0 } else { 0.0 }),
        _ => {}
    }
    row[vocab_size / 2] = row[vocab_size / 2].max(0.0);
    row
}

fn states() -> Vec<SlotState> {
    let warm = SlotState { temperature: 0.8, seed: 7, ..GREEDY };
    let mut states = vec![
        GREEDY,
        SlotState { num_logprobs: Some(5), ..GREEDY },
        warm.clone(),
        SlotState { temperature: 1.7, seed: u64::MAX, num_logprobs: Some(20), ..warm.clone() },
        SlotState { top_k: 1, ..warm.clone() },
        SlotState { top_k: 5, num_logprobs: Some(0), ..warm.clone() },
        SlotState { top_k: 50, top_p: 0.9, ..warm.clone() },
        SlotState { top_p: 0.5, seed: 99, ..warm.clone() },
        SlotState { top_p: 0.999, min_p: 0.01, ..warm.clone() },
        SlotState { min_p: 0.3, temperature: 2.0, ..warm.clone() },
        SlotState { top_k: 1_000_000, top_p: 1e-6, ..warm.clone() },
        SlotState { output: vec![3, 1, 4], seed: 1 << 40, ..warm.clone() },
    ];
    states.extend([
        SlotState { repetition_penalty: 1.3, prompt: vec![0, 2, 4], ..warm.clone() },
        SlotState { repetition_penalty: 0.7, output: vec![1, 1, 3, 1], num_logprobs: Some(3), ..GREEDY },
        SlotState { logit_bias: vec![(1, 100.0), (2, -5.0), (4, 1e38)], ..GREEDY },
        SlotState { logit_bias: vec![(0, 3.0), (3, -1.0)], top_k: 3, top_p: 0.8, ..warm.clone() },
        SlotState { presence_penalty: 1.0, frequency_penalty: 0.5, num_logprobs: Some(2), ..warm.clone() },
        SlotState { frequency_penalty: -1.5, output: vec![2; 40], ..warm.clone() },
        SlotState { min_tokens: 2, suppressed_tokens: vec![0, 1, 1 << 20], ..warm.clone() },
        SlotState { min_tokens: 9, suppressed_tokens: vec![0], logit_bias: vec![(0, 50.0)], ..GREEDY },
    ]);
    // More than the device keeps: the slow path.
    let many = (0..1200).map(|token| (token % 5, 0.01 * token as f32)).collect();
    states.push(SlotState { logit_bias: many, num_logprobs: Some(1), ..warm });
    states
}

fn assert_sampled(what: &str, actual: &[Sampled], expected: &[Sampled]) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (row, (actual, expected)) in actual.iter().zip(expected).enumerate() {
        assert_eq!((actual.slot, actual.token), (expected.slot, expected.token), "{what}, row {row}");
        assert_eq!(actual.logprobs.len(), expected.logprobs.len(), "{what}, row {row}");
        for (actual, expected) in actual.logprobs.iter().zip(&expected.logprobs) {
            assert_eq!(actual.token, expected.token, "{what}, row {row}");
            let error = (actual.logprob - expected.logprob).abs();
            assert!(
                error <= 1e-5 * expected.logprob.abs().max(1.0),
                "{what}, row {row}: {actual:?} {expected:?}"
            );
        }
    }
}

#[test]
fn every_parameter_samples_the_same_tokens() {
    for vocab_size in sizes(&[5, 64, 1000, 50_257, 128_256], 1000) {
        let mut rig = Rig::new(DType::Bf16);
        let mut random = Random(6);
        let states = states();
        let max_slots = states.len() + 2;
        rig.reserve(&BackendLimits { max_tokens: max_slots, max_slots, vocab_size });
        for (slot, state) in states.iter().enumerate() {
            rig.cpu.reset_slot(slot as u32, state).unwrap();
            rig.gpu.reset_slot(slot as u32, state).unwrap();
        }
        for step in 0..5 {
            // Rows stand in another order than slots, and not every row samples.
            let row = |slot: usize| BatchRow {
                slot: ((slot + step) % states.len()) as u32,
                tokens: vec![0],
                context_len: 1,
                blocks: vec![],
            };
            let rows: Vec<_> = (0..states.len()).map(row).collect();
            let sampled: Vec<u32> = (0..rows.len() as u32).filter(|row| row % 7 != 3).collect();
            rig.load_batch(&batch(&rows, &sampled));
            let values: Vec<f32> =
                (0..max_slots).flat_map(|row| logits(&mut random, row + step, vocab_size)).collect();
            let logits = rig.single(vocab_size, &values);
            rig.cpu.sample(&logits.cpu).unwrap();
            rig.gpu.sample(&logits.gpu).unwrap();
            let expected = rig.cpu.collect().unwrap();
            let actual = rig.gpu.collect().unwrap();
            assert_sampled(&format!("vocabulary {vocab_size}, step {step}"), &actual, &expected);
        }
    }
}

#[test]
fn rows_that_are_not_numbers_give_no_token() {
    let vocab_size = 2000;
    let mut rig = Rig::new(DType::Bf16);
    rig.reserve(&BackendLimits { max_tokens: 5, max_slots: 5, vocab_size });
    for slot in 0..5 {
        let temperature = if slot % 2 == 0 { 0.0 } else { 1.0 };
        let state = SlotState { temperature, num_logprobs: Some(3), ..GREEDY };
        rig.cpu.reset_slot(slot, &state).unwrap();
        rig.gpu.reset_slot(slot, &state).unwrap();
    }
    let row = |slot| BatchRow { slot, tokens: vec![0], context_len: 1, blocks: vec![] };
    rig.load_batch(&batch(&(0..5).map(row).collect::<Vec<_>>(), &[0, 1, 2, 3, 4]));
    let mut values = Random(7).values(5 * vocab_size, 4.0);
    values[1999] = f32::NAN;
    values[vocab_size + 17] = f32::INFINITY;
    values[2 * vocab_size..3 * vocab_size].fill(f32::NEG_INFINITY);
    values[3 * vocab_size + 1..4 * vocab_size].fill(f32::NEG_INFINITY);
    let logits = rig.single(vocab_size, &values);
    rig.cpu.sample(&logits.cpu).unwrap();
    rig.gpu.sample(&logits.gpu).unwrap();
    let (actual, expected) = (rig.gpu.collect().unwrap(), rig.cpu.collect().unwrap());
    assert_eq!(
        actual.iter().map(|row| row.token.is_some()).collect::<Vec<_>>(),
        [false, false, false, true, true]
    );
    assert_sampled("not numbers", &actual, &expected);
}

/// A sampled token feeds the next steps without the host, on the fast and on the slow path, two steps deep.
#[test]
fn sampled_tokens_stay_on_the_device() {
    let (vocab_size, width) = (500, 64);
    let mut rig = Rig::new(DType::Bf16);
    rig.reserve(&BackendLimits { max_tokens: 4, max_slots: 4, vocab_size });
    let mut random = Random(8);
    let table = rig.weight(width, &random.values(vocab_size * width, 1.0));
    let bias = SlotState { logit_bias: vec![(77, 1000.0)], ..GREEDY };
    for (slot, state) in [(3, &GREEDY), (1, &bias), (0, &GREEDY)] {
        rig.cpu.reset_slot(slot, state).unwrap();
        rig.gpu.reset_slot(slot, state).unwrap();
    }
    let row = |token| move |slot| BatchRow { slot, tokens: vec![token], context_len: 1, blocks: vec![] };
    let first: Vec<_> = [3, 1, 0].into_iter().map(row(5)).collect();
    let next: Vec<_> = [0, 3, 1].into_iter().map(row(TOKEN_FROM_SLOT)).collect();
    for rows in [first, next] {
        rig.load_batch(&batch(&rows, &[0, 1, 2]));
        let mut out = rig.poisoned(4, width);
        rig.cpu.embed(&Embedding::plain(&table.cpu), &mut out.cpu).unwrap();
        rig.gpu.embed(&Embedding::plain(&table.gpu), &mut out.gpu).unwrap();
        rig.assert_same("embedded tokens", &out, 0.0);
        let logits = rig.single(vocab_size, &random.values(4 * vocab_size, 4.0));
        rig.cpu.sample(&logits.cpu).unwrap();
        rig.gpu.sample(&logits.gpu).unwrap();
    }
    for step in 0..2 {
        let (actual, expected) = (rig.gpu.collect().unwrap(), rig.cpu.collect().unwrap());
        assert_sampled(&format!("step {step}"), &actual, &expected);
    }
    assert!(rig.gpu.collect().is_err(), "nothing is left");
}

use super::*;

const GREEDY: SlotState = SlotState::GREEDY;

/// Deterministic numbers for tests (SplitMix64, Steele et al. 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Logits with about the spread of a language model's.
    fn logits(&mut self, vocab_size: usize) -> Vec<f32> {
        (0..vocab_size).map(|_| ((0..4).map(|_| self.uniform()).sum::<f64>() * 10.0 - 20.0) as f32).collect()
    }
}

fn seeded(seed: u64) -> SlotState {
    SlotState { temperature: 1.0, seed, ..GREEDY }
}

/// The token that a fresh slot with `state` samples.
fn sample(state: &SlotState, logits: &[f32]) -> Option<u32> {
    let mut table = SlotTable::new(1, logits.len());
    table.reset(0, state);
    table.sample_row(0, logits).token
}

fn ln(probabilities: &[f64]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln() as f32).collect()
}

/// How often each token is drawn at output indexes `0..num_draws`.
fn histogram(state: &SlotState, logits: &[f32], num_draws: usize) -> Vec<usize> {
    let mut table = SlotTable::new(1, logits.len());
    table.reset(0, state);
    let mut counts = vec![0; logits.len()];
    for _ in 0..num_draws {
        counts[table.sample_row(0, logits).token.unwrap() as usize] += 1;
    }
    counts
}

/// Probabilities by the definitions, in double precision and with a sort.
fn reference(state: &SlotState, logits: &[f32]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    if state.top_k > 0 {
        order.truncate(state.top_k as usize);
    }
    let max = f64::from(logits[order[0]]);
    let weight = |token: usize| ((f64::from(logits[token]) - max) / f64::from(state.temperature)).exp();
    let total: f64 = order.iter().map(|&token| weight(token)).sum();
    let mut sum = 0.0;
    let mut kept = Vec::new();
    for &token in &order {
        if sum < f64::from(state.top_p) * total && weight(token) >= f64::from(state.min_p) {
            kept.push(token);
        }
        sum += weight(token);
    }
    let total: f64 = kept.iter().map(|&token| weight(token)).sum();
    let mut probabilities = vec![0.0; logits.len()];
    for token in kept {
        probabilities[token] = weight(token) / total;
    }
    probabilities
}

/// Pearson's test. Tokens expected less than 8 times are pooled. The bound is 4.5 standard deviations of the
/// normal approximation of Wilson and Hilferty (1931); the seeds are fixed, so that it cannot fail by chance.
fn assert_distributed(counts: &[usize], probabilities: &[f64]) {
    let num_draws = counts.iter().sum::<usize>() as f64;
    let (mut chi_squared, mut num_cells) = (0.0, 0.0);
    let (mut pooled_count, mut pooled_expected) = (0.0, 0.0);
    let mut add = |count: f64, expected: f64| {
        chi_squared += (count - expected).powi(2) / expected;
        num_cells += 1.0;
    };
    for (token, (&count, &probability)) in counts.iter().zip(probabilities).enumerate() {
        assert!(count == 0 || probability > 0.0, "token {token} is excluded but was drawn {count} times");
        let expected = probability * num_draws;
        if expected < 8.0 {
            pooled_count += count as f64;
            pooled_expected += expected;
        } else {
            add(count as f64, expected);
        }
    }
    if pooled_expected >= 8.0 {
        add(pooled_count, pooled_expected);
    } else {
        assert!(pooled_count <= 30.0, "{pooled_count} draws where {pooled_expected} were expected");
    }
    let freedom: f64 = num_cells - 1.0;
    if freedom > 0.0 {
        let spread = 2.0 / (9.0 * freedom);
        let deviation = ((chi_squared / freedom).cbrt() - (1.0 - spread)) / spread.sqrt();
        assert!(deviation < 4.5, "chi-squared {chi_squared} with {freedom} degrees of freedom");
    }
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    assert_eq!(sample(&GREEDY, &[0.5, 2.0, -1.0, 2.0]), Some(1));
    assert_eq!(sample(&GREEDY, &[-0.0, 0.0]), Some(0));
    assert_eq!(sample(&GREEDY, &[f32::MIN, f32::NEG_INFINITY]), Some(0));
    let mut random = Random(1);
    for vocab_size in [1, 2, 15, 16, 17, 63, 64, 65, 1023, 1024, 1025, 5000] {
        let mut logits = random.logits(vocab_size);
        let [a, b] = [random.below(vocab_size), random.below(vocab_size)];
        logits[a] = 50.0;
        logits[b] = 50.0;
        assert_eq!(sample(&GREEDY, &logits), Some(a.min(b) as u32), "{vocab_size} tokens");
    }
}

#[test]
fn a_vocabulary_of_one_token_is_enough() {
    let everything = SlotState { top_k: 5, top_p: 0.1, min_p: 1.0, num_logprobs: Some(20), ..seeded(3) };
    let mut table = SlotTable::new(1, 1);
    table.reset(0, &everything);
    let sampled = table.sample_row(0, &[-7.5]);
    assert_eq!(sampled.token, Some(0));
    assert_eq!(sampled.logprobs, vec![TokenLogprob { token: 0, logprob: 0.0 }; 2]);
}

#[test]
fn invalid_logits_give_no_token() {
    for state in [GREEDY, SlotState { top_k: 3, num_logprobs: Some(2), ..seeded(1) }] {
        for vocab_size in [1, 16, 33, 1500] {
            for bad in [f32::NAN, -f32::NAN, f32::INFINITY] {
                for position in [0, vocab_size / 2, vocab_size - 1] {
                    let mut table = SlotTable::new(1, vocab_size);
                    table.reset(0, &SlotState { output: vec![0], ..state.clone() });
                    let mut logits = Random(2).logits(vocab_size);
                    logits[position] = bad;
                    let sampled = table.sample_row(0, &logits);
                    assert_eq!(sampled, Sampled { slot: 0, token: None, logprobs: vec![] });
                    assert_eq!(table.last_token(0), 0);
                }
            }
            assert_eq!(sample(&state, &vec![f32::NEG_INFINITY; vocab_size]), None);
        }
    }
}

#[test]
fn masked_tokens_are_never_drawn() {
    let mut logits = vec![f32::NEG_INFINITY; 200];
    logits[150] = -3.0;
    logits[7] = -3.0;
    let counts = histogram(&seeded(9), &logits, 400);
    assert_eq!(counts[7] + counts[150], 400);
    assert!(counts[7] > 150 && counts[150] > 150);
}

#[test]
fn bias_adds_to_logits() {
    let state = SlotState { logit_bias: vec![(2, 1.5), (0, -10.0)], ..GREEDY };
    assert_eq!(sample(&state, &[5.0, 1.0, 0.0]), Some(2));
    assert_eq!(sample(&state, &[12.0, 1.0, 0.0]), Some(0));
    // A bias cannot lift a mask, nor make a finite logit infinite.
    let state = SlotState { logit_bias: vec![(0, 1e9), (1, f32::MAX)], ..GREEDY };
    assert_eq!(sample(&state, &[f32::NEG_INFINITY, f32::MAX, f32::MAX]), Some(1));
}

#[test]
fn suppressed_tokens_wait_for_min_tokens() {
    let state = SlotState { suppressed_tokens: vec![1, 900], min_tokens: 3, ..GREEDY };
    let mut table = SlotTable::new(1, 3);
    table.reset(0, &state);
    let tokens: Vec<_> = (0..5).map(|_| table.sample_row(0, &[1.0, 9.0, 0.0]).token.unwrap()).collect();
    assert_eq!(tokens, [0, 0, 0, 1, 1]);
    table.reset(0, &SlotState { output: vec![0, 0], ..state.clone() });
    let tokens: Vec<_> = (0..2).map(|_| table.sample_row(0, &[1.0, 9.0, 0.0]).token.unwrap()).collect();
    assert_eq!(tokens, [0, 1]);
    assert_eq!(sample(&SlotState { suppressed_tokens: vec![0], ..state }, &[1.0]), None);
}

#[test]
fn repetition_penalty_works_on_prompt_and_output() {
    // Positive logits are divided, negative ones multiplied; once, however often the token stands there.
    let state = SlotState { repetition_penalty: 2.0, prompt: vec![0, 0, 0], output: vec![1], ..GREEDY };
    assert_eq!(sample(&state, &[4.0, 3.0, 1.9, -1.0]), Some(0));
    assert_eq!(sample(&state, &[4.0, 3.0, 2.1, -1.0]), Some(2));
    assert_eq!(sample(&state, &[-1.0, -1.0, -2.1, -5.0]), Some(0));
    assert_eq!(sample(&state, &[-1.0, -1.0, -1.9, -5.0]), Some(2));
    let reward = SlotState { repetition_penalty: 0.5, ..state };
    assert_eq!(sample(&reward, &[1.0, 1.5, 2.9, 0.0]), Some(1));
    let extreme = SlotState { repetition_penalty: f32::MIN_POSITIVE, prompt: vec![0], ..GREEDY };
    assert_eq!(sample(&extreme, &[5.0, 6.0]), Some(0));
}

#[test]
fn presence_and_frequency_penalties_work_on_output_alone() {
    let presence = SlotState { presence_penalty: 1.0, prompt: vec![0], output: vec![1, 1, 1], ..GREEDY };
    assert_eq!(sample(&presence, &[3.0, 2.0, 0.0]), Some(0));
    assert_eq!(sample(&presence, &[0.0, 3.0, 1.9]), Some(1));
    assert_eq!(sample(&presence, &[0.0, 3.0, 2.1]), Some(2));
    let frequency = SlotState { frequency_penalty: 1.0, presence_penalty: 0.0, ..presence };
    assert_eq!(sample(&frequency, &[3.0, 2.0, 0.0]), Some(0));
    assert_eq!(sample(&frequency, &[0.0, 3.0, -0.1]), Some(0));
    assert_eq!(sample(&frequency, &[-1.0, 3.0, -0.1]), Some(1));
    assert_eq!(sample(&frequency, &[-1.0, 3.0, 0.1]), Some(2));
    // A slot counts what it samples itself.
    let mut table = SlotTable::new(1, 2);
    table.reset(0, &SlotState { frequency_penalty: 1.0, ..GREEDY });
    let tokens: Vec<_> = (0..6).map(|_| table.sample_row(0, &[2.5, 1.0]).token.unwrap()).collect();
    assert_eq!(tokens, [0, 0, 1, 0, 1, 0]);
}

#[test]
fn bias_comes_before_the_repetition_penalty_and_that_before_presence() {
    // (1 - 2) * 3 - 1 = -4; any other order gives -3.67 to -1.
    let state = SlotState {
        logit_bias: vec![(0, -2.0)],
        repetition_penalty: 3.0,
        presence_penalty: 1.0,
        output: vec![0],
        ..GREEDY
    };
    assert_eq!(sample(&state, &[1.0, -3.9]), Some(1));
    assert_eq!(sample(&state, &[1.0, -4.1]), Some(0));
}

#[test]
fn top_k_keeps_ties_and_top_p_the_token_that_reaches_it() {
    let support = |state: &SlotState, logits: &[f32]| -> Vec<usize> {
        let counts = histogram(state, logits, 600);
        (0..logits.len()).filter(|&token| counts[token] > 0).collect()
    };
    let logits = [1.0, 2.0, 2.0, 0.0, 3.0];
    assert_eq!(support(&SlotState { top_k: 1, ..seeded(1) }, &logits), [4]);
    assert_eq!(support(&SlotState { top_k: 2, ..seeded(1) }, &logits), [1, 2, 4]);
    assert_eq!(support(&SlotState { top_k: 4, ..seeded(1) }, &logits), [0, 1, 2, 4]);
    assert_eq!(support(&SlotState { top_k: 5, ..seeded(1) }, &logits), [0, 1, 2, 3, 4]);
    assert_eq!(support(&SlotState { top_k: u32::MAX, ..seeded(1) }, &logits), [0, 1, 2, 3, 4]);

    let logits = ln(&[0.1, 0.4, 0.2, 0.3]);
    let top_p = |top_p: f32| support(&SlotState { top_p, ..seeded(2) }, &logits);
    assert_eq!(top_p(1e-9), [1]);
    assert_eq!(top_p(0.39), [1]);
    assert_eq!(top_p(0.41), [1, 3]);
    assert_eq!(top_p(0.69), [1, 3]);
    assert_eq!(top_p(0.71), [1, 2, 3]);
    assert_eq!(top_p(0.91), [0, 1, 2, 3]);
    // Top-p measures within top-k: 0.4 / 0.7 reaches 0.55 alone.
    assert_eq!(support(&SlotState { top_k: 2, top_p: 0.55, ..seeded(2) }, &logits), [1]);
    // And after temperature: at 1/2 the squares 0.16 and 0.09 of 0.30 reach 0.8.
    assert_eq!(support(&SlotState { temperature: 0.5, top_p: 0.8, ..seeded(2) }, &logits), [1, 3]);

    let min_p = |min_p: f32| support(&SlotState { min_p, ..seeded(2) }, &logits);
    assert_eq!(min_p(1.0), [1]);
    assert_eq!(min_p(0.74), [1, 3]);
    assert_eq!(min_p(0.26), [1, 2, 3]);
    assert_eq!(min_p(0.24), [0, 1, 2, 3]);
}

#[test]
fn draws_follow_the_softmax() {
    let mut random = Random(3);
    for (index, vocab_size) in [2, 3, 17, 64, 100, 500].into_iter().enumerate() {
        let logits: Vec<f32> = random.logits(vocab_size).iter().map(|logit| logit * 0.3).collect();
        for temperature in [0.3, 1.0, 2.5] {
            let state = SlotState { temperature, ..seeded(index as u64) };
            assert_distributed(&histogram(&state, &logits, 20_000), &reference(&state, &logits));
        }
    }
}

#[test]
fn filtered_draws_follow_the_reference() {
    let mut random = Random(4);
    let filters: [(u32, f32, f32); 8] = [
        (7, 1.0, 0.0),
        (0, 0.8, 0.0),
        (0, 0.99, 0.0),
        (0, 1.0, 0.1),
        (40, 0.9, 0.0),
        (40, 1.0, 0.02),
        (0, 0.95, 0.05),
        (25, 0.95, 0.01),
    ];
    for (index, (top_k, top_p, min_p)) in filters.into_iter().enumerate() {
        for temperature in [0.7, 1.3] {
            let logits: Vec<f32> = random.logits(300).iter().map(|logit| logit * 0.4).collect();
            let state = SlotState { temperature, top_k, top_p, min_p, ..seeded(index as u64) };
            assert_distributed(&histogram(&state, &logits, 20_000), &reference(&state, &logits));
        }
    }
}

#[test]
fn improbable_tokens_keep_their_share_of_a_large_vocabulary() {
    // 49151 tokens of 8.3e-7 each against one: together 3.9 %.
    let mut logits = vec![-14.0; 49_152];
    logits[30_000] = 0.0;
    let num_draws = 4000;
    let tail = num_draws - histogram(&seeded(5), &logits, num_draws)[30_000];
    let weight = 49_151.0 * (-14.0f64).exp();
    let expected = num_draws as f64 * weight / (1.0 + weight);
    assert!((tail as f64 - expected).abs() < 4.0 * expected.sqrt(), "{tail} of {expected}");
}

#[test]
fn extreme_temperatures_stay_finite() {
    let logits = [1.0, 1.0 + f32::EPSILON, -5.0, f32::MIN, f32::NEG_INFINITY];
    for temperature in [f32::from_bits(1), 1e-30, 1e-9] {
        assert_eq!(sample(&SlotState { temperature, ..seeded(1) }, &logits), Some(1));
        let filtered = SlotState { temperature, top_p: 0.5, min_p: 0.1, top_k: 3, ..seeded(1) };
        assert_eq!(sample(&filtered, &logits), Some(1));
    }
    let counts = histogram(&SlotState { temperature: 100.0, ..seeded(1) }, &logits, 3000);
    assert!(counts[..3].iter().all(|&count| count > 800) && counts[3] + counts[4] == 0);
    let wide = [f32::MAX, f32::MIN, 0.0];
    assert_eq!(sample(&SlotState { top_p: 0.9, ..seeded(1) }, &wide), Some(0));
}

/// `length` tokens of `slot` on rows that depend on the token before, as a model's do.
fn continuation(table: &mut SlotTable, slot: u32, rows: &[Vec<f32>], length: usize) -> Vec<u32> {
    (0..length)
        .map(|_| {
            let row = table.last_token(slot) as usize % rows.len();
            table.sample_row(slot, &rows[row]).token.unwrap()
        })
        .collect()
}

fn elaborate(seed: u64) -> SlotState {
    SlotState {
        temperature: 1.5,
        top_k: 80,
        top_p: 0.98,
        min_p: 0.001,
        repetition_penalty: 1.2,
        presence_penalty: 0.3,
        frequency_penalty: 0.1,
        logit_bias: vec![(3, 2.0)],
        suppressed_tokens: vec![0],
        min_tokens: 10,
        prompt: vec![5, 6, 7],
        ..seeded(seed)
    }
}

#[test]
fn a_preempted_sequence_continues_as_if_it_had_not_been() {
    let mut random = Random(6);
    let rows: Vec<Vec<f32>> = (0..9).map(|_| random.logits(257)).collect();
    let mut table = SlotTable::new(3, 257);
    for seed in 0..4 {
        let state = elaborate(seed);
        table.reset(0, &state);
        let whole = continuation(&mut table, 0, &rows, 40);
        for cut in [1, 9, 10, 11, 39] {
            table.reset(2, &SlotState { output: whole[..cut].to_vec(), ..state.clone() });
            assert_eq!(table.last_token(2), whole[cut - 1]);
            assert_eq!(continuation(&mut table, 2, &rows, 40 - cut), whole[cut..]);
        }
        table.reset(1, &elaborate(seed + 100));
        assert_ne!(continuation(&mut table, 1, &rows, 40), whole);
    }
}

#[test]
fn the_rest_of_the_batch_changes_nothing() {
    const NUM_SLOTS: usize = 12;
    let mut random = Random(7);
    let states: Vec<SlotState> = (0..NUM_SLOTS as u64)
        .map(|seed| match seed % 3 {
            0 => SlotState { num_logprobs: Some(3), ..elaborate(seed) },
            1 => seeded(seed),
            _ => GREEDY,
        })
        .collect();
    let mut alone = SlotTable::new(NUM_SLOTS, 700);
    let mut together = SlotTable::new(NUM_SLOTS, 700);
    for (slot, state) in states.iter().enumerate() {
        alone.reset(slot as u32, state);
        together.reset(slot as u32, state);
    }
    for step in 0..20 {
        let mut slots: Vec<u32> = (0..NUM_SLOTS as u32).filter(|_| random.below(3) > 0).collect();
        let rotation = step % slots.len().max(1);
        slots.rotate_left(rotation);
        let logits: Vec<Vec<f32>> = slots.iter().map(|_| random.logits(700)).collect();
        let rows: Vec<(u32, &[f32])> = slots.iter().copied().zip(logits.iter().map(Vec::as_slice)).collect();
        let expected: Vec<Sampled> =
            rows.iter().map(|&(slot, logits)| alone.sample_row(slot, logits)).collect();
        assert_eq!(together.sample_rows(&mut Threads::new(2).unwrap(), &rows), expected);
    }
}

#[test]
fn wide_and_portable_vectors_give_the_same() {
    let mut random = Random(9);
    for (index, vocab_size) in [1, 31, 64, 700, 5001].into_iter().enumerate() {
        for state in [GREEDY, seeded(index as u64), elaborate(index as u64)] {
            let state = SlotState { num_logprobs: Some(5), ..state };
            let (mut portable, mut widest) = (Slot::new(&state), Slot::new(&state));
            let mut scratch = Scratch::default();
            for _ in 0..20 {
                let logits = random.logits(vocab_size);
                let expected = portable.sample_portable(0, &logits, &mut scratch);
                assert_eq!(widest.sample(0, &logits, &mut scratch), expected);
            }
        }
    }
}

#[test]
#[should_panic(expected = "slot 1 stands twice")]
fn a_slot_cannot_stand_twice() {
    SlotTable::new(2, 1).sample_rows(&mut Threads::new(1).unwrap(), &[(1, &[0.0]), (1, &[0.0])]);
}

/// Another device, and a later version, must give these tokens too. They come from a second implementation:
/// `python3 tools/sampler_reference.py`.
#[test]
fn draws_are_fixed_for_all_time() {
    let logits = Random(8).logits(1000);
    let draws = |state: SlotState| -> Vec<u32> {
        let mut table = SlotTable::new(1, logits.len());
        table.reset(0, &state);
        (0..8).map(|_| table.sample_row(0, &logits).token.unwrap()).collect()
    };
    let plain = SlotState { temperature: 2.0, ..seeded(0x0123_4567_89ab_cdef) };
    assert_eq!(draws(plain), [808, 669, 869, 808, 663, 869, 27, 869]);
    let top_k_and_top_p = SlotState { temperature: 3.0, top_k: 50, top_p: 0.9, ..seeded(42) };
    assert_eq!(draws(top_k_and_top_p), [687, 167, 943, 96, 663, 879, 618, 687]);
    let top_p_and_min_p = SlotState { temperature: 3.0, top_p: 0.8, min_p: 0.1, ..seeded(43) };
    assert_eq!(draws(top_p_and_min_p), [167, 586, 663, 663, 875, 663, 227, 17]);
}

#[test]
fn logprobs_are_those_of_the_raw_logits() {
    let mut random = Random(10);
    for vocab_size in [5, 64, 1025, 49_152] {
        let mut logits = random.logits(vocab_size);
        logits[2] = f32::NEG_INFINITY;
        let max = logits.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
        let mut order: Vec<usize> = (0..vocab_size).filter(|&token| token != 2).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        for num_logprobs in [0, 1, 4, 20] {
            let state = SlotState {
                temperature: 5.0,
                logit_bias: vec![(0, 3.0)],
                num_logprobs: Some(num_logprobs),
                ..seeded(11)
            };
            let mut table = SlotTable::new(1, vocab_size);
            table.reset(0, &state);
            let sampled = table.sample_row(0, &logits);
            let top = order.iter().take(num_logprobs as usize).map(|&token| token as u32);
            let expected: Vec<u32> = std::iter::once(sampled.token.unwrap()).chain(top).collect();
            assert_eq!(sampled.logprobs.iter().map(|entry| entry.token).collect::<Vec<_>>(), expected);
            for entry in sampled.logprobs {
                let exact = f64::from(logits[entry.token as usize] - max) - sum.ln();
                let error = (f64::from(entry.logprob) - exact).abs();
                assert!(error < 3e-6, "{error} at token {} of {vocab_size}", entry.token);
            }
        }
    }
}

#[test]
fn alternatives_of_equal_probability_come_by_id() {
    let mut logits = vec![0.0; 300];
    logits[200] = 1.0;
    logits[250] = 1.0;
    let mut table = SlotTable::new(1, 300);
    table.reset(0, &SlotState { num_logprobs: Some(5), ..GREEDY });
    let tokens: Vec<u32> = table.sample_row(0, &logits).logprobs.iter().map(|entry| entry.token).collect();
    assert_eq!(tokens, [200, 200, 250, 0, 1, 2]);
}

/// A measurement: prints microseconds per row of 49152 logits on one thread.
#[test]
#[ignore = "a measurement; run it with --release -- --ignored --nocapture"]
fn speed() {
    let logits = Random(12).logits(49_152);
    let mut flat = Random(13).logits(49_152);
    flat.iter_mut().for_each(|logit| *logit *= 0.01);
    let cases = [
        ("greedy", GREEDY),
        ("greedy, 5 log-probabilities", SlotState { num_logprobs: Some(5), ..GREEDY }),
        ("temperature", seeded(1)),
        ("top-k 50", SlotState { top_k: 50, ..seeded(1) }),
        ("top-p 0.9", SlotState { top_p: 0.9, ..seeded(1) }),
        ("min-p 0.05", SlotState { min_p: 0.05, ..seeded(1) }),
        (
            "top-k 50, top-p 0.9, temperature 0.7",
            SlotState { temperature: 0.7, top_k: 50, top_p: 0.9, ..seeded(1) },
        ),
        (
            "penalties on 1000 tokens",
            SlotState { repetition_penalty: 1.1, prompt: (0..1000).collect(), ..GREEDY },
        ),
    ];
    for (name, state) in cases {
        for (shape, logits) in [("peaked", &logits), ("flat", &flat)] {
            let mut table = SlotTable::new(1, logits.len());
            table.reset(0, &state);
            let best = (0..5).map(|_| {
                let start = std::time::Instant::now();
                (0..100).for_each(|_| drop(table.sample_row(0, logits)));
                start.elapsed().as_secs_f64() * 1e4
            });
            println!("{name}, {shape}: {:.1} us", best.fold(f64::INFINITY, f64::min));
        }
    }
}

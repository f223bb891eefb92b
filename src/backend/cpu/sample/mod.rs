//! Sampling: one token per row of logits, with the state that a sequence's slot keeps from token to token.
//!
//! A row goes through these stages, each of them only where its parameter asks for it:
//!
//! 1. Logits that hold NaN or plus infinity, or minus infinity alone, give no token. Single entries of minus
//!    infinity are masks: such a token is never sampled.
//! 2. Log-probabilities are those of the raw logits: before bias, penalties and temperature.
//! 3. `logit_bias` is added; then `min_tokens` masks the suppressed tokens; then the repetition penalty (Keskar
//!    et al. 2019) divides positive and multiplies negative logits of tokens in prompt or output; then the
//!    frequency and presence penalties are subtracted from logits of tokens in the output.
//! 4. Temperature 0 takes the largest logit, of equals the lowest id.
//! 5. Otherwise top-k, then top-p (Holtzman et al. 2020), then min-p (Nguyen et al. 2024) mask tokens. Top-p
//!    measures probabilities after temperature and top-k, min-p relative to the most probable token. Tokens
//!    tied at a threshold are all kept.
//! 6. Of what is left, the token with the largest `(logit - max) / temperature + gumbel` is taken, of equals
//!    the lowest id, which draws from the softmax of what is left (the Gumbel-max trick).
//!
//! The Gumbel noise of a token is a function of the sequence's seed, the index of the output token and the
//! token's id (`philox.rs`). Every stage from 3 on consists of single-precision operations in a fixed order per
//! token, integer sums and maxima, so the result depends neither on the order of evaluation nor on the rest of
//! the batch, and another device that follows the same definitions samples the same tokens from the same logits.

mod filter;
mod math;
mod penalty;
mod philox;
mod scan;
#[cfg(test)]
mod tests;

use parking_lot::Mutex;

use super::threads::Threads;
use crate::backend::{Sampled, SlotState, TokenLogprob};

use filter::FilterScratch;
use math::{GUMBEL_MAX, GUMBEL_SLACK, gumbel};
use penalty::History;
use philox::{GROUP, NoiseKey, token_noise_group};
use scan::Best;

/// The sampling states of all slots.
#[derive(Debug)]
pub struct SlotTable {
    vocab_size: usize,
    slots: Vec<Slot>,
    /// As many as rows were ever sampled at the same time.
    idle_scratch: Mutex<Vec<Scratch>>,
}

#[derive(Debug)]
struct Slot {
    /// What the sequence asked for; its `prompt` and `output` are empty, [`History`] has what is needed of them.
    settings: SlotState,
    history: History,
    num_outputs: u32,
    last_token: u32,
}

/// Buffers of one row in progress, of the vocabulary's size once they have been needed.
#[derive(Debug, Default)]
struct Scratch {
    logits: Vec<f32>,
    filter: FilterScratch,
}

impl SlotTable {
    /// A table of `max_slots` greedy slots for rows of `vocab_size` logits.
    pub fn new(max_slots: usize, vocab_size: usize) -> Self {
        let slots = (0..max_slots).map(|_| Slot::new(&SlotState::GREEDY)).collect();
        Self { vocab_size, slots, idle_scratch: Mutex::default() }
    }

    /// Bytes that `num_threads` threads sampling at the same time make the table hold, at most; what slots keep
    /// of their sequences comes to a few bytes per token and is not in it.
    pub fn workspace_bytes(max_slots: usize, vocab_size: usize, num_threads: usize) -> u64 {
        let row_bytes = (vocab_size as u64).saturating_mul(4);
        // The copy of the logits, the weights, and two lists of candidates.
        let scratch_bytes = row_bytes.saturating_mul(4 * num_threads as u64);
        scratch_bytes.saturating_add((max_slots * size_of::<Slot>()) as u64)
    }

    /// Hands `slot` to a sequence. Panics where there is no such slot.
    pub fn reset(&mut self, slot: u32, state: &SlotState) {
        self.slots[slot as usize] = Slot::new(state);
    }

    /// The token that `slot` sampled last; 0 where it has sampled none, or the last row gave none.
    pub fn last_token(&self, slot: u32) -> u32 {
        self.slots[slot as usize].last_token
    }

    /// Samples a row of `vocab_size` logits for `slot` and advances the slot by the token.
    pub fn sample_row(&mut self, slot: u32, logits: &[f32]) -> Sampled {
        assert_eq!(logits.len(), self.vocab_size, "a row has one logit per token of the vocabulary");
        let state = &mut self.slots[slot as usize];
        with_scratch(&self.idle_scratch, |scratch| state.sample(slot, logits, scratch))
    }

    /// Samples `(slot, logits)` rows of distinct slots on `threads`; the results are in the order of the rows.
    /// Panics where a slot stands twice.
    pub(in crate::backend::cpu) fn sample_rows(
        &mut self,
        threads: &mut Threads,
        rows: &[(u32, &[f32])],
    ) -> Vec<Sampled> {
        if let &[(slot, logits)] = rows {
            return vec![self.sample_row(slot, logits)];
        }
        let mut states: Vec<Option<&mut Slot>> = self.slots.iter_mut().map(Some).collect();
        let mut take_state = |slot: u32| states[slot as usize].take();
        let jobs: Vec<Mutex<Job>> = rows
            .iter()
            .map(|&(slot, logits)| {
                assert_eq!(logits.len(), self.vocab_size, "a row has one logit per token of the vocabulary");
                let state = take_state(slot).unwrap_or_else(|| panic!("slot {slot} stands twice"));
                Mutex::new(Job { slot, state, logits, sampled: None })
            })
            .collect();
        threads.run(jobs.len(), |index| {
            // Each task locks its own job; the lock is how it gets it from another thread.
            let mut job = jobs[index].lock();
            let Job { slot, state, logits, sampled } = &mut *job;
            *sampled = Some(with_scratch(&self.idle_scratch, |scratch| state.sample(*slot, logits, scratch)));
        });
        jobs.into_iter().map(|job| job.into_inner().sampled.expect("every task has run")).collect()
    }
}

/// One row to sample.
struct Job<'a> {
    slot: u32,
    state: &'a mut Slot,
    logits: &'a [f32],
    sampled: Option<Sampled>,
}

fn with_scratch<R>(idle: &Mutex<Vec<Scratch>>, work: impl FnOnce(&mut Scratch) -> R) -> R {
    let scratch = idle.lock().pop();
    let mut scratch = scratch.unwrap_or_default();
    let result = work(&mut scratch);
    idle.lock().push(scratch);
    result
}

impl Slot {
    fn new(state: &SlotState) -> Self {
        let history = History::new(state);
        let settings = SlotState {
            logit_bias: state.logit_bias.clone(),
            suppressed_tokens: state.suppressed_tokens.clone(),
            prompt: Vec::new(),
            output: Vec::new(),
            ..*state
        };
        let last_token = state.output.last().copied().unwrap_or(0);
        Self { settings, history, num_outputs: state.output.len() as u32, last_token }
    }

    /// Samples with the widest vectors that this machine has.
    fn sample(&mut self, slot: u32, logits: &[f32], scratch: &mut Scratch) -> Sampled {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the machine has AVX2, as was just asked.
            return unsafe { self.sample_avx2(slot, logits, scratch) };
        }
        self.sample_portable(slot, logits, scratch)
    }

    /// The same operations in the same order; `inline(always)` on all loops below puts them in here.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn sample_avx2(&mut self, slot: u32, logits: &[f32], scratch: &mut Scratch) -> Sampled {
        self.sample_portable(slot, logits, scratch)
    }

    #[inline(always)]
    fn sample_portable(&mut self, slot: u32, logits: &[f32], scratch: &mut Scratch) -> Sampled {
        let raw_best = scan::argmax(logits);
        let token = raw_best.and_then(|best| self.choose(logits, best, scratch));
        let (Some(raw_best), Some(token)) = (raw_best, token) else {
            self.last_token = 0;
            return Sampled { slot, token: None, logprobs: Vec::new() };
        };
        self.history.push(&self.settings, token);
        self.num_outputs += 1;
        self.last_token = token;
        Sampled { slot, token: Some(token), logprobs: self.logprobs(logits, raw_best, token) }
    }

    #[inline(always)]
    fn logprobs(&self, logits: &[f32], raw_best: Best, token: u32) -> Vec<TokenLogprob> {
        match self.settings.num_logprobs {
            Some(num_top) => scan::logprobs(logits, raw_best.logit, token, num_top as usize),
            None => Vec::new(),
        }
    }

    /// Stages 3 to 6; `None` where bias and suppression leave nothing.
    #[inline(always)]
    fn choose(&self, raw_logits: &[f32], raw_best: Best, scratch: &mut Scratch) -> Option<u32> {
        let settings = &self.settings;
        let is_neutral = penalty::is_neutral(settings, self.num_outputs);
        if is_neutral && settings.temperature == 0.0 {
            return Some(raw_best.token);
        }
        scratch.logits.clear();
        scratch.logits.extend_from_slice(raw_logits);
        let logits = &mut scratch.logits[..];
        let mut best = raw_best;
        if !is_neutral {
            penalty::adjust(logits, settings, &self.history, self.num_outputs);
            best = scan::argmax(logits)?;
        }
        if settings.temperature == 0.0 {
            return Some(best.token);
        }
        filter::keep_top_k(logits, settings.top_k as usize, &mut scratch.filter);
        if settings.top_p < 1.0 || settings.min_p > 0.0 {
            let limits = (settings.top_p, settings.min_p);
            filter::keep_probable(logits, best.logit, settings.temperature, limits, &mut scratch.filter);
        }
        let key = NoiseKey { seed: settings.seed, output_index: self.num_outputs };
        Some(draw(logits, best, settings.temperature, key))
    }
}

/// The token with the largest sum of scaled logit and Gumbel noise; `best` is the largest logit.
#[inline(always)]
fn draw(logits: &[f32], best: Best, temperature: f32, key: NoiseKey) -> u32 {
    let scaled = |logit: f32| (logit - best.logit) / temperature;
    let best_group = best.token / GROUP as u32;
    let best_noise = token_noise_group(key, best_group)[best.token as usize % GROUP];
    let mut winner = best.token;
    let mut winner_score = gumbel(best_noise);
    for (group_index, group) in logits.chunks(GROUP).enumerate() {
        // Most groups hold no token that their best noise could lift over the winner so far.
        let highest = scaled(scan::max_of(group));
        if highest + GUMBEL_MAX < winner_score {
            continue;
        }
        let noise = token_noise_group(key, group_index as u32);
        let least_bits = noise.iter().fold(u32::MAX, |least, &bits| least.min(bits));
        if highest + (gumbel(least_bits) + GUMBEL_SLACK) < winner_score {
            continue;
        }
        let mut scores = [f32::NEG_INFINITY; GROUP];
        scores[..group.len()].copy_from_slice(group);
        for (score, &bits) in scores.iter_mut().zip(&noise) {
            *score = scaled(*score) + gumbel(bits);
        }
        for (offset, &score) in scores.iter().enumerate() {
            let token = (group_index * GROUP + offset) as u32;
            if score > winner_score || (score == winner_score && token < winner) {
                (winner, winner_score) = (token, score);
            }
        }
    }
    winner
}

//! Sampling state per slot; greedy only.

use crate::backend::{Sampled, SlotState};

/// The slots' states.
pub(super) struct SlotTable {
    last_tokens: Vec<u32>,
}

impl SlotTable {
    /// `max_slots` slots for logits of `vocab_size` tokens.
    pub(super) fn new(max_slots: usize, vocab_size: usize) -> Self {
        let _ = vocab_size;
        Self { last_tokens: vec![0; max_slots] }
    }

    /// Hands a slot to a sequence.
    pub(super) fn reset(&mut self, slot: u32, state: &SlotState) {
        self.last_tokens[slot as usize] = state.output.last().or(state.prompt.last()).copied().unwrap_or(0);
    }

    /// The token that the slot sampled last.
    pub(super) fn last_token(&self, slot: u32) -> u32 {
        self.last_tokens[slot as usize]
    }

    /// Samples rows of distinct slots and advances the slots.
    pub(super) fn sample_rows(&mut self, rows: &[(u32, &[f32])]) -> Vec<Sampled> {
        rows.iter().map(|&(slot, logits)| self.sample_row(slot, logits)).collect()
    }

    fn sample_row(&mut self, slot: u32, logits: &[f32]) -> Sampled {
        let finite = logits.iter().all(|logit| logit.is_finite());
        let best = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
        let token = best.filter(|_| finite).map(|token| token as u32);
        self.last_tokens[slot as usize] = token.unwrap_or(0);
        Sampled { slot, token, logprobs: Vec::new() }
    }
}

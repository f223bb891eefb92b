//! Builds the flat arrays of one step.

use crate::backend::{Batch, SlotState};
use crate::engine::event::RequestId;
use crate::engine::sequence::Sequence;

/// One step as every rank runs it.
#[derive(Debug, Clone, PartialEq)]
pub struct StepPlan {
    /// Counts steps from 1.
    pub step: u64,
    /// Slots that change hands before the step.
    pub resets: Vec<(u32, SlotState)>,
    /// The rows.
    pub batch: Batch,
}

/// Rows under construction, with the requests that sample.
#[derive(Debug)]
pub(super) struct BatchBuilder {
    batch: Batch,
    sampling: Vec<SampledRow>,
}

/// A row of a planned step that samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SampledRow {
    pub(super) id: RequestId,
    /// The slot that the request had when the step was planned.
    pub(super) slot: u32,
}

impl BatchBuilder {
    pub(super) fn new() -> Self {
        Self { batch: Batch::new(), sampling: Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.batch.num_rows() == 0
    }

    /// Adds a row of the sequence's next `num_tokens` tokens and advances the sequence: the row samples where it
    /// reaches the sequence's end.
    pub(super) fn push(&mut self, sequence: &mut Sequence, num_tokens: usize, block_size: usize) {
        let first = sequence.num_computed;
        let context_len = first + num_tokens;
        let num_blocks = context_len.div_ceil(block_size);
        debug_assert!(num_tokens > 0 && num_blocks <= sequence.blocks.len());
        let slot = sequence.slot.expect("a row needs a slot");
        let batch = &mut self.batch;
        if context_len == sequence.total_len() {
            batch.sampled_rows.push(batch.slots.len() as u32);
            self.sampling.push(SampledRow { id: sequence.id, slot });
            sequence.num_in_flight += 1;
        }
        batch.slots.push(slot);
        batch.tokens.extend((first..context_len).map(|index| sequence.token_at(index)));
        batch.query_starts.push(batch.tokens.len() as u32);
        batch.context_lens.push(context_len as u32);
        batch.block_tables.extend_from_slice(&sequence.blocks[..num_blocks]);
        batch.block_starts.push(batch.block_tables.len() as u32);
        sequence.num_computed = context_len;
    }

    /// The arrays, and what the sampled rows belong to, in order.
    pub(super) fn finish(self) -> (Batch, Vec<SampledRow>) {
        (self.batch, self.sampling)
    }
}

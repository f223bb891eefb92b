//! The batch that operations run on: checked once, so that no operation can read or write out of bounds.

use super::invalid;
use super::sample::SlotTable;
use super::tensor::KvCache;
use crate::backend::{BackendLimits, BackendResult, Batch, KvLayout, TOKEN_FROM_SLOT};

const OPERATION: &str = "load_batch";

/// One row's tokens and blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    /// First token of the row in the batch.
    pub(super) first_token: usize,
    pub(super) num_tokens: usize,
    /// Position of the first token.
    pub(super) first_position: usize,
    /// First block of the row in [`LoadedBatch::blocks`].
    first_block: usize,
}

/// A checked [`Batch`] with resolved tokens.
#[derive(Default)]
pub(super) struct LoadedBatch {
    pub(super) rows: Vec<Row>,
    /// Token ids, all below the vocabulary's size.
    pub(super) tokens: Vec<u32>,
    pub(super) max_token: u32,
    /// Position of each token.
    pub(super) positions: Vec<usize>,
    /// One past the largest position.
    pub(super) max_context_len: usize,
    blocks: Vec<u32>,
    /// Slot of each sampled row.
    pub(super) sampled_slots: Vec<u32>,
    /// Last token of each sampled row.
    pub(super) sampled_tokens: Vec<usize>,
    /// Block size that the rows' numbers of blocks were checked with, and number of blocks that the indexes
    /// were checked with; `None` without a cache.
    checked_cache: Option<(usize, usize)>,
    slot_seen: Vec<bool>,
}

impl LoadedBatch {
    /// Checks `batch` and takes it over; on an error the batch is empty.
    pub(super) fn load(
        &mut self,
        batch: &Batch,
        limits: &BackendLimits,
        layout: Option<&KvLayout>,
        slots: &SlotTable,
    ) -> BackendResult<()> {
        self.clear();
        let result = self.try_load(batch, limits, layout, slots);
        if result.is_err() {
            self.clear();
        }
        result
    }

    fn clear(&mut self) {
        self.rows.clear();
        self.tokens.clear();
        self.positions.clear();
        self.blocks.clear();
        self.sampled_slots.clear();
        self.sampled_tokens.clear();
        self.max_token = 0;
        self.max_context_len = 0;
        self.checked_cache = None;
    }

    fn try_load(
        &mut self,
        batch: &Batch,
        limits: &BackendLimits,
        layout: Option<&KvLayout>,
        slots: &SlotTable,
    ) -> BackendResult<()> {
        check_starts("query_starts", &batch.query_starts, batch.num_rows(), batch.num_tokens())?;
        check_starts("block_starts", &batch.block_starts, batch.num_rows(), batch.block_tables.len())?;
        if batch.context_lens.len() != batch.num_rows() {
            let message = format!("{} context_lens for {} slots", batch.context_lens.len(), batch.num_rows());
            return Err(invalid(OPERATION, message));
        }
        if batch.num_tokens() > limits.max_tokens {
            let message = format!("{} tokens, reserved for {}", batch.num_tokens(), limits.max_tokens);
            return Err(invalid(OPERATION, message));
        }
        self.check_slots(batch, limits)?;
        self.load_rows(batch, layout)?;
        self.load_tokens(batch, limits, slots)?;
        self.load_sampled(batch)
    }

    fn check_slots(&mut self, batch: &Batch, limits: &BackendLimits) -> BackendResult<()> {
        self.slot_seen.clear();
        self.slot_seen.resize(limits.max_slots, false);
        for &slot in &batch.slots {
            match self.slot_seen.get_mut(slot as usize) {
                None => return Err(invalid(OPERATION, format!("slot {slot} of {}", limits.max_slots))),
                Some(true) => return Err(invalid(OPERATION, format!("slot {slot} stands twice"))),
                Some(seen) => *seen = true,
            }
        }
        Ok(())
    }

    fn load_rows(&mut self, batch: &Batch, layout: Option<&KvLayout>) -> BackendResult<()> {
        for (row, &context_len) in batch.context_lens.iter().enumerate() {
            let (num_tokens, context_len) = (batch.query_range(row).len(), context_len as usize);
            if num_tokens == 0 || num_tokens > context_len {
                let message = format!("row {row} has {num_tokens} tokens and a context of {context_len}");
                return Err(invalid(OPERATION, message));
            }
            let num_blocks = batch.blocks(row).len();
            if layout.is_some_and(|layout| num_blocks < context_len.div_ceil(layout.block_size)) {
                let message = format!("row {row} has {num_blocks} blocks for a context of {context_len}");
                return Err(invalid(OPERATION, message));
            }
            self.rows.push(Row {
                first_token: batch.query_starts[row] as usize,
                num_tokens,
                first_position: context_len - num_tokens,
                first_block: batch.block_starts[row] as usize,
            });
            self.positions.extend(context_len - num_tokens..context_len);
            self.max_context_len = self.max_context_len.max(context_len);
        }
        if let Some(layout) = layout {
            if let Some(block) = batch.block_tables.iter().find(|&&block| block as usize >= layout.num_blocks)
            {
                return Err(invalid(OPERATION, format!("block {block} of {}", layout.num_blocks)));
            }
            self.checked_cache = Some((layout.block_size, layout.num_blocks));
        }
        self.blocks.extend_from_slice(&batch.block_tables);
        Ok(())
    }

    fn load_tokens(&mut self, batch: &Batch, limits: &BackendLimits, slots: &SlotTable) -> BackendResult<()> {
        for (row, &slot) in batch.slots.iter().enumerate() {
            for &token in &batch.tokens[batch.query_range(row)] {
                let token = if token == TOKEN_FROM_SLOT { slots.last_token(slot) } else { token };
                if token as usize >= limits.vocab_size {
                    return Err(invalid(OPERATION, format!("token {token} of {}", limits.vocab_size)));
                }
                self.max_token = self.max_token.max(token);
                self.tokens.push(token);
            }
        }
        Ok(())
    }

    fn load_sampled(&mut self, batch: &Batch) -> BackendResult<()> {
        for (i, &row) in batch.sampled_rows.iter().enumerate() {
            if row as usize >= batch.num_rows() || i > 0 && batch.sampled_rows[i - 1] >= row {
                let message = format!("sampled_rows[{i}] is {row}; {} rows, ascending", batch.num_rows());
                return Err(invalid(OPERATION, message));
            }
            self.sampled_slots.push(batch.slots[row as usize]);
            self.sampled_tokens.push(batch.query_starts[row as usize + 1] as usize - 1);
        }
        Ok(())
    }

    /// Number of tokens over all rows.
    pub(super) fn num_tokens(&self) -> usize {
        self.tokens.len()
    }

    /// Block of `row` that holds `position`, which is below the row's context length.
    pub(super) fn block(&self, row: &Row, position: usize, block_size: usize) -> usize {
        self.blocks[row.first_block + position / block_size] as usize
    }

    /// Checks that the blocks were checked for a cache of this shape, and the layer.
    pub(super) fn check_cache(
        &self,
        operation: &'static str,
        cache: &KvCache,
        layer: usize,
    ) -> BackendResult<()> {
        let layout = cache.layout();
        if self.checked_cache != Some((layout.block_size, layout.num_blocks)) {
            return Err(invalid(operation, "the batch was loaded for another KV cache".to_string()));
        }
        if layer >= layout.num_layers {
            return Err(invalid(operation, format!("layer {layer} of {}", layout.num_layers)));
        }
        Ok(())
    }
}

/// Checks `[num_rows + 1]` ascending starts from 0 to `end`.
fn check_starts(name: &str, starts: &[u32], num_rows: usize, end: usize) -> BackendResult<()> {
    let ascending = starts.windows(2).all(|pair| pair[0] <= pair[1]);
    let complete = starts.first() == Some(&0) && starts.last().map(|&last| last as usize) == Some(end);
    if starts.len() != num_rows + 1 || !ascending || !complete {
        let message = format!("{name} must be {} ascending numbers from 0 to {end}", num_rows + 1);
        return Err(invalid(OPERATION, message));
    }
    Ok(())
}

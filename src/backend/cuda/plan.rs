//! Attention's work lists: which block of a launch takes which keys or queries. Pure arithmetic on the host,
//! once per step for all layers.

use bytemuck::{Pod, Zeroable};

use crate::backend::Batch;

/// Query tokens of a prompt tile, which kernels take whole or in halves.
pub(super) const TILE_TOKENS: usize = 128;
/// Keys are dealt in units of this many, the smallest share.
const UNIT_KEYS: usize = 64;

/// Keys `first_key..end_key` of a row with one query token.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct DecodeItem {
    /// The row's query, of the batch's tokens.
    pub(super) token: u32,
    pub(super) context_len: u32,
    /// Where the row's block table starts.
    pub(super) first_block: u32,
    pub(super) first_key: u32,
    pub(super) end_key: u32,
    /// Where the partial result goes, of an item that does not cover its row.
    pub(super) partial: u32,
    /// The partial results of the row, which lie beside each other; none where the item covers it.
    pub(super) first_partial: u32,
    pub(super) num_partials: u32,
}

/// The items of the blocks of all key-value heads.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct DecodeShare {
    pub(super) first_item: u32,
    pub(super) end_item: u32,
}

/// Up to [`TILE_TOKENS`] query tokens of a row.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct PromptTile {
    pub(super) row: u32,
    pub(super) first_token: u32,
}

const _: () =
    assert!(size_of::<DecodeItem>() == 32 && size_of::<DecodeShare>() == 8 && size_of::<PromptTile>() == 8);

/// Blocks of decode attention that a multiprocessor holds, at the most.
pub(super) const MAX_DECODE_BLOCKS: usize = 4;

/// Largest number of shares that a device of so many multiprocessors is given.
pub(super) fn max_shares(num_multiprocessors: usize) -> usize {
    num_multiprocessors * MAX_DECODE_BLOCKS
}

/// Partial results that `num_shares` shares make at the most: each of their boundaries cuts one row into one item more.
pub(super) fn max_partials(num_shares: usize) -> usize {
    2 * num_shares
}

/// The work lists of one step.
#[derive(Debug, Default)]
pub(super) struct AttentionPlan {
    pub(super) decode_items: Vec<DecodeItem>,
    pub(super) decode_shares: Vec<DecodeShare>,
    pub(super) prompt_tiles: Vec<PromptTile>,
}

impl AttentionPlan {
    /// Largest numbers of items, of shares and of prompt tiles for batches of `max_rows` and `max_tokens`.
    pub(super) fn capacity(max_rows: usize, max_tokens: usize, max_shares: usize) -> [usize; 3] {
        [max_rows + max_shares, max_shares, max_rows + max_tokens / TILE_TOKENS]
    }

    /// Largest number of shares of `rows` decodes whose contexts have up to `max_context_len` tokens.
    pub(super) fn num_shares(rows: usize, max_context_len: usize, max_shares: usize) -> usize {
        rows.saturating_mul(max_context_len.div_ceil(UNIT_KEYS)).min(max_shares)
    }

    /// Cuts the keys of `batch`'s decodes into up to `num_shares` shares, and its prompts into tiles.
    pub(super) fn fill(&mut self, batch: &Batch, num_shares: usize) {
        self.decode_items.clear();
        self.decode_shares.clear();
        self.prompt_tiles.clear();
        let is_decode = |&row: &usize| batch.query_range(row).len() == 1;
        self.share_decodes(batch, (0..batch.num_rows()).filter(is_decode), num_shares);
        for row in (0..batch.num_rows()).filter(|row| !is_decode(row)) {
            // The last tile sees the most keys; it starts first, so that short ones fill the end.
            let num_tiles = batch.query_range(row).len().div_ceil(TILE_TOKENS);
            let tiles = (0..num_tiles).rev().map(|tile| (tile * TILE_TOKENS) as u32);
            self.prompt_tiles.extend(tiles.map(|first_token| PromptTile { row: row as u32, first_token }));
        }
    }

    /// Lays the keys of `rows` one behind the other, in units, and cuts them into shares of equal size.
    fn share_decodes(&mut self, batch: &Batch, rows: impl Iterator<Item = usize> + Clone, num_shares: usize) {
        let units = |row: usize| (batch.context_lens[row] as usize).div_ceil(UNIT_KEYS);
        let num_units: usize = rows.clone().map(units).sum();
        let num_shares = num_units.min(num_shares);
        let share_end = |share: usize| (share + 1) * num_units / num_shares;
        let (mut unit, mut num_partials, mut first_item) = (0, 0, 0);
        for row in rows {
            let (row_start, row_end) = (unit, unit + units(row));
            let row_item = self.decode_items.len();
            while unit < row_end {
                let end = share_end(self.decode_shares.len());
                let key = |unit: usize| ((unit - row_start) * UNIT_KEYS) as u32;
                self.decode_items.push(DecodeItem {
                    token: batch.query_starts[row],
                    context_len: batch.context_lens[row],
                    first_block: batch.block_starts[row],
                    first_key: key(unit),
                    end_key: key(end.min(row_end)).min(batch.context_lens[row]),
                    partial: 0,
                    first_partial: 0,
                    num_partials: 0,
                });
                unit = end.min(row_end);
                if unit == end {
                    let end_item = self.decode_items.len() as u32;
                    self.decode_shares.push(DecodeShare { first_item, end_item });
                    first_item = end_item;
                }
            }
            num_partials = number_partials(&mut self.decode_items[row_item..], num_partials);
        }
    }
}

/// Gives the items of a row that has several their places from `first` on; returns the next one's.
fn number_partials(items: &mut [DecodeItem], first: u32) -> u32 {
    let num_items = items.len() as u32;
    if num_items < 2 {
        return first;
    }
    for (partial, item) in (first..).zip(items) {
        (item.partial, item.first_partial, item.num_partials) = (partial, first, num_items);
    }
    first + num_items
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(rows: &[(u32, u32)]) -> Batch {
        let mut batch = Batch::new();
        for &(num_tokens, context_len) in rows {
            batch.slots.push(batch.slots.len() as u32);
            batch.context_lens.push(context_len);
            batch.tokens.extend((0..num_tokens).map(|_| 0));
            batch.query_starts.push(batch.tokens.len() as u32);
            batch.block_tables.extend((0..context_len.div_ceil(UNIT_KEYS as u32)).map(|_| 0));
            batch.block_starts.push(batch.block_tables.len() as u32);
        }
        batch
    }

    fn plan(rows: &[(u32, u32)], target: usize) -> AttentionPlan {
        let mut plan = AttentionPlan::default();
        plan.fill(&batch(rows), target);
        plan
    }

    /// Token, keys and partial results of each item.
    fn items(plan: &AttentionPlan) -> Vec<(u32, [u32; 2], [u32; 3])> {
        let item = |item: &DecodeItem| {
            let DecodeItem { token, first_key, end_key, partial, first_partial, num_partials, .. } = *item;
            (token, [first_key, end_key], [partial, first_partial, num_partials])
        };
        plan.decode_items.iter().map(item).collect()
    }

    fn shares(plan: &AttentionPlan) -> Vec<[u32; 2]> {
        plan.decode_shares.iter().map(|share| [share.first_item, share.end_item]).collect()
    }

    #[test]
    fn rows_share_where_there_are_fewer_shares() {
        let none = [0; 3];
        let whole = [(0, [0, 1], none), (1, [0, 64], none), (2, [0, 63], none)];
        for (num_shares, expected) in [(100, vec![[0, 1], [1, 2], [2, 3]]), (1, vec![[0, 3]])] {
            let plan = plan(&[(1, 1), (1, 64), (1, 63)], num_shares);
            assert_eq!(items(&plan), whole);
            assert_eq!(shares(&plan), expected);
            assert!(plan.prompt_tiles.is_empty());
        }
    }

    #[test]
    fn shares_are_equal_and_the_partials_of_a_row_are_contiguous() {
        // 4, 8 and 4 units in 3 shares of 5, 5 and 6.
        let plan = plan(&[(1, 256), (1, 500), (1, 256)], 3);
        let cut = |partial| [partial, 0, 3];
        assert_eq!(
            items(&plan),
            [
                (0, [0, 256], [0; 3]),
                (1, [0, 64], cut(0)),
                (1, [64, 384], cut(1)),
                (1, [384, 500], cut(2)),
                (2, [0, 256], [0; 3])
            ]
        );
        assert_eq!(shares(&plan), [[0, 2], [2, 3], [3, 5]]);
    }

    #[test]
    fn prompts_are_tiled_from_their_end() {
        let plan = plan(&[(257, 300), (1, 7), (2, 2)], 10);
        let tile = |row, first_token| PromptTile { row, first_token };
        assert_eq!(plan.prompt_tiles, [tile(0, 256), tile(0, 128), tile(0, 0), tile(2, 0)]);
        assert_eq!(plan.decode_items.len(), 1);
    }

    proptest::proptest! {
        #[test]
        fn every_key_is_covered_once_and_the_lists_fit(
            rows in proptest::collection::vec((1u32..200, 0u32..9000), 1..40),
            target in 1usize..300,
        ) {
            let num_tokens = |tokens: u32, past: u32| if past.is_multiple_of(3) { tokens } else { 1 };
            let rows = rows.iter().map(|&(tokens, past)| (num_tokens(tokens, past), past));
            let rows: Vec<(u32, u32)> = rows.map(|(tokens, past)| (tokens, past + tokens)).collect();
            let plan = plan(&rows, target);
            let num_tokens = rows.iter().map(|row| row.0 as usize).sum();
            let [num_items, num_shares, num_tiles] = AttentionPlan::capacity(rows.len(), num_tokens, target);
            assert!(plan.decode_items.len() <= num_items && plan.decode_shares.len() <= num_shares);
            assert!(plan.prompt_tiles.len() <= num_tiles);
            let max_context_len = rows.iter().map(|row| row.1 as usize).max().unwrap_or(0);
            assert!(plan.decode_shares.len() <= AttentionPlan::num_shares(rows.len(), max_context_len, target));
            let partials: Vec<u32> =
                plan.decode_items.iter().filter(|item| item.num_partials > 0).map(|item| item.partial).collect();
            assert!(partials.len() <= max_partials(target));
            assert!(partials.iter().copied().eq(0..partials.len() as u32));
            // Shares take all items in turn, and differ by a unit at the most.
            let mut end = 0;
            let num_units = |item: &DecodeItem| (item.end_key - item.first_key).div_ceil(UNIT_KEYS as u32);
            let sizes: Vec<u32> = plan.decode_shares.iter().map(|share| {
                assert_eq!(share.first_item, std::mem::replace(&mut end, share.end_item));
                let items = &plan.decode_items[share.first_item as usize..share.end_item as usize];
                items.iter().map(num_units).sum()
            }).collect();
            assert_eq!(end as usize, plan.decode_items.len());
            assert!(sizes.iter().max().unwrap_or(&0) - sizes.iter().min().unwrap_or(&0) <= 1);
            let batch = batch(&rows);
            for (row, &(num_tokens, context_len)) in rows.iter().enumerate() {
                let mut next = 0;
                for item in plan.decode_items.iter().filter(|item| item.token == batch.query_starts[row]) {
                    assert_eq!((item.context_len, item.first_block), (context_len, batch.block_starts[row]));
                    assert_eq!(item.first_key, next);
                    assert!(item.first_key < item.end_key && item.first_key % 64 == 0);
                    next = item.end_key;
                }
                assert_eq!(next, if num_tokens == 1 { context_len } else { 0 });
            }
        }
    }
}

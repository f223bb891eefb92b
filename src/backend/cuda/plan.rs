//! Attention's work lists: which block of a launch takes which keys or queries. Pure arithmetic on the host,
//! once per step for all layers.

use bytemuck::{Pod, Zeroable};

use crate::backend::Batch;

/// Query tokens of a prompt tile, which kernels take whole or in halves.
pub(super) const TILE_TOKENS: usize = 128;
/// Keys are dealt in units of this many.
const UNIT_KEYS: usize = 64;
/// Smallest item that a row is cut into; below it, the merging of results costs more than it saves.
const MIN_ITEM_UNITS: usize = 4;
/// Items of a step, about, per multiprocessor and over all key-value heads.
const ITEMS_PER_MULTIPROCESSOR: usize = 4;
/// Stands in [`DecodeItem::partial`] for an item that covers its whole row.
pub(super) const NO_PARTIAL: u32 = u32::MAX;

/// Keys `first_key..end_key` of a row with one query token.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct DecodeItem {
    pub(super) row: u32,
    pub(super) first_key: u32,
    pub(super) end_key: u32,
    /// Where the partial result goes, or [`NO_PARTIAL`].
    pub(super) partial: u32,
}

/// A row whose keys are split over several items.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct SplitRow {
    pub(super) row: u32,
    pub(super) first_partial: u32,
    pub(super) num_partials: u32,
    pub(super) reserved: u32,
}

/// Up to [`TILE_TOKENS`] query tokens of a row.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct PromptTile {
    pub(super) row: u32,
    pub(super) first_token: u32,
}

const _: () =
    assert!(size_of::<DecodeItem>() == 16 && size_of::<SplitRow>() == 16 && size_of::<PromptTile>() == 8);

/// How many items decodes are cut into, about: enough to fill the device, all key-value heads together.
pub(super) fn target_items(num_multiprocessors: usize, num_kv_heads: usize) -> usize {
    (num_multiprocessors * ITEMS_PER_MULTIPROCESSOR).div_ceil(num_kv_heads.max(1))
}

/// The work lists of one step.
#[derive(Debug, Default)]
pub(super) struct AttentionPlan {
    pub(super) decode_items: Vec<DecodeItem>,
    pub(super) split_rows: Vec<SplitRow>,
    pub(super) prompt_tiles: Vec<PromptTile>,
    pub(super) num_partials: u32,
}

impl AttentionPlan {
    /// Largest numbers of items, of split rows and of prompt tiles for batches of `max_rows` and `max_tokens`.
    ///
    /// An item holds at least `1 / target` of all units, so no more than `target` rows are split, and cutting
    /// them makes at most `target` items more than there are rows.
    pub(super) fn capacity(max_rows: usize, max_tokens: usize, target: usize) -> [usize; 3] {
        [max_rows + target, target.min(max_rows), max_rows + max_tokens / TILE_TOKENS]
    }

    /// Plans a checked batch.
    pub(super) fn fill(&mut self, batch: &Batch, target: usize) {
        self.decode_items.clear();
        self.split_rows.clear();
        self.prompt_tiles.clear();
        self.num_partials = 0;
        let units = |context_len: u32| (context_len as usize).div_ceil(UNIT_KEYS);
        let is_decode = |row: usize| batch.query_range(row).len() == 1;
        let total_units: usize = (0..batch.num_rows())
            .filter(|&row| is_decode(row))
            .map(|row| units(batch.context_lens[row]))
            .sum();
        let item_units = total_units.div_ceil(target).max(MIN_ITEM_UNITS);
        for row in 0..batch.num_rows() {
            if is_decode(row) {
                self.split(row as u32, batch.context_lens[row], units(batch.context_lens[row]), item_units);
            } else {
                // The last tile sees the most keys; it starts first, so that short ones fill the end.
                let num_tiles = batch.query_range(row).len().div_ceil(TILE_TOKENS);
                let tiles = (0..num_tiles).rev().map(|tile| (tile * TILE_TOKENS) as u32);
                self.prompt_tiles
                    .extend(tiles.map(|first_token| PromptTile { row: row as u32, first_token }));
            }
        }
    }

    /// Cuts a row's keys into items of at most `item_units` units, all but equal in size.
    fn split(&mut self, row: u32, context_len: u32, num_units: usize, item_units: usize) {
        let num_items = num_units.div_ceil(item_units);
        let first_partial = self.num_partials;
        let boundary = |item: usize| (item * num_units / num_items * UNIT_KEYS) as u32;
        for item in 0..num_items {
            self.decode_items.push(DecodeItem {
                row,
                first_key: boundary(item),
                end_key: boundary(item + 1).min(context_len),
                partial: if num_items == 1 { NO_PARTIAL } else { first_partial + item as u32 },
            });
        }
        if num_items > 1 {
            let num_partials = num_items as u32;
            self.num_partials += num_partials;
            self.split_rows.push(SplitRow { row, first_partial, num_partials, reserved: 0 });
        }
    }
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
        }
        batch
    }

    fn plan(rows: &[(u32, u32)], target: usize) -> AttentionPlan {
        let mut plan = AttentionPlan::default();
        plan.fill(&batch(rows), target);
        plan
    }

    #[test]
    fn short_rows_stay_whole() {
        let plan = plan(&[(1, 1), (1, 256), (1, 65)], 100);
        let item = |row, end_key| DecodeItem { row, first_key: 0, end_key, partial: NO_PARTIAL };
        assert_eq!(plan.decode_items, [item(0, 1), item(1, 256), item(2, 65)]);
        assert!(plan.split_rows.is_empty() && plan.prompt_tiles.is_empty());
    }

    #[test]
    fn a_long_row_is_split_and_its_partials_are_contiguous() {
        let plan = plan(&[(1, 100), (1, 1000)], 100);
        let item = |first_key, end_key, partial| DecodeItem { row: 1, first_key, end_key, partial };
        assert_eq!(
            plan.decode_items[1..],
            [item(0, 256, 0), item(256, 512, 1), item(512, 768, 2), item(768, 1000, 3)]
        );
        assert_eq!(plan.split_rows, [SplitRow { row: 1, first_partial: 0, num_partials: 4, reserved: 0 }]);
        assert_eq!(plan.num_partials, 4);
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
            let [items, splits, tiles] = AttentionPlan::capacity(rows.len(), num_tokens, target);
            assert!(plan.decode_items.len() <= items && plan.split_rows.len() <= splits);
            assert!(plan.prompt_tiles.len() <= tiles && plan.num_partials as usize <= 2 * target);
            for (row, &(num_tokens, context_len)) in rows.iter().enumerate() {
                let mut next = 0;
                for item in plan.decode_items.iter().filter(|item| item.row == row as u32) {
                    assert_eq!(item.first_key, next);
                    assert!(item.first_key < item.end_key && item.first_key % 64 == 0);
                    next = item.end_key;
                }
                assert_eq!(next, if num_tokens == 1 { context_len } else { 0 });
            }
        }
    }
}

//! Causal attention over the paged cache, with the online softmax of Milakov and Gimelshein (2018) as in
//! FlashAttention (Dao et al. 2022).
//!
//! A task takes one key-value head and a tile of a row's queries: some tokens times the query heads that share
//! the key-value head. It passes the keys from position 0 on in tiles of [`KEY_TILE`]: keys transposed to
//! `[head_dim, KEY_TILE]` and values to `[KEY_TILE, head_dim]`, both as f32 in the first-level cache, and all
//! queries of the tile meet them there. What one query computes, and in which order, depends on its own position
//! alone; tiles of queries, blocks of the cache and threads only choose what is computed together.

#![allow(clippy::needless_range_loop, reason = "indexes name the places of a register tile")]

mod tile;

use std::ops::Range;

use half::{bf16, f16};

use self::tile::{accumulate, compute_scores, soft_cap, softmax_tile};
use super::batch::{LoadedBatch, Row};
use super::embed::Widen;
use super::simd::{Element, Isa, Kernel, MAX_LANES, Simd};
use super::tensor::{Buffer, KeyOrValue, KvCache, Tensor, head_offset, product};
use super::threads::{Parts, Threads};
use crate::backend::{AttentionShape, BackendResult, DType, Scoring};

/// Keys that pass together. Fixed: it decides when a query's sums are rescaled.
const KEY_TILE: usize = 64;
/// Queries of a task, about; enough that loading a tile of keys costs little beside using it.
const QUERY_TILE: usize = 96;
/// Queries in a register tile.
const QUERY_GROUP: usize = 4;

/// Tokens `tokens` of a row, the first being 0.
#[derive(Debug, Clone)]
struct QueryTile {
    row: usize,
    tokens: Range<usize>,
}

/// Working memory of one thread and the list of tiles; both grow to the largest call seen.
pub(super) struct Workspace {
    threads: Vec<Buffer>,
    tiles: Vec<QueryTile>,
}

impl Workspace {
    pub(super) const EMPTY: Workspace = Workspace { threads: Vec::new(), tiles: Vec::new() };

    fn reserve(&mut self, num_threads: usize, num_elements: usize) -> BackendResult<()> {
        self.threads.resize_with(num_threads, || Buffer::EMPTY);
        for buffer in &mut self.threads {
            buffer.grow(product(&[num_elements, size_of::<f32>()]), "attention workspace")?;
        }
        Ok(())
    }

    /// Cuts the rows into tiles, the longest contexts of a row first, so that short tasks fill the end.
    fn cut(&mut self, batch: &LoadedBatch, tile_tokens: usize) {
        self.tiles.clear();
        for (row_index, row) in batch.rows.iter().enumerate() {
            for tile in (0..row.num_tokens.div_ceil(tile_tokens)).rev() {
                let tokens = tile * tile_tokens..((tile + 1) * tile_tokens).min(row.num_tokens);
                self.tiles.push(QueryTile { row: row_index, tokens });
            }
        }
    }
}

/// Bytes of one thread's working memory for heads of `head_dim` elements.
pub(super) fn workspace_bytes(head_dim: usize) -> usize {
    ScratchSizes::new(QUERY_TILE, head_dim).total() * size_of::<f32>()
}

/// One call's arguments; shapes and the batch are checked.
pub(super) struct Attention<'a> {
    pub(super) batch: &'a LoadedBatch,
    pub(super) qkv: &'a Tensor,
    pub(super) shape: &'a AttentionShape,
    pub(super) scoring: &'a Scoring,
    pub(super) cache: &'a KvCache,
    pub(super) layer: usize,
    pub(super) out: &'a mut Tensor,
}

impl Attention<'_> {
    /// Computes all query heads of the batch.
    pub(super) fn run(self, threads: &mut Threads, isa: Isa, workspace: &mut Workspace) -> BackendResult<()> {
        match self.cache.layout().dtype {
            DType::F32 => self.run_cache::<f32>(threads, isa, workspace),
            DType::F16 => self.run_cache::<f16>(threads, isa, workspace),
            DType::Bf16 => self.run_cache::<bf16>(threads, isa, workspace),
        }
    }

    fn run_cache<E: Element>(
        self,
        threads: &mut Threads,
        isa: Isa,
        workspace: &mut Workspace,
    ) -> BackendResult<()> {
        let shape = self.shape;
        let heads_per_kv_head = shape.num_heads / shape.num_kv_heads;
        let tile_tokens = (QUERY_TILE / heads_per_kv_head).max(1);
        let sizes = ScratchSizes::new(tile_tokens * heads_per_kv_head, shape.head_dim);
        workspace.reserve(threads.num_threads(), sizes.total())?;
        workspace.cut(self.batch, tile_tokens);
        let out = Parts::new(self.out.elements_mut::<f32>());
        let scratches = Parts::new(&mut workspace.threads);
        let tiles = &workspace.tiles;
        threads.run_with_thread(tiles.len() * shape.num_kv_heads, |thread, task| {
            let tile = &tiles[task / shape.num_kv_heads];
            // SAFETY: a thread runs one task at a time.
            let scratch = unsafe { &mut scratches.slice(thread..thread + 1)[0] };
            isa.run(TileTask::<E> {
                batch: self.batch,
                row: &self.batch.rows[tile.row],
                tokens: tile.tokens.clone(),
                kv_head: task % shape.num_kv_heads,
                heads_per_kv_head,
                qkv: self.qkv.elements::<f32>(),
                shape,
                scoring: self.scoring,
                cache: self.cache,
                elements: self.cache.elements::<E>(),
                layer: self.layer,
                scratch: sizes.split(scratch.elements_mut::<f32>()),
                out: &out,
            });
        });
        Ok(())
    }
}

/// How a thread's working memory is divided.
#[derive(Clone, Copy)]
struct ScratchSizes {
    queries: usize,
    head_dim: usize,
    /// `head_dim` rounded up to whole vectors.
    padded_dim: usize,
}

impl ScratchSizes {
    fn new(queries: usize, head_dim: usize) -> Self {
        Self { queries, head_dim, padded_dim: head_dim.next_multiple_of(MAX_LANES) }
    }

    fn total(self) -> usize {
        let keys = KEY_TILE * (self.head_dim + self.padded_dim + QUERY_GROUP);
        keys + self.queries * (self.head_dim + self.padded_dim + 2)
    }

    fn split(self, memory: &mut [f32]) -> Scratch<'_> {
        let (values, rest) = memory.split_at_mut(KEY_TILE * self.padded_dim);
        let (sums, rest) = rest.split_at_mut(self.queries * self.padded_dim);
        let (keys, rest) = rest.split_at_mut(KEY_TILE * self.head_dim);
        let (scores, rest) = rest.split_at_mut(KEY_TILE * QUERY_GROUP);
        let (queries, rest) = rest.split_at_mut(self.queries * self.head_dim);
        let (maxima, rest) = rest.split_at_mut(self.queries);
        let weights = &mut rest[..self.queries];
        Scratch { padded_dim: self.padded_dim, keys, values, scores, queries, sums, maxima, weights }
    }
}

/// A thread's working memory.
struct Scratch<'a> {
    padded_dim: usize,
    /// `[head_dim, KEY_TILE]`.
    keys: &'a mut [f32],
    /// `[KEY_TILE, padded_dim]`.
    values: &'a mut [f32],
    /// `[QUERY_GROUP, KEY_TILE]`: scores, then their exponentials.
    scores: &'a mut [f32],
    /// `[queries, head_dim]`, scaled.
    queries: &'a mut [f32],
    /// `[queries, padded_dim]`: values times exponentials, relative to the maximum so far.
    sums: &'a mut [f32],
    /// `[queries]`: largest score so far.
    maxima: &'a mut [f32],
    /// `[queries]`: sum of the exponentials.
    weights: &'a mut [f32],
}

/// One key-value head and a tile of queries.
struct TileTask<'a, E> {
    batch: &'a LoadedBatch,
    row: &'a Row,
    tokens: Range<usize>,
    kv_head: usize,
    heads_per_kv_head: usize,
    qkv: &'a [f32],
    shape: &'a AttentionShape,
    scoring: &'a Scoring,
    cache: &'a KvCache,
    elements: &'a [E],
    layer: usize,
    scratch: Scratch<'a>,
    out: &'a Parts<'a, f32>,
}

impl<E: Element> Kernel for TileTask<'_, E> {
    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        self.load_queries();
        let num_queries = self.tokens.len() * self.heads_per_kv_head;
        let context_len = self.row.first_position + self.tokens.end;
        // Tiles stand at the same places for all queries, whatever their window lets them see of a tile.
        let mut tile_start = self.first_seen(self.position(0)) / KEY_TILE * KEY_TILE;
        while tile_start < context_len {
            let num_keys = (context_len - tile_start).min(KEY_TILE);
            self.load_tile(simd, tile_start, num_keys);
            let mut query = 0;
            while query < num_queries {
                let count = (num_queries - query).min(QUERY_GROUP);
                // Queries stand in order of position, so the last of the group sees the most keys.
                let visible = self.visible_keys(query + count - 1, tile_start).end;
                match count {
                    _ if visible == 0 => {}
                    4 => self.group::<S, 4>(simd, query, tile_start, visible),
                    3 => self.group::<S, 3>(simd, query, tile_start, visible),
                    2 => self.group::<S, 2>(simd, query, tile_start, visible),
                    _ => self.group::<S, 1>(simd, query, tile_start, visible),
                }
                query += count;
            }
            tile_start += KEY_TILE;
        }
        self.write_out();
    }
}

impl<'a, E: Element> TileTask<'a, E> {
    /// Copies the tile's queries, scaled, and starts their sums.
    fn load_queries(&mut self) {
        let AttentionShape { head_dim, scale, .. } = *self.shape;
        let width = self.shape.qkv_width();
        let first_element = self.kv_head * self.heads_per_kv_head * head_dim;
        let token_elements = self.heads_per_kv_head * head_dim;
        for (i, token) in self.tokens.clone().enumerate() {
            let source =
                &self.qkv[(self.row.first_token + token) * width + first_element..][..token_elements];
            let target = &mut self.scratch.queries[i * token_elements..][..token_elements];
            for (target, source) in target.iter_mut().zip(source) {
                *target = source * scale;
            }
        }
        let num_queries = self.tokens.len() * self.heads_per_kv_head;
        self.scratch.sums[..num_queries * self.scratch.padded_dim].fill(0.0);
        self.scratch.maxima[..num_queries].fill(f32::NEG_INFINITY);
        self.scratch.weights[..num_queries].fill(0.0);
    }

    /// Position of a query's token.
    #[inline(always)]
    fn position(&self, query: usize) -> usize {
        self.row.first_position + self.tokens.start + query / self.heads_per_kv_head
    }

    /// First position that a token at `position` sees.
    #[inline(always)]
    fn first_seen(&self, position: usize) -> usize {
        self.scoring.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Which keys of the tile the query sees.
    #[inline(always)]
    fn visible_keys(&self, query: usize, tile_start: usize) -> Range<usize> {
        let position = self.position(query);
        let in_tile = |position: usize| position.saturating_sub(tile_start).min(KEY_TILE);
        in_tile(self.first_seen(position))..in_tile(position + 1)
    }

    /// Applies soft cap and ALiBi to the query's scores of the tile.
    #[inline(always)]
    fn adjust_scores<S: Simd>(&mut self, simd: S, query: usize, row: usize, tile_start: usize) {
        let position = self.position(query);
        let scores = &mut self.scratch.scores[row * KEY_TILE..][..KEY_TILE];
        if let Some(cap) = self.scoring.soft_cap {
            soft_cap(simd, scores, cap);
        }
        if let Some(alibi) = &self.scoring.alibi {
            let head = self.kv_head * self.heads_per_kv_head + query % self.heads_per_kv_head;
            let slope = alibi.slope(head, self.shape.num_heads);
            for (key, score) in scores.iter_mut().enumerate() {
                // Keys of the tile after the token are masked; their distance only must not wrap.
                *score -= slope * position.saturating_sub(tile_start + key) as f32;
            }
        }
    }

    /// Keys or values of `count` positions from `position` on, which lie in one block.
    #[inline(always)]
    fn cached(&self, part: KeyOrValue, position: usize, count: usize) -> &'a [E] {
        let layout = self.cache.layout();
        let block = self.batch.block(self.row, position, layout.block_size);
        let start = head_offset(layout, self.layer, block, part, self.kv_head);
        let in_block = position % layout.block_size;
        &self.elements[start + in_block * layout.head_dim..][..count * layout.head_dim]
    }

    /// Loads keys and values of `num_keys` positions from `tile_start` on, block by block, and asks for those
    /// of the next tile, which memory can bring while this one is computed with.
    #[inline(always)]
    fn load_tile<S: Simd>(&mut self, simd: S, tile_start: usize, num_keys: usize) {
        let block_size = self.cache.layout().block_size;
        let (head_dim, padded_dim) = (self.shape.head_dim, self.scratch.padded_dim);
        let context_len = self.row.first_position + self.tokens.end;
        let mut key = 0;
        while key < num_keys {
            let position = tile_start + key;
            let count = (block_size - position % block_size).min(num_keys - key);
            let keys = self.cached(KeyOrValue::Key, position, count);
            let values = self.cached(KeyOrValue::Value, position, count);
            let mut i = 0;
            while i < count {
                if position + i + KEY_TILE < context_len {
                    let ahead = position + i + KEY_TILE;
                    let count = (block_size - ahead % block_size).min(context_len - ahead).min(S::LANES);
                    prefetch(simd, self.cached(KeyOrValue::Key, ahead, count));
                    prefetch(simd, self.cached(KeyOrValue::Value, ahead, count));
                }
                if key + i + S::LANES <= KEY_TILE {
                    transpose(simd, &keys[i * head_dim..], head_dim, &mut self.scratch.keys[key + i..]);
                    i += S::LANES;
                } else {
                    transpose_row(&keys[i * head_dim..][..head_dim], &mut self.scratch.keys[key + i..]);
                    i += 1;
                }
            }
            for (i, source) in values.chunks_exact(head_dim).enumerate() {
                let target = &mut self.scratch.values[(key + i) * padded_dim..][..head_dim];
                Widen { source, target }.run(simd);
            }
            key += count;
        }
    }

    /// Lets `QUERIES` queries from `query` on see the tile, of which the last query sees `visible` keys.
    #[inline(always)]
    fn group<S: Simd, const QUERIES: usize>(
        &mut self,
        simd: S,
        query: usize,
        tile_start: usize,
        visible: usize,
    ) {
        let head_dim = self.shape.head_dim;
        let queries = &self.scratch.queries[query * head_dim..][..QUERIES * head_dim];
        if S::LANES == 16 {
            compute_scores::<S, QUERIES, 4>(simd, queries, self.scratch.keys, self.scratch.scores);
        } else {
            compute_scores::<S, QUERIES, 2>(simd, queries, self.scratch.keys, self.scratch.scores);
        }
        let mut corrections = [1.0; QUERIES];
        for (i, correction) in corrections.iter_mut().enumerate() {
            let visible = self.visible_keys(query + i, tile_start);
            if visible.is_empty() {
                self.scratch.scores[i * KEY_TILE..][..KEY_TILE].fill(0.0);
                continue;
            }
            self.adjust_scores(simd, query + i, i, tile_start);
            let scores = &mut self.scratch.scores[i * KEY_TILE..][..KEY_TILE];
            scores[..visible.start].fill(f32::NEG_INFINITY);
            scores[visible.end..].fill(f32::NEG_INFINITY);
            let maximum = &mut self.scratch.maxima[query + i];
            let (new_correction, weight) = softmax_tile(simd, scores, maximum);
            *correction = new_correction;
            let weights = &mut self.scratch.weights[query + i];
            *weights = *weights * new_correction + weight;
        }
        let padded_dim = self.scratch.padded_dim;
        let sums = &mut self.scratch.sums[query * padded_dim..][..QUERIES * padded_dim];
        let scores = &self.scratch.scores[..QUERIES * KEY_TILE];
        let values = &self.scratch.values[..visible * padded_dim];
        if S::LANES == 16 {
            accumulate::<S, QUERIES, 4>(simd, scores, values, &corrections, sums);
        } else {
            accumulate::<S, QUERIES, 2>(simd, scores, values, &corrections, sums);
        }
    }

    /// Divides the sums by the weights.
    fn write_out(&self) {
        let AttentionShape { num_heads, head_dim, .. } = *self.shape;
        let padded_dim = self.scratch.padded_dim;
        for (i, token) in self.tokens.clone().enumerate() {
            for head in 0..self.heads_per_kv_head {
                let query = i * self.heads_per_kv_head + head;
                let head = self.kv_head * self.heads_per_kv_head + head;
                let start = ((self.row.first_token + token) * num_heads + head) * head_dim;
                // SAFETY: a token's head belongs to one task.
                let out = unsafe { self.out.slice(start..start + head_dim) };
                let scale = 1.0 / self.scratch.weights[query];
                for (out, sum) in out.iter_mut().zip(&self.scratch.sums[query * padded_dim..]) {
                    *out = sum * scale;
                }
            }
        }
    }
}

/// Asks for the cache lines of `elements`.
#[inline(always)]
fn prefetch<S: Simd, E>(simd: S, elements: &[E]) {
    const LINE: usize = 64;
    let start = elements.as_ptr().cast::<u8>();
    for offset in (0..size_of_val(elements)).step_by(LINE) {
        simd.prefetch(start.wrapping_add(offset));
    }
}

/// Writes up to `LANES` rows of `source` as columns of `target`, whose rows are `KEY_TILE` apart. Where the
/// source has fewer rows, the columns after them are filled with copies of its last row.
#[inline(always)]
fn transpose<S: Simd, E: Element>(simd: S, source: &[E], head_dim: usize, target: &mut [f32]) {
    let num_rows = (source.len() / head_dim).min(S::LANES);
    assert!(num_rows > 0 && target.len() >= (head_dim - 1) * KEY_TILE + S::LANES);
    let row = |lane: usize, dim: usize| source[lane.min(num_rows - 1) * head_dim + dim..].as_ptr();
    let target_row = target.as_mut_ptr();
    let mut square = [simd.splat(0.0); MAX_LANES];
    let mut dim = 0;
    // Two bf16 values fit a lane, so that a square moves twice as many.
    while E::DTYPE == DType::Bf16 && dim + 2 * S::LANES <= head_dim {
        for lane in 0..S::LANES {
            // SAFETY: the row has `2 * LANES` elements of two bytes from `dim` on.
            square[lane] = unsafe { simd.load(row(lane, dim).cast()) };
        }
        simd.transpose(&mut square);
        for lane in 0..S::LANES {
            let [first, second] = simd.split_bf16_pairs(square[lane]);
            // SAFETY: asserted above for the last row, and the others lie before it.
            unsafe {
                simd.store(target_row.add((dim + 2 * lane) * KEY_TILE), first);
                simd.store(target_row.add((dim + 2 * lane + 1) * KEY_TILE), second);
            }
        }
        dim += 2 * S::LANES;
    }
    while dim + S::LANES <= head_dim {
        for lane in 0..S::LANES {
            // SAFETY: the row has `LANES` elements from `dim` on.
            square[lane] = unsafe { E::load(simd, row(lane, dim)) };
        }
        simd.transpose(&mut square);
        for lane in 0..S::LANES {
            // SAFETY: asserted above for the last row, and the others lie before it.
            unsafe { simd.store(target_row.add((dim + lane) * KEY_TILE), square[lane]) };
        }
        dim += S::LANES;
    }
    for dim in dim..head_dim {
        for row in 0..num_rows {
            target[dim * KEY_TILE + row] = source[row * head_dim + dim].to_f32();
        }
    }
}

/// [`transpose`] of one row.
#[inline(always)]
fn transpose_row<E: Element>(source: &[E], target: &mut [f32]) {
    for (dim, value) in source.iter().enumerate() {
        target[dim * KEY_TILE] = value.to_f32();
    }
}

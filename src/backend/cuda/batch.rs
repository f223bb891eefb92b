//! The step's state on the device: one upload carries every array of a batch, small kernels derive the rest.
//!
//! All addresses are fixed when the backend is reserved, so that the kernels of a step could be captured once and
//! replayed over other contents.

use bytemuck::{Pod, Zeroable};

use super::copies::{Copies, Pieces};
use super::driver::{DevicePtr, Event, Gpu, Kernel, Launch, Params};
use super::memory::{Arena, Pinned};
use super::modules::Modules;
use super::plan::{self, AttentionPlan, DecodeItem, DecodeShare, PromptTile};
use super::tensor::Checker;
use crate::backend::{BackendLimits, BackendResult, Batch, KvLayout, TOKEN_FROM_SLOT};

/// Uploads that can be under way: one per step in flight and one that is being written.
const NUM_UPLOADS: usize = 3;
const THREADS: u32 = 128;
/// Shares of attention before it has told how many it takes: few, since wide heads have large partial results.
const FIRST_NUM_SHARES_MAX: usize = 32;
/// Counters of the blocks of attention whose results are merged.
pub(super) const ARRIVALS_BYTES: u64 = 128 << 10;

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct StepHeader {
    num_rows: u32,
    num_tokens: u32,
    num_sampled: u32,
    num_resets: u32,
    num_decode_shares: u32,
    num_prompt_tiles: u32,
    reserved: [u32; 2],
}

/// Sampling parameters and state of a slot, as kernels keep it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(super) struct DeviceSlot {
    pub(super) seed: u64,
    pub(super) temperature: f32,
    pub(super) top_k: u32,
    pub(super) top_p: f32,
    /// Smallest weight in fixed point that min-p keeps.
    pub(super) min_p_weight: u32,
    /// Alternatives to report, or `u32::MAX` for no log-probabilities.
    pub(super) num_logprobs: u32,
    pub(super) num_outputs: u32,
    pub(super) last_token: u32,
    /// Bits of [`SlotFlags`].
    pub(super) flags: u32,
    pub(super) repetition_penalty: f32,
    pub(super) frequency_penalty: f32,
    pub(super) presence_penalty: f32,
    pub(super) min_tokens: u32,
    pub(super) num_edits: u32,
    pub(super) reserved: u32,
}

/// Bits of [`DeviceSlot::flags`].
pub(super) struct SlotFlags;

impl SlotFlags {
    /// The host samples this slot's rows.
    pub(super) const HOST_SAMPLED: u32 = 1;
    /// The slot has marks and edits.
    pub(super) const ADJUSTED: u32 = 2;
    /// Outputs are counted in the marks.
    pub(super) const COUNTS_OUTPUTS: u32 = 4;
}

/// Byte offset of [`DeviceSlot::last_token`].
pub(super) const LAST_TOKEN_OFFSET: u64 = 32;

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct SlotReset {
    state: DeviceSlot,
    slot: u32,
    reserved: u32,
}

/// The rows' arrays, as kernels take them.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct StepArrays {
    pub(super) header: DevicePtr,
    pub(super) slots: DevicePtr,
    pub(super) query_starts: DevicePtr,
    pub(super) context_lens: DevicePtr,
    pub(super) block_starts: DevicePtr,
    pub(super) block_tables: DevicePtr,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct ResetSlotsParams {
    header: DevicePtr,
    resets: DevicePtr,
    slot_states: DevicePtr,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct PrepareBatchParams {
    arrays: StepArrays,
    tokens: DevicePtr,
    slot_states: DevicePtr,
    resolved_tokens: DevicePtr,
    positions: DevicePtr,
    cache_places: DevicePtr,
    block_size: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<StepHeader>() == 32 && size_of::<DeviceSlot>() == 64);
const _: () = assert!(size_of::<SlotReset>() == 72 && size_of::<StepArrays>() == 48);
const _: () = assert!(size_of::<ResetSlotsParams>() == 24 && size_of::<PrepareBatchParams>() == 96);
const _: () = assert!(std::mem::offset_of!(DeviceSlot, last_token) as u64 == LAST_TOKEN_OFFSET);

// SAFETY: `repr(C)`, mirrors ResetSlotsParams in batch.cu.
unsafe impl Params for ResetSlotsParams {}
// SAFETY: `repr(C)`, mirrors PrepareBatchParams in batch.cu.
unsafe impl Params for PrepareBatchParams {}

/// Byte offsets of the arrays in an upload and on the device. Of each, what the batch fills is copied.
#[derive(Debug, Clone, Copy, Default)]
struct UploadLayout {
    slots: usize,
    query_starts: usize,
    context_lens: usize,
    block_starts: usize,
    sampled_rows: usize,
    decode_items: usize,
    decode_shares: usize,
    prompt_tiles: usize,
    tokens: usize,
    block_tables: usize,
    resets: usize,
    num_bytes: usize,
}

impl UploadLayout {
    fn new(limits: &BackendLimits, num_blocks: usize, num_multiprocessors: usize) -> UploadLayout {
        let rows = limits.max_slots;
        let max_shares = plan::max_shares(num_multiprocessors);
        let [items, shares, tiles] = AttentionPlan::capacity(rows, limits.max_tokens, max_shares);
        let mut end = size_of::<StepHeader>();
        let mut place = |bytes: usize| {
            let start = end;
            end = (start + bytes).next_multiple_of(16);
            start
        };
        UploadLayout {
            slots: place(4 * rows),
            query_starts: place(4 * (rows + 1)),
            context_lens: place(4 * rows),
            block_starts: place(4 * (rows + 1)),
            sampled_rows: place(4 * rows),
            decode_items: place(items * size_of::<DecodeItem>()),
            decode_shares: place(shares * size_of::<DecodeShare>()),
            prompt_tiles: place(tiles * size_of::<PromptTile>()),
            tokens: place(4 * limits.max_tokens),
            block_tables: place(4 * num_blocks),
            resets: place(rows * size_of::<SlotReset>()),
            num_bytes: place(0),
        }
    }
}

/// For how many rows, tokens and so on operations are launched: the loaded batch's numbers, or the largest that a
/// step is being recorded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct LaunchSizes {
    pub(super) rows: usize,
    pub(super) tokens: usize,
    pub(super) sampled: usize,
    pub(super) decode_shares: usize,
    pub(super) prompt_tiles: usize,
}

impl LaunchSizes {
    /// Of a step of decodes that are all sampled.
    pub(super) fn decodes(rows: usize, decode_shares: usize) -> LaunchSizes {
        LaunchSizes { rows, tokens: rows, sampled: rows, decode_shares, prompt_tiles: 0 }
    }
}

/// What the host keeps of the batch that operations run on.
#[derive(Debug, Default)]
pub(super) struct LoadedBatch {
    pub(super) num_rows: usize,
    pub(super) launch: LaunchSizes,
    /// One past the largest position.
    pub(super) max_context_len: usize,
    /// Slot of each sampled row.
    pub(super) sampled_slots: Vec<u32>,
    /// Whether sampled row `i` is token `i` for all tokens, as in a step of decodes alone.
    pub(super) is_all_sampled: bool,
    pub(super) plan: AttentionPlan,
    /// Block size and number of blocks that the block tables were checked for.
    checked_cache: Option<(usize, usize)>,
}

impl LoadedBatch {
    /// Refuses a cache that the block tables were not checked for.
    pub(super) fn check_cache(&self, check: Checker, layout: &KvLayout) -> BackendResult<()> {
        check.require(self.checked_cache == Some((layout.block_size, layout.num_blocks)), || {
            "the batch was loaded for another KV cache".to_owned()
        })
    }
}

struct Upload {
    pinned: Pinned,
    copied: Event,
}

/// Fixed places on the device, the uploads on their way there, and the loaded batch.
pub(super) struct StepState {
    pub(super) arrays: StepArrays,
    pub(super) sampled_rows: DevicePtr,
    pub(super) decode_items: DevicePtr,
    pub(super) decode_shares: DevicePtr,
    pub(super) prompt_tiles: DevicePtr,
    pub(super) resolved_tokens: DevicePtr,
    pub(super) positions: DevicePtr,
    pub(super) cache_places: DevicePtr,
    pub(super) slot_states: DevicePtr,
    /// [`ARRIVALS_BYTES`] bytes, 0 between kernels.
    pub(super) arrivals: DevicePtr,
    pub(super) batch: LoadedBatch,
    /// Whether operations are recorded for later steps instead of run.
    pub(super) is_recording: bool,
    tokens: DevicePtr,
    resets_start: DevicePtr,
    layout: UploadLayout,
    limits: BackendLimits,
    kv_layout: Option<KvLayout>,
    first_num_shares: usize,
    num_shares: usize,
    uploads: Vec<Upload>,
    next_upload: usize,
    copies: Copies,
    resets: Vec<SlotReset>,
    slot_seen: Vec<bool>,
    reset_slots: Kernel<ResetSlotsParams>,
    prepare_batch: Kernel<PrepareBatchParams>,
}

impl StepState {
    /// Bytes of its allocations for `limits` and a cache of `num_blocks` blocks.
    pub(super) fn device_sizes(
        limits: &BackendLimits,
        num_blocks: usize,
        num_multiprocessors: usize,
    ) -> [u64; 6] {
        let layout = UploadLayout::new(limits, num_blocks, num_multiprocessors);
        let per_token = 4 * limits.max_tokens as u64;
        let slots_bytes = limits.max_slots * size_of::<DeviceSlot>();
        [layout.num_bytes as u64, per_token, per_token, per_token, slots_bytes as u64, ARRIVALS_BYTES]
    }

    pub(super) fn new(
        gpu: &Gpu,
        modules: &Modules,
        arena: &mut Arena,
        limits: &BackendLimits,
        kv_layout: Option<KvLayout>,
    ) -> BackendResult<StepState> {
        let num_multiprocessors = gpu.num_multiprocessors() as usize;
        let num_kv_heads = kv_layout.map_or(1, |kv| kv.num_kv_heads).max(1);
        let first_num_shares = (num_multiprocessors / num_kv_heads).clamp(1, FIRST_NUM_SHARES_MAX);
        let num_blocks = kv_layout.map_or(0, |kv| kv.num_blocks);
        let layout = UploadLayout::new(limits, num_blocks, num_multiprocessors);
        let base = arena.alloc(gpu, layout.num_bytes as u64, "step arrays")?;
        let mut per_token = || arena.alloc(gpu, 4 * limits.max_tokens as u64, "token arrays");
        let (resolved_tokens, positions, cache_places) = (per_token()?, per_token()?, per_token()?);
        let slots_bytes = (limits.max_slots * size_of::<DeviceSlot>()) as u64;
        let slot_states = arena.alloc(gpu, slots_bytes, "sampling states")?;
        gpu.fill(slot_states, 0, slots_bytes)?;
        let arrivals = arena.alloc(gpu, ARRIVALS_BYTES, "arrivals of attention")?;
        gpu.fill(arrivals, 0, ARRIVALS_BYTES)?;
        let upload =
            || Ok(Upload { pinned: Pinned::new(gpu, layout.num_bytes)?, copied: Event::new(gpu, false)? });
        let at = |offset: usize| base + offset as u64;
        Ok(StepState {
            arrays: StepArrays {
                header: base,
                slots: at(layout.slots),
                query_starts: at(layout.query_starts),
                context_lens: at(layout.context_lens),
                block_starts: at(layout.block_starts),
                block_tables: at(layout.block_tables),
            },
            sampled_rows: at(layout.sampled_rows),
            decode_items: at(layout.decode_items),
            decode_shares: at(layout.decode_shares),
            prompt_tiles: at(layout.prompt_tiles),
            resolved_tokens,
            positions,
            cache_places,
            slot_states,
            arrivals,
            batch: LoadedBatch::default(),
            is_recording: false,
            tokens: at(layout.tokens),
            resets_start: at(layout.resets),
            layout,
            limits: *limits,
            kv_layout,
            first_num_shares,
            num_shares: first_num_shares,
            uploads: (0..NUM_UPLOADS).map(|_| upload()).collect::<BackendResult<_>>()?,
            next_upload: 0,
            copies: Copies::new(gpu, modules)?,
            resets: Vec::new(),
            slot_seen: vec![false; limits.max_slots],
            reset_slots: modules.kernel(gpu, "batch", "reset_slots")?,
            prepare_batch: modules.kernel(gpu, "batch", "prepare_batch")?,
        })
    }

    pub(super) fn limits(&self) -> &BackendLimits {
        &self.limits
    }

    /// [`StepState::num_shares`] before attention has told any.
    pub(super) fn first_num_shares(&self) -> usize {
        self.first_num_shares
    }

    /// Largest number of shares that decodes are cut into from the next batch on: attention tells how many there are
    /// blocks for, which depends on its heads.
    pub(super) fn set_num_shares(&mut self, num_shares: usize) {
        self.num_shares = num_shares;
    }

    /// See [`StepState::set_num_shares`].
    pub(super) fn num_shares(&self) -> usize {
        self.num_shares
    }

    /// The header of the batch that a recorded step will run, which may have fewer tokens than the step, or 0 where
    /// operations run on the loaded batch.
    pub(super) fn recorded_header(&self) -> DevicePtr {
        if self.is_recording { self.arrays.header } else { 0 }
    }

    /// The cache that batches are checked for.
    pub(super) fn kv_layout(&self) -> Option<&KvLayout> {
        self.kv_layout.as_ref()
    }

    /// Notes a slot's new state; it travels with the next batch.
    pub(super) fn reset_slot(&mut self, slot: u32, state: DeviceSlot) {
        self.resets.retain(|reset| reset.slot != slot);
        self.resets.push(SlotReset { state, slot, reserved: 0 });
    }

    /// Checks `batch` and uploads it with the resets so far; [`StepState::prepare`] comes next.
    pub(super) fn load(&mut self, gpu: &Gpu, check: Checker, batch: &Batch) -> BackendResult<()> {
        self.batch.launch = LaunchSizes::default();
        self.batch.sampled_slots.clear();
        self.check(check, batch)?;
        self.describe(batch);
        let upload = &mut self.uploads[self.next_upload];
        self.next_upload = (self.next_upload + 1) % NUM_UPLOADS;
        // Three uploads ago: passed long since, unless the host runs ahead of the device.
        upload.copied.wait("load_batch", gpu)?;
        let header = StepHeader {
            num_rows: batch.num_rows() as u32,
            num_tokens: batch.num_tokens() as u32,
            num_sampled: batch.num_sampled() as u32,
            num_resets: self.resets.len() as u32,
            num_decode_shares: self.batch.plan.decode_shares.len() as u32,
            num_prompt_tiles: self.batch.plan.prompt_tiles.len() as u32,
            reserved: [0; 2],
        };
        let mut packing = Packing { bytes: upload.pinned.bytes_mut(), pieces: Pieces::default() };
        packing.put(0, std::slice::from_ref(&header));
        packing.put_batch(&self.layout, batch, &self.batch.plan);
        packing.put(self.layout.resets, &self.resets);
        let pieces = packing.pieces;
        let copied = (self.arrays.header, upload.pinned.device_ptr());
        // SAFETY: pinned memory that is not written again before `copied` has passed; the device's arrays have
        // the same layout.
        unsafe { self.copies.run(gpu, "load_batch", copied, &pieces)? };
        upload.copied.record(gpu)?;
        let (header, slot_states) = (self.arrays.header, self.slot_states);
        let resets = ResetSlotsParams { header, resets: self.resets_start, slot_states };
        let num_blocks = (self.resets.len() as u32).div_ceil(THREADS);
        gpu.launch("reset_slots", &self.reset_slots, Launch::new(num_blocks, THREADS), &resets)?;
        self.resets.clear();
        Ok(())
    }

    /// Derives the arrays of the loaded batch's tokens on the device.
    pub(super) fn prepare(&self, gpu: &Gpu) -> BackendResult<()> {
        let slot_states = self.slot_states;
        let params = PrepareBatchParams {
            arrays: self.arrays,
            tokens: self.tokens,
            slot_states,
            resolved_tokens: self.resolved_tokens,
            positions: self.positions,
            cache_places: self.cache_places,
            block_size: self.kv_layout.map_or(0, |kv| kv.block_size as u32),
            reserved: 0,
        };
        let launch = Launch::new(self.batch.launch.rows as u32, THREADS);
        gpu.launch("load_batch", &self.prepare_batch, launch, &params)
    }

    /// Everything that kernels rely on: after this no batch makes them leave their buffers.
    fn check(&mut self, check: Checker, batch: &Batch) -> BackendResult<()> {
        let num_rows = batch.num_rows();
        check_starts(check, "query_starts", &batch.query_starts, num_rows, batch.num_tokens())?;
        check_starts(check, "block_starts", &batch.block_starts, num_rows, batch.block_tables.len())?;
        let num_lens = batch.context_lens.len();
        check.require(num_lens == num_rows, || format!("{num_lens} context_lens for {num_rows} slots"))?;
        let BackendLimits { max_tokens, max_slots, vocab_size } = self.limits;
        let num_tokens = batch.num_tokens();
        check.require(num_tokens <= max_tokens, || {
            format!("{num_tokens} tokens, reserved for {max_tokens}")
        })?;
        check.require(num_rows <= max_slots, || format!("{num_rows} rows, reserved for {max_slots}"))?;
        self.slot_seen.fill(false);
        for &slot in &batch.slots {
            let seen = self.slot_seen.get_mut(slot as usize);
            let is_new = seen.is_some_and(|seen| !std::mem::replace(seen, true));
            check.require(is_new, || format!("slot {slot} stands twice or is not one of {max_slots}"))?;
        }
        let bad =
            batch.tokens.iter().find(|&&token| token != TOKEN_FROM_SLOT && token as usize >= vocab_size);
        check.require(bad.is_none(), || format!("token {bad:?} of {vocab_size}"))?;
        let is_ascending = batch.sampled_rows.windows(2).all(|pair| pair[0] < pair[1]);
        let is_inside = batch.sampled_rows.iter().all(|&row| (row as usize) < num_rows);
        check.require(is_ascending && is_inside, || {
            format!("sampled_rows must be ascending and below {num_rows}, but are {:?}", batch.sampled_rows)
        })?;
        (0..num_rows).try_for_each(|row| self.check_row(check, batch, row))?;
        let Some(layout) = &self.kv_layout else { return Ok(()) };
        let (num_entries, num_blocks) = (batch.block_tables.len(), layout.num_blocks);
        check.require(num_entries <= num_blocks, || {
            format!("{num_entries} block table entries for {num_blocks} blocks")
        })?;
        let bad = batch.block_tables.iter().find(|&&block| block as usize >= num_blocks);
        check.require(bad.is_none(), || format!("block {bad:?} of {num_blocks}"))
    }

    fn check_row(&self, check: Checker, batch: &Batch, row: usize) -> BackendResult<()> {
        let (num_tokens, context_len) = (batch.query_range(row).len(), batch.context_lens[row] as usize);
        check.require(num_tokens > 0 && num_tokens <= context_len, || {
            format!("row {row} has {num_tokens} tokens and a context of {context_len}")
        })?;
        let Some(layout) = &self.kv_layout else { return Ok(()) };
        let num_blocks = batch.blocks(row).len();
        check.require(num_blocks >= context_len.div_ceil(layout.block_size), || {
            format!("row {row} has {num_blocks} blocks for a context of {context_len}")
        })
    }

    fn describe(&mut self, batch: &Batch) {
        let loaded = &mut self.batch;
        loaded.num_rows = batch.num_rows();
        loaded.max_context_len = batch.context_lens.iter().copied().max().unwrap_or(0) as usize;
        loaded.sampled_slots.extend(batch.sampled_rows.iter().map(|&row| batch.slots[row as usize]));
        loaded.is_all_sampled = batch.num_sampled() == batch.num_tokens();
        loaded.checked_cache = self.kv_layout.map(|layout| (layout.block_size, layout.num_blocks));
        loaded.plan.fill(batch, self.num_shares);
        loaded.launch = LaunchSizes {
            rows: batch.num_rows(),
            tokens: batch.num_tokens(),
            sampled: batch.num_sampled(),
            decode_shares: loaded.plan.decode_shares.len(),
            prompt_tiles: loaded.plan.prompt_tiles.len(),
        };
    }
}

/// An upload that is being written.
struct Packing<'a> {
    bytes: &'a mut [u8],
    /// What was written.
    pieces: Pieces,
}

impl Packing<'_> {
    /// Writes every array but header and resets.
    fn put_batch(&mut self, layout: &UploadLayout, batch: &Batch, plan: &AttentionPlan) {
        self.put(layout.slots, &batch.slots);
        self.put(layout.query_starts, &batch.query_starts);
        self.put(layout.context_lens, &batch.context_lens);
        self.put(layout.block_starts, &batch.block_starts);
        self.put(layout.sampled_rows, &batch.sampled_rows);
        self.put(layout.decode_items, &plan.decode_items);
        self.put(layout.decode_shares, &plan.decode_shares);
        self.put(layout.prompt_tiles, &plan.prompt_tiles);
        self.put(layout.tokens, &batch.tokens);
        self.put(layout.block_tables, &batch.block_tables);
    }

    /// Writes `values` at `offset`.
    fn put<T: Pod>(&mut self, offset: usize, values: &[T]) {
        let source: &[u8] = bytemuck::cast_slice(values);
        self.bytes[offset..offset + source.len()].copy_from_slice(source);
        self.pieces.add(offset, source.len());
    }
}

/// Checks `[num_rows + 1]` ascending starts from 0 to `end`.
fn check_starts(
    check: Checker,
    name: &str,
    starts: &[u32],
    num_rows: usize,
    end: usize,
) -> BackendResult<()> {
    let is_ascending = starts.windows(2).all(|pair| pair[0] <= pair[1]);
    let is_complete = starts.first() == Some(&0) && starts.last().map(|&last| last as usize) == Some(end);
    check.require(starts.len() == num_rows + 1 && is_ascending && is_complete, || {
        format!("{name} must be {} ascending numbers from 0 to {end}", num_rows + 1)
    })
}

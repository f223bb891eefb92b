//! Penalties, bias and suppression on the device (`kernels/history.cuh`): a slot's marks, one per token of the
//! vocabulary, and its edits. They are written when a sequence that needs them takes the slot over.

use bytemuck::{Pod, Zeroable};

use super::driver::{DevicePtr, Event, Gpu, Kernel, Launch, Params};
use super::memory::{Arena, Pinned};
use super::modules::Modules;
use crate::backend::{BackendLimits, BackendResult, SlotState};

/// Bytes of a slot's mark of one token.
const MARK_BYTES: usize = 2;
/// Largest count of a token in an output that a mark holds.
const MAX_COUNT: usize = 0x3fff;
/// Most edits of a slot; enough for a thousand biases, the end-of-sequence tokens and a few stop tokens.
pub(super) const MAX_EDITS: usize = 1088;
/// Tokens that are marked by one launch.
const CHUNK_ENTRIES: usize = 16 << 10;
/// Chunks on their way to the device.
const NUM_CHUNKS: usize = 4;
const THREADS: u32 = 256;
/// Bits of an entry below its kind.
const TOKEN_BITS: u32 = 30;

/// What an entry marks its token as.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Prompt = 0,
    Output = 1,
    Edit = 2,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct LogitEdit {
    token: u32,
    /// Minus infinity: suppressed before `min_tokens` outputs.
    bias: f32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct MarkTokensParams {
    entries: DevicePtr,
    marks: DevicePtr,
    num_entries: u32,
    vocab_size: u32,
}

const _: () = assert!(size_of::<MarkTokensParams>() == 24 && size_of::<LogitEdit>() == 8);
const _: () = assert!(MAX_EDITS * size_of::<LogitEdit>() <= CHUNK_ENTRIES * 4);

// SAFETY: `repr(C)`, mirrors MarkTokensParams in history.cu.
unsafe impl Params for MarkTokensParams {}

struct Chunk {
    pinned: Pinned,
    device: DevicePtr,
    copied: Event,
    /// Bytes that are on their way.
    num_used: usize,
}

pub(super) struct Histories {
    kernel: Kernel<MarkTokensParams>,
    /// `[slots, marks_stride]`.
    pub(super) marks: DevicePtr,
    /// Marks from one slot to the next: the vocabulary rounded up to whole words.
    pub(super) marks_stride: usize,
    /// `[slots, MAX_EDITS]`.
    pub(super) edits: DevicePtr,
    vocab_size: usize,
    chunks: Vec<Chunk>,
    /// The chunk that is being filled.
    current: usize,
}

fn marks_stride(vocab_size: usize) -> usize {
    vocab_size.next_multiple_of(2)
}

impl Histories {
    /// Bytes of its allocations for `limits`.
    pub(super) fn device_sizes(limits: &BackendLimits) -> impl Iterator<Item = u64> {
        let marks_bytes = limits.max_slots * marks_stride(limits.vocab_size) * MARK_BYTES;
        let edits_bytes = limits.max_slots * MAX_EDITS * size_of::<LogitEdit>();
        let chunks = [CHUNK_ENTRIES * 4; NUM_CHUNKS];
        [marks_bytes, edits_bytes].into_iter().chain(chunks).map(|bytes| bytes as u64)
    }

    pub(super) fn new(
        gpu: &Gpu,
        modules: &Modules,
        arena: &mut Arena,
        limits: &BackendLimits,
    ) -> BackendResult<Histories> {
        let BackendLimits { max_slots, vocab_size, .. } = *limits;
        let marks_stride = marks_stride(vocab_size);
        let marks_bytes = (max_slots * marks_stride * MARK_BYTES) as u64;
        let marks = arena.alloc(gpu, marks_bytes, "marks of tokens")?;
        let edits_bytes = (max_slots * MAX_EDITS * size_of::<LogitEdit>()) as u64;
        let edits = arena.alloc(gpu, edits_bytes, "edits of logits")?;
        let mut chunk = || {
            let device = arena.alloc(gpu, CHUNK_ENTRIES as u64 * 4, "tokens to mark")?;
            Ok(Chunk {
                pinned: Pinned::new(gpu, CHUNK_ENTRIES * 4)?,
                device,
                copied: Event::new(gpu, false)?,
                num_used: 0,
            })
        };
        Ok(Histories {
            kernel: modules.kernel(gpu, "history", "mark_tokens")?,
            marks,
            marks_stride,
            edits,
            vocab_size,
            chunks: (0..NUM_CHUNKS).map(|_| chunk()).collect::<BackendResult<_>>()?,
            current: 0,
        })
    }

    /// Whether the device can keep what `state` asks for.
    pub(super) fn takes(state: &SlotState) -> bool {
        num_edits(state) <= MAX_EDITS && state.output.len() <= MAX_COUNT
    }

    /// Writes the marks and edits of a sequence that takes over `slot`, before the next step.
    pub(super) fn reset(&mut self, gpu: &Gpu, slot: u32, state: &SlotState) -> BackendResult<()> {
        gpu.bind()?;
        let stride_bytes = (self.marks_stride * MARK_BYTES) as u64;
        let marks = self.marks + u64::from(slot) * stride_bytes;
        gpu.fill(marks, 0, stride_bytes)?;
        if state.repetition_penalty != 1.0 {
            self.mark(gpu, marks, Kind::Prompt, state.prompt.iter().copied())?;
        }
        if counts_outputs(state) {
            self.mark(gpu, marks, Kind::Output, state.output.iter().copied())?;
        }
        let biases = state.logit_bias.iter().map(|&(token, bias)| LogitEdit { token, bias });
        let suppressed = suppressed(state).iter().map(|&token| LogitEdit { token, bias: f32::NEG_INFINITY });
        let edits: Vec<LogitEdit> = biases.chain(suppressed).collect();
        if edits.is_empty() {
            return Ok(());
        }
        let edits_bytes = MAX_EDITS * size_of::<LogitEdit>();
        let target = self.edits + u64::from(slot) * edits_bytes as u64;
        self.send(gpu, bytemuck::cast_slice(&edits), Some(target))?;
        self.mark(gpu, marks, Kind::Edit, edits.iter().map(|edit| edit.token))
    }

    fn mark(
        &mut self,
        gpu: &Gpu,
        marks: DevicePtr,
        kind: Kind,
        tokens: impl Iterator<Item = u32>,
    ) -> BackendResult<()> {
        let is_inside = |token: &u32| (*token as usize) < self.vocab_size;
        let entries: Vec<u32> =
            tokens.filter(is_inside).map(|token| token | (kind as u32) << TOKEN_BITS).collect();
        for entries in entries.chunks(CHUNK_ENTRIES) {
            let params = MarkTokensParams {
                entries: self.send(gpu, bytemuck::cast_slice(entries), None)?,
                marks,
                num_entries: entries.len() as u32,
                vocab_size: self.vocab_size as u32,
            };
            let launch = Launch::new((entries.len() as u32).div_ceil(THREADS), THREADS);
            gpu.launch("reset_slot", &self.kernel, launch, &params)?;
        }
        Ok(())
    }

    /// Copies `bytes`, a chunk at most, to `target` or else to the chunk's own place on the device; says where. What is
    /// small follows what the chunk holds already, so that many slots are reset without waiting for a step that runs.
    fn send(&mut self, gpu: &Gpu, bytes: &[u8], target: Option<DevicePtr>) -> BackendResult<DevicePtr> {
        if self.chunks[self.current].num_used + bytes.len() > CHUNK_ENTRIES * 4 {
            self.current = (self.current + 1) % NUM_CHUNKS;
            let chunk = &mut self.chunks[self.current];
            chunk.copied.wait("reset_slot", gpu)?;
            chunk.num_used = 0;
        }
        let chunk = &mut self.chunks[self.current];
        let place = chunk.num_used..chunk.num_used + bytes.len();
        chunk.pinned.bytes_mut()[place.clone()].copy_from_slice(bytes);
        let target = target.unwrap_or(chunk.device + place.start as u64);
        // SAFETY: pinned memory that is not written again before `copied` has passed. Both targets have room for
        // it, and kernels that read the chunk's place come before its next copy in the stream.
        unsafe { gpu.upload(target, chunk.pinned.as_ptr().add(place.start), bytes.len())? };
        chunk.copied.record(gpu)?;
        chunk.num_used = place.end;
        Ok(target)
    }
}

/// Whether penalties need to know the outputs.
pub(super) fn counts_outputs(state: &SlotState) -> bool {
    state.repetition_penalty != 1.0 || state.presence_penalty != 0.0 || state.frequency_penalty != 0.0
}

/// Edits of a slot.
pub(super) fn num_edits(state: &SlotState) -> usize {
    state.logit_bias.len() + suppressed(state).len()
}

fn suppressed(state: &SlotState) -> &[u32] {
    if state.min_tokens > 0 { &state.suppressed_tokens } else { &[] }
}

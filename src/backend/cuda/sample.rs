//! Sampling on the device (`kernels/sample.cu`). The slow path: a slot whose penalties or edits exceed what the
//! device keeps (`history.rs`) is sampled by the CPU's sampler, for which its row of logits comes to the host and
//! the step waits.

use std::collections::VecDeque;

use bytemuck::{Pod, Zeroable};

use super::batch::{DeviceSlot, LAST_TOKEN_OFFSET, SlotFlags, StepState};
use super::copies::{Copies, Pieces};
use super::driver::{DevicePtr, Event, Gpu, Kernel, Launch, Params};
use super::history::{self, Histories, MAX_EDITS};
use super::memory::{Arena, Pinned};
use super::modules::Modules;
use super::tensor::{Checker, Tensor};
use crate::backend::cpu::SlotTable;
use crate::backend::{BackendError, BackendLimits, BackendResult, DType, Sampled, SlotState, TokenLogprob};

/// Steps that may be sampled and not collected.
const MAX_PENDING: usize = 3;
/// Largest number of alternatives that a row reports; a slot that asks for more is refused.
const MAX_LOGPROBS: usize = 20;
const LOGPROBS_PER_ROW: usize = MAX_LOGPROBS + 1;
const THREADS: u32 = 1024;
const NO_TOKEN: u32 = u32::MAX;
const NO_LOGPROBS: u32 = u32::MAX;
/// 1 in the fixed-point format of a weight.
const WEIGHT_ONE: f64 = (1u32 << 30) as f64;

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct SampledRow {
    /// Or [`NO_TOKEN`].
    token: u32,
    num_logprobs: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Logprob {
    token: u32,
    logprob: f32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct SampleParams {
    header: DevicePtr,
    slots: DevicePtr,
    sampled_rows: DevicePtr,
    slot_states: DevicePtr,
    logits: DevicePtr,
    rows: DevicePtr,
    logprobs: DevicePtr,
    marks: DevicePtr,
    edits: DevicePtr,
    vocab_size: u32,
    max_logprobs: u32,
    marks_stride: u32,
    max_edits: u32,
}

const _: () = assert!(size_of::<SampledRow>() == 8 && size_of::<Logprob>() == 8);
const _: () = assert!(size_of::<SampleParams>() == 88);

// SAFETY: `repr(C)`, mirrors SampleParams in sample.cu.
unsafe impl Params for SampleParams {}

/// Results of a step on their way to the host.
struct Results {
    pinned: Pinned,
    copied: Event,
}

/// A step that was sampled and not collected.
struct Pending {
    results: usize,
    slots: Vec<u32>,
    has_logprobs: bool,
    /// Rows of slots that the host sampled, with their index.
    host_sampled: Vec<(usize, Sampled)>,
}

/// What a slot asks for, as far as the host must know.
#[derive(Debug, Clone, Copy, Default)]
struct SlotFacts {
    is_host_sampled: bool,
    has_logprobs: bool,
}

pub(super) struct Sampler {
    kernel: Kernel<SampleParams>,
    slots: Vec<SlotFacts>,
    histories: Histories,
    /// States of the slots that the host samples.
    host_slots: SlotTable,
    /// One row of logits, and behind it one token per slot, for the slow path.
    host_row: Pinned,
    vocab_size: usize,
    device_rows: DevicePtr,
    device_logprobs: DevicePtr,
    results: Vec<Results>,
    next_results: usize,
    copies: Copies,
    pending: VecDeque<Pending>,
    max_slots: usize,
}

/// Where log-probabilities start among results.
fn logprobs_offset(max_slots: usize) -> usize {
    (max_slots * size_of::<SampledRow>()).next_multiple_of(16)
}

impl Sampler {
    /// Bytes of its allocations for `limits`.
    pub(super) fn device_sizes(limits: &BackendLimits) -> impl Iterator<Item = u64> {
        [Self::results_bytes(limits)].into_iter().chain(Histories::device_sizes(limits))
    }

    fn results_bytes(limits: &BackendLimits) -> u64 {
        let logprobs_bytes = limits.max_slots * LOGPROBS_PER_ROW * size_of::<Logprob>();
        (logprobs_offset(limits.max_slots) + logprobs_bytes.next_multiple_of(16)) as u64
    }

    pub(super) fn new(
        gpu: &Gpu,
        modules: &Modules,
        arena: &mut Arena,
        limits: &BackendLimits,
    ) -> BackendResult<Sampler> {
        let BackendLimits { max_slots, vocab_size, .. } = *limits;
        let device_rows = arena.alloc(gpu, Self::results_bytes(limits), "sampled rows")?;
        // Rows that the host samples are copied to it too, and must not be anything.
        gpu.fill(device_rows, 0, Self::results_bytes(limits))?;
        let results = || {
            let pinned = Pinned::new(gpu, Self::results_bytes(limits) as usize)?;
            Ok(Results { pinned, copied: Event::new(gpu, false)? })
        };
        Ok(Sampler {
            kernel: modules.kernel(gpu, "sample", "sample_rows")?,
            slots: vec![SlotFacts::default(); max_slots],
            histories: Histories::new(gpu, modules, arena, limits)?,
            host_slots: SlotTable::new(max_slots, vocab_size),
            host_row: Pinned::new(gpu, 4 * (vocab_size + max_slots))?,
            vocab_size,
            device_rows,
            device_logprobs: device_rows + logprobs_offset(max_slots) as u64,
            results: (0..MAX_PENDING).map(|_| results()).collect::<BackendResult<_>>()?,
            next_results: 0,
            copies: Copies::new(gpu, modules)?,
            pending: VecDeque::with_capacity(MAX_PENDING),
            max_slots,
        })
    }

    /// Takes over a slot's parameters; returns what the device keeps of them.
    pub(super) fn reset_slot(
        &mut self,
        gpu: &Gpu,
        check: Checker,
        slot: u32,
        state: &SlotState,
    ) -> BackendResult<DeviceSlot> {
        let Some(facts) = self.slots.get_mut(slot as usize) else {
            return check.fail(format!("slot {slot} of {}", self.max_slots));
        };
        check.require(state.num_logprobs.is_none_or(|num| num as usize <= MAX_LOGPROBS), || {
            format!("{:?} log-probabilities, at most {MAX_LOGPROBS}", state.num_logprobs)
        })?;
        let is_adjusted = history::counts_outputs(state) || history::num_edits(state) > 0;
        let is_host_sampled = is_adjusted && !Histories::takes(state);
        *facts = SlotFacts { is_host_sampled, has_logprobs: state.num_logprobs.is_some() };
        let mut flags = 0;
        if is_host_sampled {
            self.host_slots.reset(slot, state);
            flags = SlotFlags::HOST_SAMPLED;
        } else if is_adjusted {
            self.histories.reset(gpu, slot, state)?;
            flags = SlotFlags::ADJUSTED;
            flags |= if history::counts_outputs(state) { SlotFlags::COUNTS_OUTPUTS } else { 0 };
        }
        Ok(DeviceSlot {
            seed: state.seed,
            temperature: state.temperature,
            top_k: state.top_k,
            top_p: state.top_p,
            min_p_weight: (f64::from(state.min_p) * WEIGHT_ONE).ceil() as u32,
            num_logprobs: state.num_logprobs.unwrap_or(NO_LOGPROBS),
            num_outputs: state.output.len() as u32,
            last_token: state.output.last().copied().unwrap_or(0),
            flags,
            repetition_penalty: state.repetition_penalty,
            frequency_penalty: state.frequency_penalty,
            presence_penalty: state.presence_penalty,
            min_tokens: state.min_tokens,
            num_edits: history::num_edits(state) as u32,
            reserved: 0,
        })
    }

    /// See [`crate::backend::Backend::sample`]; while a step is recorded, the results stay on the device.
    pub(super) fn sample(
        &mut self,
        gpu: &Gpu,
        check: Checker,
        step: &StepState,
        logits: &Tensor,
    ) -> BackendResult<()> {
        let num_rows = step.batch.launch.sampled;
        check.tensor("logits", logits, DType::F32, num_rows, self.vocab_size)?;
        let params = SampleParams {
            header: step.arrays.header,
            slots: step.arrays.slots,
            sampled_rows: step.sampled_rows,
            slot_states: step.slot_states,
            logits: logits.data,
            rows: self.device_rows,
            logprobs: self.device_logprobs,
            marks: self.histories.marks,
            edits: self.histories.edits,
            vocab_size: self.vocab_size as u32,
            max_logprobs: MAX_LOGPROBS as u32,
            marks_stride: self.histories.marks_stride as u32,
            max_edits: MAX_EDITS as u32,
        };
        gpu.launch(check.operation, &self.kernel, Launch::overlapping(num_rows as u32, THREADS), &params)?;
        if step.is_recording {
            return Ok(());
        }
        self.send_results(gpu, step)?;
        self.sample_on_host(gpu, step, logits)
    }

    /// Whether a sampled row of the loaded batch is sampled by the host.
    pub(super) fn needs_host(&self, step: &StepState) -> bool {
        step.batch.sampled_slots.iter().any(|&slot| self.slots[slot as usize].is_host_sampled)
    }

    /// Sends the device's results of the loaded batch on their way to the host.
    pub(super) fn send_results(&mut self, gpu: &Gpu, step: &StepState) -> BackendResult<()> {
        let slots = step.batch.sampled_slots.clone();
        if self.pending.len() == MAX_PENDING {
            let message = "collect steps before sampling more".to_owned();
            return Err(BackendError::InvalidArgument { operation: "sample", message });
        }
        let has_logprobs = slots.iter().any(|&slot| self.slots[slot as usize].has_logprobs);
        let results = &mut self.results[self.next_results];
        let mut pieces = Pieces::default();
        pieces.add(0, slots.len() * size_of::<SampledRow>());
        if has_logprobs {
            let num_bytes = slots.len() * LOGPROBS_PER_ROW * size_of::<Logprob>();
            pieces.add(logprobs_offset(self.max_slots), num_bytes);
        }
        let copied = (results.pinned.device_ptr(), self.device_rows);
        // SAFETY: pinned memory with the layout of the device's results, which nobody reads before `copied`.
        unsafe { self.copies.run(gpu, "sample", copied, &pieces)? };
        results.copied.record(gpu)?;
        self.pending.push_back(Pending {
            results: self.next_results,
            slots,
            has_logprobs,
            host_sampled: Vec::new(),
        });
        self.next_results = (self.next_results + 1) % MAX_PENDING;
        Ok(())
    }

    /// The slow path, row by row: logits to the host, the CPU's sampler, the token back to the device.
    fn sample_on_host(&mut self, gpu: &Gpu, step: &StepState, logits: &Tensor) -> BackendResult<()> {
        for (row, &slot) in step.batch.sampled_slots.iter().enumerate() {
            if !self.slots[slot as usize].is_host_sampled {
                continue;
            }
            let row_bytes = 4 * self.vocab_size;
            // SAFETY: pinned memory with room for a row, read after the stream has finished.
            unsafe { gpu.download(self.host_row.as_mut_ptr(), logits.row(row), row_bytes)? };
            gpu.synchronize()?;
            let sampled = {
                let row_logits: &[f32] = bytemuck::cast_slice(&self.host_row.bytes()[..row_bytes]);
                self.host_slots.sample_row(slot, row_logits)
            };
            let offset = row_bytes + 4 * slot as usize;
            let token = sampled.token.unwrap_or(0);
            self.host_row.bytes_mut()[offset..offset + 4].copy_from_slice(&token.to_le_bytes());
            let target =
                step.slot_states + u64::from(slot) * size_of::<DeviceSlot>() as u64 + LAST_TOKEN_OFFSET;
            // SAFETY: the slot's own place in pinned memory is written again only after the stream has finished
            // once more; the target is the slot's token.
            unsafe { gpu.upload(target, self.host_row.as_ptr().add(offset), 4)? };
            let pending = self.pending.back_mut().expect("this step's results were sent before");
            pending.host_sampled.push((row, sampled));
        }
        Ok(())
    }

    /// See [`crate::backend::Backend::collect`].
    pub(super) fn collect(&mut self, gpu: &Gpu, check: Checker) -> BackendResult<Vec<Sampled>> {
        let Some(pending) = self.pending.pop_front() else {
            return check.fail("nothing was sampled".to_owned());
        };
        let results = &self.results[pending.results];
        results.copied.wait(check.operation, gpu)?;
        let (rows_bytes, logprobs_bytes) = results.pinned.bytes().split_at(logprobs_offset(self.max_slots));
        let rows: &[SampledRow] = bytemuck::cast_slice(rows_bytes);
        let logprobs: &[Logprob] =
            bytemuck::cast_slice(&logprobs_bytes[..self.max_slots * LOGPROBS_PER_ROW * size_of::<Logprob>()]);
        let device_sampled = |(index, &slot): (usize, &u32)| {
            let row = rows[index];
            let count = if pending.has_logprobs { row.num_logprobs as usize } else { 0 };
            let first = index * LOGPROBS_PER_ROW;
            let logprobs = logprobs[first..first + count.min(LOGPROBS_PER_ROW)].iter();
            Sampled {
                slot,
                token: (row.token != NO_TOKEN).then_some(row.token),
                logprobs: logprobs
                    .map(|&Logprob { token, logprob }| TokenLogprob { token, logprob })
                    .collect(),
            }
        };
        let mut sampled: Vec<Sampled> = pending.slots.iter().enumerate().map(device_sampled).collect();
        for (row, host) in pending.host_sampled {
            sampled[row] = host;
        }
        Ok(sampled)
    }
}

//! Large data on its way between host and device, piece by piece through pinned memory.

use super::driver::{DevicePtr, Event, Gpu};
use super::memory::Pinned;
use crate::backend::BackendResult;

/// Pinned memory through which weights are written, in two halves: one is copied while the other is filled.
const STAGING_BYTES: usize = 8 << 20;

/// Two pinned halves through which large data passes.
pub(super) struct Staging {
    halves: [(Pinned, Event); 2],
    next: usize,
}

impl Staging {
    pub(super) fn new(gpu: &Gpu) -> BackendResult<Staging> {
        let half = || Ok((Pinned::new(gpu, STAGING_BYTES / 2)?, Event::new(gpu, false)?));
        Ok(Staging { halves: [half()?, half()?], next: 0 })
    }

    /// Copies `bytes` to `target`; they may be reused at once, and later work on the stream sees them.
    pub(super) fn write(&mut self, gpu: &Gpu, target: DevicePtr, bytes: &[u8]) -> BackendResult<()> {
        gpu.bind()?;
        for (index, chunk) in bytes.chunks(STAGING_BYTES / 2).enumerate() {
            let (pinned, copied) = &mut self.halves[self.next];
            self.next ^= 1;
            copied.wait("write_rows", gpu)?;
            pinned.bytes_mut()[..chunk.len()].copy_from_slice(chunk);
            let offset = (index * (STAGING_BYTES / 2)) as u64;
            // SAFETY: pinned memory that is not written before `copied` has passed; the caller has checked that
            // the target has room.
            unsafe { gpu.upload(target + offset, pinned.as_ptr(), chunk.len())? };
            copied.record(gpu)?;
        }
        Ok(())
    }

    /// Hands `num_bytes` bytes from `source` on to `take`, piece by piece.
    pub(super) fn read(
        &mut self,
        gpu: &Gpu,
        source: DevicePtr,
        num_bytes: usize,
        mut take: impl FnMut(&[u8]),
    ) -> BackendResult<()> {
        gpu.bind()?;
        let (pinned, copied) = &mut self.halves[0];
        copied.wait("read_rows", gpu)?;
        for first in (0..num_bytes).step_by(pinned.len()) {
            let count = pinned.len().min(num_bytes - first);
            // SAFETY: pinned memory with room, read after the stream has finished; the caller has checked the
            // source.
            unsafe { gpu.download(pinned.as_mut_ptr(), source + first as u64, count)? };
            gpu.synchronize()?;
            take(&pinned.bytes()[..count]);
        }
        Ok(())
    }
}

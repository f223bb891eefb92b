//! Large data on its way between host and device, piece by piece through pinned memory.

use super::driver::{DevicePtr, Event, Gpu};
use super::memory::Pinned;
use crate::backend::BackendResult;
use crate::error::Result;

/// What a buffer holds before more is asked for.
const BUFFER_BYTES: usize = 4 << 20;

/// Two pinned buffers through which large data passes: the device copies one while the other is filled.
pub(super) struct Staging {
    buffers: [(Pinned, Event); 2],
    next: usize,
}

impl Staging {
    pub(super) fn new(gpu: &Gpu) -> BackendResult<Staging> {
        let buffer = || Ok((Pinned::new(gpu, BUFFER_BYTES)?, Event::new(gpu, false)?));
        Ok(Staging { buffers: [buffer()?, buffer()?], next: 0 })
    }

    /// Copies `bytes` to `target`; they may be reused at once, and later work on the stream sees them.
    pub(super) fn write(&mut self, gpu: &Gpu, target: DevicePtr, bytes: &[u8]) -> BackendResult<()> {
        for (index, chunk) in bytes.chunks(BUFFER_BYTES).enumerate() {
            self.pinned(gpu, chunk.len())?.copy_from_slice(chunk);
            self.send(gpu, target + (index * BUFFER_BYTES) as u64, chunk.len())?;
        }
        Ok(())
    }

    /// Copies what `fill` writes to `target`, `num_bytes` bytes; later work on the stream sees them. A buffer grows
    /// to the most that has been asked for, so that the device copies without a detour on the host.
    pub(super) fn fill(
        &mut self,
        gpu: &Gpu,
        target: DevicePtr,
        num_bytes: usize,
        fill: &mut dyn FnMut(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        fill(self.pinned(gpu, num_bytes)?)?;
        Ok(self.send(gpu, target, num_bytes)?)
    }

    /// `num_bytes` bytes of the next buffer, once the device has copied what was there.
    fn pinned(&mut self, gpu: &Gpu, num_bytes: usize) -> BackendResult<&mut [u8]> {
        gpu.bind()?;
        let (pinned, copied) = &mut self.buffers[self.next];
        copied.wait("write_rows", gpu)?;
        if pinned.len() < num_bytes {
            *pinned = Pinned::new(gpu, num_bytes)?;
        }
        Ok(&mut pinned.bytes_mut()[..num_bytes])
    }

    /// Has the device copy the first `num_bytes` bytes of the next buffer to `target`, and turns to the other.
    fn send(&mut self, gpu: &Gpu, target: DevicePtr, num_bytes: usize) -> BackendResult<()> {
        let (pinned, copied) = &self.buffers[self.next];
        // SAFETY: pinned memory of at least `num_bytes` bytes, which is not written before `copied` has passed;
        // the caller has checked that the target has room.
        unsafe { gpu.upload(target, pinned.as_ptr(), num_bytes)? };
        copied.record(gpu)?;
        self.next ^= 1;
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
        let (pinned, copied) = &mut self.buffers[0];
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

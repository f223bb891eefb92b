//! Memory of the device and pinned memory of the host.

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::sys::{self, CUresult};

use super::driver::{DevicePtr, Gpu};
use crate::backend::{BackendError, BackendResult};

/// Allocations start at multiples of this.
const ALIGNMENT: u64 = 256;
/// Granularity of the driver's allocator.
const GRANULE_BYTES: u64 = 2 << 20;
/// Allocations of up to half of this share chunks of this size, since each alone would take whole granules.
const CHUNK_BYTES: u64 = 16 << 20;

/// Where an allocation goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Into a chunk of so many bytes that is its own.
    Alone(u64),
    /// To the beginning of a new shared chunk.
    NewChunk,
    /// Behind what the shared chunk of this number holds.
    Behind(usize),
}

/// How allocations share chunks: what a plan and an arena have in common.
#[derive(Debug, Clone, Default)]
struct Packing {
    /// What is left of each shared chunk.
    free_bytes: Vec<u64>,
    /// Of all chunks.
    total_bytes: u64,
}

impl Packing {
    /// Takes `bytes` bytes, and says where from and how many they are when aligned; `None` where they cannot be
    /// counted.
    fn place(&mut self, bytes: u64) -> Option<(Place, u64)> {
        let bytes = bytes.max(1).checked_next_multiple_of(ALIGNMENT)?;
        if bytes > CHUNK_BYTES / 2 {
            let rounded = bytes.checked_next_multiple_of(GRANULE_BYTES)?;
            self.total_bytes = self.total_bytes.checked_add(rounded)?;
            return Some((Place::Alone(rounded), bytes));
        }
        if let Some(chunk) = self.free_bytes.iter().position(|&free_bytes| free_bytes >= bytes) {
            self.free_bytes[chunk] -= bytes;
            return Some((Place::Behind(chunk), bytes));
        }
        self.total_bytes = self.total_bytes.checked_add(CHUNK_BYTES)?;
        self.free_bytes.push(CHUNK_BYTES - bytes);
        Some((Place::NewChunk, bytes))
    }
}

/// Bytes that an arena takes for allocations of `sizes`, made in this order; `None` where they cannot be counted.
pub(super) fn packed_bytes(sizes: &[u64]) -> Option<u64> {
    let mut packing = Packing::default();
    for &size in sizes {
        packing.place(size)?;
    }
    Some(packing.total_bytes)
}

/// All device memory of a backend. Nothing is freed before the arena is.
#[derive(Default)]
pub(super) struct Arena {
    chunks: Vec<DevicePtr>,
    packing: Packing,
    /// Where what is left of each shared chunk starts.
    free_starts: Vec<DevicePtr>,
}

impl Arena {
    /// `bytes` bytes, not initialised.
    pub(super) fn alloc(&mut self, gpu: &Gpu, bytes: u64, what: &str) -> BackendResult<DevicePtr> {
        let out_of_memory = || BackendError::OutOfMemory { what: what.to_owned(), bytes };
        // What is not to be had leaves the arena as it was.
        let mut packing = self.packing.clone();
        let (place, bytes) = packing.place(bytes).ok_or_else(out_of_memory)?;
        let start = match place {
            Place::Alone(chunk_bytes) => self.alloc_chunk(gpu, chunk_bytes, what)?,
            Place::NewChunk => {
                let start = self.alloc_chunk(gpu, CHUNK_BYTES, what)?;
                self.free_starts.push(start + bytes);
                start
            }
            Place::Behind(chunk) => {
                let start = self.free_starts[chunk];
                self.free_starts[chunk] += bytes;
                start
            }
        };
        self.packing = packing;
        Ok(start)
    }

    fn alloc_chunk(&mut self, gpu: &Gpu, bytes: u64, what: &str) -> BackendResult<DevicePtr> {
        gpu.bind()?;
        let out_of_memory = || BackendError::OutOfMemory { what: what.to_owned(), bytes };
        let size = usize::try_from(bytes).map_err(|_| out_of_memory())?;
        let mut start = 0;
        // SAFETY: the pointer is to a local.
        match unsafe { sys::cuMemAlloc_v2(&mut start, size) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => return Err(out_of_memory()),
            result => gpu.check("alloc", result)?,
        }
        self.chunks.push(start);
        Ok(start)
    }

    /// Bytes taken from the device.
    pub(super) fn total_bytes(&self) -> u64 {
        self.packing.total_bytes
    }

    /// Frees everything, after what runs on the stream has finished.
    pub(super) fn free(&mut self, gpu: &Gpu) {
        let _ = gpu.bind().and_then(|()| gpu.synchronize());
        for chunk in self.chunks.drain(..) {
            // SAFETY: the chunk came from this context and nothing on the stream uses it any more. On a lost
            // device the call fails and its memory is gone anyway.
            let _ = unsafe { sys::cuMemFree_v2(chunk) };
        }
    }
}

/// Page-locked host memory, which the device copies from and to by itself.
pub(super) struct Pinned {
    start: *mut u8,
    num_bytes: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Pinned {}

impl Pinned {
    /// `num_bytes` zeros.
    pub(super) fn new(gpu: &Gpu, num_bytes: usize) -> BackendResult<Pinned> {
        gpu.bind()?;
        let num_bytes = num_bytes.max(1);
        let mut start: *mut c_void = ptr::null_mut();
        // SAFETY: the pointer is to a local.
        match unsafe { sys::cuMemHostAlloc(&mut start, num_bytes, 0) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                return Err(BackendError::HostOutOfMemory {
                    what: "pinned memory".to_owned(),
                    bytes: num_bytes as u64,
                });
            }
            result => gpu.check("alloc_pinned", result)?,
        }
        // SAFETY: the allocation has `num_bytes` bytes.
        unsafe { ptr::write_bytes(start.cast::<u8>(), 0, num_bytes) };
        Ok(Pinned { start: start.cast(), num_bytes })
    }

    pub(super) fn as_ptr(&self) -> *const u8 {
        self.start
    }

    /// Where kernels find the bytes: devices share the host's addresses.
    pub(super) fn device_ptr(&self) -> DevicePtr {
        self.start as DevicePtr
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start
    }

    pub(super) fn len(&self) -> usize {
        self.num_bytes
    }

    /// The bytes; the caller has waited for the device's copies into them.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the allocation is initialised and lives as long as `self`; no copy into it is under way.
        unsafe { std::slice::from_raw_parts(self.start, self.num_bytes) }
    }

    /// The bytes, to write where the caller has waited for the device's copies out of them.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `bytes`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.num_bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: the backend waits for its stream before it drops its buffers; an error changes nothing.
        let _ = unsafe { sys::cuMemFreeHost(self.start.cast()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn small_allocations_share_chunks_and_large_ones_take_granules() {
        assert_eq!(packed_bytes(&[]), Some(0));
        assert_eq!(packed_bytes(&[0, 1, 257]), Some(16 * MIB));
        assert_eq!(packed_bytes(&[8 * MIB, 8 * MIB]), Some(16 * MIB));
        assert_eq!(packed_bytes(&[8 * MIB, 8 * MIB, 1]), Some(32 * MIB));
        assert_eq!(packed_bytes(&[8 * MIB + 1]), Some(10 * MIB));
        // What is left of a shared chunk is still there after a large one and after another chunk.
        assert_eq!(packed_bytes(&[1, 9 * MIB, 8 * MIB - 256]), Some(26 * MIB));
        assert_eq!(packed_bytes(&[7 * MIB, 8 * MIB, 8 * MIB, MIB]), Some(32 * MIB));
        assert_eq!(packed_bytes(&[u64::MAX]), None);
        assert_eq!(packed_bytes(&[u64::MAX - 4 * MIB, 9 * MIB]), None);
    }

    /// Thirty layers of a model of 576 elements, whose matrices alone would take 22 % more than they hold.
    #[test]
    fn the_matrices_of_a_small_model_lose_little() {
        let layer = [576 * 960, 576 * 576, 576 * 3072, 1536 * 576].map(|elements| 2 * elements);
        let sizes: Vec<u64> = std::iter::repeat_n(layer, 30).flatten().collect();
        let (sum, packed) = (sizes.iter().sum::<u64>(), packed_bytes(&sizes).unwrap());
        assert!(packed >= sum && (packed as f64) < 1.08 * sum as f64, "{packed} for {sum}");
    }
}

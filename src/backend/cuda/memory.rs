//! Memory of the device and pinned memory of the host.

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::sys::{self, CUresult};

use super::driver::{DevicePtr, Gpu};
use crate::backend::{BackendError, BackendResult};

/// Allocations start at multiples of this.
const ALIGNMENT: u64 = 256;
/// Granularity of the driver's allocator; smaller allocations share chunks of this size.
const CHUNK_BYTES: u64 = 2 << 20;

/// All device memory of a backend. Nothing is freed before the arena is.
#[derive(Default)]
pub(super) struct Arena {
    chunks: Vec<DevicePtr>,
    total_bytes: u64,
    /// What is left of the chunk that small allocations share.
    free_start: DevicePtr,
    free_bytes: u64,
}

impl Arena {
    /// `bytes` bytes, not initialised.
    pub(super) fn alloc(&mut self, gpu: &Gpu, bytes: u64, what: &str) -> BackendResult<DevicePtr> {
        let out_of_memory = || BackendError::OutOfMemory { what: what.to_owned(), bytes };
        let bytes = bytes.max(1).checked_next_multiple_of(ALIGNMENT).ok_or_else(out_of_memory)?;
        if bytes > CHUNK_BYTES / 2 {
            let rounded = bytes.checked_next_multiple_of(CHUNK_BYTES).ok_or_else(out_of_memory)?;
            return self.alloc_chunk(gpu, rounded, what);
        }
        if self.free_bytes < bytes {
            self.free_start = self.alloc_chunk(gpu, CHUNK_BYTES, what)?;
            self.free_bytes = CHUNK_BYTES;
        }
        let start = self.free_start;
        self.free_start += bytes;
        self.free_bytes -= bytes;
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
        self.total_bytes += bytes;
        Ok(start)
    }

    /// Bytes taken from the device.
    pub(super) fn total_bytes(&self) -> u64 {
        self.total_bytes
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

    /// The bytes, to write; the caller has waited for the device's copies out of them.
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

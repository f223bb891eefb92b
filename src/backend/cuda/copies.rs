//! Small copies between pinned and device memory that a kernel makes (`kernels/copy.cu`).

use super::driver::{DevicePtr, Gpu, Kernel, Launch, Params};
use super::modules::Modules;
use super::tensor::to_u32;
use crate::backend::{BackendError, BackendResult};

const THREADS: usize = 256;
/// As many as a batch has: its header, ten arrays, and the resets.
const MAX_PIECES: usize = 12;
const VECTOR_BYTES: usize = 16;

#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct CopyPiece {
    start: u32,
    end: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct CopyPiecesParams {
    source: DevicePtr,
    target: DevicePtr,
    num_pieces: u32,
    reserved: u32,
    pieces: [CopyPiece; MAX_PIECES],
}

const _: () = assert!(size_of::<CopyPiecesParams>() == 120);

// SAFETY: `repr(C)`, mirrors CopyPiecesParams in copy.cu.
unsafe impl Params for CopyPiecesParams {}

/// Pieces of two buffers, at the same places of both, which start at multiples of 16 bytes and are copied as whole
/// vectors of as many.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    pieces: [CopyPiece; MAX_PIECES],
    count: usize,
    num_vectors: usize,
}

impl Pieces {
    /// Adds `num_bytes` bytes from `offset` on.
    pub(super) fn add(&mut self, offset: usize, num_bytes: usize) {
        debug_assert!(offset.is_multiple_of(VECTOR_BYTES));
        self.num_vectors += num_bytes.div_ceil(VECTOR_BYTES);
        // One that is too many is refused when they are copied.
        if let Some(piece) = self.pieces.get_mut(self.count) {
            *piece = CopyPiece { start: (offset / VECTOR_BYTES) as u32, end: self.num_vectors as u32 };
        }
        self.count += 1;
    }
}

/// The kernel.
pub(super) struct Copies {
    copy_pieces: Kernel<CopyPiecesParams>,
}

impl Copies {
    pub(super) fn new(gpu: &Gpu, modules: &Modules) -> BackendResult<Copies> {
        Ok(Copies { copy_pieces: modules.kernel(gpu, "copy", "copy_pieces")? })
    }

    /// Copies `pieces` from `source` to `target`, in stream order.
    ///
    /// # Safety
    /// One of the buffers is pinned memory, which is not written, or as a target not read, before an event recorded
    /// later has passed. Both start at a multiple of 16 bytes and have room for all pieces.
    pub(super) unsafe fn run(
        &self,
        gpu: &Gpu,
        operation: &'static str,
        (target, source): (DevicePtr, DevicePtr),
        pieces: &Pieces,
    ) -> BackendResult<()> {
        let Pieces { pieces, count, num_vectors } = *pieces;
        if count > MAX_PIECES {
            let message = format!("{count} pieces to copy, at most {MAX_PIECES}");
            return Err(BackendError::InvalidArgument { operation, message });
        }
        let params = CopyPiecesParams { source, target, num_pieces: count as u32, reserved: 0, pieces };
        let blocks = to_u32(operation, num_vectors.div_ceil(THREADS))?;
        gpu.launch(operation, &self.copy_pieces, Launch::new(blocks, THREADS as u32), &params)
    }
}

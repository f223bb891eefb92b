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
    pieces: Vec<CopyPiece>,
}

impl Pieces {
    /// Adds `num_bytes` bytes from `offset` on.
    pub(super) fn add(&mut self, offset: usize, num_bytes: usize) {
        debug_assert!(offset.is_multiple_of(VECTOR_BYTES));
        let end = self.num_vectors() + num_bytes.div_ceil(VECTOR_BYTES);
        self.pieces.push(CopyPiece { start: (offset / VECTOR_BYTES) as u32, end: end as u32 });
    }

    pub(super) fn clear(&mut self) {
        self.pieces.clear();
    }

    fn num_vectors(&self) -> usize {
        self.pieces.last().map_or(0, |piece| piece.end as usize)
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
        let num_pieces = pieces.pieces.len();
        if num_pieces > MAX_PIECES {
            let message = format!("{num_pieces} pieces to copy, at most {MAX_PIECES}");
            return Err(BackendError::InvalidArgument { operation, message });
        }
        let mut params = CopyPiecesParams {
            source,
            target,
            num_pieces: num_pieces as u32,
            reserved: 0,
            pieces: [CopyPiece::default(); MAX_PIECES],
        };
        params.pieces[..num_pieces].copy_from_slice(&pieces.pieces);
        let blocks = to_u32(operation, pieces.num_vectors().div_ceil(THREADS))?;
        gpu.launch(operation, &self.copy_pieces, Launch::new(blocks, THREADS as u32), &params)
    }
}

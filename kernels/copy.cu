// Copies pieces of memory that lie at the same places of two buffers, one of which is the host's: pinned memory that
// the device reaches by itself. For the few kilobytes around a step this ends sooner than a copy by the device's copy
// engine, for which the stream would change over to that and back.
//
// copy_pieces: one 16-byte vector per thread; pieces follow each other among the threads.

#include <cstdint>

constexpr int THREADS = 256;
constexpr int MAX_PIECES = 12;

struct CopyPiece {
  // In both buffers, in vectors.
  uint32_t start;
  // Vectors of this piece and those before it.
  uint32_t end;
};

struct CopyPiecesParams {
  const uint4 *source;
  uint4 *target;
  uint32_t num_pieces;
  uint32_t reserved;
  CopyPiece pieces[MAX_PIECES];
};
static_assert(sizeof(CopyPiecesParams) == 120, "mirrored in copies.rs");

extern "C" __global__ void __launch_bounds__(THREADS) copy_pieces(const __grid_constant__ CopyPiecesParams params) {
  const uint32_t index = blockIdx.x * THREADS + threadIdx.x;
  uint32_t first = 0;
  for (uint32_t i = 0; i < params.num_pieces; i++) {
    const CopyPiece &piece = params.pieces[i];
    if (index >= first && index < piece.end) {
      const uint32_t place = piece.start + index - first;
      params.target[place] = params.source[place];
    }
    first = piece.end;
  }
}

// Marks the tokens of a slot that takes part in penalties, bias or suppression: see `history.cuh`.
//
// One thread per entry: a token in the low bits, what it is in the two highest. Tokens may repeat.

#include "history.cuh"

struct MarkTokensParams {
  const uint32_t *entries;
  // The slot's marks, two to a word.
  uint32_t *marks;
  uint32_t num_entries;
  uint32_t vocab_size;
};
static_assert(sizeof(MarkTokensParams) == 24, "mirrored in history.rs");

constexpr uint32_t TOKEN_BITS = 30;
constexpr uint32_t OUTPUT_ENTRY = 1;
constexpr uint32_t EDIT_ENTRY = 2;

extern "C" __global__ void __launch_bounds__(256) mark_tokens(const __grid_constant__ MarkTokensParams params) {
  const uint32_t index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= params.num_entries) {
    return;
  }
  const uint32_t token = params.entries[index] & ((1u << TOKEN_BITS) - 1);
  const uint32_t kind = params.entries[index] >> TOKEN_BITS;
  if (token >= params.vocab_size) {
    return;
  }
  uint32_t *word = params.marks + token / 2;
  const uint32_t shift = token % 2 * 16;
  atomicOr(word, (kind == EDIT_ENTRY ? MARK_EDITED : MARK_SEEN) << shift);
  if (kind == OUTPUT_ENTRY) {
    atomicAdd(word, 1u << shift);
  }
}

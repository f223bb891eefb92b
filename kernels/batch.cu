// Applies slot resets and derives the per-token arrays of a step.
//
// reset_slots: one thread per reset.
// prepare_batch: one block per row; its threads stride over the row's tokens. Resolves TOKEN_FROM_SLOT and
// computes position and cache place, `block * block_size + offset in the block`, of every token.

#include "step.cuh"

struct ResetSlotsParams {
  const StepHeader *header;
  const SlotReset *resets;
  SlotState *slot_states;
};
static_assert(sizeof(ResetSlotsParams) == 24, "mirrored in batch.rs");

extern "C" __global__ void __launch_bounds__(128) reset_slots(const __grid_constant__ ResetSlotsParams params) {
  const uint32_t index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index < params.header->num_resets) {
    params.slot_states[params.resets[index].slot] = params.resets[index].state;
  }
}

struct PrepareBatchParams {
  StepArrays arrays;
  // [tokens], with TOKEN_FROM_SLOT
  const uint32_t *tokens;
  const SlotState *slot_states;
  // [tokens] each
  uint32_t *resolved_tokens;
  uint32_t *positions;
  uint32_t *cache_places;
  // 0: there is no cache.
  uint32_t block_size;
  uint32_t reserved;
};
static_assert(sizeof(PrepareBatchParams) == 96, "mirrored in batch.rs");

extern "C" __global__ void __launch_bounds__(128)
    prepare_batch(const __grid_constant__ PrepareBatchParams params) {
  const StepArrays &arrays = params.arrays;
  const uint32_t row = blockIdx.x;
  if (row >= arrays.header->num_rows) {
    return;
  }
  const uint32_t first_token = arrays.query_starts[row];
  const uint32_t num_tokens = arrays.query_starts[row + 1] - first_token;
  const uint32_t first_position = arrays.context_lens[row] - num_tokens;
  const uint32_t *blocks = arrays.block_tables + arrays.block_starts[row];
  const uint32_t last_token = params.slot_states[arrays.slots[row]].last_token;
  for (uint32_t i = threadIdx.x; i < num_tokens; i += blockDim.x) {
    const uint32_t token = params.tokens[first_token + i];
    const uint32_t position = first_position + i;
    params.resolved_tokens[first_token + i] = token == TOKEN_FROM_SLOT ? last_token : token;
    params.positions[first_token + i] = position;
    if (params.block_size != 0) {
      const uint32_t block = blocks[position / params.block_size];
      params.cache_places[first_token + i] = block * params.block_size + position % params.block_size;
    }
  }
}

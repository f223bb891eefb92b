// out[t] = table[tokens[t]], and out[i] = hidden[last token of sampled row i].
//
// table [vocab, width], out [tokens, width], both of 2-byte elements, width a multiple of 8. One block copies
// one row in 16-byte vectors: a row is a few kilobytes, and rows are independent.

#include "common.cuh"
#include "step.cuh"

struct EmbedParams {
  const StepHeader *header;
  const uint32_t *tokens;
  const uint4 *table;
  uint4 *out;
  uint32_t vectors;
  uint32_t vocab_size;
};
static_assert(sizeof(EmbedParams) == 40, "mirrored in embed.rs");

extern "C" __global__ void __launch_bounds__(256) embed(const __grid_constant__ EmbedParams params) {
  wait_for_predecessor();
  start_successor();
  if (blockIdx.x >= params.header->num_tokens) {
    return;
  }
  const uint32_t token = params.tokens[blockIdx.x];
  if (token >= params.vocab_size) {
    return;
  }
  const uint4 *source = params.table + static_cast<uint64_t>(token) * params.vectors;
  uint4 *target = params.out + static_cast<uint64_t>(blockIdx.x) * params.vectors;
  for (uint32_t i = threadIdx.x; i < params.vectors; i += blockDim.x) {
    target[i] = source[i];
  }
}

struct GatherSampledParams {
  const StepHeader *header;
  const uint32_t *query_starts;
  const uint32_t *sampled_rows;
  const uint4 *hidden;
  uint4 *out;
  uint32_t vectors;
  // Index of the first sampled row that is gathered.
  uint32_t first_sampled;
};
static_assert(sizeof(GatherSampledParams) == 48, "mirrored in embed.rs");

extern "C" __global__ void __launch_bounds__(256)
    gather_sampled(const __grid_constant__ GatherSampledParams params) {
  wait_for_predecessor();
  start_successor();
  const uint32_t sampled = params.first_sampled + blockIdx.x;
  if (sampled >= params.header->num_sampled) {
    return;
  }
  const uint32_t token = params.query_starts[params.sampled_rows[sampled] + 1] - 1;
  const uint4 *source = params.hidden + static_cast<uint64_t>(token) * params.vectors;
  uint4 *target = params.out + static_cast<uint64_t>(blockIdx.x) * params.vectors;
  for (uint32_t i = threadIdx.x; i < params.vectors; i += blockDim.x) {
    target[i] = source[i];
  }
}

// embed:           out[t] = table[tokens[t]] * scale + position_table[position of t].
// gather_sampled:  out[i] = hidden[last token of sampled row i].
// finish_logits:   logits = cap(scale * (logits + bias)), in place, with cap(x) = soft_cap * tanh(x / soft_cap).
//
// table [vocab, width], position_table [positions, width] or null, out [tokens, width], of T, width a multiple of 8.
// One block makes one row in 16-byte vectors: a row is a few kilobytes, and rows are independent. Where nothing is
// added a row is copied bit by bit. logits [rows, vocab_size] and bias [vocab_size], which may be null, are of single
// precision; soft_cap is 0 where there is none; one thread makes one logit, the grid's second dimension is the row.

#include "common.cuh"
#include "step.cuh"

struct EmbedParams {
  const StepHeader *header;
  const uint32_t *tokens;
  const uint32_t *positions;
  const uint4 *table;
  // Null where the model has no learned positions.
  const uint4 *position_table;
  uint4 *out;
  uint32_t vectors;
  uint32_t vocab_size;
  float scale;
  uint32_t reserved;
};
static_assert(sizeof(EmbedParams) == 64, "mirrored in embed.rs");

template <typename T> __device__ inline void embed(const EmbedParams &params) {
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
  const bool is_copy = params.scale == 1.0f && params.position_table == nullptr;
  const uint4 *added =
      params.position_table + static_cast<uint64_t>(params.positions[blockIdx.x]) * params.vectors;
  for (uint32_t i = threadIdx.x; i < params.vectors; i += blockDim.x) {
    if (is_copy) {
      target[i] = source[i];
      continue;
    }
    float values[8];
    float positions[8] = {};
    unpack_vector<T>(source[i], values);
    if (params.position_table != nullptr) {
      unpack_vector<T>(added[i], positions);
    }
#pragma unroll
    for (int j = 0; j < 8; j++) {
      values[j] = values[j] * params.scale + positions[j];
    }
    target[i] = pack_vector<T>(values);
  }
}

extern "C" __global__ void __launch_bounds__(256) embed_bf16(const __grid_constant__ EmbedParams params) {
  embed<__nv_bfloat16>(params);
}

extern "C" __global__ void __launch_bounds__(256) embed_f16(const __grid_constant__ EmbedParams params) {
  embed<__half>(params);
}

struct FinishLogitsParams {
  const float *bias;
  float *logits;
  uint32_t vocab_size;
  uint32_t rows;
  float scale;
  float soft_cap;
};
static_assert(sizeof(FinishLogitsParams) == 32, "mirrored in embed.rs");

extern "C" __global__ void __launch_bounds__(256) finish_logits(const __grid_constant__ FinishLogitsParams params) {
  wait_for_predecessor();
  start_successor();
  const uint32_t token = blockIdx.x * blockDim.x + threadIdx.x;
  if (token >= params.vocab_size) {
    return;
  }
  const float bias = params.bias == nullptr ? 0.0f : params.bias[token];
  for (uint32_t row = blockIdx.y; row < params.rows; row += gridDim.y) {
    float *logit = params.logits + static_cast<uint64_t>(row) * params.vocab_size + token;
    float value = (*logit + bias) * params.scale;
    if (params.soft_cap > 0.0f) {
      value = params.soft_cap * tanhf(value / params.soft_cap);
    }
    *logit = value;
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

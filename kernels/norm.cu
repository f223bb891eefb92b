// add_norm:  residual += deltas; out = norm(residual), per row.
// norm_add:  residual += norm(delta), per row.
//
// A norm is (x - mean) / deviation * weight + bias, where the RMS kind takes 0 for the mean (Zhang and Sennrich
// 2019) and the layer kind is Ba et al. 2016's. residual, deltas, out [rows, width] of T; weight and biases [width]
// of single precision; what a pointer of null stands for is absent. width is a multiple of 8, at most
// 8 * MAX_THREADS * VECTORS.
//
// One block per row, VECTORS 16-byte vectors per thread: the row stays in registers from the first sum to the
// scaling, so memory is touched once. The variance is that of the centred values, not a difference of large sums.
// The norm sees sums before they are rounded to T.

#include "common.cuh"

constexpr int MAX_THREADS = 1024;
// Results that wait to be added: those of a parallel block's two branches.
constexpr int MAX_DELTAS = 2;

struct NormParams {
  uint4 *residual;
  const uint4 *deltas[MAX_DELTAS];
  const float4 *delta_biases[MAX_DELTAS];
  const float4 *weight;
  const float4 *bias;
  // Not used by norm_add.
  uint4 *out;
  uint32_t vectors;
  float epsilon;
};
static_assert(sizeof(NormParams) == 72, "mirrored in norm.rs");

__device__ inline void add_singles(const float4 *row, uint32_t index, float (&values)[8]) {
  const float4 low = row[2 * index];
  const float4 high = row[2 * index + 1];
  const float singles[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < 8; i++) {
    values[i] += singles[i];
  }
}

template <typename T>
__device__ inline void add_delta(const NormParams &params, int delta, uint64_t row, uint32_t index,
                                 float (&values)[8]) {
  if (params.deltas[delta] == nullptr) {
    return;
  }
  float added[8];
  unpack_vector<T>(params.deltas[delta][row + index], added);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    values[i] += added[i];
  }
  if (params.delta_biases[delta] != nullptr) {
    add_singles(params.delta_biases[delta], index, values);
  }
}

// Normalises the row that the block's threads hold, thread t the vectors t, t + blockDim.x and so on.
template <int VECTORS, bool IS_LAYER>
__device__ inline void normalize(const NormParams &params, float (&values)[VECTORS][8]) {
  const float width = 8.0f * static_cast<float>(params.vectors);
  float mean = 0.0f;
  if constexpr (IS_LAYER) {
    float sum = 0.0f;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
      if (threadIdx.x + v * blockDim.x < params.vectors) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
          sum += values[v][i];
        }
      }
    }
    mean = block_sum(sum) / width;
    // The next sum uses the same shared memory.
    __syncthreads();
  }
  float squares = 0.0f;
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    if (threadIdx.x + v * blockDim.x < params.vectors) {
#pragma unroll
      for (int i = 0; i < 8; i++) {
        values[v][i] -= mean;
        squares += values[v][i] * values[v][i];
      }
    }
  }
  const float scale = rsqrtf(block_sum(squares) / width + params.epsilon);
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    const uint32_t index = threadIdx.x + v * blockDim.x;
    if (index >= params.vectors) {
      continue;
    }
    float weights[8] = {};
    add_singles(params.weight, index, weights);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      values[v][i] *= scale * weights[i];
    }
    if (params.bias != nullptr) {
      add_singles(params.bias, index, values[v]);
    }
  }
}

template <typename T, int VECTORS, bool IS_LAYER> __device__ inline void add_norm(const NormParams &params) {
  wait_for_predecessor();
  start_successor();
  const uint64_t row = static_cast<uint64_t>(blockIdx.x) * params.vectors;
  const bool adds = params.deltas[0] != nullptr || params.deltas[1] != nullptr;
  float values[VECTORS][8];
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    const uint32_t index = threadIdx.x + v * blockDim.x;
    if (index >= params.vectors) {
      continue;
    }
    unpack_vector<T>(params.residual[row + index], values[v]);
    add_delta<T>(params, 0, row, index, values[v]);
    add_delta<T>(params, 1, row, index, values[v]);
    if (adds) {
      params.residual[row + index] = pack_vector<T>(values[v]);
    }
  }
  normalize<VECTORS, IS_LAYER>(params, values);
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    const uint32_t index = threadIdx.x + v * blockDim.x;
    if (index < params.vectors) {
      params.out[row + index] = pack_vector<T>(values[v]);
    }
  }
}

template <typename T, int VECTORS, bool IS_LAYER> __device__ inline void norm_add(const NormParams &params) {
  wait_for_predecessor();
  start_successor();
  const uint64_t row = static_cast<uint64_t>(blockIdx.x) * params.vectors;
  float values[VECTORS][8] = {};
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    const uint32_t index = threadIdx.x + v * blockDim.x;
    if (index < params.vectors) {
      add_delta<T>(params, 0, row, index, values[v]);
    }
  }
  normalize<VECTORS, IS_LAYER>(params, values);
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    const uint32_t index = threadIdx.x + v * blockDim.x;
    if (index >= params.vectors) {
      continue;
    }
    float sums[8];
    unpack_vector<T>(params.residual[row + index], sums);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      sums[i] += values[v][i];
    }
    params.residual[row + index] = pack_vector<T>(sums);
  }
}

#define NORM(OPERATION, KIND, IS_LAYER, DTYPE, T, VECTORS)                                                       \
  extern "C" __global__ void __launch_bounds__(MAX_THREADS)                                                      \
      OPERATION##_##KIND##_##DTYPE##_##VECTORS(const __grid_constant__ NormParams params) {                      \
    OPERATION<T, VECTORS, IS_LAYER>(params);                                                                     \
  }

#define NORMS(OPERATION, KIND, IS_LAYER)                                                                         \
  NORM(OPERATION, KIND, IS_LAYER, bf16, __nv_bfloat16, 1)                                                        \
  NORM(OPERATION, KIND, IS_LAYER, bf16, __nv_bfloat16, 4)                                                        \
  NORM(OPERATION, KIND, IS_LAYER, f16, __half, 1)                                                                \
  NORM(OPERATION, KIND, IS_LAYER, f16, __half, 4)

NORMS(add_norm, rms, false)
NORMS(add_norm, layer, true)
NORMS(norm_add, rms, false)
NORMS(norm_add, layer, true)

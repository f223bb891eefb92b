// residual += delta; out = residual / sqrt(mean(residual^2) + epsilon) * weight, per row.
//
// residual, delta, out [rows, width] of T; weight [width] of single precision; delta may be absent. width is a
// multiple of 8, at most 8 * MAX_THREADS * VECTORS.
//
// One block per row, VECTORS 16-byte vectors per thread: the row stays in registers between the sum of squares
// and the scaling, so memory is touched once. The norm sees the sum before it is rounded to T.

#include "common.cuh"

constexpr int MAX_THREADS = 1024;

struct AddRmsNormParams {
  uint4 *residual;
  // Null where nothing is added.
  const uint4 *delta;
  const float4 *weight;
  uint4 *out;
  uint32_t vectors;
  float epsilon;
};
static_assert(sizeof(AddRmsNormParams) == 40, "mirrored in norm.rs");

template <typename T, int VECTORS> __device__ inline void add_rms_norm(const AddRmsNormParams &params) {
  wait_for_predecessor();
  start_successor();
  const uint64_t row = static_cast<uint64_t>(blockIdx.x) * params.vectors;
  float values[VECTORS][8];
  float squares = 0.0f;
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    const uint32_t index = threadIdx.x + v * blockDim.x;
    if (index >= params.vectors) {
      continue;
    }
    unpack_vector<T>(params.residual[row + index], values[v]);
    if (params.delta != nullptr) {
      float added[8];
      unpack_vector<T>(params.delta[row + index], added);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        values[v][i] += added[i];
      }
      params.residual[row + index] = pack_vector<T>(values[v]);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
      squares += values[v][i] * values[v][i];
    }
  }
  const float width = 8.0f * static_cast<float>(params.vectors);
  const float scale = rsqrtf(block_sum(squares) / width + params.epsilon);
#pragma unroll
  for (int v = 0; v < VECTORS; v++) {
    const uint32_t index = threadIdx.x + v * blockDim.x;
    if (index >= params.vectors) {
      continue;
    }
    const float4 low = params.weight[2 * index];
    const float4 high = params.weight[2 * index + 1];
    const float weights[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; i++) {
      values[v][i] *= scale * weights[i];
    }
    params.out[row + index] = pack_vector<T>(values[v]);
  }
}

#define ADD_RMS_NORM(NAME, T, VECTORS)                                                                           \
  extern "C" __global__ void __launch_bounds__(MAX_THREADS) NAME(const __grid_constant__ AddRmsNormParams params) { \
    add_rms_norm<T, VECTORS>(params);                                                                            \
  }

ADD_RMS_NORM(add_rms_norm_bf16_1, __nv_bfloat16, 1)
ADD_RMS_NORM(add_rms_norm_bf16_4, __nv_bfloat16, 4)
ADD_RMS_NORM(add_rms_norm_f16_1, __half, 1)
ADD_RMS_NORM(add_rms_norm_f16_4, __half, 4)

// out = silu(gate) * up, with silu(x) = x / (1 + e^-x).
//
// gate_up [rows, 2 * width] holds a row's gate, then its up; out [rows, width]; T, width a multiple of 8.
// One thread makes one 16-byte vector; the grid's second dimension is the row.

#include "common.cuh"

struct GatedActivationParams {
  const uint4 *gate_up;
  uint4 *out;
  uint32_t vectors;
  uint32_t rows;
};
static_assert(sizeof(GatedActivationParams) == 24, "mirrored in activation.rs");

template <typename T> __device__ inline void gated_silu(const GatedActivationParams &params) {
  wait_for_predecessor();
  start_successor();
  const uint32_t index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= params.vectors) {
    return;
  }
  for (uint32_t row = blockIdx.y; row < params.rows; row += gridDim.y) {
    const uint4 *source = params.gate_up + static_cast<uint64_t>(row) * 2 * params.vectors;
    float gate[8];
    float up[8];
    unpack_vector<T>(source[index], gate);
    unpack_vector<T>(source[params.vectors + index], up);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      gate[i] = gate[i] / (1.0f + __expf(-gate[i])) * up[i];
    }
    params.out[static_cast<uint64_t>(row) * params.vectors + index] = pack_vector<T>(gate);
  }
}

#define GATED_SILU(NAME, T)                                                                                      \
  extern "C" __global__ void __launch_bounds__(256) NAME(const __grid_constant__ GatedActivationParams params) { \
    gated_silu<T>(params);                                                                                       \
  }

GATED_SILU(gated_silu_bf16, __nv_bfloat16)
GATED_SILU(gated_silu_f16, __half)

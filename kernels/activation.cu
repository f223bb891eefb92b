// out = activation(gate) * up, or activation(up), of the input plus its bias.
//
// input [rows, 2 * width] holds a row's gate, then its up, or [rows, width] its up alone; out [rows, width]; T,
// width a multiple of 8; bias, as wide as the input, of single precision, or null.
// One thread makes one 16-byte vector; the grid's second dimension is the row.

#include "activation.cuh"
#include "common.cuh"

struct ActivationParams {
  const uint4 *input;
  const float4 *bias;
  uint4 *out;
  uint32_t vectors;
  uint32_t rows;
};
static_assert(sizeof(ActivationParams) == 32, "mirrored in activation.rs");

template <typename T>
__device__ inline void load_biased(const uint4 *row, const float4 *bias, uint32_t index, float (&values)[8]) {
  unpack_vector<T>(row[index], values);
  if (bias == nullptr) {
    return;
  }
  const float4 low = bias[2 * index];
  const float4 high = bias[2 * index + 1];
  const float added[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < 8; i++) {
    values[i] += added[i];
  }
}

template <typename Function, typename T, bool IS_GATED>
__device__ inline void activate(const ActivationParams &params) {
  wait_for_predecessor();
  start_successor();
  constexpr uint32_t INPUTS = IS_GATED ? 2 : 1;
  const uint32_t index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= params.vectors) {
    return;
  }
  for (uint32_t row = blockIdx.y; row < params.rows; row += gridDim.y) {
    const uint4 *source = params.input + static_cast<uint64_t>(row) * INPUTS * params.vectors;
    float values[8];
    load_biased<T>(source, params.bias, index, values);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      values[i] = Function::apply(values[i]);
    }
    if constexpr (IS_GATED) {
      float up[8];
      load_biased<T>(source, params.bias, params.vectors + index, up);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        values[i] *= up[i];
      }
    }
    params.out[static_cast<uint64_t>(row) * params.vectors + index] = pack_vector<T>(values);
  }
}

#define ACTIVATION(NAME, FUNCTION, T, IS_GATED)                                                                  \
  extern "C" __global__ void __launch_bounds__(256) NAME(const __grid_constant__ ActivationParams params) {      \
    activate<FUNCTION, T, IS_GATED>(params);                                                                     \
  }

#define ACTIVATIONS(NAME, FUNCTION)                                                                              \
  ACTIVATION(NAME##_gated_bf16, FUNCTION, __nv_bfloat16, true)                                                   \
  ACTIVATION(NAME##_gated_f16, FUNCTION, __half, true)                                                           \
  ACTIVATION(NAME##_plain_bf16, FUNCTION, __nv_bfloat16, false)                                                  \
  ACTIVATION(NAME##_plain_f16, FUNCTION, __half, false)

ACTIVATIONS(silu, Silu)
ACTIVATIONS(gelu, Gelu)
ACTIVATIONS(gelu_tanh, GeluTanh)
ACTIVATIONS(quick_gelu, QuickGelu)
ACTIVATIONS(relu, Relu)
ACTIVATIONS(relu_squared, ReluSquared)

// out[r][n] = sum over k of weight[n][k] * input[r][k], for few rows.
//
// input [rows, in_features] and weight [out_features, in_features] of T, out [rows, out_features] of T or single
// precision; in_features a multiple of 8, rows at most 8 * INPUT_TILES. With few rows the time is that of reading
// the weights once, as `skinny.cuh` does.
//
// skinny_activated applies an activation before it writes: out = activation(weight * input + bias), or with a gate,
// whose rows are the first half of the weights, out = activation(gate) * up.

#include "activation.cuh"
#include "skinny.cuh"

struct SkinnyLinearParams {
  const void *input;
  const void *weight;
  void *out;
  uint32_t rows;
  uint32_t in_features;
  uint32_t out_features;
  // Activation, where the kernel applies one.
  uint32_t function;
  // As many as the weights have rows, or null; where the kernel applies an activation.
  const float *bias;
};
static_assert(sizeof(SkinnyLinearParams) == 48, "mirrored in linear.rs");

// What becomes of a sum.
enum class Epilogue { NONE, PLAIN, GATED };

template <typename T, Epilogue EPILOGUE> struct LinearOperands {
  const SkinnyLinearParams &params;
  uint32_t in_features;

  __device__ inline explicit LinearOperands(const SkinnyLinearParams &params)
      : params(params), in_features(params.in_features) {}

  __device__ inline const T *weight(int part, uint32_t row) const {
    constexpr bool IS_GATED = EPILOGUE == Epilogue::GATED;
    const uint64_t index = weight_row<1, IS_GATED>(blockIdx.x, part, row, params.out_features);
    return static_cast<const T *>(params.weight) + index * params.in_features;
  }

  __device__ inline const T *input(int tile) const {
    return static_cast<const T *>(params.input) + input_row(params.rows, tile) * params.in_features;
  }
};

// What a block writes of input row `row` for its feature `index`, feature `feature` of all.
template <Epilogue EPILOGUE, typename Sums>
__device__ inline float finish(const SkinnyLinearParams &params, const Sums &sums, uint32_t row, uint32_t index,
                               uint32_t feature) {
  const float *bias = params.bias;
  if constexpr (EPILOGUE == Epilogue::NONE) {
    return sums.total(row, index);
  } else if constexpr (EPILOGUE == Epilogue::PLAIN) {
    const float sum = sums.total(row, index);
    return activate(params.function, bias == nullptr ? sum : sum + bias[feature]);
  } else {
    float gate = sums.total(row, index);
    float up = sums.total(row, index + WEIGHT_ROWS / 2);
    if (bias != nullptr) {
      gate += bias[feature];
      up += bias[params.out_features + feature];
    }
    return activate(params.function, gate) * up;
  }
}

template <typename T, typename Out, int INPUT_TILES, Epilogue EPILOGUE>
__device__ inline void skinny_linear(const SkinnyLinearParams &params) {
  constexpr int FEATURES = EPILOGUE == Epilogue::GATED ? WEIGHT_ROWS / 2 : WEIGHT_ROWS;
  constexpr int ROWS = 8 * INPUT_TILES;
  __shared__ BlockSums<INPUT_TILES> block_sums;
  float sums[INPUT_TILES][4] = {};
  sum_warp<T>(LinearOperands<T, EPILOGUE>(params), sums);
  block_sums.store(sums);
  __syncthreads();
  for (int index = threadIdx.x; index < FEATURES * ROWS; index += WARPS * WARP_THREADS) {
    const uint32_t row = index / FEATURES;
    const uint32_t feature = blockIdx.x * FEATURES + index % FEATURES;
    if (row < params.rows && feature < params.out_features) {
      const float value = finish<EPILOGUE>(params, block_sums, row, index % FEATURES, feature);
      static_cast<Out *>(params.out)[static_cast<uint64_t>(row) * params.out_features + feature] = from_float<Out>(value);
    }
  }
}

#define SKINNY_LINEAR(NAME, T, OUT, INPUT_TILES, EPILOGUE)                                                       \
  extern "C" __global__ void SKINNY_BOUNDS NAME(const __grid_constant__ SkinnyLinearParams params) {             \
    skinny_linear<T, OUT, INPUT_TILES, Epilogue::EPILOGUE>(params);                                              \
  }

#define SKINNY_LINEARS(DTYPE, T, ROWS)                                                                           \
  SKINNY_LINEAR(skinny_linear_##DTYPE##_##ROWS, T, T, ROWS / 8, NONE)                                            \
  SKINNY_LINEAR(skinny_linear_##DTYPE##_f32_##ROWS, T, float, ROWS / 8, NONE)                                    \
  SKINNY_LINEAR(skinny_plain_##DTYPE##_##ROWS, T, T, ROWS / 8, PLAIN)                                            \
  SKINNY_LINEAR(skinny_gated_##DTYPE##_##ROWS, T, T, ROWS / 8, GATED)

SKINNY_LINEARS(bf16, __nv_bfloat16, 8)
SKINNY_LINEARS(bf16, __nv_bfloat16, 16)
SKINNY_LINEARS(f16, __half, 8)
SKINNY_LINEARS(f16, __half, 16)

// out[r][n] = sum over k of weight[n][k] * input[r][k], for few rows.
//
// input [rows, in_features] and weight [out_features, in_features] of T, out [rows, out_features] of T or single
// precision; in_features a multiple of 8, rows at most 8 * INPUT_TILES.
//
// With few rows the time is that of reading the weights once. Weights take the 16-row side of the tensor core's
// tile and inputs the 8-column side. The order of k inside a sum is free, so a thread's 16-byte load of a
// weight row (8 consecutive k) directly makes operands of two products, and the same load of an input row their
// counterparts: no shared memory, no shuffles. A block owns 16 * WEIGHT_TILES rows of the weights; its warps
// take parts of k in turn, the next one's loads in flight while this one's products are computed, and their sums
// meet in shared memory in a fixed order, so results do not vary from run to run.
//
// skinny_activated applies an activation before it writes: out = activation(weight * input + bias), or with a gate,
// whose rows are the first half of the weights, out = activation(gate) * up. A block then owns the gate's and the
// other half's rows of the same features, 8 of each in a tile.

#include "activation.cuh"
#include "tensor_core.cuh"

constexpr int WARPS = 8;
// Elements of k in one load of a warp: 8 in each of 4 threads.
constexpr int LOAD_ELEMENTS = 32;

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

// The row of the weights that tile row `8 * part + row` of a block's tiles stands for. Rows past the end repeat the
// last, and their products are not stored.
template <int WEIGHT_TILES, Epilogue EPILOGUE>
__device__ inline uint64_t weight_row(const SkinnyLinearParams &params, int part, uint32_t row) {
  const uint32_t last = params.out_features - 1;
  if constexpr (EPILOGUE == Epilogue::GATED) {
    const uint32_t feature = blockIdx.x * 8 * WEIGHT_TILES + part / 2 * 8 + row;
    return min(feature, last) + part % 2 * params.out_features;
  } else {
    return min(blockIdx.x * 16 * WEIGHT_TILES + part * 8 + row, last);
  }
}

// Weights are read once: they pass the first-level cache by.
__device__ inline uint4 load_streaming(const void *source) {
  uint4 vector;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(vector.x), "=r"(vector.y), "=r"(vector.z), "=r"(vector.w)
               : "l"(source));
  return vector;
}

// Adds one load's products to the sums of a tile.
template <typename T>
__device__ inline void multiply(float (&sums)[4], const uint4 &low, const uint4 &high, const uint4 &input) {
  const uint32_t first[4] = {low.x, high.x, low.y, high.y};
  const uint32_t second[4] = {low.z, high.z, low.w, high.w};
  mma<T>(sums, first, input.x, input.y);
  mma<T>(sums, second, input.z, input.w);
}

// What a thread holds of one turn of its warp, LOADS loads of k.
template <typename T, int WEIGHT_TILES, int INPUT_TILES, Epilogue EPILOGUE> struct Turn {
  static constexpr int LOADS = 4 / WEIGHT_TILES;
  static constexpr int ELEMENTS = LOADS * LOAD_ELEMENTS;
  uint4 weights[LOADS][WEIGHT_TILES][2];
  uint4 inputs[LOADS][INPUT_TILES];

  // Every load is unconditional, so that all are in flight together: k past the end repeats the first and meets
  // inputs of zero.
  __device__ inline void load_weights(const SkinnyLinearParams &params, uint32_t first_k) {
    const uint32_t lane = threadIdx.x % WARP_THREADS;
    const uint64_t stride = params.in_features;
#pragma unroll
    for (int l = 0; l < LOADS; l++) {
      const uint32_t k = first_k + l * LOAD_ELEMENTS + lane % 4 * VECTOR_ELEMENTS;
      const uint32_t valid_k = k < params.in_features ? k : 0;
#pragma unroll
      for (int i = 0; i < 2 * WEIGHT_TILES; i++) {
        const uint64_t row = weight_row<WEIGHT_TILES, EPILOGUE>(params, i, lane / 4);
        weights[l][i / 2][i % 2] = load_streaming(static_cast<const T *>(params.weight) + row * stride + valid_k);
      }
    }
  }

  __device__ inline void load_inputs(const SkinnyLinearParams &params, uint32_t first_k) {
    const uint32_t lane = threadIdx.x % WARP_THREADS;
    const uint64_t stride = params.in_features;
#pragma unroll
    for (int l = 0; l < LOADS; l++) {
      const uint32_t k = first_k + l * LOAD_ELEMENTS + lane % 4 * VECTOR_ELEMENTS;
      const bool is_inside = k < params.in_features;
      const uint32_t valid_k = is_inside ? k : 0;
#pragma unroll
      for (int i = 0; i < INPUT_TILES; i++) {
        const uint64_t row = min(8 * i + lane / 4, params.rows - 1);
        const T *source = static_cast<const T *>(params.input) + row * stride + valid_k;
        const uint4 input = *reinterpret_cast<const uint4 *>(source);
        inputs[l][i] = is_inside ? input : make_uint4(0, 0, 0, 0);
      }
    }
  }

  __device__ inline void load(const SkinnyLinearParams &params, uint32_t first_k) {
    load_weights(params, first_k);
    load_inputs(params, first_k);
  }

  __device__ inline void add_products(float (&sums)[WEIGHT_TILES][INPUT_TILES][4]) const {
#pragma unroll
    for (int l = 0; l < LOADS; l++) {
#pragma unroll
      for (int w = 0; w < WEIGHT_TILES; w++) {
#pragma unroll
        for (int i = 0; i < INPUT_TILES; i++) {
          multiply<T>(sums[w][i], weights[l][w][0], weights[l][w][1], inputs[l][i]);
        }
      }
    }
  }
};

// One warp's turns. The loads of a turn are issued before the products of the one before, and the first weights
// are on their way before the kernel that makes the inputs has ended.
template <typename T, int WEIGHT_TILES, int INPUT_TILES, Epilogue EPILOGUE>
__device__ inline void sum_warp(const SkinnyLinearParams &params, float (&sums)[WEIGHT_TILES][INPUT_TILES][4]) {
  using WarpTurn = Turn<T, WEIGHT_TILES, INPUT_TILES, EPILOGUE>;
  constexpr uint32_t STRIDE = WARPS * WarpTurn::ELEMENTS;
  uint32_t k = threadIdx.x / WARP_THREADS * WarpTurn::ELEMENTS;
  WarpTurn even;
  WarpTurn odd;
  even.load_weights(params, k);
  wait_for_predecessor();
  if (k >= params.in_features) {
    return;
  }
  even.load_inputs(params, k);
  while (true) {
    if (k + STRIDE >= params.in_features) {
      even.add_products(sums);
      return;
    }
    odd.load(params, k + STRIDE);
    even.add_products(sums);
    if (k + 2 * STRIDE >= params.in_features) {
      odd.add_products(sums);
      return;
    }
    even.load(params, k + 2 * STRIDE);
    odd.add_products(sums);
    k += 2 * STRIDE;
  }
}

// The sums of a block, of all its warps.
template <int WEIGHT_TILES, int INPUT_TILES> struct BlockSums {
  // The last dimension is padded against bank conflicts.
  float warps[WARPS][8 * INPUT_TILES][16 * WEIGHT_TILES + 4];

  __device__ inline void store(const float (&sums)[WEIGHT_TILES][INPUT_TILES][4]) {
    const int lane = threadIdx.x % WARP_THREADS;
    const int warp = threadIdx.x / WARP_THREADS;
#pragma unroll
    for (int w = 0; w < WEIGHT_TILES; w++) {
#pragma unroll
      for (int i = 0; i < INPUT_TILES; i++) {
#pragma unroll
        for (int c = 0; c < 4; c++) {
          warps[warp][8 * i + lane % 4 * 2 + c % 2][16 * w + lane / 4 + c / 2 * 8] = sums[w][i][c];
        }
      }
    }
  }

  __device__ inline float total(uint32_t row, uint32_t column) const {
    float sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
      sum += warps[w][row][column];
    }
    return sum;
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
    const uint32_t column = index / 8 * 16 + index % 8;
    float gate = sums.total(row, column);
    float up = sums.total(row, column + 8);
    if (bias != nullptr) {
      gate += bias[feature];
      up += bias[params.out_features + feature];
    }
    return activate(params.function, gate) * up;
  }
}

template <typename T, typename Out, int WEIGHT_TILES, int INPUT_TILES, Epilogue EPILOGUE>
__device__ inline void skinny_linear(const SkinnyLinearParams &params) {
  constexpr int FEATURES = EPILOGUE == Epilogue::GATED ? 8 * WEIGHT_TILES : 16 * WEIGHT_TILES;
  constexpr int ROWS = 8 * INPUT_TILES;
  __shared__ BlockSums<WEIGHT_TILES, INPUT_TILES> block_sums;
  float sums[WEIGHT_TILES][INPUT_TILES][4] = {};
  sum_warp<T, WEIGHT_TILES, INPUT_TILES, EPILOGUE>(params, sums);
  start_successor();
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

#define SKINNY_LINEAR(NAME, T, OUT, WEIGHT_TILES, INPUT_TILES, EPILOGUE)                                         \
  extern "C" __global__ void __launch_bounds__(WARPS *WARP_THREADS)                                              \
      NAME(const __grid_constant__ SkinnyLinearParams params) {                                                  \
    skinny_linear<T, OUT, WEIGHT_TILES, INPUT_TILES, Epilogue::EPILOGUE>(params);                                \
  }

#define SKINNY_LINEARS(DTYPE, T)                                                                                 \
  SKINNY_LINEAR(skinny_linear_##DTYPE##_8, T, T, 1, 1, NONE)                                                     \
  SKINNY_LINEAR(skinny_linear_##DTYPE##_16, T, T, 2, 2, NONE)                                                    \
  SKINNY_LINEAR(skinny_linear_##DTYPE##_f32_8, T, float, 1, 1, NONE)                                             \
  SKINNY_LINEAR(skinny_linear_##DTYPE##_f32_16, T, float, 2, 2, NONE)                                            \
  SKINNY_LINEAR(skinny_plain_##DTYPE##_8, T, T, 1, 1, PLAIN)                                                     \
  SKINNY_LINEAR(skinny_plain_##DTYPE##_16, T, T, 2, 2, PLAIN)                                                    \
  SKINNY_LINEAR(skinny_gated_##DTYPE##_8, T, T, 1, 1, GATED)                                                     \
  SKINNY_LINEAR(skinny_gated_##DTYPE##_16, T, T, 2, 2, GATED)

SKINNY_LINEARS(bf16, __nv_bfloat16)
SKINNY_LINEARS(f16, __half)

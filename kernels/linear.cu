// out[r][n] = sum over k of weight[n][k] * input[r][k], for few rows.
//
// input [rows, in_features] and weight [out_features, in_features] of T, out [rows, out_features] of T or single
// precision; in_features a multiple of 8, rows at most 8 * INPUT_TILES.
//
// With few rows the time is that of reading the weights once. Weights take the 16-row side of the tensor core's
// tile and inputs the 8-column side. The order of k inside a sum is free, so a thread's 16-byte load of a
// weight row (8 consecutive k) directly makes operands of two products, and the same load of an input row their
// counterparts: no shared memory, no shuffles. A block owns 16 * WEIGHT_TILES rows of the weights; its warps
// take runs of k in turn, with LOADS of them in flight per thread, and their sums meet in shared memory in a
// fixed order, so results do not vary from run to run.

#include "tensor_core.cuh"

constexpr int WARPS = 8;
constexpr int LOADS = 4;
// Elements of k in one load of a warp, 8 in each of 4 threads, and in a warp's turn.
constexpr int LOAD_ELEMENTS = 32;
constexpr int RUN_ELEMENTS = LOADS * LOAD_ELEMENTS;

struct SkinnyLinearParams {
  const void *input;
  const void *weight;
  void *out;
  uint32_t rows;
  uint32_t in_features;
  uint32_t out_features;
  uint32_t reserved;
};
static_assert(sizeof(SkinnyLinearParams) == 40, "mirrored in linear.rs");

// 16 bytes, or zeros without an access where `is_valid` is false. Weights are read once: they pass the first-level
// cache by. A predicate rather than a branch, so that the loads of a turn are issued back to back.
__device__ inline uint4 load_streaming(const void *source, bool is_valid) {
  uint4 vector;
  asm volatile("{\n"
               ".reg .pred valid;\n"
               "setp.ne.u32 valid, %5, 0;\n"
               "mov.u32 %0, 0;\n"
               "mov.u32 %1, 0;\n"
               "mov.u32 %2, 0;\n"
               "mov.u32 %3, 0;\n"
               "@valid ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];\n"
               "}"
               : "=&r"(vector.x), "=&r"(vector.y), "=&r"(vector.z), "=&r"(vector.w)
               : "l"(source), "r"(static_cast<uint32_t>(is_valid)));
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

template <typename T, int WEIGHT_TILES, int INPUT_TILES>
__device__ inline void sum_warp(const SkinnyLinearParams &params, float (&sums)[WEIGHT_TILES][INPUT_TILES][4]) {
  const int lane = threadIdx.x % WARP_THREADS;
  const uint32_t first_feature = blockIdx.x * 16 * WEIGHT_TILES + lane / 4;
  const uint64_t stride = params.in_features;
  const T *weight = static_cast<const T *>(params.weight);
  const T *input = static_cast<const T *>(params.input);
  const uint4 zeros = make_uint4(0, 0, 0, 0);

  for (uint32_t run = threadIdx.x / WARP_THREADS * RUN_ELEMENTS; run < params.in_features;
       run += WARPS * RUN_ELEMENTS) {
    uint4 weights[LOADS][WEIGHT_TILES][2];
    uint4 inputs[LOADS][INPUT_TILES];
#pragma unroll
    for (int load = 0; load < LOADS; load++) {
      const uint32_t k = run + load * LOAD_ELEMENTS + lane % 4 * VECTOR_ELEMENTS;
      const bool is_inside = k < params.in_features;
#pragma unroll
      for (int i = 0; i < 2 * WEIGHT_TILES; i++) {
        const uint32_t feature = first_feature + 8 * i;
        const bool is_valid = is_inside && feature < params.out_features;
        weights[load][i / 2][i % 2] = load_streaming(weight + feature * stride + k, is_valid);
      }
#pragma unroll
      for (int i = 0; i < INPUT_TILES; i++) {
        const uint32_t row = 8 * i + lane / 4;
        const bool is_valid = is_inside && row < params.rows;
        inputs[load][i] = is_valid ? *reinterpret_cast<const uint4 *>(input + row * stride + k) : zeros;
      }
    }
#pragma unroll
    for (int load = 0; load < LOADS; load++) {
#pragma unroll
      for (int w = 0; w < WEIGHT_TILES; w++) {
#pragma unroll
        for (int i = 0; i < INPUT_TILES; i++) {
          multiply<T>(sums[w][i], weights[load][w][0], weights[load][w][1], inputs[load][i]);
        }
      }
    }
  }
}

template <typename T, typename Out, int WEIGHT_TILES, int INPUT_TILES>
__device__ inline void skinny_linear(const SkinnyLinearParams &params) {
  constexpr int FEATURES = 16 * WEIGHT_TILES;
  constexpr int ROWS = 8 * INPUT_TILES;
  // The last dimension is padded against bank conflicts.
  __shared__ float warp_sums[WARPS][ROWS][FEATURES + 4];
  float sums[WEIGHT_TILES][INPUT_TILES][4] = {};
  sum_warp<T, WEIGHT_TILES, INPUT_TILES>(params, sums);

  const int lane = threadIdx.x % WARP_THREADS;
  const int warp = threadIdx.x / WARP_THREADS;
#pragma unroll
  for (int w = 0; w < WEIGHT_TILES; w++) {
#pragma unroll
    for (int i = 0; i < INPUT_TILES; i++) {
#pragma unroll
      for (int c = 0; c < 4; c++) {
        warp_sums[warp][8 * i + lane % 4 * 2 + c % 2][16 * w + lane / 4 + c / 2 * 8] = sums[w][i][c];
      }
    }
  }
  __syncthreads();
  for (int index = threadIdx.x; index < FEATURES * ROWS; index += WARPS * WARP_THREADS) {
    const uint32_t row = index / FEATURES;
    const uint32_t feature = blockIdx.x * FEATURES + index % FEATURES;
    if (row < params.rows && feature < params.out_features) {
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < WARPS; w++) {
        sum += warp_sums[w][row][index % FEATURES];
      }
      static_cast<Out *>(params.out)[static_cast<uint64_t>(row) * params.out_features + feature] = from_float<Out>(sum);
    }
  }
}

#define SKINNY_LINEAR(NAME, T, OUT, WEIGHT_TILES, INPUT_TILES)                                                   \
  extern "C" __global__ void __launch_bounds__(WARPS *WARP_THREADS)                                              \
      NAME(const __grid_constant__ SkinnyLinearParams params) {                                                  \
    skinny_linear<T, OUT, WEIGHT_TILES, INPUT_TILES>(params);                                                    \
  }

SKINNY_LINEAR(skinny_linear_bf16_8, __nv_bfloat16, __nv_bfloat16, 1, 1)
SKINNY_LINEAR(skinny_linear_bf16_16, __nv_bfloat16, __nv_bfloat16, 2, 2)
SKINNY_LINEAR(skinny_linear_bf16_f32_8, __nv_bfloat16, float, 1, 1)
SKINNY_LINEAR(skinny_linear_bf16_f32_16, __nv_bfloat16, float, 2, 2)
SKINNY_LINEAR(skinny_linear_f16_8, __half, __half, 1, 1)
SKINNY_LINEAR(skinny_linear_f16_16, __half, __half, 2, 2)
SKINNY_LINEAR(skinny_linear_f16_f32_8, __half, float, 1, 1)
SKINNY_LINEAR(skinny_linear_f16_f32_16, __half, float, 2, 2)

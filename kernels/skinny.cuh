// Products of few rows, out[r][n] = sum over k of weight[n][k] * input[r][k], as fast as weights can be read.
//
// Weights take the 16-row side of the tensor core's tile and inputs the 8-column side. The order of k inside a sum is
// free, so a thread's 16-byte load of a weight row (8 consecutive k) directly makes operands of two products, and the
// same load of an input row their counterparts: no shared memory, no shuffles. A block owns 16 rows of the weights and
// takes up to 8 * INPUT_TILES input rows; its warps take parts of k in turn, the next one's loads in flight while this
// one's products are computed, and their sums meet in shared memory in a fixed order, so results do not vary from run
// to run.
//
// The successor may start as soon as the predecessor has ended: its blocks take the places that become free, and have
// their weights on the way when this kernel ends. A multiprocessor holds two blocks, for which SKINNY_BOUNDS leaves the
// registers, as many as make one wave of a matrix of 4,096 rows: where three had room, some multiprocessors would get
// three of the next kernel's and others one.
//
// Where the operands lie is told by a type `Operands` with
//   in_features, a multiple of 8;
//   weight(part, row): the row of the weights that tile row `8 * part + row` of the block stands for;
//   input(tile): the input row that this thread loads of tile `tile`, which is the tile's row `lane / 4`.
// Rows past the end repeat another, and their products are not stored.

#pragma once

#include "tensor_core.cuh"

constexpr int WARPS = 8;
// Rows of the weights in a block.
constexpr int WEIGHT_ROWS = 16;
// Elements of k in one load of a warp: 8 in each of 4 threads.
constexpr int LOAD_ELEMENTS = 32;
// Elements of a row of the weights, behind those of the first turns, that are brought to the second-level cache before
// the predecessor has ended.
constexpr uint32_t EARLY_ELEMENTS = 256;

// Of kernels of such products. The compiler takes 120 to 128 registers then: there is room for two blocks, not three.
#define SKINNY_BOUNDS __launch_bounds__(WARPS *WARP_THREADS, 2)

// Weights are read once: they pass the first-level cache by.
__device__ inline uint4 load_streaming(const void *source) {
  uint4 vector;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(vector.x), "=r"(vector.y), "=r"(vector.z), "=r"(vector.w)
               : "l"(source));
  return vector;
}

// Of `rows` input rows, the one that this thread loads of tile `tile`.
__device__ inline uint64_t input_row(uint32_t rows, int tile) {
  return min(8 * tile + threadIdx.x % WARP_THREADS / 4, rows - 1);
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
template <typename T, int INPUT_TILES> struct Turn {
  static constexpr int LOADS = 4;
  static constexpr int ELEMENTS = LOADS * LOAD_ELEMENTS;
  uint4 weights[LOADS][2];
  uint4 inputs[LOADS][INPUT_TILES];

  // Every load is unconditional, so that all are in flight together: k past the end repeats the first and meets
  // inputs of zero.
  template <typename Operands> __device__ inline void load_weights(const Operands &operands, uint32_t first_k) {
    const uint32_t lane = threadIdx.x % WARP_THREADS;
#pragma unroll
    for (int l = 0; l < LOADS; l++) {
      const uint32_t k = first_k + l * LOAD_ELEMENTS + lane % 4 * VECTOR_ELEMENTS;
      const uint32_t valid_k = k < operands.in_features ? k : 0;
#pragma unroll
      for (int i = 0; i < 2; i++) {
        weights[l][i] = load_streaming(operands.weight(i, lane / 4) + valid_k);
      }
    }
  }

  template <typename Operands> __device__ inline void load_inputs(const Operands &operands, uint32_t first_k) {
    const uint32_t lane = threadIdx.x % WARP_THREADS;
#pragma unroll
    for (int l = 0; l < LOADS; l++) {
      const uint32_t k = first_k + l * LOAD_ELEMENTS + lane % 4 * VECTOR_ELEMENTS;
      const bool is_inside = k < operands.in_features;
      const uint32_t valid_k = is_inside ? k : 0;
#pragma unroll
      for (int i = 0; i < INPUT_TILES; i++) {
        const uint4 input = *reinterpret_cast<const uint4 *>(operands.input(i) + valid_k);
        inputs[l][i] = is_inside ? input : make_uint4(0, 0, 0, 0);
      }
    }
  }

  template <typename Operands> __device__ inline void load(const Operands &operands, uint32_t first_k) {
    load_weights(operands, first_k);
    load_inputs(operands, first_k);
  }

  __device__ inline void add_products(float (&sums)[INPUT_TILES][4]) const {
#pragma unroll
    for (int l = 0; l < LOADS; l++) {
#pragma unroll
      for (int i = 0; i < INPUT_TILES; i++) {
        multiply<T>(sums[i], weights[l][0], weights[l][1], inputs[l][i]);
      }
    }
  }
};

// Brings elements from `first_k` on of the block's rows of weights to the second-level cache.
template <typename Operands> __device__ inline void prefetch_weights(const Operands &operands, uint32_t first_k) {
#if __CUDA_ARCH__ >= 900
  const uint32_t end_k = min(first_k + EARLY_ELEMENTS, operands.in_features);
  if (threadIdx.x < WEIGHT_ROWS && first_k < end_k) {
    const auto *elements = operands.weight(threadIdx.x / 8, threadIdx.x % 8) + first_k;
    const uint32_t num_bytes = (end_k - first_k) * sizeof(*elements);
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(elements), "r"(num_bytes) : "memory");
  }
#endif
}

// One warp's turns. The loads of a turn are issued before the products of the one before, and the first weights
// are on their way before the kernel that makes the inputs has ended.
template <typename T, int INPUT_TILES, typename Operands>
__device__ inline void sum_warp(const Operands &operands, float (&sums)[INPUT_TILES][4]) {
  using WarpTurn = Turn<T, INPUT_TILES>;
  constexpr uint32_t STRIDE = WARPS * WarpTurn::ELEMENTS;
  uint32_t k = threadIdx.x / WARP_THREADS * WarpTurn::ELEMENTS;
  WarpTurn even;
  WarpTurn odd;
  even.load_weights(operands, k);
  prefetch_weights(operands, STRIDE);
  wait_for_predecessor();
  start_successor();
  if (k >= operands.in_features) {
    return;
  }
  even.load_inputs(operands, k);
  while (true) {
    if (k + STRIDE >= operands.in_features) {
      even.add_products(sums);
      return;
    }
    odd.load(operands, k + STRIDE);
    even.add_products(sums);
    if (k + 2 * STRIDE >= operands.in_features) {
      odd.add_products(sums);
      return;
    }
    even.load(operands, k + 2 * STRIDE);
    odd.add_products(sums);
    k += 2 * STRIDE;
  }
}

// The sums of a block, of all its warps.
template <int INPUT_TILES> struct BlockSums {
  // The last dimension is padded against bank conflicts.
  float warps[WARPS][8 * INPUT_TILES][WEIGHT_ROWS + 4];

  __device__ inline void store(const float (&sums)[INPUT_TILES][4]) {
    const int lane = threadIdx.x % WARP_THREADS;
    const int warp = threadIdx.x / WARP_THREADS;
#pragma unroll
    for (int i = 0; i < INPUT_TILES; i++) {
#pragma unroll
      for (int c = 0; c < 4; c++) {
        warps[warp][8 * i + lane % 4 * 2 + c % 2][lane / 4 + c / 2 * 8] = sums[i][c];
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

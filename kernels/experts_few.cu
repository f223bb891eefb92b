// Products of a mixture of experts where an expert has few rows: the weights of the chosen experts are read once, at
// the rate at which `skinny.cuh` reads those of one matrix.
//
// experts_few_up: out[pair] = activation(up * input[row of the pair]), or with a gate activation(gate) * up.
// experts_few_down: out[pair] = weight of the pair * (down * input[pair]).
// Suffix 8 or 16: the rows of a tile.

#include "experts.cuh"
#include "skinny.cuh"

template <typename T, Product PRODUCT, int INPUT_TILES> struct ExpertOperands {
  static constexpr bool IS_GATED = PRODUCT == Product::UP_GATED;
  const T *weights;
  const T *inputs[INPUT_TILES];
  uint32_t in_features;
  uint32_t out_features;
  uint32_t feature_block;

  __device__ inline ExpertOperands(const ExpertProductParams &params, const ExpertWork &work)
      : weights(expert_weights<T, PRODUCT>(params, work.expert)), in_features(params.in_features),
        out_features(params.out_features), feature_block(work.feature_block) {
#pragma unroll
    for (int i = 0; i < INPUT_TILES; i++) {
      inputs[i] = pair_input<T, PRODUCT>(params, work, 8 * i + threadIdx.x % WARP_THREADS / 4);
    }
  }

  __device__ inline const T *weight(int part, uint32_t row) const {
    return weights + weight_row<1, IS_GATED>(feature_block, part, row, out_features) * in_features;
  }

  __device__ inline const T *input(int tile) const { return inputs[tile]; }
};

// What a block writes of pair `first_pair + row` for its feature `index`.
template <Product PRODUCT, typename Sums>
__device__ inline float finish(const ExpertProductParams &params, const Sums &sums, const ExpertWork &work,
                               uint32_t row, uint32_t index) {
  if constexpr (PRODUCT == Product::DOWN) {
    return sums.total(row, index) * params.pair_weights[work.first_pair + row];
  } else if constexpr (PRODUCT == Product::UP_PLAIN) {
    return activate(params.function, sums.total(row, index));
  } else {
    return activate(params.function, sums.total(row, index)) * sums.total(row, index + WEIGHT_ROWS / 2);
  }
}

template <typename T, Product PRODUCT, int INPUT_TILES>
__device__ inline void multiply_few(const ExpertProductParams &params) {
  constexpr int FEATURES = PRODUCT == Product::UP_GATED ? WEIGHT_ROWS / 2 : WEIGHT_ROWS;
  constexpr int ROWS = 8 * INPUT_TILES;
  __shared__ BlockSums<INPUT_TILES> block_sums;
  // The up projection's predecessor writes the list, the down projection's only the input.
  if (PRODUCT != Product::DOWN) {
    wait_for_predecessor();
  }
  ExpertWork work;
  if (!find_work<ROWS>(params, blockIdx.x, work)) {
    wait_for_predecessor();
    return;
  }
  float sums[INPUT_TILES][4] = {};
  sum_warp<T>(ExpertOperands<T, PRODUCT, INPUT_TILES>(params, work), sums);
  block_sums.store(sums);
  __syncthreads();
  for (int index = threadIdx.x; index < FEATURES * ROWS; index += WARPS * WARP_THREADS) {
    const uint32_t row = index / FEATURES;
    const uint32_t feature = work.feature_block * FEATURES + index % FEATURES;
    if (row < work.num_pairs && feature < params.out_features) {
      const float value = finish<PRODUCT>(params, block_sums, work, row, index % FEATURES);
      const uint64_t pair = work.first_pair + row;
      static_cast<T *>(params.out)[pair * params.out_features + feature] = from_float<T>(value);
    }
  }
}

#define EXPERTS_FEW(NAME, T, PRODUCT, INPUT_TILES)                                                               \
  extern "C" __global__ void SKINNY_BOUNDS NAME(const __grid_constant__ ExpertProductParams params) {            \
    multiply_few<T, Product::PRODUCT, INPUT_TILES>(params);                                                      \
  }

#define EXPERTS_FEW_OF(DTYPE, T, ROWS)                                                                           \
  EXPERTS_FEW(experts_few_up_plain_##DTYPE##_##ROWS, T, UP_PLAIN, ROWS / 8)                                      \
  EXPERTS_FEW(experts_few_up_gated_##DTYPE##_##ROWS, T, UP_GATED, ROWS / 8)                                      \
  EXPERTS_FEW(experts_few_down_##DTYPE##_##ROWS, T, DOWN, ROWS / 8)

EXPERTS_FEW_OF(bf16, __nv_bfloat16, 8)
EXPERTS_FEW_OF(bf16, __nv_bfloat16, 16)
EXPERTS_FEW_OF(f16, __half, 8)
EXPERTS_FEW_OF(f16, __half, 16)

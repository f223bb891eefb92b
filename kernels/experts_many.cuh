// Products of a mixture of experts where an expert has many rows: what the kernels for different tensor cores share.
//
// A block multiplies up to TILE_ROWS pairs of one expert with WEIGHT_ROWS rows of its weights. Both lie in shared
// memory in stages of STAGE_K elements of k: a row is 128 bytes, whose 16-byte vectors are permuted by the row's
// number, so that products read 8 rows from different banks. Pairs and k past the end are zero and cost no traffic;
// weights past the end repeat the last row, and their products are not stored.

#pragma once

#include "experts.cuh"
#include "tensor_core.cuh"

constexpr int WEIGHT_ROWS = 128;
constexpr int STAGE_K = 64;
constexpr int STAGE_ROW_BYTES = 128;
// Floats of a row of sums in shared memory: the last are padding against bank conflicts.
constexpr int SUM_COLUMNS = WEIGHT_ROWS + 8;

template <int TILE_ROWS, int STAGES> struct ManyShape {
  static constexpr int INPUT_BYTES = TILE_ROWS * STAGE_ROW_BYTES;
  static constexpr int STAGE_BYTES = INPUT_BYTES + WEIGHT_ROWS * STAGE_ROW_BYTES;
  static constexpr int SHARED_BYTES = STAGES * STAGE_BYTES;
  static_assert(TILE_ROWS * SUM_COLUMNS * 4 <= SHARED_BYTES, "sums reuse the stages");
};

// What a thread copies of a stage: one vector of every THREADS / 8th row.
template <typename T, Product PRODUCT, int TILE_ROWS, int THREADS> struct StageCopies {
  static constexpr int ROWS_APART = THREADS / 8;
  const T *input;
  const T *weights;
  // Of the rows of the input, in elements; the launcher makes sure that they fit.
  uint32_t input_offsets[TILE_ROWS / ROWS_APART];
  uint32_t num_pairs;
  uint32_t in_features;
  uint32_t out_features;
  uint32_t feature_block;

  __device__ inline StageCopies(const ExpertProductParams &params, const ExpertWork &work)
      : input(static_cast<const T *>(params.input)), weights(expert_weights<T, PRODUCT>(params, work.expert)),
        num_pairs(work.num_pairs), in_features(params.in_features), out_features(params.out_features),
        feature_block(work.feature_block) {
#pragma unroll
    for (int i = 0; i < TILE_ROWS / ROWS_APART; i++) {
      const T *row = pair_input<T, PRODUCT>(params, work, threadIdx.x / 8 + i * ROWS_APART);
      input_offsets[i] = static_cast<uint32_t>(row - input);
    }
  }

  // Starts the copies of elements `first_k ..` to the stage at `stage`.
  __device__ inline void start(uint32_t stage, uint32_t first_k) const {
    const uint32_t row = threadIdx.x / 8;
    const uint32_t vector = threadIdx.x % 8;
    const uint32_t k = first_k + vector * VECTOR_ELEMENTS;
    const bool is_valid = k < in_features;
    const uint32_t valid_k = is_valid ? k : 0;
    // Rows a multiple of 8 apart permute alike.
    uint32_t target = stage + row * STAGE_ROW_BYTES + (vector ^ row % 8) * 16;
#pragma unroll
    for (int i = 0; i < TILE_ROWS / ROWS_APART; i++) {
      copy_async(target, input + input_offsets[i] + valid_k, is_valid && row + i * ROWS_APART < num_pairs);
      target += ROWS_APART * STAGE_ROW_BYTES;
    }
#pragma unroll
    for (int i = 0; i < WEIGHT_ROWS / ROWS_APART; i++) {
      const int part = row / 8 + i * ROWS_APART / 8;
      const uint64_t index =
          weight_row<WEIGHT_ROWS / 16, PRODUCT == Product::UP_GATED>(feature_block, part, row % 8, out_features);
      copy_async(target, weights + index * in_features + valid_k, is_valid);
      target += ROWS_APART * STAGE_ROW_BYTES;
    }
  }
};

// 8 sums from `source` on.
__device__ inline void load_sums(float (&values)[8], const float *source) {
  const float4 low = reinterpret_cast<const float4 *>(source)[0];
  const float4 high = reinterpret_cast<const float4 *>(source)[1];
  const float loaded[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < 8; i++) {
    values[i] = loaded[i];
  }
}

// Makes results of a tile's sums, [TILE_ROWS, SUM_COLUMNS], and stores them, 8 features at a time.
template <typename T, Product PRODUCT, int TILE_ROWS, int THREADS>
__device__ inline void store_results(const ExpertProductParams &params, const ExpertWork &work, const float *sums) {
  constexpr bool IS_GATED = PRODUCT == Product::UP_GATED;
  constexpr uint32_t VECTORS = WEIGHT_ROWS / (IS_GATED ? 16 : 8);
  for (uint32_t index = threadIdx.x; index < TILE_ROWS * VECTORS; index += THREADS) {
    const uint32_t row = index / VECTORS;
    const uint32_t vector = index % VECTORS;
    const uint32_t feature = (work.feature_block * VECTORS + vector) * 8;
    if (row >= work.num_pairs || feature >= params.out_features) {
      continue;
    }
    const float *source = sums + row * SUM_COLUMNS + vector * (IS_GATED ? 16 : 8);
    const uint64_t pair = work.first_pair + row;
    float values[8];
    load_sums(values, source);
    if constexpr (PRODUCT == Product::DOWN) {
      const float weight = params.pair_weights[pair];
#pragma unroll
      for (int i = 0; i < 8; i++) {
        values[i] *= weight;
      }
    } else {
      activate(params.function, values);
    }
    if constexpr (IS_GATED) {
      float up[8];
      load_sums(up, source + 8);
#pragma unroll
      for (int i = 0; i < 8; i++) {
        values[i] *= up[i];
      }
    }
    T *target = static_cast<T *>(params.out) + pair * params.out_features + feature;
    *reinterpret_cast<uint4 *>(target) = pack_vector<T>(values);
  }
}

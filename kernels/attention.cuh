// What prompt and decode attention share: parameters, the paged cache, the online softmax of a tile of keys.
// Query head `h` uses key-value head `h / group` with `group = num_heads / num_kv_heads`.

#pragma once

#include "step.cuh"
#include "tensor_core.cuh"

struct AttentionParams {
  StepArrays arrays;
  const DecodeItem *decode_items;
  const SplitRow *split_rows;
  const PromptTile *prompt_tiles;
  // [tokens, (num_heads + 2 * num_kv_heads) * head_dim]
  const void *qkv;
  // The layer's part of the cache, [block][key, value][kv_head][token in block][head_dim].
  const void *cache;
  // [tokens, num_heads * head_dim]
  void *out;
  // [partials][num_heads][head_dim], relative to the maximum of partial_stats
  float *partial_sums;
  // [partials][num_heads]: largest score and sum of exponentials
  float2 *partial_stats;
  uint32_t num_heads;
  uint32_t num_kv_heads;
  uint32_t block_size;
  // Softmax scale times log2(e).
  float scale_log2;
  // The rest is for kernels of general attention. [num_heads], or null: added to scores per token of distance.
  const float *alibi_slopes;
  // Keys that a query sees, itself included; 0: all before it.
  uint32_t window;
  // Bound that scores approach, or 0.
  float soft_cap;
};
static_assert(sizeof(AttentionParams) == 144, "mirrored in attention.rs");

constexpr float MINUS_INFINITY = -__builtin_huge_valf();
constexpr float LOG2_E = 1.4426950408889634f;

// A score, times log2(e), bounded by `cap`, likewise, where it is positive: cap * tanh(score / cap).
__device__ inline float cap_score(float score, float cap) {
  if (cap <= 0.0f) {
    return score;
  }
  constexpr float TWO_LOG2_E = 2.8853900817779268f;
  // For large scores the exponential is infinite and the quotient 0.
  return cap - 2.0f * cap / (1.0f + exp2_approximate(TWO_LOG2_E * score / cap));
}

// A score, times log2(e), of head `head` and a key `distance` tokens before its query, as general attention has it.
__device__ inline float modify_score(const AttentionParams &params, float score, uint32_t head, int distance) {
  const float slope = params.alibi_slopes != nullptr ? params.alibi_slopes[head] * LOG2_E : 0.0f;
  const bool is_near = params.window == 0 || distance < static_cast<int>(params.window);
  const float modified = cap_score(score, params.soft_cap * LOG2_E) - slope * static_cast<float>(distance);
  return is_near && score != MINUS_INFINITY ? modified : MINUS_INFINITY;
}

// Shared-memory rows carry one more 16-byte vector, so that ldmatrix reads 8 rows from different banks.
template <int HEAD_DIM> constexpr int ROW_ELEMENTS = HEAD_DIM + VECTOR_ELEMENTS;

// First element of the keys of `block` for `kv_head`; the values are `value_offset` further on.
template <typename T, int HEAD_DIM>
__device__ inline const T *block_keys(const AttentionParams &params, uint32_t block, uint32_t kv_head) {
  const uint64_t head = static_cast<uint64_t>(block) * 2 * params.num_kv_heads + kv_head;
  return static_cast<const T *>(params.cache) + head * params.block_size * HEAD_DIM;
}

template <int HEAD_DIM> __device__ inline uint64_t value_offset(const AttentionParams &params) {
  return static_cast<uint64_t>(params.num_kv_heads) * params.block_size * HEAD_DIM;
}

// Where 16 keys of a head lie that one warp copies together: in one block, since blocks hold a multiple of 16 tokens.
template <typename T> struct KeyRun {
  const T *keys;
  // Valid keys, at most 16; the rest lies past the end.
  int num_keys;
};

// The run from position `first` on, of keys before `end`.
template <typename T, int HEAD_DIM>
__device__ inline KeyRun<T> locate_run(const AttentionParams &params, const uint32_t *blocks, uint32_t kv_head,
                                       uint32_t first, uint32_t end) {
  const uint32_t block_index = first / params.block_size;
  const uint32_t block = first < end ? blocks[block_index] : 0;
  const uint64_t offset = static_cast<uint64_t>(first - block_index * params.block_size) * HEAD_DIM;
  return {block_keys<T, HEAD_DIM>(params, block, kv_head) + offset, static_cast<int>(end) - static_cast<int>(first)};
}

// Starts copying a run's keys, or with `offset` their values, to shared rows `[16, ROW_ELEMENTS]` at `target`, by one
// warp. Rows of positions past the end become zeros: what stands there in the cache may be anything, NaN included.
template <typename T, int HEAD_DIM>
__device__ inline void copy_run(const KeyRun<T> &run, uint64_t offset, uint32_t target) {
  constexpr int VECTORS = HEAD_DIM / VECTOR_ELEMENTS;
#pragma unroll
  for (int i = 0; i < 16 * VECTORS / WARP_THREADS; i++) {
    const int index = i * WARP_THREADS + threadIdx.x % WARP_THREADS;
    const int row = index / VECTORS;
    const int column = index % VECTORS * VECTOR_ELEMENTS;
    const bool is_valid = row < run.num_keys;
    const T *element = run.keys + offset + (is_valid ? row * HEAD_DIM + column : 0);
    copy_async(target + (row * ROW_ELEMENTS<HEAD_DIM> + column) * sizeof(T), element, is_valid);
  }
}

// The same for keys and values together.
template <typename T, int HEAD_DIM>
__device__ inline void copy_16_keys(const AttentionParams &params, const uint32_t *blocks, uint32_t kv_head,
                                    uint32_t first, uint32_t end, uint32_t keys, uint32_t values) {
  const KeyRun<T> run = locate_run<T, HEAD_DIM>(params, blocks, kv_head, first, end);
  copy_run<T, HEAD_DIM>(run, 0, keys);
  copy_run<T, HEAD_DIM>(run, value_offset<HEAD_DIM>(params), values);
}

// The running softmax of two packed rows, `lane / 4` and `lane / 4 + 8` of a warp's 16.
template <int HEAD_DIM> struct OnlineSoftmax {
  // Sums of values times exponentials, as C fragments.
  float sums[HEAD_DIM / 8][4];
  // Largest score so far, times log2(e), and this thread's part of the sum of exponentials.
  float maxima[2];
  float weights[2];

  __device__ inline void clear() {
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        sums[n][i] = 0.0f;
      }
    }
    maxima[0] = maxima[1] = MINUS_INFINITY;
    weights[0] = weights[1] = 0.0f;
  }

  // Turns scores of `8 * TILES` keys, times log2(e), into exponentials and rescales what was summed before.
  template <int TILES> __device__ inline void take(float (&scores)[TILES][4]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float maximum = maxima[half];
#pragma unroll
      for (int n = 0; n < TILES; n++) {
        maximum = fmaxf(maximum, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      }
      maximum = fmaxf(maximum, __shfl_xor_sync(FULL_WARP, maximum, 1));
      maximum = fmaxf(maximum, __shfl_xor_sync(FULL_WARP, maximum, 2));
      // A row that has seen no key yet has nothing to rescale, and its masked scores must not give NaN.
      const float base = maximum == MINUS_INFINITY ? 0.0f : maximum;
      const float correction = exp2_approximate(maxima[half] - base);
      maxima[half] = maximum;
      float weight = 0.0f;
#pragma unroll
      for (int n = 0; n < TILES; n++) {
        scores[n][2 * half] = exp2_approximate(scores[n][2 * half] - base);
        scores[n][2 * half + 1] = exp2_approximate(scores[n][2 * half + 1] - base);
        weight += scores[n][2 * half] + scores[n][2 * half + 1];
      }
      weights[half] = weights[half] * correction + weight;
#pragma unroll
      for (int n = 0; n < HEAD_DIM / 8; n++) {
        sums[n][2 * half] *= correction;
        sums[n][2 * half + 1] *= correction;
      }
    }
  }

  // Adds 16 keys' values, shared rows at `values`, times the exponentials of their two tiles of scores.
  template <typename T>
  __device__ inline void add_values(const float (&low)[4], const float (&high)[4], uint32_t values) {
    const uint32_t weights_fragment[4] = {pack<T>(low[0], low[1]), pack<T>(low[2], low[3]), pack<T>(high[0], high[1]),
                                          pack<T>(high[2], high[3])};
    const int lane = threadIdx.x % WARP_THREADS;
    const uint32_t lane_address =
        values + ((lane % 16) * ROW_ELEMENTS<HEAD_DIM> + lane / 16 * VECTOR_ELEMENTS) * sizeof(T);
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 16; n++) {
      uint32_t fragment[4];
      load_matrices_transposed(fragment, lane_address + n * 16 * sizeof(T));
      mma<T>(sums[2 * n], weights_fragment, fragment[0], fragment[1]);
      mma<T>(sums[2 * n + 1], weights_fragment, fragment[2], fragment[3]);
    }
  }

  // Sums of exponentials of both rows over the four threads that share them.
  __device__ inline void finish_weights() {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      weights[half] += __shfl_xor_sync(FULL_WARP, weights[half], 1);
      weights[half] += __shfl_xor_sync(FULL_WARP, weights[half], 2);
    }
  }
};

// scores += queries * keys^T for 16 keys, shared rows at `keys`, and elements `16 step ..` of the heads.
template <typename T, int HEAD_DIM>
__device__ inline void add_scores(float (&low)[4], float (&high)[4], const uint32_t (&queries)[4], uint32_t keys,
                                  int step) {
  const int lane = threadIdx.x % WARP_THREADS;
  // Matrices: keys 0 to 7 and their second 8 elements, then keys 8 to 15.
  const int row = lane % 8 + lane / 16 * 8;
  const int column = lane / 8 % 2 * VECTOR_ELEMENTS;
  uint32_t fragment[4];
  load_matrices(fragment, keys + (row * ROW_ELEMENTS<HEAD_DIM> + column + 16 * step) * sizeof(T));
  mma<T>(low, queries, fragment[0], fragment[1]);
  mma<T>(high, queries, fragment[2], fragment[3]);
}

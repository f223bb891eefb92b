// What prompt and decode attention share: parameters, what scores pass, the paged cache.
// Query head `h` uses key-value head `h / group` with `group = num_heads / num_kv_heads`.

#pragma once

#include "step.cuh"
#include "tensor_core.cuh"

struct AttentionParams {
  StepArrays arrays;
  const DecodeItem *decode_items;
  const DecodeShare *decode_shares;
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
  // [partials][blocks of a share]: how many of a row's partial results are there, at the place of the first; 0 between
  // kernels.
  uint32_t *arrivals;
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
static_assert(sizeof(AttentionParams) == 152, "mirrored in attention.rs");

constexpr float MINUS_INFINITY = -__builtin_huge_valf();

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

// Shared-memory rows carry one more 16-byte vector, so that 8 rows are read from different banks.
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

// Where 16 keys of a head lie that one warp reads together: in one block, since blocks hold a multiple of 16 tokens.
template <typename T> struct KeyRun {
  const T *keys;
  // Keys from the first on; those of the 16 that are more lie past the end, and below 1 all do.
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

// What the rotation after a product (rope.cu) and the one in a product (rope_sm90.cuh) share: their parameters, and
// the places of a token's heads.

#pragma once

#include "common.cuh"
#include "step.cuh"

struct RopeParams {
  const StepHeader *header;
  const uint32_t *positions;
  const uint32_t *cache_places;
  const float *table;
  const float *bias;
  // Null where queries and keys are not normalised; biases may be null alone.
  const float *query_weight;
  const float *query_bias;
  const float *key_weight;
  const float *key_bias;
  void *qkv;
  // The layer's part of the cache.
  void *cache;
  uint32_t num_heads;
  uint32_t num_kv_heads;
  uint32_t head_dim;
  uint32_t rotary_dim;
  uint32_t block_size;
  // Infinity where there is none.
  float clamp;
  float epsilon;
  // Layer norm instead of RMS norm.
  uint32_t is_layer;
  // All heads together instead of each by itself.
  uint32_t takes_width;
  // Leading elements of a head that are normalised; the rest is padding.
  uint32_t head_len;
};
static_assert(sizeof(RopeParams) == 128, "mirrored in rope.rs");

template <typename T> struct TokenHeads {
  T *qkv;
  // Places of the token's first key head and first value head.
  T *keys;
  T *values;
  uint64_t cache_head_stride;
};

// The heads of a token whose place in the cache is known.
template <typename T>
__device__ inline TokenHeads<T> locate(const RopeParams &params, uint32_t token, uint32_t place) {
  const uint64_t block = place / params.block_size;
  const uint64_t offset = place % params.block_size;
  const uint64_t head_stride = static_cast<uint64_t>(params.block_size) * params.head_dim;
  T *keys = static_cast<T *>(params.cache) + block * 2 * params.num_kv_heads * head_stride + offset * params.head_dim;
  const uint64_t width = static_cast<uint64_t>(params.num_heads + 2 * params.num_kv_heads) * params.head_dim;
  return {static_cast<T *>(params.qkv) + token * width, keys, keys + params.num_kv_heads * head_stride, head_stride};
}

// Keeps a NaN, which fminf and fmaxf would drop.
__device__ inline float clamp(float value, float limit) {
  return value > limit ? limit : value < -limit ? -limit : value;
}

// Turns a pair by an angle.
__device__ inline void rotate(float &first, float &second, float cosine, float sine) {
  const float rotated = first * cosine - second * sine;
  second = second * cosine + first * sine;
  first = rotated;
}

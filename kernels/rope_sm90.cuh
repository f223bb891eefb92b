// The end of a product of queries, keys and values on Hopper (linear_sm90.cu): adds biases, clamps, rotates queries and
// keys, and writes queries to `qkv` and keys and values to the paged cache, as rope.cu does after a product. There are
// no norms.
//
// A thread has a vector of a row, which is a part of one head. With the half pairing its partners are the vector
// rotary_dim / 2 further on or back, so tiles hold whole heads, and rotary_dim is a multiple of two vectors; neighbours
// lie in the vector itself, and rotary_dim is a multiple of one.

#pragma once

#include "linear_sm90.cuh"

template <typename T, int COLUMNS, bool IS_INTERLEAVED> struct Rotated {
  using Params = RotatedParams;
  static constexpr int OUT_COLUMNS = COLUMNS;
  static constexpr int BATCH = IS_INTERLEAVED ? 4 : 2;
  // Angles of a vector: one for each element, or for each pair of neighbours.
  static constexpr int ANGLES = IS_INTERLEAVED ? VECTOR_ELEMENTS / 2 : VECTOR_ELEMENTS;
  struct Loaded {
    uint32_t cache_place;
    uint4 sums;
    uint4 partners;
    float4 cosines[ANGLES / 4];
    float4 sines[ANGLES / 4];
  };

  const RopeParams &rope;
  const LinearShape<COLUMNS> shared;
  const uint32_t tile_row;
  const uint32_t vector;
  // Of queries, keys and values in this order, and the vector's first element in it.
  const uint32_t head;
  const uint32_t offset;
  const bool rotates;
  // Whether the vector's partners come before it.
  const bool is_second;
  uint32_t partners;
  float bias[VECTOR_ELEMENTS];
  float partners_bias[VECTOR_ELEMENTS];

  __device__ inline Rotated(const Params &params, LinearShape<COLUMNS> shared, const Share &share)
      : rope(params.rope), shared(shared), tile_row(share.tile.row), vector(share.vector),
        head(share.column() / rope.head_dim), offset(share.column() % rope.head_dim),
        rotates(head < rope.num_heads + rope.num_kv_heads && offset < rope.rotary_dim),
        is_second(offset >= rope.rotary_dim / 2) {
    const uint32_t distance = rope.rotary_dim / 2 / VECTOR_ELEMENTS;
    partners = IS_INTERLEAVED || !rotates ? vector : is_second ? vector - distance : vector + distance;
    load_row(rope.bias, share.column(), bias);
    load_row(rope.bias, share.tile.column + partners * VECTOR_ELEMENTS, partners_bias);
  }

  __device__ inline Loaded load(uint32_t row) const {
    Loaded loaded = {};
    loaded.sums = load_shared(shared.sums(row, vector));
    loaded.cache_place = rope.cache_places[tile_row + row];
    if (rotates) {
      const uint32_t half = rope.rotary_dim / 2;
      const uint32_t angle = IS_INTERLEAVED ? offset / 2 : is_second ? offset - half : offset;
      const float *cosines =
          rope.table + static_cast<uint64_t>(rope.positions[tile_row + row]) * rope.rotary_dim + angle;
      loaded.partners = load_shared(shared.sums(row, partners));
#pragma unroll
      for (int i = 0; i < ANGLES / 4; i++) {
        loaded.cosines[i] = __ldg(reinterpret_cast<const float4 *>(cosines) + i);
        loaded.sines[i] = __ldg(reinterpret_cast<const float4 *>(cosines + half) + i);
      }
    }
    return loaded;
  }

  __device__ inline void unpack_biased(uint4 sums, const float (&added)[VECTOR_ELEMENTS],
                                       float (&values)[VECTOR_ELEMENTS]) const {
    unpack_vector<T>(sums, values);
#pragma unroll
    for (int i = 0; i < VECTOR_ELEMENTS; i++) {
      values[i] = clamp(values[i] + added[i], rope.clamp);
    }
  }

  __device__ inline void turn(float (&values)[VECTOR_ELEMENTS], const Loaded &loaded) const {
    const float *cosines = &loaded.cosines[0].x;
    const float *sines = &loaded.sines[0].x;
    if constexpr (IS_INTERLEAVED) {
#pragma unroll
      for (int i = 0; i < ANGLES; i++) {
        rotate(values[2 * i], values[2 * i + 1], cosines[i], sines[i]);
      }
    } else {
      float others[VECTOR_ELEMENTS];
      unpack_biased(loaded.partners, partners_bias, others);
#pragma unroll
      for (int i = 0; i < ANGLES; i++) {
        values[i] = values[i] * cosines[i] + others[i] * (is_second ? sines[i] : -sines[i]);
      }
    }
  }

  __device__ inline void finish(uint32_t row, const Loaded &loaded) const {
    float values[VECTOR_ELEMENTS];
    unpack_biased(loaded.sums, bias, values);
    if (rotates) {
      turn(values, loaded);
    }
    const TokenHeads<T> heads = locate<T>(rope, tile_row + row, loaded.cache_place);
    // Values follow keys, with the same distance from head to head.
    T *target = head < rope.num_heads ? heads.qkv + head * rope.head_dim
                                      : heads.keys + (head - rope.num_heads) * heads.cache_head_stride;
    *reinterpret_cast<uint4 *>(target + offset) = pack_vector<T>(values);
  }

  __device__ static inline void run(const Params &params, LinearShape<COLUMNS> shared, Share share) {
    // A recorded step may have rows past the batch's, which have neither position nor place.
    const uint32_t num_tokens = params.rope.header->num_tokens;
    share.end_row = min(share.end_row, num_tokens > share.tile.row ? num_tokens - share.tile.row : 0);
    if (share.first_row < share.end_row) {
      finish_rows(Rotated(params, shared, share), share);
    }
  }
};

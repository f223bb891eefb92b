// A warp's part of decode attention (attention_decode.cu): from keys and values of the paged cache to sums of values
// times exponentials, for the query heads that share a key-value head.
//
// Keys and values take the 16-row side of the tensor core's tile and query heads the 8-column side, which a group fills
// best. They come from memory straight into the fragments' registers: which element of a head stands where in a
// fragment matters to nobody, as long as queries have the same order and results know theirs. Loads into registers
// read faster than copies to shared memory, which this kernel had before, and take less energy (benches/NOTES.md).

#pragma once

#include "attention.cuh"

// How warps take runs: in chunks, each a part of a run's keys or values, first those of the keys. Up to 8 KiB of a warp
// are on their way at once, a whole run or one chunk: a thread's loads are waited for together, so the next ones start
// when these have been read, and the other warps' are what memory works on meanwhile.
template <int HEAD_DIM, int HEADS> struct DecodeShape {
  // Whether a whole run is loaded at once.
  static constexpr bool IS_WHOLE = HEAD_DIM <= 128;
  // For 16 heads of 256, more would leave no registers for the sums.
  static constexpr int PART = IS_WHOLE || HEADS <= 8 ? HEAD_DIM : 64;
  static constexpr int PARTS = HEAD_DIM / PART;
  static constexpr int CHUNKS = 2 * PARTS;
  // Of a chunk, in a thread.
  static constexpr int WORDS = 16 * PART / 2 / WARP_THREADS;
  // Of a block, and blocks of a multiprocessor, for which there are registers. Mirrored in attention.rs.
  static constexpr int WARPS = HEAD_DIM <= 128 ? 4 : 2;
  static constexpr int BLOCKS = (HEADS > 8 ? 8 : HEAD_DIM <= 96 ? 16 : HEAD_DIM <= 128 ? 12 : 8) / WARPS;
};

// Words that are read once, from memory that an earlier kernel may have written.
template <int WORDS> __device__ inline void load_words(uint32_t *words, const void *source) {
  if constexpr (WORDS == 4) {
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "l"(source));
  } else if constexpr (WORDS == 2) {
    asm volatile("ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(words[0]), "=r"(words[1]) : "l"(source));
  } else {
    static_assert(WORDS == 1);
    asm volatile("ld.global.L1::no_allocate.u32 %0, [%1];" : "=r"(words[0]) : "l"(source));
  }
}

// What the blocks of a share take of its items: one key-value head, and some of the query heads that share it.
struct HeadGroup {
  uint32_t kv_head;
  uint32_t first_head;
  int num_heads;
};

// Parts of the query heads that share a key-value head.
template <int HEADS> __device__ inline uint32_t num_parts(const AttentionParams &params) {
  return (params.num_heads / params.num_kv_heads + HEADS - 1) / HEADS;
}

// What block `index` of a share takes: all key-value heads have blocks, in each the parts of its query heads.
template <int HEADS> __device__ inline HeadGroup group_at(const AttentionParams &params, uint32_t index) {
  const uint32_t group = params.num_heads / params.num_kv_heads;
  const uint32_t parts = num_parts<HEADS>(params);
  const uint32_t kv_head = index / parts;
  const uint32_t first = (index - kv_head * parts) * HEADS;
  return {kv_head, kv_head * group + first, min(static_cast<int>(group - first), HEADS)};
}

// First of the item's keys that its query sees, rounded down to a multiple of 16.
template <bool IS_GENERAL>
__device__ inline uint32_t first_visible(const AttentionParams &params, const DecodeItem &item) {
  if (!IS_GENERAL || params.window == 0 || item.context_len <= params.window) {
    return item.first_key;
  }
  return max(item.first_key, (item.context_len - params.window) / 16 * 16);
}

// Shared memory of a block.
template <typename T, int HEAD_DIM, int HEADS> struct DecodeMemory {
  static constexpr int WARPS = DecodeShape<HEAD_DIM, HEADS>::WARPS;
  // Of each warp and head: largest score and sum of exponentials, and the sums.
  float2 stats[WARPS][HEADS];
  float sums[WARPS][HEADS][HEAD_DIM];
  // Of an item and the one after it.
  T queries[2][HEADS][ROW_ELEMENTS<HEAD_DIM>];
};

// Starts copying an item's queries, by the block; what is not there becomes zeros.
template <typename T, int HEAD_DIM, int HEADS>
__device__ inline void copy_queries(const AttentionParams &params, const HeadGroup &group, uint32_t token,
                                    T (&target)[HEADS][ROW_ELEMENTS<HEAD_DIM>]) {
  constexpr int VECTORS = HEAD_DIM / VECTOR_ELEMENTS;
  const uint64_t width = static_cast<uint64_t>(params.num_heads + 2 * params.num_kv_heads) * HEAD_DIM;
  const T *heads = static_cast<const T *>(params.qkv) + token * width + group.first_head * HEAD_DIM;
  for (int index = threadIdx.x; index < HEADS * VECTORS; index += blockDim.x) {
    const int head = index / VECTORS;
    const int column = index % VECTORS * VECTOR_ELEMENTS;
    const bool is_valid = head < group.num_heads;
    copy_async(shared_address(&target[head][column]), is_valid ? heads + head * HEAD_DIM + column : heads, is_valid);
  }
  commit_copies();
}

// One warp's part of a block's items. A thread holds, of each 8 heads, two: 2 (lane % 4) and the next.
template <typename T, int HEAD_DIM, int HEADS, bool IS_GENERAL> struct DecodeWarp {
  using Shape = DecodeShape<HEAD_DIM, HEADS>;
  using Chunk = uint32_t[Shape::WORDS];
  static constexpr int PART = Shape::PART;
  static constexpr int TILES = HEADS / 8;
  static constexpr uint32_t STRIDE = Shape::WARPS * 16;

  const AttentionParams &params;
  const uint32_t group = threadIdx.x % WARP_THREADS / 4;
  const uint32_t pair = threadIdx.x % 4;
  const HeadGroup heads;
  DecodeItem item;
  // Of the warp's first run of the item.
  uint32_t first_key;
  // B fragments.
  uint32_t queries[HEAD_DIM / 16][TILES][2];
  // Have arrived or are on their way: a run's keys and values, or one chunk.
  Chunk words[Shape::IS_WHOLE ? 2 : 1];
  // Sums of values times exponentials, 16 elements of a head a tile, as C fragments.
  float sums[HEAD_DIM / 16][TILES][4];
  // Largest score so far, times log2(e), and this thread's part of the sum of exponentials.
  float maxima[TILES][2];
  float weights[TILES][2];

  __device__ inline DecodeWarp(const AttentionParams &params, const HeadGroup &heads) : params(params), heads(heads) {}

  // First key of the warp's first run of an item.
  __device__ inline uint32_t first_key_of(const DecodeItem &item) const {
    return first_visible<IS_GENERAL>(params, item) + threadIdx.x / WARP_THREADS * 16;
  }
  __device__ inline KeyRun<T> locate(const DecodeItem &item, uint32_t key) const {
    return locate_run<T, HEAD_DIM>(params, params.arrays.block_tables + item.first_block, heads.kv_head, key,
                                   item.end_key);
  }

  // Takes up an item whose first run is on its way.
  __device__ inline void begin(const DecodeItem &next, const T (&rows)[HEADS][ROW_ELEMENTS<HEAD_DIM>]) {
    item = next;
    first_key = first_key_of(item);
    load_queries(rows);
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 16 * TILES * 4; n++) {
      sums[n / (TILES * 4)][n / 4 % TILES][n % 4] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < TILES * 2; n++) {
      maxima[n / 2][n % 2] = MINUS_INFINITY;
      weights[n / 2][n % 2] = 0.0f;
    }
  }

  // Starts loading a part of 16 keys as A fragments: the words of row `group`, then those of the row 8 further down. Of
  // every 32 elements of a row, the thread's 8 neighbours stand for the columns of two fragments that are its; of 16
  // that are left, its 4 for one's. Rows past the end are the last one: what they give is dropped.
  __device__ inline void load_keys(Chunk &words, const T *rows, uint32_t last_row) const {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const T *row = rows + min(group + 8 * half, last_row) * HEAD_DIM;
      uint32_t *target = words + half * PART / 8;
#pragma unroll
      for (int n = 0; n < PART / 32; n++) {
        load_words<4>(target + 4 * n, row + 32 * n + pair * 8);
      }
      if constexpr (PART % 32 == 16) {
        load_words<2>(target + PART / 32 * 4, row + PART / 32 * 32 + pair * 4);
      }
    }
  }

  // The same of values: the words of keys 2 pair, 2 pair + 1 and those 8 further down. Of every 64 elements of a row,
  // the thread's 8 neighbours stand for rows of four fragments, of 32 or 16 that are left its 4 or 2 for those of two or
  // one. Rows past the end are the last one, with an exponential of 0.
  __device__ inline void load_values(Chunk &words, const T *rows, uint32_t last_row) const {
    constexpr int REST = PART % 64;
#pragma unroll
    for (int key = 0; key < 4; key++) {
      const T *row = rows + min(2 * pair + key % 2 + key / 2 * 8, last_row) * HEAD_DIM;
      uint32_t *target = words + key * PART / 16;
#pragma unroll
      for (int n = 0; n < PART / 64; n++) {
        load_words<4>(target + 4 * n, row + 64 * n + group * 8);
      }
      if constexpr (REST > 0) {
        load_words<REST / 16>(target + PART / 64 * 4, row + PART / 64 * 64 + group * (REST / 8));
      }
    }
  }

  // The first of the two elements of a head whose sums are in sums[index].
  __device__ inline uint32_t element_of(int index) const {
    const int within = index % (PART / 16);
    const int part = index / (PART / 16) * PART;
    return within < PART / 64 * 4 ? part + within / 4 * 64 + group * 8 + within % 4 * 2
                                  : part + PART / 64 * 64 + group * (PART % 64 / 8) + within % 4 * 2;
  }

  template <int CHUNK> __device__ inline Chunk &chunk() { return words[Shape::IS_WHOLE ? CHUNK : 0]; }

  // Starts loading chunk `CHUNK` of a run, which has keys.
  template <int CHUNK> __device__ inline void load(const KeyRun<T> &place) {
    constexpr bool IS_KEYS = CHUNK < Shape::PARTS;
    const T *rows = place.keys + (IS_KEYS ? 0 : value_offset<HEAD_DIM>(params)) + CHUNK % Shape::PARTS * PART;
    const uint32_t last_row = place.num_keys - 1;
    IS_KEYS ? load_keys(chunk<CHUNK>(), rows, last_row) : load_values(chunk<CHUNK>(), rows, last_row);
  }

  // Starts loading a run, if it has keys, or its first chunk.
  __device__ inline void load_first(const KeyRun<T> &place) {
    if (place.num_keys > 0) {
      load<0>(place);
      if constexpr (Shape::IS_WHOLE) {
        load<1>(place);
      }
    }
  }

  __device__ inline void load_queries(const T (&rows)[HEADS][ROW_ELEMENTS<HEAD_DIM>]) {
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 16 * TILES; n++) {
      const int step = n / TILES;
      // As load_keys has them.
      const bool is_last = HEAD_DIM % 32 == 16 && step == HEAD_DIM / 16 - 1;
      const uint32_t element = is_last ? 16 * step + pair * 4 : step / 2 * 32 + pair * 8 + step % 2 * 4;
      const uint2 words = *reinterpret_cast<const uint2 *>(&rows[n % TILES * 8 + group][element]);
      queries[step][n % TILES][0] = words.x;
      queries[step][n % TILES][1] = words.y;
    }
  }

  // Adds what a chunk of keys gives to the products of 16 keys and the queries, as C fragments: keys `group` and
  // `group` + 8.
  template <int CHUNK> __device__ inline void multiply_keys(float (&scores)[TILES][4]) {
    const Chunk &words = chunk<CHUNK>();
#pragma unroll
    for (int step = 0; step < PART / 16; step++) {
      const uint32_t keys[4] = {words[2 * step], words[PART / 8 + 2 * step], words[2 * step + 1],
                                words[PART / 8 + 2 * step + 1]};
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        const uint32_t(&query)[2] = queries[CHUNK * (PART / 16) + step][tile];
        mma<T>(scores[tile], keys, query[0], query[1]);
      }
    }
  }

  // Makes products of the keys from `first` on scores, times log2(e).
  __device__ inline void score(float (&scores)[TILES][4], uint32_t first) const {
#pragma unroll
    for (int n = 0; n < TILES * 4; n++) {
      float &value = scores[n / 4][n % 4];
      const uint32_t key = first + group + n % 4 / 2 * 8;
      value = key < item.end_key ? value * params.scale_log2 : MINUS_INFINITY;
      if (IS_GENERAL) {
        const uint32_t head = heads.first_head + n / 4 * 8 + pair * 2 + n % 2;
        value = modify_score(params, value, min(head, params.num_heads - 1), static_cast<int>(item.context_len - 1 - key));
      }
    }
  }

  // Turns scores into exponentials and rescales what was summed before.
  __device__ inline void soften(float (&scores)[TILES][4]) {
    bool has_risen = false;
    float factors[TILES][2];
#pragma unroll
    for (int n = 0; n < TILES * 2; n++) {
      const int tile = n / 2;
      const int head = n % 2;
      float maximum = fmaxf(maxima[tile][head], fmaxf(scores[tile][head], scores[tile][head + 2]));
#pragma unroll
      for (int offset = 4; offset < WARP_THREADS; offset *= 2) {
        maximum = fmaxf(maximum, __shfl_xor_sync(FULL_WARP, maximum, offset));
      }
      // A head that has seen no key yet has nothing to rescale, and its masked scores must not give NaN.
      const float base = maximum == MINUS_INFINITY ? 0.0f : maximum;
      has_risen |= maximum > maxima[tile][head];
      factors[tile][head] = exp2_approximate(maxima[tile][head] - base);
      maxima[tile][head] = maximum;
      scores[tile][head] = exp2_approximate(scores[tile][head] - base);
      scores[tile][head + 2] = exp2_approximate(scores[tile][head + 2] - base);
      weights[tile][head] = weights[tile][head] * factors[tile][head] + scores[tile][head] + scores[tile][head + 2];
    }
    if (__any_sync(FULL_WARP, has_risen)) {
#pragma unroll
      for (int n = 0; n < HEAD_DIM / 16 * TILES * 4; n++) {
        sums[n / (TILES * 4)][n / 4 % TILES][n % 4] *= factors[n / 4 % TILES][n % 2];
      }
    }
  }

  // Adds a chunk of values times the exponentials, which are B fragments.
  template <int CHUNK> __device__ inline void add_values(const uint32_t (&exponentials)[TILES][2]) {
    constexpr int STEPS = PART / 16;
    const Chunk &words = chunk<CHUNK>();
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      const uint32_t first = words[step];
      const uint32_t second = words[STEPS + step];
      const uint32_t third = words[2 * STEPS + step];
      const uint32_t fourth = words[3 * STEPS + step];
      const uint32_t values[4] = {low_halves(first, second), high_halves(first, second), low_halves(third, fourth),
                                  high_halves(third, fourth)};
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        mma<T>(sums[(CHUNK - Shape::PARTS) * STEPS + step][tile], values, exponentials[tile][0], exponentials[tile][1]);
      }
    }
  }

  // Works on chunk `CHUNK` of the run of keys from `key` on, and those after it. What is read makes room for what
  // comes next, of this run or of the one at `next`.
  template <int CHUNK>
  __device__ inline void work_through(float (&scores)[TILES][4], uint32_t (&exponentials)[TILES][2], uint32_t key,
                                      const KeyRun<T> &place, const KeyRun<T> &next) {
    if constexpr (CHUNK < Shape::PARTS) {
      multiply_keys<CHUNK>(scores);
    } else {
      add_values<CHUNK>(exponentials);
    }
    if constexpr (CHUNK + 1 == Shape::CHUNKS) {
      load_first(next);
    } else if constexpr (!Shape::IS_WHOLE) {
      load<CHUNK + 1>(place);
    }
    if constexpr (CHUNK + 1 == Shape::PARTS) {
      score(scores, key);
      soften(scores);
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        exponentials[tile][0] = transpose_matrix(pack<T>(scores[tile][0], scores[tile][1]));
        exponentials[tile][1] = transpose_matrix(pack<T>(scores[tile][2], scores[tile][3]));
      }
    }
    if constexpr (CHUNK + 1 < Shape::CHUNKS) {
      work_through<CHUNK + 1>(scores, exponentials, key, place, next);
    }
  }

  // Works on all runs, of which the first lies at `place`. The first run of the warp's next item, at `after`, is on its
  // way then.
  __device__ inline void run_all(KeyRun<T> place, const KeyRun<T> &after) {
    if (first_key >= item.end_key) {
      load_first(after);
    }
    for (uint32_t key = first_key; key < item.end_key; key += STRIDE) {
      const KeyRun<T> next = key + STRIDE < item.end_key ? locate(item, key + STRIDE) : after;
      float scores[TILES][4] = {};
      uint32_t exponentials[TILES][2];
      work_through<0>(scores, exponentials, key, place, next);
      place = next;
    }
#pragma unroll
    for (int n = 0; n < TILES * 2; n++) {
#pragma unroll
      for (int offset = 4; offset < WARP_THREADS; offset *= 2) {
        weights[n / 2][n % 2] += __shfl_xor_sync(FULL_WARP, weights[n / 2][n % 2], offset);
      }
    }
  }
};

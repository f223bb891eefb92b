// Causal attention of rows with several query tokens over the paged cache (FlashAttention 2, Dao 2023).
//
// Two blocks per tile of 128 query tokens and query head, 64 tokens each; each of 4 warps owns 16 rows. The block
// passes the keys that its last row sees in tiles of KEYS, double-buffered in shared memory; scores and exponentials
// stay in registers. Queries are kept in registers too, except for head size 256, where they are read from
// shared memory again for every tile.
//
// Head sizes 64, 80, 96, 128, 256. Blocks of the cache hold a multiple of 16 tokens.

#include "attention.cuh"

constexpr int WARPS = 4;
constexpr int QUERY_ROWS = WARPS * 16;

template <int HEAD_DIM> struct PromptShape {
  static constexpr int KEYS = HEAD_DIM > 128 ? 32 : 64;
  static constexpr bool KEEPS_QUERIES = HEAD_DIM <= 128;
  static constexpr int QUERY_BYTES = QUERY_ROWS * ROW_ELEMENTS<HEAD_DIM> * 2;
  static constexpr int TILE_BYTES = KEYS * ROW_ELEMENTS<HEAD_DIM> * 2;
  static constexpr int SHARED_BYTES = QUERY_BYTES + 2 * 2 * TILE_BYTES;
};

// Starts copying 16 keys from position `first` on, of those before `end`, and their values to shared rows, by one warp.
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

// Half a tile of one row's queries.
struct Tile {
  uint32_t row;
  // Of the batch's tokens, the half's first.
  uint32_t first_token;
  // 0 where the row ends before.
  uint32_t num_tokens;
  // Position of the first token.
  uint32_t first_position;
};

// The later half comes first, since it sees more keys.
__device__ inline Tile locate(const AttentionParams &params) {
  const PromptTile tile = params.prompt_tiles[blockIdx.x / 2];
  const uint32_t end_token = params.arrays.query_starts[tile.row + 1];
  const uint32_t first_token =
      params.arrays.query_starts[tile.row] + tile.first_token + (1 - blockIdx.x % 2) * QUERY_ROWS;
  const uint32_t num_left = end_token - min(first_token, end_token);
  return {tile.row, first_token, min(num_left, static_cast<uint32_t>(QUERY_ROWS)),
          params.arrays.context_lens[tile.row] - num_left};
}

// Starts copying the tile's queries to shared memory; rows past the tile's end become zeros.
template <typename T, int HEAD_DIM>
__device__ inline void copy_queries(const AttentionParams &params, const Tile &tile, uint32_t target) {
  constexpr int VECTORS = HEAD_DIM / VECTOR_ELEMENTS;
  const uint64_t width = static_cast<uint64_t>(params.num_heads + 2 * params.num_kv_heads) * HEAD_DIM;
  const T *heads = static_cast<const T *>(params.qkv) + tile.first_token * width + blockIdx.y * HEAD_DIM;
  for (int index = threadIdx.x; index < QUERY_ROWS * VECTORS; index += WARPS * WARP_THREADS) {
    const uint32_t row = index / VECTORS;
    const uint32_t column = index % VECTORS * VECTOR_ELEMENTS;
    const bool is_valid = row < tile.num_tokens;
    const T *source = heads + (is_valid ? row * width + column : 0);
    copy_async(target + (row * ROW_ELEMENTS<HEAD_DIM> + column) * sizeof(T), source, is_valid);
  }
}

// Starts copying keys `first .. first + KEYS` and their values, 16 by 16 over the warps.
template <typename T, int HEAD_DIM>
__device__ inline void copy_keys(const AttentionParams &params, const uint32_t *blocks, uint32_t first, uint32_t end,
                                 uint32_t keys) {
  using Shape = PromptShape<HEAD_DIM>;
  const uint32_t kv_head = blockIdx.y / (params.num_heads / params.num_kv_heads);
  constexpr uint32_t RUN_BYTES = 16 * ROW_ELEMENTS<HEAD_DIM> * sizeof(T);
  for (int run = threadIdx.x / WARP_THREADS; run < Shape::KEYS / 16; run += WARPS) {
    copy_16_keys<T, HEAD_DIM>(params, blocks, kv_head, first + run * 16, end, keys + run * RUN_BYTES,
                              keys + Shape::TILE_BYTES + run * RUN_BYTES);
  }
  commit_copies();
}

// A fragment `step` of the warp's 16 queries.
template <typename T, int HEAD_DIM>
__device__ inline void load_queries(uint32_t (&fragment)[4], uint32_t queries, int step) {
  const int lane = threadIdx.x % WARP_THREADS;
  const int row = threadIdx.x / WARP_THREADS * 16 + lane % 16;
  const int column = 16 * step + lane / 16 * VECTOR_ELEMENTS;
  load_matrices(fragment, queries + (row * ROW_ELEMENTS<HEAD_DIM> + column) * sizeof(T));
}

// One tile of keys: scores, mask, softmax, values.
template <typename T, int HEAD_DIM, bool IS_GENERAL, typename Queries>
__device__ inline void run_tile(const AttentionParams &params, const uint32_t (&positions)[2], uint32_t first_key,
                                bool is_masked, const Queries &queries, uint32_t keys,
                                OnlineSoftmax<HEAD_DIM> &softmax) {
  using Shape = PromptShape<HEAD_DIM>;
  constexpr uint32_t RUN_BYTES = 16 * ROW_ELEMENTS<HEAD_DIM> * sizeof(T);
  float scores[Shape::KEYS / 8][4] = {};
#pragma unroll
  for (int step = 0; step < HEAD_DIM / 16; step++) {
    uint32_t fragment[4];
    queries(fragment, step);
#pragma unroll
    for (int run = 0; run < Shape::KEYS / 16; run++) {
      add_scores<T, HEAD_DIM>(scores[2 * run], scores[2 * run + 1], fragment, keys + run * RUN_BYTES, step);
    }
  }
#pragma unroll
  for (int n = 0; n < Shape::KEYS / 8; n++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t key = first_key + 8 * n + threadIdx.x % 4 * 2 + i % 2;
      const bool is_visible = !is_masked || key <= positions[i / 2];
      scores[n][i] = is_visible ? scores[n][i] * params.scale_log2 : MINUS_INFINITY;
      if (IS_GENERAL) {
        scores[n][i] = modify_score(params, scores[n][i], blockIdx.y, static_cast<int>(positions[i / 2] - key));
      }
    }
  }
  softmax.take(scores);
#pragma unroll
  for (int run = 0; run < Shape::KEYS / 16; run++) {
    softmax.template add_values<T>(scores[2 * run], scores[2 * run + 1], keys + Shape::TILE_BYTES + run * RUN_BYTES);
  }
}

template <typename T, int HEAD_DIM>
__device__ inline void store_rows(const AttentionParams &params, const Tile &tile, OnlineSoftmax<HEAD_DIM> &softmax) {
  softmax.finish_weights();
  const int lane = threadIdx.x % WARP_THREADS;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const uint32_t row = threadIdx.x / WARP_THREADS * 16 + lane / 4 + 8 * half;
    if (row >= tile.num_tokens) {
      continue;
    }
    const uint64_t token = tile.first_token + row;
    T *target = static_cast<T *>(params.out) + (token * params.num_heads + blockIdx.y) * HEAD_DIM + lane % 4 * 2;
    const float scale = 1.0f / softmax.weights[half];
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n++) {
      *reinterpret_cast<uint32_t *>(target + 8 * n) =
          pack<T>(softmax.sums[n][2 * half] * scale, softmax.sums[n][2 * half + 1] * scale);
    }
  }
}

// First tile of keys that the tile's first query sees some of.
template <int KEYS> __device__ inline uint32_t first_visible(const AttentionParams &params, const Tile &tile) {
  const bool is_cut = params.window > 0 && tile.first_position + 1 > params.window;
  return is_cut ? (tile.first_position + 1 - params.window) / KEYS * KEYS : 0;
}

template <typename T, int HEAD_DIM, bool IS_GENERAL>
__device__ inline void attention_prompt(const AttentionParams &params) {
  using Shape = PromptShape<HEAD_DIM>;
  extern __shared__ __align__(16) unsigned char shared[];
  if (blockIdx.x / 2 >= params.arrays.header->num_prompt_tiles) {
    return;
  }
  const Tile tile = locate(params);
  if (tile.num_tokens == 0) {
    return;
  }
  const uint32_t end_key = tile.first_position + tile.num_tokens;
  const uint32_t *blocks = params.arrays.block_tables + params.arrays.block_starts[tile.row];
  const uint32_t queries = shared_address(shared);
  const uint32_t stages = queries + Shape::QUERY_BYTES;
  constexpr uint32_t STAGE_BYTES = 2 * Shape::TILE_BYTES;

  copy_queries<T, HEAD_DIM>(params, tile, queries);
  const uint32_t start_key = IS_GENERAL ? first_visible<Shape::KEYS>(params, tile) : 0;
  copy_keys<T, HEAD_DIM>(params, blocks, start_key, end_key, stages);

  const int lane = threadIdx.x % WARP_THREADS;
  uint32_t positions[2];
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const uint32_t row = threadIdx.x / WARP_THREADS * 16 + lane / 4 + 8 * half;
    positions[half] = tile.first_position + min(row, tile.num_tokens - 1);
  }
  OnlineSoftmax<HEAD_DIM> softmax;
  softmax.clear();
  wait_copies<0>();
  __syncthreads();
  uint32_t kept[Shape::KEEPS_QUERIES ? HEAD_DIM / 16 : 1][4];
  if constexpr (Shape::KEEPS_QUERIES) {
#pragma unroll
    for (int step = 0; step < HEAD_DIM / 16; step++) {
      load_queries<T, HEAD_DIM>(kept[step], queries, step);
    }
  }
  auto fragments = [&](uint32_t(&fragment)[4], int step) {
    if constexpr (Shape::KEEPS_QUERIES) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        fragment[i] = kept[step][i];
      }
    } else {
      load_queries<T, HEAD_DIM>(fragment, queries, step);
    }
  };

  uint32_t stage = 0;
  for (uint32_t first_key = start_key; first_key < end_key; first_key += Shape::KEYS, stage ^= 1) {
    if (first_key + Shape::KEYS < end_key) {
      copy_keys<T, HEAD_DIM>(params, blocks, first_key + Shape::KEYS, end_key, stages + (stage ^ 1) * STAGE_BYTES);
    }
    const bool is_masked = first_key + Shape::KEYS > tile.first_position + 1;
    run_tile<T, HEAD_DIM, IS_GENERAL>(params, positions, first_key, is_masked, fragments,
                                      stages + stage * STAGE_BYTES, softmax);
    wait_copies<0>();
    __syncthreads();
  }
  store_rows<T, HEAD_DIM>(params, tile, softmax);
}

#define ATTENTION_PROMPT(SUFFIX, T, HEAD_DIM)                                                                    \
  extern "C" __global__ void __launch_bounds__(WARPS *WARP_THREADS)                                              \
      attention_prompt_##SUFFIX(const __grid_constant__ AttentionParams params) {                                \
    attention_prompt<T, HEAD_DIM, false>(params);                                                                \
  }                                                                                                              \
  extern "C" __global__ void __launch_bounds__(WARPS *WARP_THREADS)                                              \
      attention_prompt_general_##SUFFIX(const __grid_constant__ AttentionParams params) {                        \
    attention_prompt<T, HEAD_DIM, true>(params);                                                                 \
  }

ATTENTION_PROMPT(bf16_64, __nv_bfloat16, 64)
ATTENTION_PROMPT(bf16_80, __nv_bfloat16, 80)
ATTENTION_PROMPT(bf16_96, __nv_bfloat16, 96)
ATTENTION_PROMPT(bf16_128, __nv_bfloat16, 128)
ATTENTION_PROMPT(bf16_256, __nv_bfloat16, 256)
ATTENTION_PROMPT(f16_64, __half, 64)
ATTENTION_PROMPT(f16_80, __half, 80)
ATTENTION_PROMPT(f16_96, __half, 96)
ATTENTION_PROMPT(f16_128, __half, 128)
ATTENTION_PROMPT(f16_256, __half, 256)

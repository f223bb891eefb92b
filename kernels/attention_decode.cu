// Attention of rows with a single query token over the paged cache (FlashDecoding, Dao et al. 2023).
//
// attention_decode: a work is an item, a key-value head and up to HEADS of the query heads that share it, so that keys
// and values are read once for the group. The host cuts the keys of all rows into items of about equal size, so that
// long rows spread over many blocks and short ones do not wait for them. Blocks take works in turns. Inside a block
// every warp takes every WARPS-th run of 16 keys through a pipeline of its own, without a barrier, and keeps an online
// softmax; the warps' results are merged at the end. Keys and values take the 16-row side of the tensor core's tile
// and query heads the 8-column side, which a group fills best.
//
// attention_decode_general: the same with a window, a soft cap or slopes. Keys before the window are not read.
//
// attention_combine: merges the items of a split row; one block per row and head, one thread per element.
//
// Head sizes 64, 80, 96, 128, 256; up to 8 or 16 heads at once. Blocks of the cache hold a multiple of 16 tokens, and
// items start at one.

#include "attention.cuh"

constexpr int WARPS = 4;

template <int HEAD_DIM> struct DecodeShape {
  static constexpr int STAGES = HEAD_DIM <= 64 ? 4 : HEAD_DIM <= 96 ? 3 : HEAD_DIM <= 128 ? 2 : 1;
  static constexpr int TILE_BYTES = 16 * ROW_ELEMENTS<HEAD_DIM> * 2;
  // Mirrored in attention.rs.
  static constexpr int SHARED_BYTES = WARPS * STAGES * 2 * TILE_BYTES;
};

// An item's keys of one key-value head, for some of the query heads that share it.
struct Work {
  DecodeItem item;
  uint32_t kv_head;
  uint32_t first_head;
  int num_heads;
};

// Work number `index`: items in the host's order, in each all key-value heads, in each the parts of its group.
template <int HEADS> __device__ inline Work work_at(const AttentionParams &params, uint32_t index) {
  const uint32_t group = params.num_heads / params.num_kv_heads;
  const uint32_t parts = (group + HEADS - 1) / HEADS;
  const uint32_t head_index = index / parts;
  const uint32_t part = index - head_index * parts;
  const uint32_t item = head_index / params.num_kv_heads;
  const uint32_t kv_head = head_index - item * params.num_kv_heads;
  return {params.decode_items[item], kv_head, kv_head * group + part * HEADS,
          min(static_cast<int>(group - part * HEADS), HEADS)};
}

template <int HEADS> __device__ inline uint32_t num_works(const AttentionParams &params) {
  const uint32_t parts = (params.num_heads / params.num_kv_heads + HEADS - 1) / HEADS;
  return params.arrays.header->num_decode_items * params.num_kv_heads * parts;
}

// First of the item's keys that its query sees, rounded down to a multiple of 16.
template <bool IS_GENERAL>
__device__ inline uint32_t first_visible(const AttentionParams &params, const DecodeItem &item, uint32_t context_len) {
  if (!IS_GENERAL || params.window == 0 || context_len <= params.window) {
    return item.first_key;
  }
  return max(item.first_key, (context_len - params.window) / 16 * 16);
}

// One warp's part of a work. A thread holds, of each 8 heads, two: 2 (lane % 4) and the next.
template <typename T, int HEAD_DIM, int HEADS, bool IS_GENERAL> struct DecodeWarp {
  using Shape = DecodeShape<HEAD_DIM>;
  static constexpr int TILES = HEADS / 8;
  static constexpr uint32_t STRIDE = WARPS * 16;

  const AttentionParams &params;
  const Work &work;
  const uint32_t lane = threadIdx.x % WARP_THREADS;
  // Of the warp's stages in shared memory.
  uint32_t shared;
  uint32_t context_len;
  const uint32_t *blocks;
  // Of the warp's first run.
  uint32_t first_key;
  // Of the batch's tokens, the row's.
  uint32_t token;
  // B fragments.
  uint32_t queries[HEAD_DIM / 16][TILES][2];
  // Sums of values times exponentials, 16 elements of a head a tile, as C fragments.
  float sums[HEAD_DIM / 16][TILES][4];
  // Largest score so far, times log2(e), and this thread's part of the sum of exponentials.
  float maxima[TILES][2];
  float weights[TILES][2];

  __device__ inline DecodeWarp(const AttentionParams &params, const Work &work, uint32_t shared)
      : params(params), work(work) {
    const uint32_t warp = threadIdx.x / WARP_THREADS;
    this->shared = shared + warp * Shape::STAGES * 2 * Shape::TILE_BYTES;
    context_len = params.arrays.context_lens[work.item.row];
    token = params.arrays.query_starts[work.item.row];
    blocks = params.arrays.block_tables + params.arrays.block_starts[work.item.row];
    first_key = first_visible<IS_GENERAL>(params, work.item, context_len) + warp * 16;
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

  __device__ inline uint32_t key_of(uint32_t run) const { return first_key + run * STRIDE; }
  __device__ inline uint32_t keys_at(uint32_t run) const {
    return shared + run % Shape::STAGES * 2 * Shape::TILE_BYTES;
  }
  __device__ inline KeyRun<T> locate(uint32_t run) const {
    return locate_run<T, HEAD_DIM>(params, blocks, work.kv_head, key_of(run), work.item.end_key);
  }

  // Starts copying keys, or values, of a run that has any. An empty group keeps the count of groups right.
  __device__ inline void copy_keys(const KeyRun<T> &place, uint32_t run) const {
    if (place.num_keys > 0) {
      copy_run<T, HEAD_DIM>(place, 0, keys_at(run));
    }
    commit_copies();
  }
  __device__ inline void copy_values(const KeyRun<T> &place, uint32_t run) const {
    if (place.num_keys > 0) {
      copy_run<T, HEAD_DIM>(place, value_offset<HEAD_DIM>(params), keys_at(run) + Shape::TILE_BYTES);
    }
    commit_copies();
  }

  __device__ inline void load_queries() {
    const uint64_t width = static_cast<uint64_t>(params.num_heads + 2 * params.num_kv_heads) * HEAD_DIM;
    const T *heads = static_cast<const T *>(params.qkv) + token * width + work.first_head * HEAD_DIM;
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
      const int head = 8 * tile + lane / 4;
#pragma unroll
      for (int n = 0; n < HEAD_DIM / 16 * 2; n++) {
        const T *source = heads + head * HEAD_DIM + 8 * n + lane % 4 * 2;
        queries[n / 2][tile][n % 2] = head < work.num_heads ? *reinterpret_cast<const uint32_t *>(source) : 0;
      }
    }
  }

  // Scores of 16 keys, times log2(e), as C fragments: keys lane / 4 and lane / 4 + 8.
  __device__ inline void score(float (&scores)[TILES][4], uint32_t run) const {
    const uint32_t row = lane % 16;
    const uint32_t column = lane / 16 * VECTOR_ELEMENTS;
    const uint32_t address = keys_at(run) + (row * ROW_ELEMENTS<HEAD_DIM> + column) * sizeof(T);
#pragma unroll
    for (int step = 0; step < HEAD_DIM / 16; step++) {
      uint32_t keys[4];
      load_matrices(keys, address + step * 16 * sizeof(T));
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        mma<T>(scores[tile], keys, queries[step][tile][0], queries[step][tile][1]);
      }
    }
#pragma unroll
    for (int n = 0; n < TILES * 4; n++) {
      float &value = scores[n / 4][n % 4];
      const uint32_t key = key_of(run) + lane / 4 + n % 4 / 2 * 8;
      value = key < work.item.end_key ? value * params.scale_log2 : MINUS_INFINITY;
      if (IS_GENERAL) {
        const uint32_t head = work.first_head + n / 4 * 8 + lane % 4 * 2 + n % 2;
        value = modify_score(params, value, min(head, params.num_heads - 1), static_cast<int>(context_len - 1 - key));
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

  // Adds the run's values times the exponentials.
  __device__ inline void add_values(const float (&scores)[TILES][4], uint32_t run) {
    uint32_t exponentials[TILES][2];
#pragma unroll
    for (int tile = 0; tile < TILES; tile++) {
      exponentials[tile][0] = transpose_matrix(pack<T>(scores[tile][0], scores[tile][1]));
      exponentials[tile][1] = transpose_matrix(pack<T>(scores[tile][2], scores[tile][3]));
    }
    // Matrices: keys 0 to 7, the first 8 elements and the second, then keys 8 to 15.
    const uint32_t row = lane % 8 + lane / 16 * 8;
    const uint32_t column = lane / 8 % 2 * VECTOR_ELEMENTS;
    const uint32_t address =
        keys_at(run) + Shape::TILE_BYTES + (row * ROW_ELEMENTS<HEAD_DIM> + column) * sizeof(T);
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 16; n++) {
      uint32_t values[4];
      load_matrices_transposed(values, address + n * 16 * sizeof(T));
#pragma unroll
      for (int tile = 0; tile < TILES; tile++) {
        mma<T>(sums[n][tile], values, exponentials[tile][0], exponentials[tile][1]);
      }
    }
  }

  // Keys of earlier steps are on their way before the predecessor has ended, which writes those of this step.
  __device__ inline void run_all() {
    const uint32_t new_key = context_len - 1;
    auto start = [&](bool is_old) {
#pragma unroll
      for (int run = 0; run < Shape::STAGES; run++) {
        if ((key_of(run) + 16 <= new_key) == is_old) {
          const KeyRun<T> place = locate(run);
          copy_keys(place, run);
          copy_values(place, run);
        }
      }
    };
    start(true);
    wait_for_predecessor();
    start_successor();
    start(false);
    load_queries();
    for (uint32_t run = 0; key_of(run) < work.item.end_key; run++) {
      const KeyRun<T> next = locate(run + Shape::STAGES);
      float scores[TILES][4] = {};
      wait_copies<2 * Shape::STAGES - 1>();
      __syncwarp();
      score(scores, run);
      // The next copy into this stage must not overtake the other lanes' reads.
      __syncwarp();
      copy_keys(next, run + Shape::STAGES);
      soften(scores);
      wait_copies<2 * Shape::STAGES - 1>();
      __syncwarp();
      add_values(scores, run);
      __syncwarp();
      copy_values(next, run + Shape::STAGES);
    }
    wait_copies<0>();
#pragma unroll
    for (int n = 0; n < TILES * 2; n++) {
#pragma unroll
      for (int offset = 4; offset < WARP_THREADS; offset *= 2) {
        weights[n / 2][n % 2] += __shfl_xor_sync(FULL_WARP, weights[n / 2][n % 2], offset);
      }
    }
  }
};

// The warps' results of one work.
template <int HEAD_DIM, int HEADS> struct WarpResults {
  // Largest score and sum of exponentials.
  float2 stats[WARPS][HEADS];
  float sums[WARPS][HEADS][HEAD_DIM];

  template <typename Warp> __device__ inline void store(const Warp &result, int num_heads) {
    const int lane = threadIdx.x % WARP_THREADS;
    const int warp = threadIdx.x / WARP_THREADS;
#pragma unroll
    for (int n = 0; n < HEADS / 8 * 2; n++) {
      const int head = n / 2 * 8 + lane % 4 * 2 + n % 2;
      if (head >= num_heads) {
        continue;
      }
      if (lane < 4) {
        stats[warp][head] = make_float2(result.maxima[n / 2][n % 2], result.weights[n / 2][n % 2]);
      }
#pragma unroll
      for (int i = 0; i < HEAD_DIM / 8; i++) {
        sums[warp][head][8 * i + lane / 4] = result.sums[i / 2][n / 2][i % 2 * 2 + n % 2];
      }
    }
  }
};

// Factor of a result whose maximum is `maximum` beside others whose largest is `largest`, which is finite unless
// the item lies before the window.
__device__ inline float merge_factor(float maximum, float largest) {
  return maximum == MINUS_INFINITY ? 0.0f : exp2_approximate(maximum - largest);
}

// Merges the warps' results of a work and writes them.
template <typename T, int HEAD_DIM, int HEADS>
__device__ inline void finish_work(const AttentionParams &params, const Work &work,
                                   const WarpResults<HEAD_DIM, HEADS> &results) {
  const uint64_t token = params.arrays.query_starts[work.item.row];
  for (int index = threadIdx.x; index < work.num_heads * HEAD_DIM; index += WARPS * WARP_THREADS) {
    const int row = index / HEAD_DIM;
    const int element = index % HEAD_DIM;
    float maximum = MINUS_INFINITY;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) {
      maximum = fmaxf(maximum, results.stats[warp][row].x);
    }
    float sum = 0.0f;
    float weight = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) {
      const float factor = merge_factor(results.stats[warp][row].x, maximum);
      sum += factor * results.sums[warp][row][element];
      weight += factor * results.stats[warp][row].y;
    }
    const uint64_t head = work.first_head + row;
    if (work.item.partial == NO_PARTIAL) {
      static_cast<T *>(params.out)[(token * params.num_heads + head) * HEAD_DIM + element] = from_float<T>(sum / weight);
    } else {
      const uint64_t place = static_cast<uint64_t>(work.item.partial) * params.num_heads + head;
      params.partial_sums[place * HEAD_DIM + element] = sum;
      if (element == 0) {
        params.partial_stats[place] = make_float2(maximum, weight);
      }
    }
  }
}

template <typename T, int HEAD_DIM, int HEADS, bool IS_GENERAL>
__device__ inline void attention_decode(const AttentionParams &params) {
  using Results = WarpResults<HEAD_DIM, HEADS>;
  static_assert(sizeof(Results) <= DecodeShape<HEAD_DIM>::SHARED_BYTES, "results reuse the stages");
  extern __shared__ __align__(16) unsigned char shared[];
  const uint32_t count = num_works<HEADS>(params);
  if (blockIdx.x >= count) {
    wait_for_predecessor();
  }
  for (uint32_t index = blockIdx.x; index < count; index += gridDim.x) {
    const Work work = work_at<HEADS>(params, index);
    DecodeWarp<T, HEAD_DIM, HEADS, IS_GENERAL> warp(params, work, shared_address(shared));
    warp.run_all();
    __syncthreads();
    auto &results = *reinterpret_cast<Results *>(shared);
    results.store(warp, work.num_heads);
    __syncthreads();
    finish_work<T, HEAD_DIM, HEADS>(params, work, results);
    __syncthreads();
  }
}

template <typename T, int HEAD_DIM> __device__ inline void attention_combine(const AttentionParams &params) {
  wait_for_predecessor();
  start_successor();
  if (blockIdx.x >= params.arrays.header->num_split_rows) {
    return;
  }
  const SplitRow split = params.split_rows[blockIdx.x];
  const uint64_t head = blockIdx.y;
  const uint64_t first = static_cast<uint64_t>(split.first_partial) * params.num_heads + head;
  float maximum = MINUS_INFINITY;
  for (uint32_t i = 0; i < split.num_partials; i++) {
    maximum = fmaxf(maximum, params.partial_stats[first + i * params.num_heads].x);
  }
  float sum = 0.0f;
  float weight = 0.0f;
  for (uint32_t i = 0; i < split.num_partials; i++) {
    const uint64_t place = first + i * params.num_heads;
    const float2 stats = params.partial_stats[place];
    const float factor = merge_factor(stats.x, maximum);
    sum += factor * params.partial_sums[place * HEAD_DIM + threadIdx.x];
    weight += factor * stats.y;
  }
  const uint64_t token = params.arrays.query_starts[split.row];
  static_cast<T *>(params.out)[(token * params.num_heads + head) * HEAD_DIM + threadIdx.x] = from_float<T>(sum / weight);
}

#define ATTENTION_DECODE(NAME, T, HEAD_DIM, HEADS, IS_GENERAL)                                                    \
  extern "C" __global__ void __launch_bounds__(WARPS *WARP_THREADS, HEADS > 8 ? 1 : 4)                           \
      NAME(const __grid_constant__ AttentionParams params) {                                                     \
    attention_decode<T, HEAD_DIM, HEADS, IS_GENERAL>(params);                                                    \
  }

#define ATTENTION(DTYPE, T, HEAD_DIM)                                                                            \
  ATTENTION_DECODE(attention_decode_##DTYPE##_##HEAD_DIM##_8, T, HEAD_DIM, 8, false)                             \
  ATTENTION_DECODE(attention_decode_##DTYPE##_##HEAD_DIM##_16, T, HEAD_DIM, 16, false)                           \
  ATTENTION_DECODE(attention_decode_general_##DTYPE##_##HEAD_DIM##_8, T, HEAD_DIM, 8, true)                      \
  ATTENTION_DECODE(attention_decode_general_##DTYPE##_##HEAD_DIM##_16, T, HEAD_DIM, 16, true)                    \
  extern "C" __global__ void __launch_bounds__(HEAD_DIM)                                                         \
      attention_combine_##DTYPE##_##HEAD_DIM(const __grid_constant__ AttentionParams params) {                   \
    attention_combine<T, HEAD_DIM>(params);                                                                      \
  }

ATTENTION(bf16, __nv_bfloat16, 64)
ATTENTION(bf16, __nv_bfloat16, 80)
ATTENTION(bf16, __nv_bfloat16, 96)
ATTENTION(bf16, __nv_bfloat16, 128)
ATTENTION(bf16, __nv_bfloat16, 256)
ATTENTION(f16, __half, 64)
ATTENTION(f16, __half, 80)
ATTENTION(f16, __half, 96)
ATTENTION(f16, __half, 128)
ATTENTION(f16, __half, 256)

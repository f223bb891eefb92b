// Attention of rows with a single query token over the paged cache (FlashDecoding, Dao et al. 2023).
//
// attention_decode: one block per work item, key-value head and 16 of the query heads that share it, so that keys and
// values are read once for the whole group. The host cuts the keys of all rows into items of about equal size, so that
// long rows spread over many blocks and short ones do not wait for them. Inside a block every warp takes every WARPS-th run of 16 keys through a pipeline of its own,
// without a barrier, and keeps an online softmax; the warps' results are merged at the end. All 16 rows of the
// tensor core's tile meet the keys although a group may fill only some of them: reading the keys is what costs.
//
// attention_decode_general: the same with a window, a soft cap or slopes. Keys before the window are not read.
//
// attention_combine: merges the items of a split row; one block per row and head, one thread per element.
//
// Head sizes 64, 80, 96, 128, 256. Blocks of the cache hold a multiple of 16 tokens, and items start at one.

#include "attention.cuh"

template <int HEAD_DIM> struct DecodeShape {
  static constexpr int WARPS = HEAD_DIM > 128 ? 3 : 4;
  static constexpr int STAGES = HEAD_DIM <= 64 ? 4 : HEAD_DIM <= 96 ? 3 : 2;
  static constexpr int TILE_ELEMENTS = 16 * ROW_ELEMENTS<HEAD_DIM>;
  static constexpr int SHARED_BYTES = WARPS * STAGES * 2 * TILE_ELEMENTS * 2;
};

// The queries of packed rows `first_head ..` of the row's only token, as A fragments.
template <typename T, int HEAD_DIM>
__device__ inline void load_queries(uint32_t (&queries)[HEAD_DIM / 16][4], const T *heads, int num_heads) {
  const int lane = threadIdx.x % WARP_THREADS;
#pragma unroll
  for (int step = 0; step < HEAD_DIM / 16; step++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int head = lane / 4 + i % 2 * 8;
      const int element = 16 * step + lane % 4 * 2 + i / 2 * 8;
      queries[step][i] =
          head < num_heads ? *reinterpret_cast<const uint32_t *>(heads + head * HEAD_DIM + element) : 0;
    }
  }
}

// What a block does: an item's keys of one key-value head, for up to 16 of the query heads that share it.
struct Work {
  DecodeItem item;
  uint32_t kv_head;
  uint32_t first_head;
  int num_heads;
};

// First of the item's keys that its query sees, rounded down to a multiple of 16.
template <bool IS_GENERAL>
__device__ inline uint32_t first_visible(const AttentionParams &params, const DecodeItem &item, uint32_t context_len) {
  if (!IS_GENERAL || params.window == 0 || context_len <= params.window) {
    return item.first_key;
  }
  return max(item.first_key, (context_len - params.window) / 16 * 16);
}

// Applies the soft cap, slopes and window to the scores of 16 keys from `first_key` on, which come times log2(e).
__device__ inline void modify(const AttentionParams &params, float (&scores)[2][4], uint32_t first_key,
                              uint32_t context_len, uint32_t first_head) {
  const int lane = threadIdx.x % WARP_THREADS;
#pragma unroll
  for (int n = 0; n < 2; n++) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t key = first_key + 8 * n + lane % 4 * 2 + i % 2;
      const uint32_t head = min(first_head + lane / 4 + i / 2 * 8, params.num_heads - 1);
      scores[n][i] = modify_score(params, scores[n][i], head, static_cast<int>(context_len - 1 - key));
    }
  }
}

// One warp's share of an item: runs `warp`, `warp + WARPS` .. of 16 keys. Keys of earlier steps are on their way
// before the predecessor has ended, which writes those of this step.
template <typename T, int HEAD_DIM, bool IS_GENERAL>
__device__ inline void run_warp(const AttentionParams &params, const Work &work, const T *heads, uint32_t shared,
                                OnlineSoftmax<HEAD_DIM> &softmax) {
  const DecodeItem &item = work.item;
  using Shape = DecodeShape<HEAD_DIM>;
  constexpr uint32_t TILE_BYTES = Shape::TILE_ELEMENTS * sizeof(T);
  const int lane = threadIdx.x % WARP_THREADS;
  const int warp = threadIdx.x / WARP_THREADS;
  const uint32_t context_len = params.arrays.context_lens[item.row];
  const uint32_t *blocks = params.arrays.block_tables + params.arrays.block_starts[item.row];
  const uint32_t stages = shared + warp * Shape::STAGES * 2 * TILE_BYTES;
  const uint32_t first = first_visible<IS_GENERAL>(params, item, context_len) + warp * 16;
  constexpr uint32_t STRIDE = Shape::WARPS * 16;

  auto copy = [&](uint32_t run) {
    const uint32_t key = first + run * STRIDE;
    const uint32_t stage = stages + run % Shape::STAGES * 2 * TILE_BYTES;
    if (key < item.end_key) {
      copy_16_keys<T, HEAD_DIM>(params, blocks, work.kv_head, key, item.end_key, stage, stage + TILE_BYTES);
    }
    // An empty group keeps the count of groups right.
    commit_copies();
  };
  const uint32_t new_key = context_len - 1;
  auto is_old = [&](uint32_t run) { return first + run * STRIDE + 16 <= new_key; };
#pragma unroll
  for (int run = 0; run < Shape::STAGES - 1; run++) {
    if (is_old(run)) {
      copy(run);
    }
  }
  wait_for_predecessor();
  start_successor();
#pragma unroll
  for (int run = 0; run < Shape::STAGES - 1; run++) {
    if (!is_old(run)) {
      copy(run);
    }
  }
  uint32_t queries[HEAD_DIM / 16][4];
  load_queries<T, HEAD_DIM>(queries, heads, work.num_heads);
  softmax.clear();
  for (uint32_t run = 0; first + run * STRIDE < item.end_key; run++) {
    copy(run + Shape::STAGES - 1);
    wait_copies<Shape::STAGES - 1>();
    __syncwarp();
    const uint32_t keys = stages + run % Shape::STAGES * 2 * TILE_BYTES;
    float scores[2][4] = {};
#pragma unroll
    for (int step = 0; step < HEAD_DIM / 16; step++) {
      add_scores<T, HEAD_DIM>(scores[0], scores[1], queries[step], keys, step);
    }
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const uint32_t key = first + run * STRIDE + 8 * n + lane % 4 * 2 + i % 2;
        scores[n][i] = key < item.end_key ? scores[n][i] * params.scale_log2 : MINUS_INFINITY;
      }
    }
    if (IS_GENERAL) {
      modify(params, scores, first + run * STRIDE, context_len, work.first_head);
    }
    softmax.take(scores);
    softmax.template add_values<T>(scores[0], scores[1], keys + TILE_BYTES);
    // The next copy into this stage must not overtake the other lanes' reads.
    __syncwarp();
  }
  wait_copies<0>();
  softmax.finish_weights();
}

// The warps' results of one item: `[WARPS][16]` statistics, then `[WARPS][16][HEAD_DIM]` sums.
template <int HEAD_DIM> struct WarpResults {
  float2 stats[DecodeShape<HEAD_DIM>::WARPS][16];
  float sums[DecodeShape<HEAD_DIM>::WARPS][16][HEAD_DIM];
};

template <int HEAD_DIM>
__device__ inline void store_results(WarpResults<HEAD_DIM> &results, const OnlineSoftmax<HEAD_DIM> &softmax) {
  const int lane = threadIdx.x % WARP_THREADS;
  const int warp = threadIdx.x / WARP_THREADS;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int row = lane / 4 + 8 * half;
    if (lane % 4 == 0) {
      results.stats[warp][row] = make_float2(softmax.maxima[half], softmax.weights[half]);
    }
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n++) {
      float2 *target = reinterpret_cast<float2 *>(&results.sums[warp][row][8 * n + lane % 4 * 2]);
      *target = make_float2(softmax.sums[n][2 * half], softmax.sums[n][2 * half + 1]);
    }
  }
}

// Factor of a result whose maximum is `maximum` beside others whose largest is `largest`, which is finite unless
// the item lies before the window.
__device__ inline float merge_factor(float maximum, float largest) {
  return maximum == MINUS_INFINITY ? 0.0f : exp2_approximate(maximum - largest);
}

template <typename T, int HEAD_DIM, bool IS_GENERAL>
__device__ inline void run_work(const AttentionParams &params, const Work &work, unsigned char *shared) {
  using Shape = DecodeShape<HEAD_DIM>;
  static_assert(sizeof(WarpResults<HEAD_DIM>) <= Shape::SHARED_BYTES, "results reuse the stages");
  const auto &[item, kv_head, first_head, num_heads] = work;
  const uint64_t token = params.arrays.query_starts[item.row];
  const uint64_t width = static_cast<uint64_t>(params.num_heads + 2 * params.num_kv_heads) * HEAD_DIM;
  const T *heads = static_cast<const T *>(params.qkv) + token * width + first_head * HEAD_DIM;
  OnlineSoftmax<HEAD_DIM> softmax;
  run_warp<T, HEAD_DIM, IS_GENERAL>(params, work, heads, shared_address(shared), softmax);
  __syncthreads();
  auto &results = *reinterpret_cast<WarpResults<HEAD_DIM> *>(shared);
  store_results(results, softmax);
  __syncthreads();

  for (int index = threadIdx.x; index < num_heads * HEAD_DIM; index += Shape::WARPS * WARP_THREADS) {
    const int row = index / HEAD_DIM;
    const int element = index % HEAD_DIM;
    float maximum = MINUS_INFINITY;
#pragma unroll
    for (int warp = 0; warp < Shape::WARPS; warp++) {
      maximum = fmaxf(maximum, results.stats[warp][row].x);
    }
    float sum = 0.0f;
    float weight = 0.0f;
#pragma unroll
    for (int warp = 0; warp < Shape::WARPS; warp++) {
      const float factor = merge_factor(results.stats[warp][row].x, maximum);
      sum += factor * results.sums[warp][row][element];
      weight += factor * results.stats[warp][row].y;
    }
    const uint64_t head = first_head + row;
    if (item.partial == NO_PARTIAL) {
      static_cast<T *>(params.out)[(token * params.num_heads + head) * HEAD_DIM + element] = from_float<T>(sum / weight);
    } else {
      const uint64_t place = static_cast<uint64_t>(item.partial) * params.num_heads + head;
      params.partial_sums[place * HEAD_DIM + element] = sum;
      if (element == 0) {
        params.partial_stats[place] = make_float2(maximum, weight);
      }
    }
  }
}

template <typename T, int HEAD_DIM, bool IS_GENERAL> __device__ inline void attention_decode(const AttentionParams &params) {
  extern __shared__ __align__(16) unsigned char shared[];
  if (blockIdx.x >= params.arrays.header->num_decode_items) {
    wait_for_predecessor();
    return;
  }
  const uint32_t group = params.num_heads / params.num_kv_heads;
  const uint32_t first_of_group = blockIdx.z * 16;
  const int num_heads = min(static_cast<int>(group - first_of_group), 16);
  run_work<T, HEAD_DIM, IS_GENERAL>(
      params, {params.decode_items[blockIdx.x], blockIdx.y, blockIdx.y * group + first_of_group, num_heads}, shared);
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

#define ATTENTION_DECODE(SUFFIX, T, HEAD_DIM)                                                                    \
  extern "C" __global__ void __launch_bounds__(DecodeShape<HEAD_DIM>::WARPS * WARP_THREADS)                      \
      attention_decode_##SUFFIX(const __grid_constant__ AttentionParams params) {                                \
    attention_decode<T, HEAD_DIM, false>(params);                                                                \
  }                                                                                                              \
  extern "C" __global__ void __launch_bounds__(DecodeShape<HEAD_DIM>::WARPS * WARP_THREADS)                      \
      attention_decode_general_##SUFFIX(const __grid_constant__ AttentionParams params) {                        \
    attention_decode<T, HEAD_DIM, true>(params);                                                                 \
  }                                                                                                              \
  extern "C" __global__ void __launch_bounds__(HEAD_DIM)                                                         \
      attention_combine_##SUFFIX(const __grid_constant__ AttentionParams params) {                               \
    attention_combine<T, HEAD_DIM>(params);                                                                      \
  }

ATTENTION_DECODE(bf16_64, __nv_bfloat16, 64)
ATTENTION_DECODE(bf16_80, __nv_bfloat16, 80)
ATTENTION_DECODE(bf16_96, __nv_bfloat16, 96)
ATTENTION_DECODE(bf16_128, __nv_bfloat16, 128)
ATTENTION_DECODE(bf16_256, __nv_bfloat16, 256)
ATTENTION_DECODE(f16_64, __half, 64)
ATTENTION_DECODE(f16_80, __half, 80)
ATTENTION_DECODE(f16_96, __half, 96)
ATTENTION_DECODE(f16_128, __half, 128)
ATTENTION_DECODE(f16_256, __half, 256)

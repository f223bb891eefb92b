// Attention of rows with a single query token over the paged cache (FlashDecoding, Dao et al. 2023).
//
// attention_decode: the host cuts the keys of all rows, one row after the other, into shares of equal size, as many as
// the device holds at once. A share has a block for each key-value head and, of the query heads that share it, each
// HEADS, so that keys and values are read once for them; without a window, all blocks end together. A share's items are
// the rows, or parts of rows, that fall into it. Inside a block every warp takes every WARPS-th run of 16 keys of an
// item and keeps an online softmax, without a barrier; the warps' results are merged at the item's end, while the next
// one's keys are on their way. Of a row that lies in several shares, the block that finishes last merges the results.
//
// attention_decode_general: the same with a window, a soft cap or slopes. Keys before the window are not read.
//
// What one warp does with an item stands in attention_decode.cuh.
//
// Head sizes 64, 80, 96, 128, 256; up to 8 or 16 heads at once. Blocks of the cache hold a multiple of 16 tokens, and
// items start at one.

#include "attention_decode.cuh"

// Leaves a warp's results of its item to the block.
template <typename Warp, typename Memory> __device__ inline void store_results(const Warp &result, Memory &memory) {
  const int warp = threadIdx.x / WARP_THREADS;
#pragma unroll
  for (int n = 0; n < Warp::TILES * 2; n++) {
    const int head = n / 2 * 8 + result.pair * 2 + n % 2;
    if (head >= result.heads.num_heads) {
      continue;
    }
    if (result.group == 0) {
      memory.stats[warp][head] = make_float2(result.maxima[n / 2][n % 2], result.weights[n / 2][n % 2]);
    }
#pragma unroll
    for (int i = 0; i < sizeof(result.sums) / sizeof(result.sums[0]); i++) {
      const uint32_t element = result.element_of(i);
      memory.sums[warp][head][element] = result.sums[i][n / 2][n % 2];
      memory.sums[warp][head][element + 1] = result.sums[i][n / 2][n % 2 + 2];
    }
  }
}

// Factor of a result whose maximum is `maximum` beside others whose largest is `largest`, which is finite unless
// the item lies before the window.
__device__ inline float merge_factor(float maximum, float largest) {
  return maximum == MINUS_INFINITY ? 0.0f : exp2_approximate(maximum - largest);
}

// Merges the warps' results of an item and writes them: to `out`, or as a partial result.
template <typename T, int HEAD_DIM, int HEADS>
__device__ inline void merge_warps(const AttentionParams &params, const HeadGroup &heads, const DecodeItem &item,
                                   const DecodeMemory<T, HEAD_DIM, HEADS> &memory) {
  constexpr int WARPS = DecodeShape<HEAD_DIM, HEADS>::WARPS;
  for (int index = threadIdx.x; index < heads.num_heads * HEAD_DIM; index += blockDim.x) {
    const int row = index / HEAD_DIM;
    const int element = index % HEAD_DIM;
    float maximum = MINUS_INFINITY;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) {
      maximum = fmaxf(maximum, memory.stats[warp][row].x);
    }
    float sum = 0.0f;
    float weight = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) {
      const float factor = merge_factor(memory.stats[warp][row].x, maximum);
      sum += factor * memory.sums[warp][row][element];
      weight += factor * memory.stats[warp][row].y;
    }
    const uint32_t head = heads.first_head + row;
    if (item.num_partials == 0) {
      const uint64_t place = static_cast<uint64_t>(item.token) * params.num_heads + head;
      static_cast<T *>(params.out)[place * HEAD_DIM + element] = from_float<T>(sum / weight);
    } else {
      const uint64_t place = static_cast<uint64_t>(item.partial) * params.num_heads + head;
      params.partial_sums[place * HEAD_DIM + element] = sum;
      if (element == 0) {
        params.partial_stats[place] = make_float2(maximum, weight);
      }
    }
  }
}

// Merges a row's partial results, which are all there, always in the same order. A thread takes four elements, and has
// BATCH of the results on their way.
template <typename T, int HEAD_DIM>
__device__ inline void merge_partials(const AttentionParams &params, const HeadGroup &heads, const DecodeItem &item) {
  constexpr uint32_t BATCH = 4;
  for (int index = 4 * threadIdx.x; index < heads.num_heads * HEAD_DIM; index += 4 * blockDim.x) {
    const uint32_t head = heads.first_head + index / HEAD_DIM;
    const int element = index % HEAD_DIM;
    float maximum = MINUS_INFINITY;
    float weight = 0.0f;
    float4 sum = {};
    for (uint32_t first = 0; first < item.num_partials; first += BATCH) {
      float2 stats[BATCH];
      float4 sums[BATCH];
#pragma unroll
      for (uint32_t i = 0; i < BATCH; i++) {
        const uint32_t partial = item.first_partial + min(first + i, item.num_partials - 1);
        const uint64_t place = static_cast<uint64_t>(partial) * params.num_heads + head;
        stats[i] = __ldcg(&params.partial_stats[place]);
        sums[i] = __ldcg(reinterpret_cast<const float4 *>(&params.partial_sums[place * HEAD_DIM + element]));
      }
      float largest = maximum;
#pragma unroll
      for (uint32_t i = 0; i < BATCH; i++) {
        largest = fmaxf(largest, stats[i].x);
      }
      const float kept = merge_factor(maximum, largest);
      maximum = largest;
      weight *= kept;
      sum = {sum.x * kept, sum.y * kept, sum.z * kept, sum.w * kept};
#pragma unroll
      for (uint32_t i = 0; i < BATCH; i++) {
        const float factor = first + i < item.num_partials ? merge_factor(stats[i].x, maximum) : 0.0f;
        weight += factor * stats[i].y;
        sum.x += factor * sums[i].x;
        sum.y += factor * sums[i].y;
        sum.z += factor * sums[i].z;
        sum.w += factor * sums[i].w;
      }
    }
    const uint64_t place = static_cast<uint64_t>(item.token) * params.num_heads + head;
    *reinterpret_cast<uint2 *>(static_cast<T *>(params.out) + place * HEAD_DIM + element) =
        make_uint2(pack<T>(sum.x / weight, sum.y / weight), pack<T>(sum.z / weight, sum.w / weight));
  }
}

// Whether the block's partial result of a row, which has been written, is the last to arrive.
__device__ inline bool arrives_last(uint32_t *arrivals, uint32_t num_partials) {
  __threadfence();
  __syncthreads();
  bool is_last = false;
  if (threadIdx.x == 0) {
    is_last = atomicAdd(arrivals, 1) + 1 == num_partials;
    if (is_last) {
      *arrivals = 0;
    }
    __threadfence();
  }
  return __syncthreads_or(is_last);
}

template <typename T, int HEAD_DIM, int HEADS, bool IS_GENERAL>
__device__ inline void attention_decode(const AttentionParams &params) {
  extern __shared__ __align__(16) unsigned char shared[];
  auto &memory = *reinterpret_cast<DecodeMemory<T, HEAD_DIM, HEADS> *>(shared);
  const uint32_t num_blocks = params.num_kv_heads * num_parts<HEADS>(params);
  const uint32_t index = blockIdx.x / num_blocks;
  const uint32_t group_index = blockIdx.x - index * num_blocks;
  if (index >= params.arrays.header->num_decode_shares) {
    wait_for_predecessor();
    return;
  }
  const DecodeShare share = params.decode_shares[index];
  const DecodeItem *items = params.decode_items;
  const HeadGroup heads = group_at<HEADS>(params, group_index);
  DecodeWarp<T, HEAD_DIM, HEADS, IS_GENERAL> warp(params, heads);
  const DecodeItem first = items[share.first_item];
  KeyRun<T> place = warp.locate(first, warp.first_key_of(first));
  // Keys of earlier steps need not wait for the predecessor, which writes those of this step.
  const bool is_old = warp.first_key_of(first) + 16 < first.context_len;
  if (is_old) {
    warp.load_first(place);
  }
  wait_for_predecessor();
  start_successor();
  copy_queries<T, HEAD_DIM, HEADS>(params, heads, first.token, memory.queries[0]);
  if (!is_old) {
    warp.load_first(place);
  }
  for (uint32_t i = share.first_item; i < share.end_item; i++) {
    const uint32_t parity = (i - share.first_item) % 2;
    wait_copies<0>();
    __syncthreads();
    warp.begin(items[i], memory.queries[parity]);
    KeyRun<T> after = {};
    if (i + 1 < share.end_item) {
      const DecodeItem next = items[i + 1];
      copy_queries<T, HEAD_DIM, HEADS>(params, heads, next.token, memory.queries[parity ^ 1]);
      after = warp.locate(next, warp.first_key_of(next));
    }
    warp.run_all(place, after);
    place = after;
    store_results(warp, memory);
    __syncthreads();
    const DecodeItem &item = warp.item;
    merge_warps<T, HEAD_DIM, HEADS>(params, heads, item, memory);
    uint32_t *arrivals = params.arrivals + item.first_partial * num_blocks + group_index;
    if (item.num_partials > 0 && arrives_last(arrivals, item.num_partials)) {
      merge_partials<T, HEAD_DIM>(params, heads, item);
    }
  }
}

#define ATTENTION_DECODE(NAME, T, HEAD_DIM, HEADS, IS_GENERAL)                                                    \
  extern "C" __global__ void __launch_bounds__(DecodeShape<HEAD_DIM, HEADS>::WARPS *WARP_THREADS,                 \
                                               DecodeShape<HEAD_DIM, HEADS>::BLOCKS)                              \
      NAME(const __grid_constant__ AttentionParams params) {                                                     \
    attention_decode<T, HEAD_DIM, HEADS, IS_GENERAL>(params);                                                    \
  }

#define ATTENTION(DTYPE, T, HEAD_DIM)                                                                            \
  ATTENTION_DECODE(attention_decode_##DTYPE##_##HEAD_DIM##_8, T, HEAD_DIM, 8, false)                             \
  ATTENTION_DECODE(attention_decode_##DTYPE##_##HEAD_DIM##_16, T, HEAD_DIM, 16, false)                           \
  ATTENTION_DECODE(attention_decode_general_##DTYPE##_##HEAD_DIM##_8, T, HEAD_DIM, 8, true)                      \
  ATTENTION_DECODE(attention_decode_general_##DTYPE##_##HEAD_DIM##_16, T, HEAD_DIM, 16, true)

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

// Causal attention of rows with several query tokens over the paged cache, for Hopper (sm_90a).
//
// The shape of FlashAttention 3 (Shah et al. 2024): a warpgroup that copies and two that compute, 64 query rows
// each, which take turns: one multiplies while the other takes exponentials. Where heads share keys, the two take
// two heads of the same 64 tokens, otherwise 128 tokens of a head. Blocks stay and draw works from a counter; a
// consumer multiplies the last values of a work together with the queries and first keys of the next. Key tiles
// are passed from the last, which alone need masks, to the first.
//
// Head sizes 64, 80, 96, 128, 256. Blocks of the cache hold a multiple of 16 tokens.

#include "attention_prompt_sm90.cuh"

// The computing warpgroups. A thread holds parts of two rows, `lane / 4` and `lane / 4 + 8` of its warp's 16.
template <typename T, int HEAD_DIM, bool IS_GENERAL> struct Consumer {
  using Shape = PromptShape<HEAD_DIM>;
  static constexpr int KEYS = Shape::KEYS;
  // Per thread, as fragments: scores of a tile, exponentials as operands, sums of values.
  using Scores = float[KEYS / 2];
  using Weights = uint32_t[KEYS / 4];
  using Sums = float[Shape::SPLITS][Shape::VALUES / 2];

  const PromptParams &params;
  const SharedLayout<HEAD_DIM> shared;
  const uint32_t consumer;
  Ring<Shape::STAGES> keys;
  Ring<Shape::STAGES> values;
  uint32_t queries_parity = 0;
  Work work = {};
  // Of both rows, what is taken from scores times the scale before the exponential: a score seen, at most a bit
  // below the largest, or minus infinity before any. This thread's part of the sum of exponentials.
  float bases[2];
  float totals[2];
  bool are_keys_full = false;
  bool are_values_full = false;

  __device__ inline Consumer(const PromptParams &params, SharedLayout<HEAD_DIM> shared)
      : params(params), shared(shared), consumer(threadIdx.x / WARPGROUP_THREADS - 1) {}

  __device__ inline int warp_row() const { return threadIdx.x / WARP_THREADS % 4 * 16 + threadIdx.x % 32 / 4; }

  __device__ inline void release(uint32_t barrier) const {
    if (threadIdx.x % WARP_THREADS == 0) {
      arrive(barrier);
    }
  }

  // The warpgroups issue their products in turns, so that one multiplies while the other takes exponentials.
  __device__ inline void await_turn() const {
    if (Shape::TAKES_TURNS) {
      sync_named(1 + consumer, CONSUMERS * WARPGROUP_THREADS);
    }
  }
  __device__ inline void pass_turn() const {
    if (Shape::TAKES_TURNS) {
      arrive_named(2 - consumer, CONSUMERS * WARPGROUP_THREADS);
    }
  }

  // Waits for the next work; false at the end.
  __device__ inline bool take_work() {
    wait(shared.queries_full(consumer), queries_parity);
    queries_parity ^= 1;
    // One lane reads, the one that later arrives for the warp, so that the next work cannot overtake a read.
    uint4 first = {};
    uint4 second = {};
    if (threadIdx.x % WARP_THREADS == 0) {
      first = load_shared(shared.work(consumer));
      second = load_shared(shared.work(consumer) + 16);
    }
    work.head = __shfl_sync(FULL_WARP, first.x, 0);
    work.first_token = __shfl_sync(FULL_WARP, first.y, 0);
    work.num_tokens = static_cast<int32_t>(__shfl_sync(FULL_WARP, first.z, 0));
    work.first_position = __shfl_sync(FULL_WARP, first.w, 0);
    work.first_tile = __shfl_sync(FULL_WARP, second.x, 0);
    work.end_tile = __shfl_sync(FULL_WARP, second.y, 0);
    bases[0] = bases[1] = MINUS_INFINITY;
    totals[0] = totals[1] = 0.0f;
    return work.end_tile > 0;
  }

  // Starts the products of queries and the next tile of keys.
  __device__ inline void multiply_keys(Scores &scores) const {
    const uint64_t a = describe_tile<Shape::PANEL_BYTES>(shared.queries(consumer), 0);
    const uint64_t b = describe_tile<Shape::PANEL_BYTES>(shared.keys(keys.stage), 0);
    constexpr int STEPS = Shape::PANEL / 16;
    begin_products();
    hold(scores);
#pragma unroll
    for (int step = 0; step < HEAD_DIM / 16; step++) {
      const int panel_byte = step / STEPS * Shape::PANEL_BYTES;
      const int byte = step % STEPS * 32;
      Products<T, KEYS>::multiply_shared(scores, advance(a, panel_byte * ROWS + byte),
                                         advance(b, panel_byte * KEYS + byte), step > 0);
    }
    commit_products();
  }

  // Starts adding the products of exponentials and the next tile of values.
  __device__ inline void add_values(Sums &sums, Weights &weights) const {
    const uint64_t b = describe_tile<Shape::PANEL_BYTES>(shared.values(values.stage), KEYS * Shape::PANEL_BYTES);
    begin_products();
    hold(weights);
#pragma unroll
    for (int split = 0; split < Shape::SPLITS; split++) {
      hold(sums[split]);
#pragma unroll
      for (int step = 0; step < KEYS / 16; step++) {
        const int panel = split * (Shape::PANELS / Shape::SPLITS);
        Products<T, Shape::VALUES>::add_transposed(
            sums[split], &weights[4 * step], advance(b, (panel * KEYS + step * 16) * Shape::PANEL_BYTES));
      }
    }
    commit_products();
  }

  // Waits for all products; the tile of values is free.
  __device__ inline void finish_values(Sums &sums, Weights &weights) {
    wait_products<0>();
#pragma unroll
    for (int split = 0; split < Shape::SPLITS; split++) {
      hold(sums[split]);
    }
    hold(weights);
    release(shared.values_empty(values.stage));
    values.advance();
  }

  // Tokens between element `i` of a thread's scores and the row's own position; negative: a later key.
  __device__ inline int distance(uint32_t tile, int i) const {
    const int row = static_cast<int>(work.first_position) + warp_row() + i % 4 / 2 * 8;
    return row - static_cast<int>(tile * KEYS + threadIdx.x % 4 * 2) - (i / 4 * 8 + i % 2);
  }

  // Hides keys that this thread's queries do not see.
  __device__ inline void mask(Scores &scores, uint32_t tile) const {
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
      const int tokens = distance(tile, i);
      const bool is_near = !IS_GENERAL || params.attention.window == 0 || tokens < int(params.attention.window);
      scores[i] = tokens >= 0 && is_near ? scores[i] : MINUS_INFINITY;
    }
  }

  // Soft cap and slopes; scores come out times log2(e).
  __device__ inline void modify(Scores &scores, uint32_t tile) const {
    const AttentionParams &attention = params.attention;
    const float slope = attention.alibi_slopes != nullptr ? attention.alibi_slopes[work.head] * LOG2_E : 0.0f;
    const float cap = attention.soft_cap * LOG2_E;
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
      const float score = cap_score(scores[i] * attention.scale_log2, cap);
      scores[i] = score - slope * static_cast<float>(distance(tile, i));
    }
  }

  __device__ inline void adjust(Scores &scores, uint32_t tile) const {
    if (IS_GENERAL) {
      modify(scores, tile);
    }
    if (is_masked(tile)) {
      mask(scores, tile);
    }
  }

  // Whether some of the tile's keys are hidden from some of this warpgroup's queries.
  __device__ inline bool is_masked(uint32_t tile) const {
    const uint32_t window = IS_GENERAL ? params.attention.window : 0;
    return (tile + 1) * KEYS > work.first_position + 1 ||
           (window > 0 && work.first_position + ROWS > tile * KEYS + window);
  }

  // The products of a tile's keys are complete. Queries are free after their last product.
  __device__ inline void finish_keys(Scores &scores, uint32_t tile) {
    hold(scores);
    release(shared.keys_empty(keys.stage));
    keys.advance();
    if (tile == work.first_tile) {
      release(shared.queries_empty(consumer));
    }
  }

  // Turns scores into exponentials relative to new bases, the largest scores, and rescales earlier sums.
  __device__ inline void rescale(const Scores &scores, Weights &weights, Sums &sums, float scale) {
    // Two chains per row hide the latency of a comparison.
    float chains[2][2] = {{scores[0], scores[1]}, {scores[2], scores[3]}};
#pragma unroll
    for (int i = 4; i < KEYS / 2; i++) {
      float &chain = chains[i % 4 / 2][i % 2];
      chain = fmaxf(chain, scores[i]);
    }
    float factors[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float largest = fmaxf(chains[half][0], chains[half][1]);
      largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, 2));
      const float raised = fmaxf(bases[half], largest * scale);
      // A row that has seen no key yet has nothing to rescale, and its masked scores must not give NaN.
      factors[half] = raised == MINUS_INFINITY ? 0.0f : exp2_approximate(bases[half] - raised);
      totals[half] *= factors[half];
      bases[half] = raised;
    }
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; i++) {
      sums[i / (Shape::VALUES / 2)][i % (Shape::VALUES / 2)] *= factors[i % 4 / 2];
    }
    const float2 finite = make_float2(bases[0] == MINUS_INFINITY ? 0.0f : bases[0],
                                      bases[1] == MINUS_INFINITY ? 0.0f : bases[1]);
    const float2 added = take_exponentials(scores, weights, scale, finite);
    totals[0] += added.x;
    totals[1] += added.y;
  }

  // The exponentials as operands, and this thread's sums of them.
  __device__ static inline float2 take_exponentials(const Scores &scores, Weights &weights, float scale,
                                                    const float2 &bases) {
    float chains[2][2] = {{0.0f, 0.0f}, {0.0f, 0.0f}};
#pragma unroll
    for (int i = 0; i < KEYS / 2; i += 2) {
      const int half = i % 4 / 2;
      const float base = half == 0 ? bases.x : bases.y;
      const float even = exp2_approximate(scores[i] * scale - base);
      const float odd = exp2_approximate(scores[i + 1] * scale - base);
      chains[half][0] += even;
      chains[half][1] += odd;
      weights[i / 2] = pack<T>(even, odd);
    }
    return make_float2(chains[0][0] + chains[0][1], chains[1][0] + chains[1][1]);
  }

  // Exponentials of a tile. Looking for the largest score and rescaling takes about as long as the exponentials, so
  // the bases stay as long as exponentials are of a moderate size, which the sums tell: bf16 and single precision
  // hold them as exactly as smaller ones, and f16 holds single ones up to 2^16.
  __device__ inline void soften(const Scores &scores, Weights &weights, Sums &sums, float scale, bool is_first) {
    constexpr float LARGEST_SUM = 16384.0f;
    if (!is_first) {
      const float2 added = take_exponentials(scores, weights, scale, {bases[0], bases[1]});
      if (__all_sync(FULL_WARP, added.x <= LARGEST_SUM && added.y <= LARGEST_SUM)) {
        totals[0] += added.x;
        totals[1] += added.y;
        return;
      }
    }
    rescale(scores, weights, sums, scale);
  }

  __device__ static inline void clear(Sums &sums) {
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; i++) {
      sums[i / (Shape::VALUES / 2)][i % (Shape::VALUES / 2)] = 0.0f;
    }
  }

  // Stores the rows of finished work.
  __device__ inline void store(const Work &work, const Sums &sums, const float (&totals)[2]) const {
    const uint32_t lane = threadIdx.x % WARP_THREADS;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float total = totals[half];
      total += __shfl_xor_sync(FULL_WARP, total, 1);
      total += __shfl_xor_sync(FULL_WARP, total, 2);
      const float scale = __frcp_rn(total);
      const int row = warp_row() + 8 * half;
      const uint64_t token = work.first_token + row;
      T *target =
          static_cast<T *>(params.attention.out) + (token * params.attention.num_heads + work.head) * HEAD_DIM;
#pragma unroll
      for (int first = 0; first < HEAD_DIM / 8; first += 4) {
        uint32_t words[4];
#pragma unroll
        for (int n = 0; n < 4 && first + n < HEAD_DIM / 8; n++) {
          const int element = (first + n) * 4;
          const float *pair = &sums[element / (Shape::VALUES / 2)][element % (Shape::VALUES / 2) + 2 * half];
          words[n] = pack<T>(pair[0] * scale, pair[1] * scale);
          if (first + 4 > HEAD_DIM / 8 && row < work.num_tokens) {
            *reinterpret_cast<uint32_t *>(target + (first + n) * 8 + lane % 4 * 2) = words[n];
          }
        }
        if (first + 4 <= HEAD_DIM / 8) {
          const uint4 vector = gather_quad(words);
          if (row < work.num_tokens) {
            *reinterpret_cast<uint4 *>(target + (first + lane % 4) * 8) = vector;
          }
        }
      }
    }
  }

  // Barriers are asked long before they are waited for, since the answer takes a while.
  __device__ inline void look_ahead() {
    are_keys_full = is_complete(shared.keys_full(keys.stage), keys.parity);
    are_values_full = is_complete(shared.values_full(values.stage), values.parity);
  }
  __device__ inline void wait_keys() const {
    if (!are_keys_full) {
      wait(shared.keys_full(keys.stage), keys.parity);
    }
  }
  __device__ inline void wait_values() const {
    if (!are_values_full) {
      wait(shared.values_full(values.stage), values.parity);
    }
  }

  __device__ inline void run_all() {
    const float scale = IS_GENERAL ? 1.0f : params.attention.scale_log2;
    Sums sums;
    Scores scores;
    Weights weights;
    if (consumer == 1) {
      pass_turn();
    }
    if (!take_work()) {
      return;
    }
    uint32_t tile = work.end_tile - 1;
    wait_keys();
    multiply_keys(scores);
    wait_products<0>();
    finish_keys(scores, tile);
    adjust(scores, tile);
    clear(sums);
    look_ahead();
    soften(scores, weights, sums, scale, true);
    Work last = work;
    float last_totals[2];
    while (true) {
      const bool is_last = tile == work.first_tile;
      if (is_last) {
        last = work;
        last_totals[0] = totals[0];
        last_totals[1] = totals[1];
        if (!take_work()) {
          break;
        }
        tile = work.end_tile;
      }
      tile--;
      wait_keys();
      await_turn();
      multiply_keys(scores);
      wait_values();
      add_values(sums, weights);
      pass_turn();
      wait_products<1>();
      finish_keys(scores, tile);
      adjust(scores, tile);
      finish_values(sums, weights);
      if (is_last) {
        store(last, sums, last_totals);
        clear(sums);
      }
      look_ahead();
      soften(scores, weights, sums, scale, is_last);
    }
    wait_values();
    add_values(sums, weights);
    finish_values(sums, weights);
    store(last, sums, last_totals);
  }
};

template <typename T, int HEAD_DIM, bool IS_GENERAL>
__device__ inline void attention_prompt(const PromptParams &params) {
  using Layout = SharedLayout<HEAD_DIM>;
  extern __shared__ __align__(1024) unsigned char memory[];
  const uint32_t unaligned = shared_address(memory);
  const Layout shared{(unaligned + Layout::ALIGNMENT - 1) / Layout::ALIGNMENT * Layout::ALIGNMENT};
  if (threadIdx.x == 0) {
    prefetch_map(&params.queries);
    prefetch_map(&params.cache);
    shared.init_barriers();
  }
  __syncthreads();
  if (threadIdx.x < WARPGROUP_THREADS) {
    lower_registers<40>();
    if (threadIdx.x < WARP_THREADS) {
      Producer<HEAD_DIM, IS_GENERAL>(params, shared).run_all();
    }
  } else {
    raise_registers<232>();
    Consumer<T, HEAD_DIM, IS_GENERAL>(params, shared).run_all();
  }
}

#define ATTENTION_PROMPT(SUFFIX, T, HEAD_DIM)                                                                    \
  extern "C" __global__ void __launch_bounds__((1 + CONSUMERS) * WARPGROUP_THREADS, 1)                           \
      attention_prompt_sm90_##SUFFIX(const __grid_constant__ PromptParams params) {                              \
    attention_prompt<T, HEAD_DIM, false>(params);                                                                \
  }                                                                                                              \
  extern "C" __global__ void __launch_bounds__((1 + CONSUMERS) * WARPGROUP_THREADS, 1)                           \
      attention_prompt_sm90_general_##SUFFIX(const __grid_constant__ PromptParams params) {                      \
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

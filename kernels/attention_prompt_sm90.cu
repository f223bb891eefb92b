// Causal attention of rows with several query tokens over the paged cache, for Hopper (sm_90a).
//
// The shape of FlashAttention 3 (Shah et al. 2024): a warpgroup that copies and two that compute, 64 query rows
// each. The scores of the next keys are multiplied while the exponentials of these are taken, within a warpgroup and
// between the two, which take turns at the tensor cores. Blocks stay and draw tiles of queries from a counter, so
// that copies for the next tile run while the last one ends.
//
// Where heads share keys, the two warpgroups take two heads of the same 64 tokens, otherwise 128 tokens of a head.
// Key tiles are passed from the last, which alone need masks, to the first.
//
// Head sizes 64, 80, 96, 128, 256. Blocks of the cache hold a multiple of 16 tokens.

#include "attention.cuh"
#include "hopper.cuh"

constexpr int CONSUMERS = 2;
constexpr int THREADS = (1 + CONSUMERS) * WARPGROUP_THREADS;
constexpr int CONSUMER_WARPS = CONSUMERS * 4;
// Query rows of a consumer.
constexpr int ROWS = 64;
constexpr int STAGES = 2;

struct PromptParams {
  // The qkv tensor as a matrix of tokens, in boxes of ROWS tokens.
  TensorMap queries;
  // The cache as a matrix of one token's part of a head, in boxes of `box_keys` rows.
  TensorMap cache;
  AttentionParams attention;
  // Of the cache's matrix, the layer's first.
  uint32_t layer_row;
  // Divides the block size and the keys of a tile.
  uint32_t box_keys;
  // Query heads that a block takes at once: CONSUMERS or 1.
  uint32_t heads_per_block;
  uint32_t reserved;
};
static_assert(sizeof(PromptParams) == 512, "mirrored in attention.rs");

template <int HEAD_DIM> struct PromptShape {
  static constexpr int KEYS = HEAD_DIM > 128 ? 64 : 128;
  // Elements and bytes of a panel's row, and panels side by side.
  static constexpr int PANEL = HEAD_DIM % 64 == 0 ? 64 : HEAD_DIM % 32 == 0 ? 32 : 16;
  static constexpr int PANEL_BYTES = PANEL * 2;
  static constexpr int PANELS = HEAD_DIM / PANEL;
  static constexpr int QUERY_BYTES = ROWS * HEAD_DIM * 2;
  static constexpr int TILE_BYTES = KEYS * HEAD_DIM * 2;
  // Columns of values that one product takes.
  static constexpr int SPLITS = HEAD_DIM > 128 ? 2 : 1;
  static constexpr int VALUES = HEAD_DIM / SPLITS;
  static constexpr bool TAKES_TURNS = HEAD_DIM <= 128;
};

// What a block works on; `num_tokens` of 0 ends it.
struct Work {
  uint32_t first_head;
  // Of the batch's tokens, the first.
  uint32_t first_token;
  uint32_t num_tokens;
  // Position of the first token.
  uint32_t first_position;
};

// Shared memory, all as addresses. Barriers come in pairs: full, empty.
template <int HEAD_DIM> struct SharedLayout {
  using Shape = PromptShape<HEAD_DIM>;
  static constexpr uint32_t ALIGNMENT = 1024;
  static constexpr uint32_t KEYS_START = CONSUMERS * Shape::QUERY_BYTES;
  static constexpr uint32_t VALUES_START = KEYS_START + STAGES * Shape::TILE_BYTES;
  static constexpr uint32_t BARRIERS_START = VALUES_START + STAGES * Shape::TILE_BYTES;
  static constexpr uint32_t NUM_BARRIERS = 2 + 2 * STAGES + 2 * STAGES + 1;
  static constexpr uint32_t WORK_START = BARRIERS_START + (NUM_BARRIERS * 8 + 15) / 16 * 16;
  // Mirrored in attention.rs.
  static constexpr uint32_t BYTES = ALIGNMENT + WORK_START + sizeof(Work);
  static_assert(BYTES <= 227 * 1024, "shared memory of a block");

  uint32_t start;

  __device__ inline uint32_t queries(uint32_t consumer) const { return start + consumer * Shape::QUERY_BYTES; }
  __device__ inline uint32_t keys(uint32_t stage) const { return start + KEYS_START + stage * Shape::TILE_BYTES; }
  __device__ inline uint32_t values(uint32_t stage) const { return start + VALUES_START + stage * Shape::TILE_BYTES; }
  __device__ inline uint32_t queries_full() const { return start + BARRIERS_START; }
  __device__ inline uint32_t queries_empty() const { return start + BARRIERS_START + 8; }
  __device__ inline uint32_t keys_full(uint32_t stage) const { return start + BARRIERS_START + 16 + stage * 16; }
  __device__ inline uint32_t keys_empty(uint32_t stage) const { return keys_full(stage) + 8; }
  __device__ inline uint32_t values_full(uint32_t stage) const { return keys_full(STAGES + stage); }
  __device__ inline uint32_t values_empty(uint32_t stage) const { return keys_full(STAGES + stage) + 8; }
  __device__ inline uint32_t tail_full() const { return keys_full(2 * STAGES); }
};

// Place in a ring of STAGES buffers: the parity says how often it has come round.
struct Ring {
  uint32_t stage = 0;
  uint32_t parity = 0;

  __device__ inline void advance() {
    stage++;
    if (stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// Key tiles that the queries of a block see: first and end.
template <int KEYS, bool IS_GENERAL>
__device__ inline uint2 visible_tiles(const AttentionParams &params, uint32_t first_position, uint32_t num_tokens) {
  uint32_t first = 0;
  if (IS_GENERAL && params.window > 0 && first_position + 1 > params.window) {
    first = (first_position + 1 - params.window) / KEYS;
  }
  return make_uint2(first, (first_position + num_tokens + KEYS - 1) / KEYS);
}

// Work that no block has drawn yet, beyond the first of each, and blocks that have finished. The last block puts both
// back to 0; launches of a module follow each other on one stream.
__device__ uint32_t drawn_work;
__device__ uint32_t finished_blocks;

// The copying warp.
template <typename T, int HEAD_DIM, bool IS_GENERAL> struct Producer {
  using Shape = PromptShape<HEAD_DIM>;
  const PromptParams &params;
  const SharedLayout<HEAD_DIM> shared;
  Ring keys;
  Ring values;
  uint32_t queries_parity = 0;
  uint32_t tail_parity = 0;

  __device__ inline Producer(const PromptParams &params, SharedLayout<HEAD_DIM> shared)
      : params(params), shared(shared) {}

  __device__ inline uint32_t lane() const { return threadIdx.x % WARP_THREADS; }

  // Starts copying keys or values of the tile to `target`. Positions from `context_len` on become zeros box by box.
  __device__ inline void copy_tile(const uint32_t *blocks, uint32_t context_len, uint32_t head, uint32_t first_key,
                                   uint32_t target, uint32_t barrier) {
    const AttentionParams &attention = params.attention;
    if (lane() == 0) {
      arrive_expecting(barrier, Shape::TILE_BYTES);
    }
    __syncwarp();
    if (lane() * params.box_keys >= Shape::KEYS) {
      return;
    }
    const uint32_t key = first_key + lane() * params.box_keys;
    int row = -256;
    if (key < context_len) {
      const uint32_t block = blocks[key / attention.block_size];
      row = params.layer_row + (block * 2 * attention.num_kv_heads + head) * attention.block_size +
            key % attention.block_size;
    }
    const uint32_t place = target + lane() * params.box_keys * Shape::PANEL_BYTES;
#pragma unroll
    for (int panel = 0; panel < Shape::PANELS; panel++) {
      copy_box(place + panel * Shape::KEYS * Shape::PANEL_BYTES, &params.cache, panel * Shape::PANEL, row, barrier);
    }
  }

  __device__ inline void load_keys(const uint32_t *blocks, uint32_t context_len, uint32_t kv_head, uint32_t tile) {
    wait(shared.keys_empty(keys.stage), keys.parity ^ 1);
    copy_tile(blocks, context_len, kv_head, tile * Shape::KEYS, shared.keys(keys.stage),
              shared.keys_full(keys.stage));
    keys.advance();
  }

  // Values of positions from `context_len` on are multiplied by exponentials of 0, but may be NaN: where a box is
  // part valid, they are overwritten before the consumers see the tile.
  __device__ inline void load_values(const uint32_t *blocks, uint32_t context_len, uint32_t kv_head, uint32_t tile) {
    const uint32_t first_key = tile * Shape::KEYS;
    const uint32_t head = params.attention.num_kv_heads + kv_head;
    const uint32_t target = shared.values(values.stage);
    const uint32_t full = shared.values_full(values.stage);
    wait(shared.values_empty(values.stage), values.parity ^ 1);
    if (first_key + Shape::KEYS <= context_len || context_len % params.box_keys == 0) {
      copy_tile(blocks, context_len, head, first_key, target, full);
    } else {
      copy_tile(blocks, context_len, head, first_key, target, shared.tail_full());
      wait(shared.tail_full(), tail_parity);
      tail_parity ^= 1;
      const uint32_t first_row = context_len - first_key;
      const uint32_t num_bytes = (params.box_keys - context_len % params.box_keys) * Shape::PANEL_BYTES;
      for (int panel = 0; panel < Shape::PANELS; panel++) {
        const uint32_t start = target + (panel * Shape::KEYS + first_row) * Shape::PANEL_BYTES;
        for (uint32_t byte = lane() * 16; byte < num_bytes; byte += WARP_THREADS * 16) {
          asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(start + byte), "r"(0) : "memory");
        }
      }
      fence_async_proxy();
      __syncwarp();
      if (lane() == 0) {
        arrive(full);
      }
    }
    values.advance();
  }

  // Hands the work to the consumers and starts copying its queries; rows past its end are other rows' queries.
  __device__ inline void load_queries(const Work &work) {
    wait(shared.queries_empty(), queries_parity ^ 1);
    queries_parity ^= 1;
    if (lane() == 0) {
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(shared.start + shared.WORK_START),
                   "r"(work.first_head), "r"(work.first_token), "r"(work.num_tokens), "r"(work.first_position)
                   : "memory");
      if (work.num_tokens == 0) {
        arrive(shared.queries_full());
      } else {
        arrive_expecting(shared.queries_full(), CONSUMERS * Shape::QUERY_BYTES);
      }
    }
    __syncwarp();
    if (work.num_tokens > 0 && lane() < CONSUMERS * Shape::PANELS) {
      const uint32_t consumer = lane() / Shape::PANELS;
      const uint32_t panel = lane() % Shape::PANELS;
      const bool is_pair = params.heads_per_block > 1;
      const uint32_t head = work.first_head + (is_pair ? consumer : 0);
      const uint32_t token = work.first_token + (is_pair ? 0 : consumer * ROWS);
      copy_box(shared.queries(consumer) + panel * ROWS * Shape::PANEL_BYTES, &params.queries,
               head * HEAD_DIM + panel * Shape::PANEL, token, shared.queries_full());
    }
  }

  // Work number `index`: tiles in the host's order, in each all heads, of halves of a tile the later one first.
  __device__ inline void run(uint32_t index, uint32_t units_per_tile) {
    const AttentionParams &attention = params.attention;
    const PromptTile tile = attention.prompt_tiles[index / units_per_tile];
    const uint32_t unit = index % units_per_tile;
    const uint32_t blocks_of_heads = attention.num_heads / params.heads_per_block;
    const uint32_t half = params.heads_per_block - 1 - unit / blocks_of_heads;
    const uint32_t first_of_row = tile.first_token + half * ROWS;
    const uint32_t row_start = attention.arrays.query_starts[tile.row];
    const uint32_t row_tokens = attention.arrays.query_starts[tile.row + 1] - row_start;
    if (first_of_row >= row_tokens) {
      return;
    }
    const uint32_t context_len = attention.arrays.context_lens[tile.row];
    const uint32_t *blocks = attention.arrays.block_tables + attention.arrays.block_starts[tile.row];
    Work work;
    work.first_head = unit % blocks_of_heads * params.heads_per_block;
    work.first_token = row_start + first_of_row;
    work.num_tokens = min(row_tokens - first_of_row, CONSUMERS * ROWS / params.heads_per_block);
    work.first_position = context_len - row_tokens + first_of_row;
    const uint32_t kv_head = work.first_head / (attention.num_heads / attention.num_kv_heads);
    const uint2 tiles = visible_tiles<Shape::KEYS, IS_GENERAL>(attention, work.first_position, work.num_tokens);
    load_keys(blocks, context_len, kv_head, tiles.y - 1);
    load_queries(work);
    for (uint32_t key_tile = tiles.y - 1; key_tile > tiles.x; key_tile--) {
      load_keys(blocks, context_len, kv_head, key_tile - 1);
      load_values(blocks, context_len, kv_head, key_tile);
    }
    load_values(blocks, context_len, kv_head, tiles.x);
  }

  __device__ inline void run_all() {
    const AttentionParams &attention = params.attention;
    // A tile has as many halves as a block takes heads.
    const uint32_t units_per_tile = attention.num_heads;
    const uint32_t num_works = attention.arrays.header->num_prompt_tiles * units_per_tile;
    uint32_t index = blockIdx.x;
    while (index < num_works) {
      uint32_t next = 0;
      if (lane() == 0) {
        next = gridDim.x + atomicAdd(&drawn_work, 1);
      }
      run(index, units_per_tile);
      index = __shfl_sync(FULL_WARP, next, 0);
    }
    load_queries({0, 0, 0, 0});
    if (lane() == 0) {
      __threadfence();
      if (atomicAdd(&finished_blocks, 1) == gridDim.x - 1) {
        drawn_work = 0;
        finished_blocks = 0;
      }
    }
  }
};

// The computing warpgroups. A thread holds parts of two rows, `lane / 4` and `lane / 4 + 8` of its warp's 16.
template <typename T, int HEAD_DIM, bool IS_GENERAL> struct Consumer {
  using Shape = PromptShape<HEAD_DIM>;
  static constexpr int KEYS = Shape::KEYS;
  const PromptParams &params;
  const SharedLayout<HEAD_DIM> shared;
  const uint32_t consumer;
  Ring keys;
  Ring values;
  uint32_t queries_parity = 0;
  // Of this warpgroup's part of the work.
  uint32_t head;
  uint32_t first_token;
  int num_tokens;
  uint32_t first_position;
  uint2 tiles;
  // Position of this thread's first row, less its first column of a tile.
  int diagonal;

  __device__ inline Consumer(const PromptParams &params, SharedLayout<HEAD_DIM> shared)
      : params(params), shared(shared), consumer(threadIdx.x / WARPGROUP_THREADS - 1) {}

  __device__ inline int warp_row() const { return threadIdx.x / WARP_THREADS % 4 * 16 + threadIdx.x % 32 / 4; }

  __device__ inline void release(uint32_t barrier) {
    if (threadIdx.x % WARP_THREADS == 0) {
      arrive(barrier);
    }
  }

  // The warpgroups issue their products in turns, so that one multiplies while the other takes exponentials.
  __device__ inline void await_turn() {
    if (Shape::TAKES_TURNS) {
      sync_named(1 + consumer, CONSUMERS * WARPGROUP_THREADS);
    }
  }
  __device__ inline void pass_turn() {
    if (Shape::TAKES_TURNS) {
      arrive_named(2 - consumer, CONSUMERS * WARPGROUP_THREADS);
    }
  }

  // Waits for the next work; false at the end.
  __device__ inline bool take_work() {
    wait(shared.queries_full(), queries_parity);
    queries_parity ^= 1;
    Work work;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(work.first_head), "=r"(work.first_token), "=r"(work.num_tokens), "=r"(work.first_position)
                 : "r"(shared.start + shared.WORK_START));
    const bool is_pair = params.heads_per_block > 1;
    const uint32_t offset = is_pair ? 0 : consumer * ROWS;
    head = work.first_head + (is_pair ? consumer : 0);
    first_token = work.first_token + offset;
    num_tokens = static_cast<int>(work.num_tokens) - static_cast<int>(offset);
    first_position = work.first_position + offset;
    tiles = visible_tiles<KEYS, IS_GENERAL>(params.attention, work.first_position, work.num_tokens);
    diagonal = first_position + warp_row() - threadIdx.x % 4 * 2;
    return work.num_tokens > 0;
  }

  // Starts the products of queries and the next tile of keys.
  __device__ inline void multiply_keys(float (&scores)[KEYS / 2]) {
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
  __device__ inline void add_values(float (&sums)[Shape::SPLITS][Shape::VALUES / 2], uint32_t (&weights)[KEYS / 4]) {
    const uint64_t b =
        describe_tile<Shape::PANEL_BYTES>(shared.values(values.stage), KEYS * Shape::PANEL_BYTES);
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

  // Hides keys that this thread's queries do not see from the scores of a tile.
  __device__ inline void mask(float (&scores)[KEYS / 2], uint32_t tile) {
    const int limit = diagonal - static_cast<int>(tile * KEYS);
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
      const int distance = limit + i % 4 / 2 * 8 - (i / 4 * 8 + i % 2);
      const bool is_near = !IS_GENERAL || params.attention.window == 0 || distance < int(params.attention.window);
      scores[i] = distance >= 0 && is_near ? scores[i] : MINUS_INFINITY;
    }
  }

  // Soft cap and slopes; scores come out times log2(e).
  __device__ inline void modify(float (&scores)[KEYS / 2], uint32_t tile) {
    const AttentionParams &attention = params.attention;
    constexpr float LOG2_E = 1.4426950408889634f;
    const float slope = attention.alibi_slopes != nullptr ? attention.alibi_slopes[head] * LOG2_E : 0.0f;
    const float cap = attention.soft_cap * LOG2_E;
    const int limit = diagonal - static_cast<int>(tile * KEYS);
#pragma unroll
    for (int i = 0; i < KEYS / 2; i++) {
      const int distance = limit + i % 4 / 2 * 8 - (i / 4 * 8 + i % 2);
      const float score = cap_score(scores[i] * attention.scale_log2, cap);
      scores[i] = score - slope * static_cast<float>(distance);
    }
  }

  __device__ inline void adjust(float (&scores)[KEYS / 2], uint32_t tile) {
    if (IS_GENERAL) {
      modify(scores, tile);
    }
    if (IS_GENERAL || (tile + 1) * KEYS > first_position + 1) {
      mask(scores, tile);
    }
  }

  // Turns scores into exponentials and adds them to `totals`; `factors` are what earlier sums must be multiplied by.
  __device__ inline void take_exponentials(float (&scores)[KEYS / 2], float (&maxima)[2], float (&totals)[2],
                                           float (&factors)[2]) {
    const float scale = IS_GENERAL ? 1.0f : params.attention.scale_log2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float maximum = maxima[half];
      float other = scores[2 * half];
#pragma unroll
      for (int i = 2 * half; i < KEYS / 2; i += 4) {
        maximum = fmaxf(maximum, scores[i]);
        other = fmaxf(other, scores[i + 1]);
      }
      maximum = fmaxf(maximum, other);
      maximum = fmaxf(maximum, __shfl_xor_sync(FULL_WARP, maximum, 1));
      maximum = fmaxf(maximum, __shfl_xor_sync(FULL_WARP, maximum, 2));
      // A row that has seen no key yet has nothing to rescale, and its masked scores must not give NaN.
      const float base = maximum == MINUS_INFINITY ? 0.0f : maximum * scale;
      factors[half] = exp2_approximate(maxima[half] * scale - base);
      maxima[half] = maximum;
      float even = 0.0f;
      float odd = 0.0f;
#pragma unroll
      for (int i = 2 * half; i < KEYS / 2; i += 4) {
        scores[i] = exp2_approximate(scores[i] * scale - base);
        scores[i + 1] = exp2_approximate(scores[i + 1] * scale - base);
        even += scores[i];
        odd += scores[i + 1];
      }
      totals[half] = totals[half] * factors[half] + (even + odd);
    }
  }

  __device__ inline void pack_weights(uint32_t (&weights)[KEYS / 4], const float (&scores)[KEYS / 2]) {
#pragma unroll
    for (int i = 0; i < KEYS / 4; i++) {
      weights[i] = pack<T>(scores[2 * i], scores[2 * i + 1]);
    }
  }

  __device__ inline void wait_keys() { wait(shared.keys_full(keys.stage), keys.parity); }
  __device__ inline void wait_values() { wait(shared.values_full(values.stage), values.parity); }
  __device__ inline void release_keys() {
    release(shared.keys_empty(keys.stage));
    keys.advance();
  }
  __device__ inline void release_values() {
    release(shared.values_empty(values.stage));
    values.advance();
  }

  __device__ inline void run() {
    float sums[Shape::SPLITS][Shape::VALUES / 2];
    float scores[KEYS / 2];
    uint32_t weights[KEYS / 4];
    float maxima[2] = {MINUS_INFINITY, MINUS_INFINITY};
    float totals[2] = {0.0f, 0.0f};
    float factors[2];
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 2; i++) {
      sums[i / (Shape::VALUES / 2)][i % (Shape::VALUES / 2)] = 0.0f;
    }
    wait_keys();
    multiply_keys(scores);
    wait_products<0>();
    hold(scores);
    release_keys();
    adjust(scores, tiles.y - 1);
    take_exponentials(scores, maxima, totals, factors);
    pack_weights(weights, scores);
    for (uint32_t tile = tiles.y - 1; tile > tiles.x; tile--) {
      wait_keys();
      await_turn();
      multiply_keys(scores);
      wait_values();
      add_values(sums, weights);
      pass_turn();
      wait_products<1>();
      hold(scores);
      release_keys();
      adjust(scores, tile - 1);
      take_exponentials(scores, maxima, totals, factors);
      // The exponentials are taken while the values are multiplied, not after.
      await_value(totals[0] + totals[1]);
      wait_products<0>();
#pragma unroll
      for (int split = 0; split < Shape::SPLITS; split++) {
        hold(sums[split]);
      }
      hold(weights);
      release_values();
#pragma unroll
      for (int i = 0; i < HEAD_DIM / 2; i++) {
        sums[i / (Shape::VALUES / 2)][i % (Shape::VALUES / 2)] *= factors[i % 4 / 2];
      }
      pack_weights(weights, scores);
    }
    release(shared.queries_empty());
    wait_values();
    add_values(sums, weights);
    wait_products<0>();
#pragma unroll
    for (int split = 0; split < Shape::SPLITS; split++) {
      hold(sums[split]);
    }
    release_values();
    store(sums, totals);
  }

  // Four words per thread, of which thread `i` of a quad gets all of number `i`.
  __device__ static inline uint4 gather(const uint32_t (&words)[4]) {
    const bool is_odd = threadIdx.x % 2 == 1;
    const bool is_high = threadIdx.x % 4 >= 2;
    const uint32_t a = __shfl_xor_sync(FULL_WARP, is_odd ? words[0] : words[1], 1);
    const uint32_t b = __shfl_xor_sync(FULL_WARP, is_odd ? words[2] : words[3], 1);
    // Of numbers `odd` and `odd + 2`: the pair's words, from the lower thread and from the upper.
    const uint32_t low[2] = {is_odd ? a : words[0], is_odd ? words[1] : a};
    const uint32_t high[2] = {is_odd ? b : words[2], is_odd ? words[3] : b};
    const uint32_t c = __shfl_xor_sync(FULL_WARP, is_high ? low[0] : high[0], 2);
    const uint32_t d = __shfl_xor_sync(FULL_WARP, is_high ? low[1] : high[1], 2);
    return is_high ? make_uint4(c, d, high[0], high[1]) : make_uint4(low[0], low[1], c, d);
  }

  __device__ inline void store(const float (&sums)[Shape::SPLITS][Shape::VALUES / 2], float (&totals)[2]) {
    const uint32_t lane = threadIdx.x % WARP_THREADS;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float total = totals[half];
      total += __shfl_xor_sync(FULL_WARP, total, 1);
      total += __shfl_xor_sync(FULL_WARP, total, 2);
      const float scale = 1.0f / total;
      const int row = warp_row() + 8 * half;
      const uint64_t token = first_token + row;
      T *target = static_cast<T *>(params.attention.out) + (token * params.attention.num_heads + head) * HEAD_DIM;
#pragma unroll
      for (int first = 0; first < HEAD_DIM / 8; first += 4) {
        uint32_t words[4];
#pragma unroll
        for (int n = 0; n < 4 && first + n < HEAD_DIM / 8; n++) {
          const float *pair =
              &sums[(first + n) * 4 / (Shape::VALUES / 2)][(first + n) * 4 % (Shape::VALUES / 2) + 2 * half];
          words[n] = pack<T>(pair[0] * scale, pair[1] * scale);
          if (first + 4 > HEAD_DIM / 8 && row < num_tokens) {
            *reinterpret_cast<uint32_t *>(target + (first + n) * 8 + lane % 4 * 2) = words[n];
          }
        }
        if (first + 4 <= HEAD_DIM / 8) {
          const uint4 vector = gather(words);
          if (row < num_tokens) {
            *reinterpret_cast<uint4 *>(target + (first + lane % 4) * 8) = vector;
          }
        }
      }
    }
  }

  __device__ inline void run_all() {
    if (consumer == 1) {
      pass_turn();
    }
    while (take_work()) {
      run();
    }
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
    init_barrier(shared.queries_full(), 1);
    init_barrier(shared.queries_empty(), CONSUMER_WARPS);
    for (uint32_t stage = 0; stage < STAGES; stage++) {
      init_barrier(shared.keys_full(stage), 1);
      init_barrier(shared.keys_empty(stage), CONSUMER_WARPS);
      init_barrier(shared.values_full(stage), 1);
      init_barrier(shared.values_empty(stage), CONSUMER_WARPS);
    }
    init_barrier(shared.tail_full(), 1);
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x < WARPGROUP_THREADS) {
    lower_registers<24>();
    if (threadIdx.x < WARP_THREADS) {
      Producer<T, HEAD_DIM, IS_GENERAL>(params, shared).run_all();
    }
  } else {
    raise_registers<240>();
    Consumer<T, HEAD_DIM, IS_GENERAL>(params, shared).run_all();
  }
}

#define ATTENTION_PROMPT(SUFFIX, T, HEAD_DIM)                                                                    \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                       \
      attention_prompt_sm90_##SUFFIX(const __grid_constant__ PromptParams params) {                              \
    attention_prompt<T, HEAD_DIM, false>(params);                                                                \
  }                                                                                                              \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                       \
      attention_prompt_sm90_general_##SUFFIX(const __grid_constant__ PromptParams params) {                      \
    attention_prompt<T, HEAD_DIM, true>(params);                                                                 \
  }

ATTENTION_PROMPT(bf16_128, __nv_bfloat16, 128)
ATTENTION_PROMPT(bf16_64, __nv_bfloat16, 64)
ATTENTION_PROMPT(bf16_80, __nv_bfloat16, 80)
ATTENTION_PROMPT(bf16_96, __nv_bfloat16, 96)
ATTENTION_PROMPT(bf16_256, __nv_bfloat16, 256)
ATTENTION_PROMPT(f16_64, __half, 64)
ATTENTION_PROMPT(f16_80, __half, 80)
ATTENTION_PROMPT(f16_96, __half, 96)
ATTENTION_PROMPT(f16_128, __half, 128)
ATTENTION_PROMPT(f16_256, __half, 256)

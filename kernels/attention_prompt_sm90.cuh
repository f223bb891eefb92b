// What the warpgroups of attention_prompt_sm90.cu share, and the one that copies.

#pragma once

#include "attention.cuh"
#include "hopper.cuh"

constexpr int CONSUMERS = 2;
constexpr int CONSUMER_WARPS = 4;
// Query rows of a consumer.
constexpr int ROWS = 64;

struct PromptParams {
  // The qkv tensor as a matrix of tokens, in boxes of ROWS tokens.
  TensorMap queries;
  // The cache as a matrix of one token's part of a head, in boxes of `box_keys` rows.
  TensorMap cache;
  AttentionParams attention;
  // Of the cache's matrix, the layer's first.
  uint32_t layer_row;
  // Keys of a box; divides the block size and the keys of a tile.
  uint32_t box_keys;
  uint32_t boxes_per_block;
  // Query heads that a block takes at once: CONSUMERS or 1.
  uint32_t heads_per_block;
};
static_assert(sizeof(PromptParams) == 512, "mirrored in prompt_attention.rs");

template <int HEAD_DIM> struct PromptShape {
  // Keys of a tile, and tiles of keys and of values in shared memory.
  static constexpr int KEYS = HEAD_DIM > 128 ? 64 : 128;
  static constexpr int STAGES = HEAD_DIM > 128 ? 2 : 3;
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

// What one consumer does next.
struct Work {
  uint32_t head;
  // Of the batch's tokens, the first.
  uint32_t first_token;
  // 0 or less where the row ends before this consumer's part.
  int32_t num_tokens;
  // Position of the first token.
  uint32_t first_position;
  // Tiles of keys, passed from the last to the first. An end of 0 ends the consumer.
  uint32_t first_tile;
  uint32_t end_tile;
  uint32_t reserved[2];
};
static_assert(sizeof(Work) == 32, "read as vectors");

// Shared memory, all as addresses. Barriers come in pairs: full, empty.
template <int HEAD_DIM> struct SharedLayout {
  using Shape = PromptShape<HEAD_DIM>;
  static constexpr uint32_t ALIGNMENT = 1024;
  static constexpr uint32_t KEYS_START = CONSUMERS * Shape::QUERY_BYTES;
  static constexpr uint32_t VALUES_START = KEYS_START + Shape::STAGES * Shape::TILE_BYTES;
  static constexpr uint32_t WORKS_START = VALUES_START + Shape::STAGES * Shape::TILE_BYTES;
  static constexpr uint32_t BARRIERS_START = WORKS_START + CONSUMERS * sizeof(Work);
  static constexpr uint32_t NUM_BARRIERS = 2 * (2 * Shape::STAGES + CONSUMERS) + 1;
  // Mirrored in prompt_attention.rs.
  static constexpr uint32_t BYTES = ALIGNMENT + BARRIERS_START + NUM_BARRIERS * 8;
  static_assert(BYTES <= 227 * 1024, "shared memory of a block");

  uint32_t start;

  __device__ inline uint32_t queries(uint32_t consumer) const { return start + consumer * Shape::QUERY_BYTES; }
  __device__ inline uint32_t keys(uint32_t stage) const { return start + KEYS_START + stage * Shape::TILE_BYTES; }
  __device__ inline uint32_t values(uint32_t stage) const { return start + VALUES_START + stage * Shape::TILE_BYTES; }
  __device__ inline uint32_t work(uint32_t consumer) const { return start + WORKS_START + consumer * sizeof(Work); }
  __device__ inline uint32_t keys_full(uint32_t stage) const { return start + BARRIERS_START + stage * 16; }
  __device__ inline uint32_t keys_empty(uint32_t stage) const { return keys_full(stage) + 8; }
  __device__ inline uint32_t values_full(uint32_t stage) const { return keys_full(Shape::STAGES + stage); }
  __device__ inline uint32_t values_empty(uint32_t stage) const { return values_full(stage) + 8; }
  // Of a consumer's queries and work.
  __device__ inline uint32_t queries_full(uint32_t consumer) const { return keys_full(2 * Shape::STAGES + consumer); }
  __device__ inline uint32_t queries_empty(uint32_t consumer) const { return queries_full(consumer) + 8; }
  __device__ inline uint32_t tail_full() const { return keys_full(2 * Shape::STAGES + CONSUMERS); }

  __device__ inline void init_barriers() const {
    for (uint32_t stage = 0; stage < Shape::STAGES; stage++) {
      init_barrier(keys_full(stage), 1);
      init_barrier(keys_empty(stage), CONSUMERS * CONSUMER_WARPS);
      init_barrier(values_full(stage), 1);
      init_barrier(values_empty(stage), CONSUMERS * CONSUMER_WARPS);
    }
    for (uint32_t consumer = 0; consumer < CONSUMERS; consumer++) {
      init_barrier(queries_full(consumer), 1);
      init_barrier(queries_empty(consumer), CONSUMER_WARPS);
    }
    init_barrier(tail_full(), 1);
    fence_barrier_init();
  }
};

// Works that blocks have drawn, beyond the first of each, and blocks that have finished. The last block puts both
// back to 0; launches of a module follow each other on one stream.
__device__ uint32_t drawn_works;
__device__ uint32_t finished_blocks;

// The copying warp.
template <int HEAD_DIM, bool IS_GENERAL> struct Producer {
  using Shape = PromptShape<HEAD_DIM>;
  static constexpr uint32_t KEYS = Shape::KEYS;
  // A box that lies outside the cache, and so comes as zeros.
  static constexpr int NO_ROW = -256;

  // This lane's box of a tile. The number of its block may still be on its way from memory.
  struct Box {
    uint32_t block;
    // Of its first row from the head's first in the block; negative where there is nothing to copy.
    int offset;
  };

  // What a block does next: `num_tokens` of one head for both consumers, or of a head for each.
  struct Task {
    const uint32_t *blocks;
    uint32_t context_len;
    uint32_t first_head;
    uint32_t first_token;
    uint32_t num_tokens;
    uint32_t first_position;
    uint32_t first_tile;
    uint32_t end_tile;
    // Row of the key-value head in block 0 of the cache's matrix.
    uint32_t head_row;
    // Of the last tile of keys.
    Box last_box;
  };

  const PromptParams &params;
  const SharedLayout<HEAD_DIM> shared;
  const uint32_t lane;
  Ring<Shape::STAGES> keys;
  Ring<Shape::STAGES> values;
  uint32_t queries_parity = 1;
  uint32_t tail_parity = 0;
  // In lane 0: number of the next work, which may still be on its way from memory.
  uint32_t next_index;

  __device__ inline Producer(const PromptParams &params, SharedLayout<HEAD_DIM> shared)
      : params(params), shared(shared), lane(threadIdx.x % WARP_THREADS) {}

  // Looks up this lane's box of a tile. Boxes from `context_len` on are not copied.
  __device__ inline Box find_box(const Task &task, uint32_t tile) const {
    const uint32_t boxes = KEYS / params.box_keys;
    const uint32_t index = tile * boxes + lane;
    if (lane >= boxes || index * params.box_keys >= task.context_len) {
      return {0, -1};
    }
    if (params.boxes_per_block == 1) {
      return {task.blocks[index], 0};
    }
    const uint32_t block = index / params.boxes_per_block;
    return {task.blocks[block], static_cast<int>((index - block * params.boxes_per_block) * params.box_keys)};
  }

  // Row of a box of keys in the cache's matrix; values lie `values_offset` further on.
  __device__ inline int row_of(const Task &task, const Box &box, uint32_t values_offset) const {
    const uint32_t block_rows = 2 * params.attention.num_kv_heads * params.attention.block_size;
    return box.offset < 0 ? NO_ROW
                          : static_cast<int>(task.head_row + box.block * block_rows + box.offset + values_offset);
  }

  // Starts copying a tile whose boxes lie at the lanes' rows.
  __device__ inline void copy_tile(int row, uint32_t target, uint32_t barrier) const {
    const uint32_t box_bytes = params.box_keys * Shape::PANEL_BYTES;
    const bool is_elected = elect_lane();
    if (is_elected) {
      arrive_expecting(barrier, Shape::TILE_BYTES);
    }
    for (uint32_t box = 0; box < KEYS / params.box_keys; box++) {
      const int box_row = __shfl_sync(FULL_WARP, row, box);
      if (is_elected) {
#pragma unroll
        for (int panel = 0; panel < Shape::PANELS; panel++) {
          copy_box(target + box * box_bytes + panel * KEYS * Shape::PANEL_BYTES, &params.cache, panel * Shape::PANEL,
                   box_row, barrier);
        }
      }
    }
  }

  __device__ inline void load_keys(const Task &task, const Box &box) {
    wait(shared.keys_empty(keys.stage), keys.parity ^ 1);
    copy_tile(row_of(task, box, 0), shared.keys(keys.stage), shared.keys_full(keys.stage));
    keys.advance();
  }

  // The values that belong to the keys of `box`. Values of positions from `context_len` on are multiplied by
  // exponentials of 0, but may be NaN: where a box is part valid, they are overwritten before consumers see the tile.
  __device__ inline void load_values(const Task &task, uint32_t tile, const Box &box) {
    const uint32_t target = shared.values(values.stage);
    const uint32_t full = shared.values_full(values.stage);
    const int row = row_of(task, box, params.attention.num_kv_heads * params.attention.block_size);
    wait(shared.values_empty(values.stage), values.parity ^ 1);
    if ((tile + 1) * KEYS <= task.context_len || task.context_len % params.box_keys == 0) {
      copy_tile(row, target, full);
    } else {
      copy_tile(row, target, shared.tail_full());
      wait(shared.tail_full(), tail_parity);
      tail_parity ^= 1;
      clear_tail(target + (task.context_len - tile * KEYS) * Shape::PANEL_BYTES,
                 (params.box_keys - task.context_len % params.box_keys) * Shape::PANEL_BYTES);
      if (lane == 0) {
        arrive(full);
      }
    }
    values.advance();
  }

  __device__ inline void clear_tail(uint32_t start, uint32_t num_bytes) const {
    for (int panel = 0; panel < Shape::PANELS; panel++) {
      for (uint32_t byte = lane * 16; byte < num_bytes; byte += WARP_THREADS * 16) {
        store_shared(start + panel * KEYS * Shape::PANEL_BYTES + byte, make_uint4(0, 0, 0, 0));
      }
    }
    fence_async_proxy();
    __syncwarp();
  }

  // Hands the consumers their parts and starts copying the queries; rows past the end are other rows' queries. A
  // task of no tiles ends the consumers.
  __device__ inline void load_queries(const Task &task) {
    const bool is_pair = params.heads_per_block > 1;
#pragma unroll
    for (uint32_t consumer = 0; consumer < CONSUMERS; consumer++) {
      const uint32_t full = shared.queries_full(consumer);
      const uint32_t head = task.first_head + (is_pair ? consumer : 0);
      const uint32_t offset = is_pair ? 0 : consumer * ROWS;
      wait(shared.queries_empty(consumer), queries_parity);
      if (lane == 0) {
        store_shared(shared.work(consumer), make_uint4(head, task.first_token + offset, task.num_tokens - offset,
                                                       task.first_position + offset));
        store_shared(shared.work(consumer) + 16, make_uint4(task.first_tile, task.end_tile, 0, 0));
      }
      __syncwarp();
      if (elect_lane()) {
        if (task.end_tile == 0) {
          arrive(full);
        } else {
          arrive_expecting(full, Shape::QUERY_BYTES);
#pragma unroll
          for (int panel = 0; panel < Shape::PANELS; panel++) {
            copy_box(shared.queries(consumer) + panel * ROWS * Shape::PANEL_BYTES, &params.queries,
                     head * HEAD_DIM + panel * Shape::PANEL, task.first_token + offset, full);
          }
        }
      }
    }
    queries_parity ^= 1;
  }

  // Work number `index`: tiles in the host's order, in each all heads, of halves of a tile the later one first.
  // False where there is nothing to do.
  __device__ inline bool locate(uint32_t index, Task &task) const {
    const AttentionParams &attention = params.attention;
    const uint32_t tile_index = index / attention.num_heads;
    const PromptTile tile = attention.prompt_tiles[tile_index];
    const uint32_t row_start = attention.arrays.query_starts[tile.row];
    const uint32_t row_end = attention.arrays.query_starts[tile.row + 1];
    const uint32_t first_block = attention.arrays.block_starts[tile.row];
    task.context_len = attention.arrays.context_lens[tile.row];
    // A tile has as many parts as a block takes heads.
    const uint32_t unit = index - tile_index * attention.num_heads;
    const uint32_t units_per_part = attention.num_heads / params.heads_per_block;
    const uint32_t part = unit / units_per_part;
    task.first_head = (unit - part * units_per_part) * params.heads_per_block;
    task.first_token = row_start + tile.first_token + (params.heads_per_block - 1 - part) * ROWS;
    if (task.first_token >= row_end) {
      return false;
    }
    task.blocks = attention.arrays.block_tables + first_block;
    task.num_tokens = min(row_end - task.first_token, CONSUMERS * ROWS / params.heads_per_block);
    task.first_position = task.context_len - (row_end - task.first_token);
    task.first_tile = 0;
    if (IS_GENERAL && attention.window > 0 && task.first_position + 1 > attention.window) {
      task.first_tile = (task.first_position + 1 - attention.window) / KEYS;
    }
    task.end_tile = (task.first_position + task.num_tokens + KEYS - 1) / KEYS;
    const uint32_t kv_head = task.first_head / (attention.num_heads / attention.num_kv_heads);
    task.head_row = params.layer_row + kv_head * attention.block_size;
    task.last_box = find_box(task, task.end_tile - 1);
    return true;
  }

  // Asks for the number of the next work.
  __device__ inline void request() {
    if (lane == 0) {
      next_index = gridDim.x + atomicAdd(&drawn_works, 1);
    }
  }

  // Takes the work that was asked for, or the first after it with something to do; false at the end.
  __device__ inline bool draw(uint32_t num_works, Task &task) {
    while (true) {
      const uint32_t index = __shfl_sync(FULL_WARP, next_index, 0);
      if (index >= num_works) {
        return false;
      }
      if (locate(index, task)) {
        return true;
      }
      request();
    }
  }

  // Copies for a task, and draws the next meanwhile: late, so that none waits here that another block could do, but
  // before the copies that the consumers still have to wait for.
  __device__ inline bool run(const Task &task, uint32_t num_works, Task &next) {
    constexpr uint32_t REQUEST_TILES = 4;
    constexpr uint32_t DRAW_TILES = 2;
    bool has_next = false;
    uint32_t tile = task.end_tile - 1;
    if (tile < task.first_tile + REQUEST_TILES) {
      request();
    }
    Box box = task.last_box;
    load_keys(task, box);
    Box next_box = tile > task.first_tile ? find_box(task, tile - 1) : Box{0, -1};
    load_queries(task);
    const uint32_t draw_tile = min(tile, task.first_tile + DRAW_TILES);
    for (; tile > task.first_tile; tile--) {
      if (tile == task.first_tile + REQUEST_TILES) {
        request();
      }
      load_keys(task, next_box);
      load_values(task, tile, box);
      box = next_box;
      next_box = tile - 1 > task.first_tile ? find_box(task, tile - 2) : Box{0, -1};
      if (tile == draw_tile) {
        has_next = draw(num_works, next);
      }
    }
    load_values(task, tile, box);
    return task.first_tile == draw_tile ? draw(num_works, next) : has_next;
  }

  __device__ inline void run_all() {
    const uint32_t num_works = params.attention.arrays.header->num_prompt_tiles * params.attention.num_heads;
    next_index = blockIdx.x;
    Task next;
    bool has_next = draw(num_works, next);
    while (has_next) {
      const Task task = next;
      has_next = run(task, num_works, next);
    }
    next.end_tile = 0;
    load_queries(next);
    if (lane == 0) {
      __threadfence();
      if (atomicAdd(&finished_blocks, 1) == gridDim.x - 1) {
        drawn_works = 0;
        finished_blocks = 0;
      }
    }
  }
};

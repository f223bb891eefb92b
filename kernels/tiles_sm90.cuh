// Tiles of matrix products on Hopper, whose operands pass through stages of shared memory: what the products of one
// matrix (linear_sm90.cu) and of many experts (experts_many_sm90.cu) share.
//
// A stage holds STAGE_K elements of 128 rows of the input and of COLUMNS rows of the weights, each as one swizzled
// panel. Its `full` barrier says that the copies have arrived, its `empty` barrier that everyone has read it:
//
//   | 128 x 64 | COLUMNS x 64 |   stage 0, then the others; the input starts at a multiple of 1,024 bytes
//   | full | empty |             of stage 0, then the others'

#pragma once

#include "hopper.cuh"

constexpr int TILE_ROWS = 128;
// Rows that a warpgroup multiplies.
constexpr int WARPGROUP_ROWS = 64;
// Elements of k in a stage: one panel of 128 bytes.
constexpr int STAGE_K = 64;
constexpr int PANEL_BYTES = 2 * STAGE_K;

template <int COLUMNS, int NUM_STAGES> struct StageLayout {
  static constexpr int STAGES = NUM_STAGES;
  static constexpr uint32_t ALIGNMENT = 1024;
  static constexpr uint32_t BARRIER_BYTES = 8;
  static constexpr uint32_t INPUT_BYTES = TILE_ROWS * PANEL_BYTES;
  static constexpr uint32_t WEIGHT_BYTES = COLUMNS * PANEL_BYTES;
  static constexpr uint32_t STAGE_BYTES = INPUT_BYTES + WEIGHT_BYTES;
  static constexpr uint32_t BARRIERS_START = STAGES * STAGE_BYTES;
  // Mirrored in linear_sm90.rs and experts/products.rs.
  static constexpr uint32_t BYTES = ALIGNMENT + BARRIERS_START + STAGES * 2 * BARRIER_BYTES;

  uint32_t start;

  // The stages in dynamic shared memory of BYTES.
  __device__ inline explicit StageLayout(const unsigned char *memory)
      : start((shared_address(memory) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT) {}

  __device__ inline uint32_t input(uint32_t stage) const { return start + stage * STAGE_BYTES; }
  __device__ inline uint32_t weight(uint32_t stage) const { return input(stage) + INPUT_BYTES; }
  __device__ inline uint32_t full(uint32_t stage) const {
    return start + BARRIERS_START + stage * 2 * BARRIER_BYTES;
  }
  __device__ inline uint32_t empty(uint32_t stage) const { return full(stage) + BARRIER_BYTES; }

  // By one thread; barriers that complete after so many arrivals.
  __device__ inline void init_barriers(uint32_t num_full, uint32_t num_empty) const {
    for (uint32_t stage = 0; stage < STAGES; stage++) {
      init_barrier(full(stage), num_full);
      init_barrier(empty(stage), num_empty);
    }
    fence_barrier_init();
  }

  // Starts the products of a stage's rows from `first_row` on with all its columns, as one group; they replace the
  // sums, or with `adds` add to them.
  template <typename T>
  __device__ inline void multiply(float (&sums)[COLUMNS / 2], uint32_t stage, uint32_t first_row, bool adds) const {
    const uint64_t inputs = describe_tile<PANEL_BYTES>(input(stage) + first_row * PANEL_BYTES, 0);
    const uint64_t weights = describe_tile<PANEL_BYTES>(weight(stage), 0);
    begin_products();
#pragma unroll
    for (int step = 0; step < STAGE_K / 16; step++) {
      Products<T, COLUMNS>::multiply_shared(sums, advance(inputs, step * 32), advance(weights, step * 32),
                                            adds || step > 0);
    }
    commit_products();
  }
};

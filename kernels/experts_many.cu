// Products of a mixture of experts where an expert has many rows, for tensor cores from sm_80 on.
//
// experts_many_up: out[pair] = activation(up * input[row of the pair]), or with a gate activation(gate) * up.
// experts_many_down: out[pair] = weight of the pair * (down * input[pair]).
// Suffix 64 or 128: the rows of a tile. Tiles of 64 still read weights at about the memory's rate; tiles of 128 do
// more products for each byte of shared memory.
//
// Four warps own a quarter of the tile each, half of the rows by half of the weights. Copies run STAGES - 1 stages
// ahead, and the operands of the next products are read while the last ones run.

#include "experts_many.cuh"

constexpr int THREADS = 128;

template <int TILE_ROWS> constexpr int STAGES = TILE_ROWS == 64 ? 4 : 3;

// A warp's quarter of the tile.
template <typename T, int TILE_ROWS> struct Quarter {
  static constexpr int ROW_TILES = TILE_ROWS / 32;
  static constexpr int COLUMN_TILES = WEIGHT_ROWS / 16;

  // Operands of one product's 16 elements of k.
  struct Operands {
    uint32_t inputs[ROW_TILES][4];
    // Two tiles of 8 columns each.
    uint32_t weights[COLUMN_TILES / 2][4];
  };

  float sums[ROW_TILES][COLUMN_TILES][4];

  __device__ inline static uint32_t first_row() { return threadIdx.x / WARP_THREADS % 2 * (TILE_ROWS / 2); }
  __device__ inline static uint32_t first_column() { return threadIdx.x / WARP_THREADS / 2 * (WEIGHT_ROWS / 2); }

  // Reads the operands of step `step` of a stage.
  __device__ inline static void load(Operands &operands, uint32_t stage, int step) {
    const uint32_t lane = threadIdx.x % WARP_THREADS;
    const uint32_t input_row = first_row() + lane % 16;
    const uint32_t inputs = stage + input_row * STAGE_ROW_BYTES + ((2 * step + lane / 16) ^ lane % 8) * 16;
#pragma unroll
    for (int i = 0; i < ROW_TILES; i++) {
      load_matrices(operands.inputs[i], inputs + i * 16 * STAGE_ROW_BYTES);
    }
    const uint32_t weight_row = TILE_ROWS + first_column() + lane / 16 * 8 + lane % 8;
    const uint32_t weights = stage + weight_row * STAGE_ROW_BYTES + ((2 * step + lane / 8 % 2) ^ lane % 8) * 16;
#pragma unroll
    for (int i = 0; i < COLUMN_TILES / 2; i++) {
      load_matrices(operands.weights[i], weights + i * 16 * STAGE_ROW_BYTES);
    }
  }

  __device__ inline void multiply(const Operands &operands) {
#pragma unroll
    for (int i = 0; i < ROW_TILES; i++) {
#pragma unroll
      for (int j = 0; j < COLUMN_TILES; j++) {
        const uint32_t *weights = &operands.weights[j / 2][j % 2 * 2];
        mma<T>(sums[i][j], operands.inputs[i], weights[0], weights[1]);
      }
    }
  }

  // Adds the products of a stage.
  __device__ inline void multiply_stage(uint32_t stage) {
    constexpr int STEPS = STAGE_K / 16;
    Operands operands[2];
    load(operands[0], stage, 0);
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
      if (step + 1 < STEPS) {
        load(operands[(step + 1) % 2], stage, step + 1);
      }
      multiply(operands[step % 2]);
    }
  }

  __device__ inline void store(float *target) const {
    const uint32_t lane = threadIdx.x % WARP_THREADS;
#pragma unroll
    for (int i = 0; i < ROW_TILES; i++) {
#pragma unroll
      for (int j = 0; j < COLUMN_TILES; j++) {
        const uint32_t row = first_row() + 16 * i + lane / 4;
        float *place = target + row * SUM_COLUMNS + first_column() + 8 * j + lane % 4 * 2;
        *reinterpret_cast<float2 *>(place) = make_float2(sums[i][j][0], sums[i][j][1]);
        *reinterpret_cast<float2 *>(place + 8 * SUM_COLUMNS) = make_float2(sums[i][j][2], sums[i][j][3]);
      }
    }
  }
};

template <typename T, Product PRODUCT, int TILE_ROWS>
__device__ inline void multiply_many(const ExpertProductParams &params) {
  using Shape = ManyShape<TILE_ROWS, STAGES<TILE_ROWS>>;
  constexpr int AHEAD = STAGES<TILE_ROWS> - 1;
  extern __shared__ __align__(128) unsigned char shared[];
  wait_for_predecessor();
  ExpertWork work;
  if (!find_work<TILE_ROWS>(params, blockIdx.x, work)) {
    return;
  }
  const StageCopies<T, PRODUCT, TILE_ROWS, THREADS> copies(params, work);
  const uint32_t stages = shared_address(shared);
  const uint32_t num_runs = (params.in_features + STAGE_K - 1) / STAGE_K;
  auto copy = [&](uint32_t run) {
    if (run < num_runs) {
      copies.start(stages + run % STAGES<TILE_ROWS> * Shape::STAGE_BYTES, run * STAGE_K);
    }
    // An empty group keeps the count of groups right.
    commit_copies();
  };
#pragma unroll
  for (int run = 0; run < AHEAD; run++) {
    copy(run);
  }
  Quarter<T, TILE_ROWS> quarter = {};
  const bool has_pairs = quarter.first_row() < work.num_pairs;
  for (uint32_t run = 0; run < num_runs; run++) {
    wait_copies<AHEAD - 1>();
    // Every thread's copies of this run are there, and every warp is done with the stage that is written next.
    __syncthreads();
    copy(run + AHEAD);
    if (has_pairs) {
      quarter.multiply_stage(stages + run % STAGES<TILE_ROWS> * Shape::STAGE_BYTES);
    }
  }
  start_successor();
  wait_copies<0>();
  __syncthreads();
  float *sums = reinterpret_cast<float *>(shared);
  quarter.store(sums);
  __syncthreads();
  store_results<T, PRODUCT, TILE_ROWS, THREADS>(params, work, sums);
}

#define EXPERTS_MANY(NAME, T, PRODUCT, TILE_ROWS)                                                                \
  extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                       \
      NAME(const __grid_constant__ ExpertProductParams params) {                                                 \
    multiply_many<T, Product::PRODUCT, TILE_ROWS>(params);                                                       \
  }

#define EXPERTS_MANY_OF(DTYPE, T)                                                                                \
  EXPERTS_MANY(experts_many_up_plain_##DTYPE##_64, T, UP_PLAIN, 64)                                              \
  EXPERTS_MANY(experts_many_up_plain_##DTYPE##_128, T, UP_PLAIN, 128)                                            \
  EXPERTS_MANY(experts_many_up_gated_##DTYPE##_64, T, UP_GATED, 64)                                              \
  EXPERTS_MANY(experts_many_up_gated_##DTYPE##_128, T, UP_GATED, 128)                                            \
  EXPERTS_MANY(experts_many_down_##DTYPE##_64, T, DOWN, 64)                                                      \
  EXPERTS_MANY(experts_many_down_##DTYPE##_128, T, DOWN, 128)

EXPERTS_MANY_OF(bf16, __nv_bfloat16)
EXPERTS_MANY_OF(f16, __half)

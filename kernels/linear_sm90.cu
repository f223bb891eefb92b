// out[r][n] = sum over k of weight[n][k] * input[r][k], for many rows, on Hopper (sm_90a).
//
// input [rows, in_features] and weight [out_features, in_features] of T, out [rows, out_features] of T; widths are
// multiples of 8. With an activation, out = activation(weight * input + bias), or with a gate, whose rows are the first
// half of the weights, out = activation(gate) * up; a tile then holds the gate's and the other half's columns of the
// same features. linear_added adds to out, with one pair of weight and input or two, through which k runs one after the
// other. linear_rotated takes the weights of queries, keys and values, which go where rope_sm90.cuh says.
//
// A block computes tiles of 128 rows by COLUMNS columns: a warp copies (TMA), two warpgroups multiply (WGMMA), 64 rows
// each, and leave their sums, rounded to T, in shared memory, from where three more warps finish them while the next
// tile is multiplied: what an end does costs the tensor cores no time. The last tile is finished by all of them. Two
// blocks of a cluster take neighbouring rows of the same columns, and each copies half of the weights' tile for both.
// Blocks stay and take every gridDim-th pair of tiles, so that a tile's first copies run under the end of the one
// before. Tiles follow each other down a band of rows before they step to the next columns, so that a wave is about
// square and reads little.

#include "finish_sm90.cuh"
#include "rope_sm90.cuh"

constexpr int THREADS = NUM_WARPS * WARP_THREADS;
// Pairs of row tiles in a band.
constexpr uint32_t BAND = 8;

// The tiles of a block: those that `blockIdx` starts with, one cluster's further on each.
template <int OUT_COLUMNS> struct Tiles {
  uint32_t num_row_pairs;
  uint32_t num_columns;

  __device__ inline explicit Tiles(const LinearParams &params)
      : num_row_pairs((params.rows + CLUSTER * TILE_ROWS - 1) / (CLUSTER * TILE_ROWS)),
        num_columns((params.out_features + OUT_COLUMNS - 1) / OUT_COLUMNS) {}

  // Of this block.
  __device__ inline uint32_t count() const {
    const uint32_t step = gridDim.x / CLUSTER;
    return (num_row_pairs * num_columns - blockIdx.x / CLUSTER + step - 1) / step;
  }

  // The block's tile number `index`.
  __device__ inline Tile at(uint32_t index, uint32_t rank) const {
    const uint32_t place = blockIdx.x / CLUSTER + index * (gridDim.x / CLUSTER);
    const uint32_t band = place / (BAND * num_columns);
    const uint32_t height = min(BAND, num_row_pairs - band * BAND);
    const uint32_t within = place - band * BAND * num_columns;
    const uint32_t column = within / height;
    const uint32_t row_pair = band * BAND + within - column * height;
    return {(row_pair * CLUSTER + rank) * TILE_ROWS, column * OUT_COLUMNS};
  }
};

// Whole stages of k in `in_features`, as elements.
__device__ inline uint32_t padded(uint32_t in_features) { return (in_features + STAGE_K - 1) / STAGE_K * STAGE_K; }

// Where k ends. A second pair's starts at a stage of its own.
__device__ inline uint32_t end_of_k(const LinearParams &params) { return params.in_features; }
__device__ inline uint32_t end_of_k(const AddedParams &params) {
  return padded(params.in_features) + params.second_in_features;
}

// The pair of operands at a place of k, and the place in them.
struct Operands {
  const TensorMap *input;
  const TensorMap *weight;
  uint32_t k;
};

__device__ inline Operands operands_at(const LinearParams &params, uint32_t k) {
  return {&params.input, &params.weight, k};
}
__device__ inline Operands operands_at(const AddedParams &params, uint32_t k) {
  const uint32_t first = padded(params.in_features);
  return k < first ? Operands{&params.input, &params.weight, k}
                   : Operands{&params.second_input, &params.second_weight, k - first};
}

// The copying warp.
template <int COLUMNS, typename End> struct Copier {
  using Shape = LinearShape<COLUMNS>;
  static constexpr bool IS_GATED = End::OUT_COLUMNS != COLUMNS;

  const typename End::Params &params;
  const Shape shared;
  const uint32_t rank;

  __device__ inline void copy_input(uint32_t stage, const Tile &tile, uint32_t k) const {
    const Operands operands = operands_at(params, k);
    copy_box(shared.input(stage), operands.input, operands.k, tile.row, shared.full(stage));
  }

  // Announces what both copies bring, and starts that of the weights.
  __device__ inline void copy_weight(uint32_t stage, const Tile &tile, uint32_t k) const {
    const Operands operands = operands_at(params, k);
    // The half of the tile's columns that this block copies for both: the gate's or the other's, or the first or second.
    const uint32_t row = tile.column + rank * (IS_GATED ? params.out_features : COLUMNS / 2);
    arrive_expecting(shared.full(stage), Shape::STAGE_BYTES);
    copy_box_to((1 << CLUSTER) - 1, shared.weight(stage) + rank * (Shape::WEIGHT_BYTES / CLUSTER), operands.weight,
                operands.k, row, shared.full(stage));
  }

  // The first stages' weights are on their way before the kernel before this one has ended.
  __device__ inline void run() const {
    const Tiles<End::OUT_COLUMNS> tiles(params);
    const uint32_t end = end_of_k(params);
    const uint32_t early_end = min(end, static_cast<uint32_t>(Shape::STAGES * STAGE_K));
    if (elect_lane()) {
      for (uint32_t k = 0; k < early_end; k += STAGE_K) {
        copy_weight(k / STAGE_K, tiles.at(0, rank), k);
      }
    }
    wait_for_predecessor();
    Ring<Shape::STAGES> ring;
    for (uint32_t index = 0; index < tiles.count(); index++) {
      const Tile tile = tiles.at(index, rank);
      for (uint32_t k = 0; k < end; k += STAGE_K) {
        wait(shared.empty(ring.stage), ring.parity ^ 1);
        if (elect_lane()) {
          if (index > 0 || k >= early_end) {
            copy_weight(ring.stage, tile, k);
          }
          copy_input(ring.stage, tile, k);
        }
        ring.advance();
      }
    }
    // The block stays until all that both blocks say to its barriers has arrived.
    for (int stage = 0; stage < Shape::STAGES; stage++) {
      wait(shared.empty(ring.stage), ring.parity ^ 1);
      ring.advance();
    }
  }
};

// One of the multiplying warpgroups.
template <typename T, int COLUMNS, typename End> struct Consumer {
  using Shape = LinearShape<COLUMNS>;
  using Sums = float[COLUMNS / 2];

  const typename End::Params &params;
  const Shape shared;
  Ring<Shape::STAGES> ring;

  __device__ inline Consumer(const typename End::Params &params, Shape shared) : params(params), shared(shared) {}

  // Tells both blocks that this warp has read a stage.
  __device__ inline void release(uint32_t stage) const {
    if (threadIdx.x % WARP_THREADS < CLUSTER) {
      arrive_at(threadIdx.x % WARP_THREADS, shared.empty(stage));
    }
  }

  __device__ inline void multiply(Sums &sums) {
    const uint32_t first_row = threadIdx.x / WARPGROUP_THREADS * WARPGROUP_ROWS;
    uint32_t last_stage = 0;
    for (uint32_t k = 0; k < end_of_k(params); k += STAGE_K) {
      wait(shared.full(ring.stage), ring.parity);
      shared.template multiply<T>(sums, ring.stage, first_row, k > 0);
      if (k > 0) {
        wait_products<1>();
        release(last_stage);
      }
      last_stage = ring.stage;
      ring.advance();
    }
    wait_products<0>();
    hold(sums);
    release(last_stage);
  }

  // The same where the warpgroup has no rows.
  __device__ inline void pass_over() {
    for (uint32_t k = 0; k < end_of_k(params); k += STAGE_K) {
      wait(shared.full(ring.stage), ring.parity);
      // Products meet as a warp; here nothing else does.
      __syncwarp();
      release(ring.stage);
      ring.advance();
    }
  }

  // Leaves the sums to the warps that finish them.
  __device__ inline void stage(const Sums &sums) const {
    const uint32_t lane = threadIdx.x % WARP_THREADS;
    const uint32_t target = shared.sums(threadIdx.x / WARP_THREADS * 16 + lane % 16, lane / 16);
#pragma unroll
    for (int n = 0; n < COLUMNS / 16; n++) {
      const float *pairs = sums + 8 * n;
      store_matrices(target + 2 * n * VECTOR_BYTES, pack<T>(pairs[0], pairs[1]), pack<T>(pairs[2], pairs[3]),
                     pack<T>(pairs[4], pairs[5]), pack<T>(pairs[6], pairs[7]));
    }
  }

  __device__ inline void run(uint32_t rank) {
    const Tiles<End::OUT_COLUMNS> tiles(params);
    for (uint32_t index = 0; index < tiles.count(); index++) {
      const uint32_t first_row = tiles.at(index, rank).row + threadIdx.x / WARPGROUP_THREADS * WARPGROUP_ROWS;
      Sums sums;
      const bool has_rows = first_row < params.rows;
      if (has_rows) {
        multiply(sums);
      } else {
        pass_over();
      }
      wait(shared.drained(), index % 2 ^ 1);
      if (has_rows) {
        stage(sums);
      }
      arrive_as_warp(shared.staged());
    }
  }
};

// Finishes the tiles of the block. For the last one the warps that multiplied join.
template <int COLUMNS, typename End>
__device__ inline void finish_tiles(const typename End::Params &params, LinearShape<COLUMNS> shared, uint32_t rank) {
  // One vector of a row to a lane; as many rows at once as fill a warp.
  constexpr uint32_t VECTORS = End::OUT_COLUMNS / VECTOR_ELEMENTS;
  constexpr uint32_t ROWS = WARP_THREADS / VECTORS;
  const Tiles<End::OUT_COLUMNS> tiles(params);
  const uint32_t last = tiles.count() - 1;
  const uint32_t lane = threadIdx.x % WARP_THREADS;
  // The finishers are the first, and the copying warp, which may be tiles ahead of the barriers, none of them.
  const uint32_t warp = (threadIdx.x / WARP_THREADS + FINISHER_WARPS) % NUM_WARPS;
  for (uint32_t index = warp < FINISHER_WARPS ? 0 : last; index <= last; index++) {
    const Tile tile = tiles.at(index, rank);
    const uint32_t num_warps = index == last ? FINISHER_WARPS + CONSUMER_WARPS : FINISHER_WARPS;
    const uint32_t num_rows = tile.row < params.rows ? params.rows - tile.row : 0;
    const Share share{tile, lane % VECTORS, warp * ROWS + lane / VECTORS,
                      min(num_rows, static_cast<uint32_t>(TILE_ROWS)), num_warps * ROWS};
    wait(shared.staged(), index % 2);
    if (lane < ROWS * VECTORS && share.column() < params.out_features && share.first_row < share.end_row) {
      End::run(params, shared, share);
    }
    if (index < last) {
      arrive_as_warp(shared.drained());
    }
  }
}

template <typename T, int COLUMNS, typename End> __device__ inline void linear(const typename End::Params &params) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const LinearShape<COLUMNS> shared(memory);
  const uint32_t rank = cluster_rank();
  const uint32_t warp = threadIdx.x / WARP_THREADS;
  if (threadIdx.x == 0) {
    prefetch_map(&params.input);
    prefetch_map(&params.weight);
    shared.init();
  }
  __syncwarp();
  meet_cluster();
  if (warp == CONSUMER_WARPS) {
    Copier<COLUMNS, End>{params, shared, rank}.run();
  } else {
    wait_for_predecessor();
    if (warp < CONSUMER_WARPS) {
      Consumer<T, COLUMNS, End>(params, shared).run(rank);
    }
    finish_tiles<COLUMNS, End>(params, shared, rank);
  }
  __syncwarp();
  start_successor();
  meet_cluster();
}

#define LINEAR(NAME, T, COLUMNS, ...)                                                                            \
  extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)                       \
      NAME##_##COLUMNS(const __grid_constant__ __VA_ARGS__::Params params) {                                     \
    linear<T, COLUMNS, __VA_ARGS__>(params);                                                                     \
  }

#define LINEARS(DTYPE, T, COLUMNS)                                                                               \
  LINEAR(linear_##DTYPE, T, COLUMNS, Stored<T, COLUMNS>)                                                         \
  LINEAR(linear_plain_##DTYPE, T, COLUMNS, Activated<T, COLUMNS, false>)                                         \
  LINEAR(linear_gated_##DTYPE, T, COLUMNS, Activated<T, COLUMNS, true>)                                          \
  LINEAR(linear_added_##DTYPE, T, COLUMNS, Added<T, COLUMNS>)                                                    \
  LINEAR(linear_rotated_half_##DTYPE, T, COLUMNS, Rotated<T, COLUMNS, false>)                                    \
  LINEAR(linear_rotated_interleaved_##DTYPE, T, COLUMNS, Rotated<T, COLUMNS, true>)

LINEARS(bf16, __nv_bfloat16, 128)
LINEARS(bf16, __nv_bfloat16, 192)
LINEARS(bf16, __nv_bfloat16, 224)
LINEARS(bf16, __nv_bfloat16, 256)
LINEARS(f16, __half, 128)
LINEARS(f16, __half, 192)
LINEARS(f16, __half, 224)
LINEARS(f16, __half, 256)

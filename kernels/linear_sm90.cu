// out[r][n] = sum over k of weight[n][k] * input[r][k], for many rows, on Hopper (sm_90a).
//
// input [rows, in_features] and weight [out_features, in_features] of T, out [rows, out_features] of T; widths are
// multiples of 8. With an activation, out = activation(weight * input + bias), or with a gate, whose rows are the first
// half of the weights, out = activation(gate) * up; a tile then holds the gate's and the other half's columns of the
// same features, which meet in one thread.
//
// A block computes tiles of 128 rows by COLUMNS columns: a warp copies (TMA), two warpgroups multiply (WGMMA), 64 rows
// each. Two blocks of a cluster take neighbouring rows of the same columns, and each copies half of the weights' tile
// for both. Blocks stay and take every gridDim-th pair of tiles, so that a tile's first copies run under the end of
// the one before. Tiles follow each other down a band of rows before they step to the next columns: what a wave
// reads fits the second-level cache.

#include "activation.cuh"
#include "tiles_sm90.cuh"

constexpr int CLUSTER = 2;
constexpr int CONSUMER_WARPS = 8;
// Another warpgroup copies, one warp of it.
constexpr int THREADS = CONSUMER_WARPS * WARP_THREADS + WARPGROUP_THREADS;
// Pairs of row tiles in a band.
constexpr uint32_t BAND = 8;

struct LinearParams {
  // In boxes of TILE_ROWS rows.
  TensorMap input;
  // In boxes of half a tile's columns, which are rows of the weights.
  TensorMap weight;
  void *out;
  // As many as the weights have rows, or null; where the kernel applies an activation.
  const float *bias;
  uint32_t rows;
  uint32_t in_features;
  // Of `out`.
  uint32_t out_features;
  // Activation, where the kernel applies one.
  uint32_t function;
  uint32_t reserved[24];
};
static_assert(sizeof(LinearParams) == 384, "mirrored in linear_sm90.rs");

// What becomes of a sum.
enum class Epilogue { NONE, PLAIN, GATED };

template <int COLUMNS> using LinearShape = StageLayout<COLUMNS, (COLUMNS > 128 ? 4 : 6)>;

// First row and column of a block's tile number `index` of its cluster; of `out`, whose columns are half as many as a
// tile's with a gate.
struct Tile {
  uint32_t row;
  uint32_t column;
};

template <int OUT_COLUMNS> struct Tiles {
  uint32_t num_row_pairs;
  uint32_t num_columns;

  __device__ inline explicit Tiles(const LinearParams &params)
      : num_row_pairs((params.rows + CLUSTER * TILE_ROWS - 1) / (CLUSTER * TILE_ROWS)),
        num_columns((params.out_features + OUT_COLUMNS - 1) / OUT_COLUMNS) {}

  __device__ inline uint32_t count() const { return num_row_pairs * num_columns; }

  __device__ inline Tile at(uint32_t index, uint32_t rank) const {
    const uint32_t band = index / (BAND * num_columns);
    const uint32_t height = min(BAND, num_row_pairs - band * BAND);
    const uint32_t within = index - band * BAND * num_columns;
    const uint32_t column = within / height;
    const uint32_t row_pair = band * BAND + within - column * height;
    return {(row_pair * CLUSTER + rank) * TILE_ROWS, column * OUT_COLUMNS};
  }
};

// The copying warp.
template <int COLUMNS, int OUT_COLUMNS>
__device__ inline void copy_tiles(const LinearParams &params, LinearShape<COLUMNS> shared, uint32_t rank) {
  using Shape = LinearShape<COLUMNS>;
  constexpr bool IS_GATED = COLUMNS != OUT_COLUMNS;
  const Tiles<OUT_COLUMNS> tiles(params);
  Ring<Shape::STAGES> ring;
  for (uint32_t index = blockIdx.x / CLUSTER; index < tiles.count(); index += gridDim.x / CLUSTER) {
    const Tile tile = tiles.at(index, rank);
    // The half of the tile's columns that this block copies for both: the gate's or the other's, or the first or second.
    const uint32_t weight_row = tile.column + rank * (IS_GATED ? params.out_features : COLUMNS / 2);
    for (uint32_t k = 0; k < params.in_features; k += STAGE_K) {
      wait(shared.empty(ring.stage), ring.parity ^ 1);
      if (elect_lane()) {
        const uint32_t full = shared.full(ring.stage);
        arrive_expecting(full, Shape::STAGE_BYTES);
        copy_box(shared.input(ring.stage), &params.input, k, tile.row, full);
        copy_box_to((1 << CLUSTER) - 1, shared.weight(ring.stage) + rank * (Shape::WEIGHT_BYTES / CLUSTER),
                    &params.weight, k, weight_row, full);
      }
      ring.advance();
    }
  }
}

// One of the multiplying warpgroups.
template <typename T, int COLUMNS, Epilogue EPILOGUE> struct Consumer {
  using Shape = LinearShape<COLUMNS>;
  using Sums = float[COLUMNS / 2];
  static constexpr int OUT_COLUMNS = EPILOGUE == Epilogue::GATED ? COLUMNS / 2 : COLUMNS;

  const LinearParams &params;
  const Shape shared;
  Ring<Shape::STAGES> ring;

  __device__ inline Consumer(const LinearParams &params, Shape shared) : params(params), shared(shared) {}

  // Tells both blocks that this warp has read a stage.
  __device__ inline void release(uint32_t stage) const {
    if (threadIdx.x % WARP_THREADS < CLUSTER) {
      arrive_at(threadIdx.x % WARP_THREADS, shared.empty(stage));
    }
  }

  __device__ inline void multiply(Sums &sums) {
    const uint32_t first_row = threadIdx.x / WARPGROUP_THREADS * WARPGROUP_ROWS;
    uint32_t last_stage = 0;
    for (uint32_t k = 0; k < params.in_features; k += STAGE_K) {
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

  // Of rows `row` and `row + 1` of the weights.
  __device__ inline float2 load_bias(uint32_t row) const {
    const bool has_bias = params.bias != nullptr && row < params.out_features * (COLUMNS / OUT_COLUMNS);
    return has_bias ? *reinterpret_cast<const float2 *>(params.bias + row) : make_float2(0.0f, 0.0f);
  }

  // Elements `i` and `i + 1` of the sums, and with a gate their counterparts, as two elements of `out`.
  template <typename Function>
  __device__ static inline uint32_t finish(const Sums &sums, int i, float2 bias, float2 up_bias) {
    float2 value = make_float2(sums[i], sums[i + 1]);
    if constexpr (EPILOGUE != Epilogue::NONE) {
      value.x = Function::apply(value.x + bias.x);
      value.y = Function::apply(value.y + bias.y);
    }
    if constexpr (EPILOGUE == Epilogue::GATED) {
      value.x *= sums[i + COLUMNS / 4] + up_bias.x;
      value.y *= sums[i + COLUMNS / 4 + 1] + up_bias.y;
    }
    return pack<T>(value.x, value.y);
  }

  template <typename Function> __device__ inline void store(const Sums &sums, const Tile &tile) const {
    const uint32_t pair = threadIdx.x % 4;
    const uint32_t row = tile.row + threadIdx.x / WARP_THREADS * 16 + threadIdx.x % WARP_THREADS / 4;
    T *out = static_cast<T *>(params.out) + static_cast<uint64_t>(row) * params.out_features;
    constexpr int GROUPS = OUT_COLUMNS / 8;
#pragma unroll
    for (int first = 0; first < GROUPS; first += 4) {
      // Of both rows of the thread, in four groups of eight columns the pair that it holds.
      uint32_t words[2][4] = {};
#pragma unroll
      for (int n = 0; n < 4 && first + n < GROUPS; n++) {
        const uint32_t column = tile.column + (first + n) * 8 + 2 * pair;
        const float2 bias = EPILOGUE == Epilogue::NONE ? float2() : load_bias(column);
        const float2 up_bias = EPILOGUE == Epilogue::GATED ? load_bias(params.out_features + column) : float2();
        words[0][n] = finish<Function>(sums, 4 * (first + n), bias, up_bias);
        words[1][n] = finish<Function>(sums, 4 * (first + n) + 2, bias, up_bias);
      }
      const uint32_t column = tile.column + (first + pair) * 8;
      const bool is_inside = first + pair < GROUPS && column < params.out_features;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const uint4 vector = gather_quad(words[half]);
        if (is_inside && row + 8 * half < params.rows) {
          *reinterpret_cast<uint4 *>(out + 8 * half * params.out_features + column) = vector;
        }
      }
    }
  }

  __device__ inline void store_activated(const Sums &sums, const Tile &tile) const {
    if constexpr (EPILOGUE == Epilogue::NONE) {
      return store<Relu>(sums, tile);
    }
    switch (params.function) {
    case 0:
      return store<Silu>(sums, tile);
    case 1:
      return store<Gelu>(sums, tile);
    case 2:
      return store<GeluTanh>(sums, tile);
    case 3:
      return store<QuickGelu>(sums, tile);
    case 4:
      return store<Relu>(sums, tile);
    default:
      return store<ReluSquared>(sums, tile);
    }
  }

  __device__ inline void run_all(uint32_t rank) {
    const Tiles<OUT_COLUMNS> tiles(params);
    for (uint32_t index = blockIdx.x / CLUSTER; index < tiles.count(); index += gridDim.x / CLUSTER) {
      Sums sums;
      multiply(sums);
      store_activated(sums, tiles.at(index, rank));
    }
  }
};

template <typename T, int COLUMNS, Epilogue EPILOGUE> __device__ inline void linear(const LinearParams &params) {
  using Shape = LinearShape<COLUMNS>;
  using Consumer = Consumer<T, COLUMNS, EPILOGUE>;
  extern __shared__ __align__(1024) unsigned char memory[];
  const Shape shared(memory);
  const uint32_t rank = cluster_rank();
  if (threadIdx.x == 0) {
    prefetch_map(&params.input);
    prefetch_map(&params.weight);
    // One thread announces the copies; the warps of both blocks read what they bring.
    shared.init_barriers(1, CLUSTER * CONSUMER_WARPS);
  }
  sync_cluster();
  wait_for_predecessor();
  if (threadIdx.x >= CONSUMER_WARPS * WARP_THREADS) {
    lower_registers<40>();
    if (threadIdx.x < (CONSUMER_WARPS + 1) * WARP_THREADS) {
      copy_tiles<COLUMNS, Consumer::OUT_COLUMNS>(params, shared, rank);
    }
  } else {
    raise_registers<232>();
    Consumer(params, shared).run_all(rank);
  }
  start_successor();
  // Neither block ends while the other still arrives at its barriers.
  sync_cluster();
}

#define LINEAR(NAME, T, COLUMNS, EPILOGUE)                                                                       \
  extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)                       \
      NAME##_##COLUMNS(const __grid_constant__ LinearParams params) {                                            \
    linear<T, COLUMNS, Epilogue::EPILOGUE>(params);                                                              \
  }

#define LINEARS(DTYPE, T, COLUMNS)                                                                               \
  LINEAR(linear_##DTYPE, T, COLUMNS, NONE)                                                                       \
  LINEAR(linear_plain_##DTYPE, T, COLUMNS, PLAIN)                                                                \
  LINEAR(linear_gated_##DTYPE, T, COLUMNS, GATED)

LINEARS(bf16, __nv_bfloat16, 128)
LINEARS(bf16, __nv_bfloat16, 192)
LINEARS(bf16, __nv_bfloat16, 224)
LINEARS(bf16, __nv_bfloat16, 256)
LINEARS(f16, __half, 128)
LINEARS(f16, __half, 192)
LINEARS(f16, __half, 224)
LINEARS(f16, __half, 256)

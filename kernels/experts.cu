// A mixture of experts around its products (`experts_few.cu`, `experts_many.cu`).
//
// experts_route: one warp per row. Scores of the router's products, the `num_chosen` largest, of equal ones those of
// the lower experts, and their weights; by ascending expert.
// experts_order: one block per expert, which counts the pairs of all experts, finds its own among the rows and writes
// them to their places, by row; and its entries of the list of tiles. Counting once per block costs less than a
// second launch. The order depends on the batch alone.
// experts_plan: both for few rows, whose routes every block finds for itself, a warp each.
// experts_combine: out[r] = the sum of row r's pairs by ascending expert, plus the shared expert's result, in single
// precision; one thread per 16-byte vector.
//
// A recorded step has more rows than the batch where `header` is given; the rest choose no expert.

#include "experts.cuh"
#include "step.cuh"

__device__ inline uint32_t count_rows(const StepHeader *header, uint32_t rows) {
  return header == nullptr ? rows : min(rows, header->num_tokens);
}

struct ExpertRouteParams {
  // Null where every row counts.
  const StepHeader *header;
  // [rows, num_experts]
  const float *products;
  // [rows, num_chosen] each
  uint32_t *experts;
  float *weights;
  uint32_t rows;
  uint32_t num_experts;
  uint32_t num_chosen;
  uint32_t is_sigmoid;
  uint32_t is_normalized;
  float scale;
};
static_assert(sizeof(ExpertRouteParams) == 56, "mirrored in experts.rs");

constexpr int ROUTE_WARPS = 4;

// Unsigned numbers above 0 that compare as the scores do, NaN above all.
__device__ inline uint32_t to_key(float score) {
  const uint32_t bits = __float_as_uint(score);
  return max(bits & 0x80000000u ? ~bits : bits | 0x80000000u, 1u);
}
__device__ inline float from_key(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// Keys of a row's scores, by one warp.
__device__ inline void score_row(const ExpertRouteParams &params, const float *products, uint32_t *keys) {
  const uint32_t lane = threadIdx.x % WARP_THREADS;
  if (params.is_sigmoid) {
    for (uint32_t expert = lane; expert < params.num_experts; expert += WARP_THREADS) {
      keys[expert] = to_key(1.0f / (1.0f + expf(-products[expert])));
    }
    return;
  }
  float largest = __uint_as_float(0xff800000u);
  for (uint32_t expert = lane; expert < params.num_experts; expert += WARP_THREADS) {
    largest = fmaxf(largest, products[expert]);
  }
#pragma unroll
  for (int offset = WARP_THREADS / 2; offset > 0; offset /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(FULL_WARP, largest, offset));
  }
  float sum = 0.0f;
  for (uint32_t expert = lane; expert < params.num_experts; expert += WARP_THREADS) {
    sum += expf(products[expert] - largest);
  }
  sum = warp_sum(sum);
  for (uint32_t expert = lane; expert < params.num_experts; expert += WARP_THREADS) {
    keys[expert] = to_key(expf(products[expert] - largest) / sum);
  }
}

// Writes a row's experts and their weights to `num_chosen` places at `experts` and `weights`, by one warp, which
// has room for the keys of all experts.
__device__ inline void choose_experts(const ExpertRouteParams &params, uint32_t row, uint32_t *keys,
                                      uint32_t *experts, float *weights) {
  const uint32_t lane = threadIdx.x % WARP_THREADS;
  score_row(params, params.products + static_cast<uint64_t>(row) * params.num_experts, keys);
  // Lane `c` keeps the expert that was chosen as number `c`.
  uint32_t expert = 0;
  float score = 0.0f;
  float divisor = 0.0f;
  for (uint32_t choice = 0; choice < params.num_chosen; choice++) {
    // A lane reads and writes the keys of its own experts alone.
    uint32_t largest = 0;
    uint32_t place = 0xffffffffu;
    for (uint32_t index = lane; index < params.num_experts; index += WARP_THREADS) {
      if (keys[index] > largest) {
        largest = keys[index];
        place = index;
      }
    }
    const uint32_t key = __reduce_max_sync(FULL_WARP, largest);
    const uint32_t chosen = __reduce_min_sync(FULL_WARP, largest == key ? place : 0xffffffffu);
    divisor += from_key(key);
    if (lane == choice) {
      expert = chosen;
      score = from_key(key);
    }
    if (lane == chosen % WARP_THREADS) {
      keys[chosen] = 0;
    }
  }
  uint32_t rank = 0;
  for (uint32_t choice = 0; choice < params.num_chosen; choice++) {
    rank += __shfl_sync(FULL_WARP, expert, choice) < expert;
  }
  if (lane < params.num_chosen) {
    experts[rank] = expert;
    weights[rank] = (params.is_normalized ? score / divisor : score) * params.scale;
  }
}

extern "C" __global__ void __launch_bounds__(ROUTE_WARPS *WARP_THREADS)
    experts_route(const __grid_constant__ ExpertRouteParams params) {
  // [ROUTE_WARPS][num_experts]
  extern __shared__ uint32_t all_keys[];
  wait_for_predecessor();
  start_successor();
  const uint32_t warp = threadIdx.x / WARP_THREADS;
  const uint32_t row = blockIdx.x * ROUTE_WARPS + warp;
  if (row < count_rows(params.header, params.rows)) {
    const uint32_t first = row * params.num_chosen;
    choose_experts(params, row, all_keys + warp * params.num_experts, params.experts + first, params.weights + first);
  }
}

struct ExpertOrderParams {
  const StepHeader *header;
  // [rows, num_chosen] each, by ascending expert
  const uint32_t *experts;
  const float *weights;
  // [rows, num_chosen]: where each pair went.
  uint32_t *places;
  // [pairs] each
  uint32_t *pair_rows;
  float *pair_weights;
  // [max_tiles]
  ExpertTile *tiles;
  uint32_t rows;
  uint32_t num_experts;
  uint32_t num_chosen;
  uint32_t tile_rows;
  uint32_t max_tiles;
  uint32_t reserved;
};
static_assert(sizeof(ExpertOrderParams) == 80, "mirrored in experts.rs");

// What rows chose, [rows, num_chosen] each, by ascending expert.
struct Choices {
  uint32_t rows;
  const uint32_t *experts;
  const float *weights;
};

// Writes the places of the expert's pairs, from `first_pair` on.
__device__ inline void place_pairs(const ExpertOrderParams &params, const Choices &choices, uint32_t expert,
                                   uint32_t first_pair) {
  __shared__ uint32_t warp_counts[WARP_THREADS];
  const uint32_t warp = threadIdx.x / WARP_THREADS;
  const uint32_t lane = threadIdx.x % WARP_THREADS;
  const uint32_t num_warps = blockDim.x / WARP_THREADS;
  for (uint32_t first_row = 0; first_row < choices.rows; first_row += blockDim.x) {
    const uint32_t row = first_row + threadIdx.x;
    bool is_chosen = false;
    uint32_t index = 0;
    if (row < choices.rows) {
      for (uint32_t choice = 0; choice < params.num_chosen; choice++) {
        if (choices.experts[row * params.num_chosen + choice] == expert) {
          is_chosen = true;
          index = row * params.num_chosen + choice;
        }
      }
    }
    const uint32_t lanes = __ballot_sync(FULL_WARP, is_chosen);
    if (lane == 0) {
      warp_counts[warp] = __popc(lanes);
    }
    __syncthreads();
    uint32_t pair = first_pair + __popc(lanes & ((1u << lane) - 1));
    for (uint32_t i = 0; i < num_warps; i++) {
      pair += i < warp ? warp_counts[i] : 0;
      first_pair += warp_counts[i];
    }
    if (is_chosen) {
      params.places[index] = pair;
      params.pair_rows[pair] = row;
      params.pair_weights[pair] = choices.weights[index];
    }
    // The counts are written again.
    __syncthreads();
  }
}

// The pairs and tiles of expert `blockIdx.x`; `counts` has room for a number per expert.
__device__ inline void order_pairs(const ExpertOrderParams &params, const Choices &choices, uint32_t *counts) {
  // Pairs and tiles of the experts before this block's.
  __shared__ uint32_t before[2];
  const uint32_t expert = blockIdx.x;
  for (uint32_t i = threadIdx.x; i < params.num_experts; i += blockDim.x) {
    counts[i] = 0;
  }
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < choices.rows * params.num_chosen; i += blockDim.x) {
    atomicAdd(&counts[choices.experts[i]], 1);
  }
  __syncthreads();
  if (threadIdx.x < WARP_THREADS) {
    uint32_t pairs = 0;
    uint32_t tiles = 0;
    for (uint32_t i = threadIdx.x; i < expert; i += WARP_THREADS) {
      pairs += counts[i];
      tiles += (counts[i] + params.tile_rows - 1) / params.tile_rows;
    }
    pairs = __reduce_add_sync(FULL_WARP, pairs);
    tiles = __reduce_add_sync(FULL_WARP, tiles);
    if (threadIdx.x == 0) {
      before[0] = pairs;
      before[1] = tiles;
    }
  }
  __syncthreads();
  const uint32_t num_pairs = counts[expert];
  const uint32_t num_tiles = (num_pairs + params.tile_rows - 1) / params.tile_rows;
  const uint32_t end_tile = before[1] + num_tiles;
  for (uint32_t i = threadIdx.x; i < num_tiles; i += blockDim.x) {
    params.tiles[before[1] + i] = {expert, before[1], num_tiles, 0, before[0], num_pairs, {0, 0}};
  }
  if (expert == params.num_experts - 1) {
    for (uint32_t i = end_tile + threadIdx.x; i < params.max_tiles; i += blockDim.x) {
      params.tiles[i] = {0, 0, 0, 0, 0, 0, {0, 0}};
    }
  }
  place_pairs(params, choices, expert, before[0]);
}

extern "C" __global__ void __launch_bounds__(1024) experts_order(const __grid_constant__ ExpertOrderParams params) {
  // [num_experts]
  extern __shared__ uint32_t counts[];
  wait_for_predecessor();
  start_successor();
  order_pairs(params, {count_rows(params.header, params.rows), params.experts, params.weights}, counts);
}

struct ExpertPlanParams {
  // Their `experts` and `weights` are null.
  ExpertRouteParams route;
  ExpertOrderParams order;
};
static_assert(sizeof(ExpertPlanParams) == 136, "mirrored in experts.rs");

extern "C" __global__ void __launch_bounds__(1024) experts_plan(const __grid_constant__ ExpertPlanParams params) {
  // [num_experts], [rows, num_chosen] twice, [rows, num_experts]
  extern __shared__ uint32_t numbers[];
  const uint32_t num_pairs = params.route.rows * params.route.num_chosen;
  uint32_t *experts = numbers + params.route.num_experts;
  float *weights = reinterpret_cast<float *>(experts + num_pairs);
  uint32_t *keys = experts + 2 * num_pairs;
  wait_for_predecessor();
  start_successor();
  const uint32_t rows = count_rows(params.route.header, params.route.rows);
  const uint32_t row = threadIdx.x / WARP_THREADS;
  if (row < rows) {
    const uint32_t first = row * params.route.num_chosen;
    choose_experts(params.route, row, keys + row * params.route.num_experts, experts + first, weights + first);
  }
  __syncthreads();
  order_pairs(params.order, {rows, experts, weights}, numbers);
}

struct ExpertCombineParams {
  const StepHeader *header;
  // [rows, num_chosen]
  const uint32_t *places;
  // [pairs, hidden]
  const uint4 *results;
  // [rows, hidden], or null
  const uint4 *shared_values;
  // [rows], or null
  const float *shared_gates;
  // [rows, hidden]
  uint4 *out;
  uint32_t rows;
  uint32_t num_chosen;
  // Of a row.
  uint32_t vectors;
  uint32_t reserved;
};
static_assert(sizeof(ExpertCombineParams) == 64, "mirrored in experts.rs");

// sums += factor * vector.
template <typename T> __device__ inline void add_vector(float (&sums)[8], const uint4 &vector, float factor) {
  float values[8];
  unpack_vector<T>(vector, values);
#pragma unroll
  for (int i = 0; i < 8; i++) {
    sums[i] += values[i] * factor;
  }
}

template <typename T> __device__ inline void combine(const ExpertCombineParams &params) {
  wait_for_predecessor();
  start_successor();
  const uint32_t index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= params.vectors) {
    return;
  }
  const uint32_t rows = count_rows(params.header, params.rows);
  for (uint32_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const uint32_t *places = params.places + row * params.num_chosen;
    const uint64_t place = static_cast<uint64_t>(row) * params.vectors + index;
    float sums[8] = {};
#pragma unroll 4
    for (uint32_t choice = 0; choice < params.num_chosen; choice++) {
      add_vector<T>(sums, params.results[static_cast<uint64_t>(places[choice]) * params.vectors + index], 1.0f);
    }
    if (params.shared_values != nullptr) {
      const float factor =
          params.shared_gates == nullptr ? 1.0f : 1.0f / (1.0f + expf(-params.shared_gates[row]));
      add_vector<T>(sums, params.shared_values[place], factor);
    }
    params.out[place] = pack_vector<T>(sums);
  }
}

#define EXPERTS_COMBINE(DTYPE, T)                                                                                \
  extern "C" __global__ void __launch_bounds__(128)                                                              \
      experts_combine_##DTYPE(const __grid_constant__ ExpertCombineParams params) {                              \
    combine<T>(params);                                                                                          \
  }

EXPERTS_COMBINE(bf16, __nv_bfloat16)
EXPERTS_COMBINE(f16, __half)

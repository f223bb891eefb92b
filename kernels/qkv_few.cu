// Products of few rows with the weights of queries, keys and values, and what follows them up to the cache: biases,
// clamp, rotation (Su et al. 2021), and the writing of queries to `qkv` and of keys and values to the paged cache, as
// rope.cu does after a product. There are no norms.
//
// input [rows, in_features] and weight [(num_heads + 2 * num_kv_heads) * head_dim, in_features] of T; head_dim and
// rotary_dim are multiples of 16. A block takes 16 elements of a head (skinny.cuh), among which are both of every
// pair: neighbours, or with the half pairing 8 elements and their partners rotary_dim / 2 further on.

#include "rope.cuh"
#include "skinny.cuh"

struct QkvFewParams {
  const void *input;
  const void *weight;
  uint32_t rows;
  uint32_t in_features;
  RopeParams rope;
};
static_assert(sizeof(QkvFewParams) == 152, "mirrored in qkv.rs");

// The block's elements, of one head.
template <bool IS_INTERLEAVED> struct HeadUnit {
  // Of queries, keys and values, in this order.
  uint32_t head;
  // Among the head's elements, of the first 8 and the others.
  uint32_t starts[2];
  // Angle of the first pair.
  uint32_t first_angle;
  bool rotates;

  __device__ inline explicit HeadUnit(const RopeParams &rope) {
    const uint32_t units = rope.head_dim / WEIGHT_ROWS;
    head = blockIdx.x / units;
    const uint32_t unit = blockIdx.x % units;
    rotates = head < rope.num_heads + rope.num_kv_heads && unit < rope.rotary_dim / WEIGHT_ROWS;
    first_angle = unit * 8;
    const bool has_partners = rotates && !IS_INTERLEAVED;
    starts[0] = has_partners ? first_angle : unit * WEIGHT_ROWS;
    starts[1] = starts[0] + (has_partners ? rope.rotary_dim / 2 : 8);
  }

  // Column of the block's sums that holds a pair's first or second element.
  __device__ inline uint32_t column(uint32_t pair, bool is_second) const {
    return IS_INTERLEAVED ? 2 * pair + is_second : pair + 8 * is_second;
  }

  // The same element of the head.
  __device__ inline uint32_t element(uint32_t pair, bool is_second) const {
    const uint32_t index = column(pair, is_second);
    return starts[index / 8] + index % 8;
  }
};

template <typename T> struct QkvOperands {
  const QkvFewParams &params;
  // The rows of the weights that the block's elements start at.
  uint32_t first_rows[2];
  uint32_t in_features;

  template <typename Unit>
  __device__ inline QkvOperands(const QkvFewParams &params, const Unit &unit)
      : params(params), first_rows{unit.head * params.rope.head_dim + unit.starts[0],
                                   unit.head * params.rope.head_dim + unit.starts[1]},
        in_features(params.in_features) {}

  __device__ inline const T *weight(int part, uint32_t row) const {
    return static_cast<const T *>(params.weight) + static_cast<uint64_t>(first_rows[part] + row) * params.in_features;
  }

  __device__ inline const T *input(int tile) const {
    return static_cast<const T *>(params.input) + input_row(params.rows, tile) * params.in_features;
  }
};

// Finishes a pair of a row: its sums, to its places.
template <typename T, bool IS_INTERLEAVED, typename Sums>
__device__ inline void finish_pair(const RopeParams &rope, const HeadUnit<IS_INTERLEAVED> &unit, const Sums &sums,
                                   uint32_t row, uint32_t pair) {
  const uint32_t elements[2] = {unit.element(pair, false), unit.element(pair, true)};
  float values[2];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const float bias = rope.bias == nullptr ? 0.0f : rope.bias[unit.head * rope.head_dim + elements[i]];
    values[i] = clamp(sums.total(row, unit.column(pair, i == 1)) + bias, rope.clamp);
  }
  if (unit.rotates) {
    const float *angles = rope.table + static_cast<uint64_t>(rope.positions[row]) * rope.rotary_dim;
    const uint32_t angle = unit.first_angle + pair;
    rotate(values[0], values[1], angles[angle], angles[rope.rotary_dim / 2 + angle]);
  }
  const TokenHeads<T> heads = locate<T>(rope, row, rope.cache_places[row]);
  // Values follow keys, with the same distance from head to head.
  T *target = unit.head < rope.num_heads ? heads.qkv + unit.head * rope.head_dim
                                         : heads.keys + (unit.head - rope.num_heads) * heads.cache_head_stride;
#pragma unroll
  for (int i = 0; i < 2; i++) {
    target[elements[i]] = from_float<T>(values[i]);
  }
}

template <typename T, int INPUT_TILES, bool IS_INTERLEAVED>
__device__ inline void qkv_few(const QkvFewParams &params) {
  constexpr uint32_t PAIRS = WEIGHT_ROWS / 2;
  __shared__ BlockSums<INPUT_TILES> block_sums;
  float sums[INPUT_TILES][4] = {};
  sum_warp<T>(QkvOperands<T>(params, HeadUnit<IS_INTERLEAVED>(params.rope)), sums);
  block_sums.store(sums);
  __syncthreads();
  // A recorded step may have rows past the batch's, which have neither position nor place.
  const uint32_t rows = min(params.rows, params.rope.header->num_tokens);
  const uint32_t row = threadIdx.x / PAIRS;
  static_assert(8 * INPUT_TILES * PAIRS <= WARPS * WARP_THREADS);
  if (row < rows) {
    const HeadUnit<IS_INTERLEAVED> unit(params.rope);
    finish_pair<T>(params.rope, unit, block_sums, row, threadIdx.x % PAIRS);
  }
}

#define QKV_FEW(DTYPE, T, ROWS)                                                                                  \
  extern "C" __global__ void SKINNY_BOUNDS qkv_few_half_##DTYPE##_##ROWS(                                        \
      const __grid_constant__ QkvFewParams params) {                                                             \
    qkv_few<T, ROWS / 8, false>(params);                                                                         \
  }                                                                                                              \
  extern "C" __global__ void SKINNY_BOUNDS qkv_few_interleaved_##DTYPE##_##ROWS(                                 \
      const __grid_constant__ QkvFewParams params) {                                                             \
    qkv_few<T, ROWS / 8, true>(params);                                                                          \
  }

QKV_FEW(bf16, __nv_bfloat16, 8)
QKV_FEW(bf16, __nv_bfloat16, 16)
QKV_FEW(f16, __half, 8)
QKV_FEW(f16, __half, 16)

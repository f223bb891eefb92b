// What a product on Hopper (linear_sm90.cu) shares with the ends that its sums can come to (finish_sm90.cuh,
// rope_sm90.cuh): parameters, shared memory, and the part of a tile that a thread finishes.

#pragma once

#include "rope.cuh"
#include "tiles_sm90.cuh"

// Blocks of a cluster, which take neighbouring rows.
constexpr int CLUSTER = 2;
// A warp copies, eight multiply, the others finish.
constexpr int CONSUMER_WARPS = 8;
constexpr int FINISHER_WARPS = 3;
constexpr int NUM_WARPS = CONSUMER_WARPS + 1 + FINISHER_WARPS;

struct LinearParams {
  // In boxes of TILE_ROWS rows.
  TensorMap input;
  // In boxes of half a tile's columns, which are rows of the weights.
  TensorMap weight;
  void *out;
  // As many as the weights have rows, or null.
  const float *bias;
  uint32_t rows;
  uint32_t in_features;
  // Of `out`.
  uint32_t out_features;
  // Activation, where the kernel applies one.
  uint32_t function;
  // Whether `out` is too large to stay in the second-level cache until it is read.
  uint32_t leaves_cache;
  uint32_t reserved[23];
};
static_assert(sizeof(LinearParams) == 384, "mirrored in linear_sm90.rs");

// Of linear_added, whose `out` is the residual.
struct AddedParams : LinearParams {
  // As `input` and `weight`, where there is a second pair.
  TensorMap second_input;
  TensorMap second_weight;
  const float *second_bias;
  // Of the second pair; 0: there is none.
  uint32_t second_in_features;
};
static_assert(sizeof(AddedParams) == 768, "mirrored in linear_sm90.rs");

// Of linear_rotated, whose `out` and `bias` are those of the rotation.
struct RotatedParams : LinearParams {
  RopeParams rope;
};
static_assert(sizeof(RotatedParams) == 512, "mirrored in linear_sm90.rs");

constexpr int num_stages(int columns) { return columns > 192 ? 3 : columns > 128 ? 4 : 5; }

// Shared memory: the stages, and a tile's sums of T in rows that are padded by a vector, so that neither neighbouring
// rows nor a row's vectors meet in a bank. `staged` says that the sums are there, `drained` that they have been read.
//
//   | stages and their barriers | staged | drained | 128 x (COLUMNS + 8) |
template <int COLUMNS> struct LinearShape : StageLayout<COLUMNS, num_stages(COLUMNS)> {
  using Stages = StageLayout<COLUMNS, num_stages(COLUMNS)>;
  static constexpr uint32_t PITCH_BYTES = 2 * COLUMNS + VECTOR_BYTES;
  static constexpr uint32_t SUMS_START = Stages::BYTES - Stages::ALIGNMENT + 2 * Stages::BARRIER_BYTES;
  // Mirrored in linear_sm90.rs.
  static constexpr uint32_t BYTES = Stages::ALIGNMENT + SUMS_START + TILE_ROWS * PITCH_BYTES;

  __device__ inline explicit LinearShape(const unsigned char *memory) : Stages(memory) {}

  __device__ inline uint32_t staged() const { return drained() - Stages::BARRIER_BYTES; }
  __device__ inline uint32_t drained() const { return sums(0, 0) - Stages::BARRIER_BYTES; }
  // Vector number `vector` of a row of the sums.
  __device__ inline uint32_t sums(uint32_t row, uint32_t vector) const {
    return this->start + SUMS_START + row * PITCH_BYTES + vector * VECTOR_BYTES;
  }

  __device__ inline void init() const {
    init_barrier(staged(), CONSUMER_WARPS);
    init_barrier(drained(), FINISHER_WARPS);
    // One thread announces the copies; the warps of both blocks read what they bring. This also publishes the others.
    this->init_barriers(1, CLUSTER * CONSUMER_WARPS);
  }
};

// First row and column of a block's tile; of `out`, whose columns are half as many as a tile's with a gate.
struct Tile {
  uint32_t row;
  uint32_t column;
};

// What a thread finishes of a tile: one vector of every `stride`-th row.
struct Share {
  Tile tile;
  uint32_t vector;
  uint32_t first_row;
  uint32_t end_row;
  uint32_t stride;

  // Of `out`.
  __device__ inline uint32_t column() const { return tile.column + vector * VECTOR_ELEMENTS; }
};

// Elements `index` to `index + 7` of a row of single precision, or zeros for null.
__device__ inline void load_row(const float *row, uint32_t index, float (&values)[VECTOR_ELEMENTS]) {
  const float4 *vectors = reinterpret_cast<const float4 *>(row + index);
  const float4 low = row == nullptr ? float4() : __ldg(vectors);
  const float4 high = row == nullptr ? float4() : __ldg(vectors + 1);
  const float loaded[VECTOR_ELEMENTS] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < VECTOR_ELEMENTS; i++) {
    values[i] = loaded[i];
  }
}

// Has `finisher` finish the rows of a share: what it loads for Finisher::BATCH of them is on its way at once. Rows are
// the tile's. Behind the last one, loads repeat it and their results are dropped.
template <typename Finisher> __device__ inline void finish_rows(const Finisher &finisher, const Share &share) {
  for (uint32_t first = share.first_row; first < share.end_row; first += Finisher::BATCH * share.stride) {
    typename Finisher::Loaded loaded[Finisher::BATCH];
#pragma unroll
    for (int i = 0; i < Finisher::BATCH; i++) {
      loaded[i] = finisher.load(min(first + i * share.stride, share.end_row - 1));
    }
#pragma unroll
    for (int i = 0; i < Finisher::BATCH; i++) {
      const uint32_t row = first + i * share.stride;
      if (row < share.end_row) {
        finisher.finish(row, loaded[i]);
      }
    }
  }
}

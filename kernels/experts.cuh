// What the kernels of a mixture of experts share: the list of tiles, and what products do with it.
//
// A pair is a row and one of its experts. Pairs are sorted by expert and then by row, and each expert's pairs are cut
// into tiles of up to TILE_ROWS. A block of a product takes the features `feature_block` of one tile's pairs.

#pragma once

#include "activation.cuh"
#include "common.cuh"

// The pairs and tiles of an expert, told once for each of its tiles. Entries past the last tile have no tiles.
struct alignas(16) ExpertTile {
  uint32_t expert;
  // Place of the expert's first tile in the list, and how many follow each other there.
  uint32_t first_tile;
  uint32_t num_tiles;
  uint32_t reserved;
  uint32_t first_pair;
  uint32_t num_pairs;
  uint32_t padding[2];
};
static_assert(sizeof(ExpertTile) == 32, "mirrored in experts.rs");

// What a product makes of its sums: an activation's result, of one input or of two, or values times the pair's weight.
enum class Product { UP_PLAIN, UP_GATED, DOWN };

struct ExpertProductParams {
  // Up: [rows, in_features], read at the pairs' rows. Down: [pairs, in_features].
  const void *input;
  // [experts * weight rows of an expert, in_features]
  const void *weight;
  // [pairs, out_features]
  void *out;
  const ExpertTile *tiles;
  // [pairs] each
  const uint32_t *pair_rows;
  const float *pair_weights;
  uint32_t in_features;
  // After the activation.
  uint32_t out_features;
  // Of the activation.
  uint32_t function;
  // Blocks that share a tile's features.
  uint32_t num_feature_blocks;
};
static_assert(sizeof(ExpertProductParams) == 64, "mirrored in experts.rs");

// What a block does.
struct ExpertWork {
  uint32_t expert;
  uint32_t feature_block;
  uint32_t first_pair;
  uint32_t num_pairs;
};

// Finds work `number` of a product; there is none where the batch has fewer tiles than the grid has room for. The tiles
// of an expert take the same features one after the other, so that its weights come from memory once.
template <int TILE_ROWS>
__device__ inline bool find_work(const ExpertProductParams &params, uint32_t number, ExpertWork &work) {
  const uint4 *entry = reinterpret_cast<const uint4 *>(params.tiles + number / params.num_feature_blocks);
  const uint4 tiles = entry[0];
  const uint4 pairs = entry[1];
  if (tiles.z == 0) {
    return false;
  }
  const uint32_t index = number - tiles.y * params.num_feature_blocks;
  const uint32_t first = index % tiles.z * TILE_ROWS;
  work.expert = tiles.x;
  work.feature_block = index / tiles.z;
  work.first_pair = pairs.x + first;
  work.num_pairs = min(pairs.y - first, static_cast<uint32_t>(TILE_ROWS));
  return true;
}

// First element of the expert's weights.
template <typename T, Product PRODUCT>
__device__ inline const T *expert_weights(const ExpertProductParams &params, uint32_t expert) {
  const uint64_t rows = static_cast<uint64_t>(params.out_features) * (PRODUCT == Product::UP_GATED ? 2 : 1);
  return static_cast<const T *>(params.weight) + expert * rows * params.in_features;
}

// First element of the input of the work's pair `index`, or of its last pair for indexes past it.
template <typename T, Product PRODUCT>
__device__ inline const T *pair_input(const ExpertProductParams &params, const ExpertWork &work, uint32_t index) {
  const uint32_t pair = work.first_pair + min(index, work.num_pairs - 1);
  const uint64_t row = PRODUCT == Product::DOWN ? pair : params.pair_rows[pair];
  return static_cast<const T *>(params.input) + row * params.in_features;
}

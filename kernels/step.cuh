// The device's view of one step. The host packs every array into one buffer, and a kernel copies what of them is
// filled; launches depend on the sizes of the arrays alone, so that a captured step can be replayed with other
// contents.

#pragma once

#include <cstdint>

// In place of a token: the one that the row's slot sampled last.
constexpr uint32_t TOKEN_FROM_SLOT = 0xffffffffu;

struct StepHeader {
  uint32_t num_rows;
  uint32_t num_tokens;
  uint32_t num_sampled;
  uint32_t num_resets;
  // Work lists of attention.
  uint32_t num_decode_shares;
  uint32_t num_prompt_tiles;
  uint32_t reserved[2];
};
static_assert(sizeof(StepHeader) == 32, "mirrored in batch.rs");

// Keys `first_key..end_key` of one row whose only query token is its last.
struct DecodeItem {
  // The row's query, of the batch's tokens.
  uint32_t token;
  uint32_t context_len;
  // Where the row's block table starts.
  uint32_t first_block;
  uint32_t first_key;
  uint32_t end_key;
  // Where the partial result goes, of an item that does not cover its row.
  uint32_t partial;
  // The partial results of the row, which lie beside each other; none where the item covers it.
  uint32_t first_partial;
  uint32_t num_partials;
};
static_assert(sizeof(DecodeItem) == 32, "mirrored in plan.rs");

// The items of the blocks of all key-value heads; all shares have about as many keys.
struct DecodeShare {
  uint32_t first_item;
  uint32_t end_item;
};
static_assert(sizeof(DecodeShare) == 8, "mirrored in plan.rs");

// Query tokens from `first_token` of the row on, as many as fill a tile.
struct PromptTile {
  uint32_t row;
  uint32_t first_token;
};
static_assert(sizeof(PromptTile) == 8, "mirrored in plan.rs");

// Sampling parameters and state of a slot.
struct SlotState {
  uint64_t seed;
  float temperature;
  uint32_t top_k;
  float top_p;
  // Smallest weight in fixed point that min-p keeps.
  uint32_t min_p_weight;
  // Alternatives to report, or NO_LOGPROBS.
  uint32_t num_logprobs;
  uint32_t num_outputs;
  uint32_t last_token;
  // Bits of SLOT_*.
  uint32_t flags;
  float repetition_penalty;
  float frequency_penalty;
  float presence_penalty;
  // Outputs before suppressed tokens are allowed.
  uint32_t min_tokens;
  uint32_t num_edits;
  uint32_t reserved;
};
static_assert(sizeof(SlotState) == 64, "mirrored in batch.rs");

// The host samples this slot's rows.
constexpr uint32_t SLOT_HOST_SAMPLED = 1;
// The slot has marks and edits (`history.cuh`).
constexpr uint32_t SLOT_ADJUSTED = 2;
// Outputs are counted in the marks.
constexpr uint32_t SLOT_COUNTS_OUTPUTS = 4;

constexpr uint32_t NO_LOGPROBS = 0xffffffffu;

struct SlotReset {
  SlotState state;
  uint32_t slot;
  uint32_t reserved;
};
static_assert(sizeof(SlotReset) == 72, "mirrored in batch.rs");

// Arrays of the rows, as in the host's batch.
struct StepArrays {
  const StepHeader *header;
  // [rows]
  const uint32_t *slots;
  // [rows + 1]
  const uint32_t *query_starts;
  // [rows]
  const uint32_t *context_lens;
  // [rows + 1]
  const uint32_t *block_starts;
  // [blocks of all rows]
  const uint32_t *block_tables;
};
static_assert(sizeof(StepArrays) == 48, "mirrored in batch.rs");

// What a slot's penalties, bias and suppression do to its logits, by the CPU sampler's definitions
// (src/backend/cpu/sample/penalty.rs).
//
// A slot that asks for any of them has 16 bits per token of the vocabulary: whether the token was seen in prompt
// or output, whether it has edits, and how often it stands in the output.

#pragma once

#include "step.cuh"

constexpr uint32_t MARK_SEEN = 0x8000u;
constexpr uint32_t MARK_EDITED = 0x4000u;
// Outputs are counted up to this.
constexpr uint32_t MARK_COUNT = 0x3fffu;

// A bias, or minus infinity for a token that is suppressed before `min_tokens` outputs.
struct LogitEdit {
  uint32_t token;
  float bias;
};
static_assert(sizeof(LogitEdit) == 8, "mirrored in history.rs");

// A slot's marks and edits; both null where its logits stay as they are.
struct History {
  uint16_t *marks;
  const LogitEdit *edits;
};

// Masked logits stay minus infinity and finite ones finite.
__device__ inline float clamp_finite(float value) { return fminf(fmaxf(value, -3.40282347e38f), 3.40282347e38f); }

__device__ __noinline__ float adjust_logit(float logit, uint32_t mark, uint32_t token, const SlotState &state,
                                           const LogitEdit *edits) {
  if (mark & MARK_EDITED) {
    for (uint32_t i = 0; i < state.num_edits; i++) {
      const LogitEdit edit = edits[i];
      if (edit.token != token) {
        continue;
      }
      if (edit.bias == -INFINITY) {
        logit = state.num_outputs < state.min_tokens ? -INFINITY : logit;
      } else if (logit > -INFINITY) {
        logit = clamp_finite(__fadd_rn(logit, edit.bias));
      }
    }
  }
  if (!(mark & MARK_SEEN) || logit == -INFINITY) {
    return logit;
  }
  logit = clamp_finite(logit > 0.0f ? __fdiv_rn(logit, state.repetition_penalty)
                                    : __fmul_rn(logit, state.repetition_penalty));
  const uint32_t count = mark & MARK_COUNT;
  if (count > 0) {
    logit = clamp_finite(__fsub_rn(logit, __fmul_rn(state.frequency_penalty, static_cast<float>(count))));
    logit = clamp_finite(__fsub_rn(logit, state.presence_penalty));
  }
  return logit;
}

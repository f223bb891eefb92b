// One token per sampled row of logits, by the CPU sampler's definitions (src/backend/cpu/sample): greedy, or
// temperature with top-k, top-p and min-p and Gumbel noise, and log-probabilities of the raw logits. For equal
// logits, seed and output index the token is the same, bit for bit: sums that decide are sums of integers.
//
// logits [sampled, vocab_size] of single precision. One block of 1024 threads per row: a row is at most a
// megabyte and stays in the second-level cache over the passes, of which greedy sampling needs one.
//
// Penalties, bias and suppression change a logit whenever it is read, so that the raw ones stay for the
// log-probabilities. Rows of slots that the host samples are left alone.

#include "common.cuh"
#include "history.cuh"
#include "sample_math.cuh"

constexpr int THREADS = 1024;
constexpr int RADIX_BITS = 8;
constexpr int RADIX = 1 << RADIX_BITS;
constexpr int COPIES = 16;
constexpr uint32_t NO_TOKEN = 0xffffffffu;

struct SampledRow {
  // Or NO_TOKEN where the logits hold NaN or plus infinity, or are all masked.
  uint32_t token;
  uint32_t num_logprobs;
};
static_assert(sizeof(SampledRow) == 8, "mirrored in sample.rs");

struct Logprob {
  uint32_t token;
  float logprob;
};
static_assert(sizeof(Logprob) == 8, "mirrored in sample.rs");

struct SampleParams {
  const StepHeader *header;
  const uint32_t *slots;
  const uint32_t *sampled_rows;
  SlotState *slot_states;
  const float *logits;
  // [sampled]
  SampledRow *rows;
  // [sampled, max_logprobs + 1]
  Logprob *logprobs;
  // [slots, marks_stride]
  uint16_t *marks;
  // [slots, max_edits]
  const LogitEdit *edits;
  uint32_t vocab_size;
  uint32_t max_logprobs;
  uint32_t marks_stride;
  uint32_t max_edits;
};
static_assert(sizeof(SampleParams) == 88, "mirrored in sample.rs");

// Bits that compare as unsigned integers like the values they stand for; both zeros are one value.
__device__ inline uint32_t ordered_bits(float value) {
  const uint32_t bits = __float_as_uint(__fadd_rn(value, 0.0f));
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ inline float from_ordered_bits(uint32_t bits) {
  return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}

// Compares first by value, then by falling token.
__device__ inline uint64_t rank(float value, uint32_t token) {
  return static_cast<uint64_t>(ordered_bits(value)) << 32 | static_cast<uint32_t>(~token);
}

__device__ inline uint32_t token_of(uint64_t rank) { return ~static_cast<uint32_t>(rank); }

__device__ inline float value_of(uint64_t rank) { return from_ordered_bits(static_cast<uint32_t>(rank >> 32)); }

// Reductions over the block; the result is in every thread.
template <typename T, typename Combine> __device__ inline T block_reduce(T value, Combine combine) {
  __shared__ T warp_values[THREADS / WARP_THREADS];
  const int warp = threadIdx.x / WARP_THREADS;
  const int lane = threadIdx.x % WARP_THREADS;
  for (int offset = WARP_THREADS / 2; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(FULL_WARP, value, offset));
  }
  // The last call's readers are done.
  __syncthreads();
  if (lane == 0) {
    warp_values[warp] = value;
  }
  __syncthreads();
  value = warp_values[lane];
  for (int offset = WARP_THREADS / 2; offset > 0; offset /= 2) {
    value = combine(value, __shfl_xor_sync(FULL_WARP, value, offset));
  }
  return value;
}

__device__ inline uint64_t block_max(uint64_t value) {
  return block_reduce(value, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
}

template <typename T> __device__ inline T block_total(T value) {
  return block_reduce(value, [](T a, T b) { return a + b; });
}

struct Row {
  const float *logits;
  uint32_t vocab_size;
  // The largest logit, of what is sampled from.
  float max;
  float temperature;
  History history;
  const SlotState &state;

  // What is sampled from: the raw logit, adjusted where the slot asks for it.
  __device__ inline float logit(uint32_t token) const {
    const float raw = logits[token];
    if (history.marks == nullptr) {
      return raw;
    }
    const uint32_t mark = history.marks[token];
    return mark == 0 ? raw : adjust_logit(raw, mark, token, state, history.edits);
  }

  __device__ inline float scaled(float logit) const { return __fdiv_rn(__fsub_rn(logit, max), temperature); }
};

// Bins of a histogram in copies: lanes of a warp that meet in a bin, as most do, add to different copies.
struct Histogram {
  unsigned long long sums[RADIX][COPIES];

  __device__ inline void clear() {
    for (int index = threadIdx.x; index < RADIX * COPIES; index += THREADS) {
      sums[index / COPIES][index % COPIES] = 0;
    }
  }

  __device__ inline void add(uint32_t bin, uint32_t measure) {
    atomicAdd(&sums[bin][threadIdx.x % COPIES], static_cast<unsigned long long>(measure));
  }

  // Leaves the sum of a bin's copies in the first of them.
  __device__ inline void merge() {
    for (int bin = threadIdx.x; bin < RADIX; bin += THREADS) {
      unsigned long long sum = 0;
#pragma unroll
      for (int copy = 0; copy < COPIES; copy++) {
        sum += sums[bin][copy];
      }
      sums[bin][0] = sum;
    }
  }
};

// By one warp: the highest bin at which the sum from above reaches `target`, and what of `target` is left to
// find in it. A lane looks at BINS_PER_LANE bins, the first lane at the highest.
__device__ inline void find_bin(const Histogram &histogram, uint64_t &target, uint32_t &bin) {
  constexpr int BINS_PER_LANE = RADIX / WARP_THREADS;
  const int lane = threadIdx.x % WARP_THREADS;
  const int highest = RADIX - 1 - lane * BINS_PER_LANE;
  unsigned long long own = 0;
#pragma unroll
  for (int i = 0; i < BINS_PER_LANE; i++) {
    own += histogram.sums[highest - i][0];
  }
  unsigned long long through = own;
#pragma unroll
  for (int offset = 1; offset < WARP_THREADS; offset *= 2) {
    const unsigned long long above = __shfl_up_sync(FULL_WARP, through, offset);
    through += lane >= offset ? above : 0;
  }
  const uint32_t reached = __ballot_sync(FULL_WARP, through >= target);
  const int chosen = reached == 0 ? WARP_THREADS - 1 : __ffs(reached) - 1;
  unsigned long long left = target - (through - own);
  int found = highest;
  while (found > highest - BINS_PER_LANE + 1 && histogram.sums[found][0] < left) {
    left -= histogram.sums[found][0];
    found -= 1;
  }
  bin = __shfl_sync(FULL_WARP, found, chosen);
  target = __shfl_sync(FULL_WARP, left, chosen);
}

// What a selection shares over the block; one place for all selections of a kernel.
struct Selection {
  Histogram histogram;
  uint64_t target;
  uint32_t prefix;
};

__device__ inline Selection &shared_selection() {
  __shared__ Selection selection;
  return selection;
}

// The largest key whose measures, its own included, sum up to at least `target` from above; `of(token)` gives
// key and measure. Finds 8 bits of the key per pass.
template <typename KeyAndMeasure>
__device__ inline uint32_t select_key(uint32_t vocab_size, uint64_t target, KeyAndMeasure of) {
  Selection &selection = shared_selection();
  uint32_t prefix = 0;
  for (int shift = 32 - RADIX_BITS; shift >= 0; shift -= RADIX_BITS) {
    __syncthreads();
    selection.histogram.clear();
    __syncthreads();
    for (uint32_t token = threadIdx.x; token < vocab_size; token += THREADS) {
      const uint2 key_and_measure = of(token);
      const bool is_candidate = shift + RADIX_BITS == 32 || key_and_measure.x >> (shift + RADIX_BITS) == prefix;
      if (is_candidate && key_and_measure.y != 0) {
        selection.histogram.add(key_and_measure.x >> shift & (RADIX - 1), key_and_measure.y);
      }
    }
    __syncthreads();
    selection.histogram.merge();
    __syncthreads();
    if (threadIdx.x < WARP_THREADS) {
      uint32_t bin;
      find_bin(selection.histogram, target, bin);
      if (threadIdx.x == 0) {
        selection.prefix = prefix << RADIX_BITS | bin;
        selection.target = target;
      }
    }
    __syncthreads();
    prefix = selection.prefix;
    target = selection.target;
  }
  return prefix;
}

// What may be drawn: logits of at least `logit` whose weights are at least `weight`.
struct Thresholds {
  float logit;
  uint32_t weight;
};

__device__ inline Thresholds find_thresholds(const Row &row, const SlotState &state) {
  Thresholds thresholds = {-INFINITY, 0};
  if (state.top_k != 0 && state.top_k < row.vocab_size) {
    const uint32_t key = select_key(row.vocab_size, state.top_k,
                                    [&](uint32_t token) { return make_uint2(ordered_bits(row.logit(token)), 1); });
    thresholds.logit = from_ordered_bits(key);
  }
  thresholds.weight = state.min_p_weight;
  if (state.top_p < 1.0f) {
    auto weight = [&](uint32_t token) {
      const float logit = row.logit(token);
      return logit < thresholds.logit ? 0 : weight_of(row.scaled(logit));
    };
    uint64_t sum = 0;
    for (uint32_t token = threadIdx.x; token < row.vocab_size; token += THREADS) {
      sum += weight(token);
    }
    const uint64_t total = block_total(sum);
    const uint64_t wanted = static_cast<uint64_t>(ceil(static_cast<double>(state.top_p) * static_cast<double>(total)));
    const uint64_t target = min(max(wanted, static_cast<uint64_t>(1)), total);
    const uint32_t top_p_weight =
        select_key(row.vocab_size, target, [&](uint32_t token) { return make_uint2(weight(token), weight(token)); });
    thresholds.weight = max(thresholds.weight, top_p_weight);
  }
  return thresholds;
}

// The token with the largest sum of scaled logit and noise, of equals the lowest.
__device__ inline uint32_t draw(const Row &row, const SlotState &state, uint32_t best, const Thresholds &thresholds) {
  const uint4 best_noise = token_noise(state.seed, state.num_outputs, best / 64 * 16 + best % 16);
  const uint32_t best_words[4] = {best_noise.x, best_noise.y, best_noise.z, best_noise.w};
  uint32_t best_word = best_words[0];
#pragma unroll
  for (int i = 1; i < 4; i++) {
    best_word = best / 16 % 4 == i ? best_words[i] : best_word;
  }
  float winner_score = gumbel(best_word);
  uint64_t winner = rank(winner_score, best);
  const uint32_t num_blocks = (row.vocab_size + 63) / 64 * 16;
  for (uint32_t block = threadIdx.x; block < num_blocks; block += THREADS) {
    const uint32_t first = block / 16 * 64 + block % 16;
    float scores[4];
    float largest = -INFINITY;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint32_t token = first + 16 * i;
      const float logit = token < row.vocab_size ? row.logit(token) : -INFINITY;
      scores[i] = row.scaled(logit);
      if (logit < thresholds.logit || (thresholds.weight != 0 && weight_of(scores[i]) < thresholds.weight)) {
        scores[i] = -INFINITY;
      }
      largest = fmaxf(largest, scores[i]);
    }
    // Few tokens can be lifted over the winner by the best possible noise.
    if (__fadd_rn(largest, GUMBEL_MAX) < winner_score) {
      continue;
    }
    const uint4 noise = token_noise(state.seed, state.num_outputs, block);
    const uint32_t words[4] = {noise.x, noise.y, noise.z, noise.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float score = __fadd_rn(scores[i], gumbel(words[i]));
      if (score >= winner_score) {
        winner = max(winner, rank(score, first + 16 * i));
        winner_score = score;
      }
    }
  }
  return token_of(block_max(winner));
}

// Writes log-probabilities under the raw logits, whose largest is `max`, of `token` and then of the most probable tokens in falling order, equal ones by
// rising token; returns how many.
__device__ inline uint32_t write_logprobs(const Row &row, float max, uint32_t token, uint32_t num_top,
                                          Logprob *out) {
  double sum = 0.0;
  for (uint32_t i = threadIdx.x; i < row.vocab_size; i += THREADS) {
    sum += static_cast<double>(exp_nonpositive(__fsub_rn(row.logits[i], max)));
  }
  const double log_sum = log(block_total(sum));
  auto write = [&](uint32_t index, uint32_t id, float logit) {
    if (threadIdx.x == 0) {
      out[index] = {id, static_cast<float>(static_cast<double>(logit) - static_cast<double>(max) - log_sum)};
    }
  };
  write(0, token, row.logits[token]);
  uint64_t previous = UINT64_MAX;
  for (uint32_t index = 1; index <= num_top; index++) {
    uint64_t next = 0;
    for (uint32_t i = threadIdx.x; i < row.vocab_size; i += THREADS) {
      const uint64_t candidate = row.logits[i] > -INFINITY ? rank(row.logits[i], i) : 0;
      next = candidate < previous && candidate > next ? candidate : next;
    }
    next = block_max(next);
    if (next == 0) {
      return index;
    }
    write(index, token_of(next), value_of(next));
    previous = next;
  }
  return num_top + 1;
}

extern "C" __global__ void __launch_bounds__(THREADS) sample_rows(const __grid_constant__ SampleParams params) {
  wait_for_predecessor();
  start_successor();
  const uint32_t index = blockIdx.x;
  if (index >= params.header->num_sampled) {
    return;
  }
  const uint32_t slot_index = params.slots[params.sampled_rows[index]];
  SlotState &slot = params.slot_states[slot_index];
  const SlotState state = slot;
  if (state.flags & SLOT_HOST_SAMPLED) {
    return;
  }
  History history = {nullptr, nullptr};
  if (state.flags & SLOT_ADJUSTED) {
    history.marks = params.marks + static_cast<uint64_t>(slot_index) * params.marks_stride;
    history.edits = params.edits + static_cast<uint64_t>(slot_index) * params.max_edits;
  }
  const float *logits = params.logits + static_cast<uint64_t>(index) * params.vocab_size;
  Row row = {logits, params.vocab_size, 0.0f, state.temperature, history, state};
  uint64_t best = 0;
  bool is_valid = true;
  for (uint32_t token = threadIdx.x; token < row.vocab_size; token += THREADS) {
    const float logit = row.logits[token];
    is_valid = is_valid && logit < INFINITY;
    best = max(best, rank(logit, token));
  }
  best = block_max(best);
  const float raw_max = value_of(best);
  bool has_token = __syncthreads_and(is_valid) && raw_max > -INFINITY;
  if (has_token && history.marks != nullptr) {
    best = 0;
    for (uint32_t token = threadIdx.x; token < row.vocab_size; token += THREADS) {
      best = max(best, rank(row.logit(token), token));
    }
    best = block_max(best);
    has_token = value_of(best) > -INFINITY;
  }
  row.max = value_of(best);

  uint32_t token = NO_TOKEN;
  uint32_t num_logprobs = 0;
  if (has_token) {
    token = token_of(best);
    if (state.temperature > 0.0f) {
      token = draw(row, state, token, find_thresholds(row, state));
    }
    if (state.num_logprobs != NO_LOGPROBS) {
      const uint32_t num_top = min(state.num_logprobs, params.max_logprobs);
      num_logprobs = write_logprobs(row, raw_max, token, num_top, params.logprobs + index * (params.max_logprobs + 1));
    }
  }
  if (threadIdx.x == 0) {
    params.rows[index] = {token, num_logprobs};
    slot.last_token = has_token ? token : 0;
    slot.num_outputs = state.num_outputs + (has_token ? 1 : 0);
  }
  if (!has_token || !(state.flags & SLOT_COUNTS_OUTPUTS)) {
    return;
  }
  // All threads have read the marks.
  __syncthreads();
  if (threadIdx.x == 0) {
    const uint32_t mark = history.marks[token];
    history.marks[token] = static_cast<uint16_t>(mark | MARK_SEEN) + ((mark & MARK_COUNT) < MARK_COUNT ? 1 : 0);
  }
}

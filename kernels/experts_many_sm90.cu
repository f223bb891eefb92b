// Products of a mixture of experts where an expert has many rows, on Hopper's warpgroup products.
//
// experts_many_sm90_up: out[pair] = activation(up * input[row of the pair]), or with a gate activation(gate) * up.
// experts_many_sm90_down: out[pair] = weight of the pair * (down * input[pair]).
//
// Every block stays on a multiprocessor and takes works in turn: up to 128 pairs of an expert by 256 rows of its
// weights, which with a gate are 128 of the gate's and 128 of the other half. One warpgroup fills the stages of shared
// memory, through works without a pause: weights as boxes of a tensor map, and the pairs' rows, which lie apart, vector
// by vector. The other two multiply 64 pairs each and store their results while the next work's stages fill.

#include "experts.cuh"
#include "tiles_sm90.cuh"

constexpr int WEIGHT_ROWS = 256;
constexpr int BOX_ROWS = WEIGHT_ROWS / 2;
constexpr uint32_t STAGES = 4;
constexpr int CONSUMERS = 2;
constexpr int CONSUMER_WARPS = WARPGROUP_THREADS / WARP_THREADS;
constexpr int THREADS = (1 + CONSUMERS) * WARPGROUP_THREADS;

struct HopperProductParams {
  // Of all experts' weights, boxes [BOX_ROWS, STAGE_K].
  TensorMap weights;
  ExpertProductParams product;
  // As many as the most tiles have.
  uint32_t num_works;
  uint32_t reserved[15];
};
static_assert(sizeof(HopperProductParams) == 256, "mirrored in experts.rs");

using Shape = StageLayout<WEIGHT_ROWS, STAGES>;

// The works of a block, one after the other.
struct Works {
  const HopperProductParams &params;
  uint32_t number;
  ExpertWork work;

  __device__ inline explicit Works(const HopperProductParams &params) : params(params), number(blockIdx.x) {}

  __device__ inline bool next() {
    if (number >= params.num_works || !find_work<TILE_ROWS>(params.product, number, work)) {
      return false;
    }
    number += gridDim.x;
    return true;
  }
};

// Fills stages. A run is one stage's elements of k.
template <typename T, Product PRODUCT> struct Producer {
  // Rows between those of which a thread copies a vector.
  static constexpr int ROWS_APART = WARPGROUP_THREADS / 8;
  static constexpr int VECTORS = TILE_ROWS / ROWS_APART;

  const HopperProductParams &params;
  const Shape shared;
  // Runs of all works so far.
  uint32_t run = 0;

  __device__ inline Producer(const HopperProductParams &params, Shape shared) : params(params), shared(shared) {}

  // Starts the copies of the work's rows of the weights, half of which are the other half's where there is a gate.
  __device__ inline void copy_weights(const ExpertWork &work, uint32_t stage, uint32_t first_k) const {
    constexpr bool IS_GATED = PRODUCT == Product::UP_GATED;
    const uint32_t features = params.product.out_features;
    const uint32_t apart = IS_GATED ? features : BOX_ROWS;
    const uint32_t first_feature = work.feature_block * (IS_GATED ? BOX_ROWS : WEIGHT_ROWS);
    const uint32_t row = work.expert * (IS_GATED ? 2 : 1) * features + first_feature;
    const uint32_t target = shared.weight(stage);
    arrive_expecting(shared.full(stage), Shape::WEIGHT_BYTES);
    copy_box(target, &params.weights, first_k, row, shared.full(stage));
    copy_box(target + BOX_ROWS * PANEL_BYTES, &params.weights, first_k, row + apart, shared.full(stage));
  }

  // This thread's vectors of `run` have arrived, and products may read them.
  __device__ inline void hand_over(uint32_t run) const {
    fence_async_proxy();
    arrive(shared.full(run % STAGES));
  }

  __device__ inline void fill(const ExpertWork &work) {
    const uint32_t in_features = params.product.in_features;
    const T *input = static_cast<const T *>(params.product.input);
    const uint32_t row = threadIdx.x / 8;
    const uint32_t vector = threadIdx.x % 8;
    uint32_t offsets[VECTORS];
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
      offsets[i] = pair_input<T, PRODUCT>(params.product, work, row + i * ROWS_APART) - input;
    }
    for (uint32_t first_k = 0; first_k < in_features; first_k += STAGE_K, run++) {
      const uint32_t stage = run % STAGES;
      wait(shared.empty(stage), (run / STAGES + 1) % 2);
      if (threadIdx.x == 0) {
        copy_weights(work, stage, first_k);
      }
      const uint32_t k = first_k + vector * VECTOR_ELEMENTS;
      const bool is_valid = k < in_features;
      const T *source = input + (is_valid ? k : 0);
      // The permutation of panels of 128 bytes; rows a multiple of 8 apart permute alike.
      uint32_t target = shared.input(stage) + row * PANEL_BYTES + (vector ^ row % 8) * 16;
#pragma unroll
      for (int i = 0; i < VECTORS; i++) {
        copy_async(target, source + offsets[i], is_valid && row + i * ROWS_APART < work.num_pairs);
        target += ROWS_APART * PANEL_BYTES;
      }
      commit_copies();
      if (run > 0) {
        wait_copies<1>();
        hand_over(run - 1);
      }
    }
  }

  __device__ inline void run_all() {
    Works works(params);
    while (works.next()) {
      fill(works.work);
    }
    if (run > 0) {
      wait_copies<0>();
      hand_over(run - 1);
    }
  }
};

// Multiplies 64 pairs of each work.
template <typename T, Product PRODUCT> struct Consumer {
  static constexpr bool IS_GATED = PRODUCT == Product::UP_GATED;
  static constexpr int FEATURES = IS_GATED ? BOX_ROWS : WEIGHT_ROWS;

  const HopperProductParams &params;
  const Shape shared;
  const uint32_t first_row = (threadIdx.x / WARPGROUP_THREADS - 1) * WARPGROUP_ROWS;
  const uint32_t lane = threadIdx.x % WARP_THREADS;
  uint32_t run = 0;

  __device__ inline Consumer(const HopperProductParams &params, Shape shared) : params(params), shared(shared) {}

  __device__ inline void release(uint32_t run) const {
    if (lane == 0) {
      arrive(shared.empty(run % STAGES));
    }
  }

  // The sums of a work, all of whose stages are released.
  __device__ inline void multiply(float (&sums)[WEIGHT_ROWS / 2]) {
    const uint32_t num_runs = (params.product.in_features + STAGE_K - 1) / STAGE_K;
    for (uint32_t i = 0; i < num_runs; i++, run++) {
      const uint32_t stage = run % STAGES;
      wait(shared.full(stage), run / STAGES % 2);
      shared.template multiply<T>(sums, stage, first_row, i > 0);
      if (i > 0) {
        wait_products<1>();
        release(run - 1);
      }
    }
    wait_products<0>();
    hold(sums);
    release(run - 1);
  }

  // Lets a work pass that has no pairs for this consumer.
  __device__ inline void skip() {
    for (uint32_t k = 0; k < params.product.in_features; k += STAGE_K, run++) {
      wait(shared.full(run % STAGES), run / STAGES % 2);
      // Products meet as a warp; here nothing else does.
      __syncwarp();
      release(run);
    }
  }

  // Stores results, 16 features of two rows at a time. Neighbouring lanes exchange halves, so that a lane stores 4
  // features and four lanes a whole sector.
  __device__ inline void store(const ExpertWork &work, const float (&sums)[WEIGHT_ROWS / 2]) const {
    const ExpertProductParams &product = params.product;
    const uint32_t row = first_row + threadIdx.x % WARPGROUP_THREADS / WARP_THREADS * 16 + lane / 4;
    const bool is_odd = lane % 2 != 0;
    float weights[2] = {1.0f, 1.0f};
    if (PRODUCT == Product::DOWN) {
      for (int half = 0; half < 2; half++) {
        weights[half] = product.pair_weights[work.first_pair + min(row + 8 * half, work.num_pairs - 1)];
      }
    }
#pragma unroll
    for (int group = 0; group < FEATURES / 16; group++) {
      float values[8];
#pragma unroll
      for (int i = 0; i < 8; i++) {
        values[i] = sums[4 * (2 * group + i / 2 % 2) + i / 4 * 2 + i % 2];
      }
      if (PRODUCT != Product::DOWN) {
        activate(product.function, values);
      }
#pragma unroll
      for (int i = 0; i < 8; i++) {
        values[i] *= weights[i / 4];
        if (IS_GATED) {
          values[i] *= sums[4 * (BOX_ROWS / 8 + 2 * group + i / 2 % 2) + i / 4 * 2 + i % 2];
        }
      }
      const uint32_t feature = work.feature_block * FEATURES + 16 * group + lane % 2 * 8 + lane % 4 / 2 * 4;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const uint32_t low = pack<T>(values[4 * half], values[4 * half + 1]);
        const uint32_t high = pack<T>(values[4 * half + 2], values[4 * half + 3]);
        const uint32_t received = __shfl_xor_sync(FULL_WARP, is_odd ? low : high, 1);
        if (row + 8 * half < work.num_pairs && feature < product.out_features) {
          const uint64_t pair = work.first_pair + row + 8 * half;
          T *target = static_cast<T *>(product.out) + pair * product.out_features + feature;
          *reinterpret_cast<uint2 *>(target) = is_odd ? make_uint2(received, high) : make_uint2(low, received);
        }
      }
    }
  }

  __device__ inline void run_all() {
    Works works(params);
    float sums[WEIGHT_ROWS / 2];
    while (works.next()) {
      if (first_row < works.work.num_pairs) {
        multiply(sums);
        store(works.work, sums);
      } else {
        skip();
      }
    }
  }
};

template <typename T, Product PRODUCT> __device__ inline void multiply_many(const HopperProductParams &params) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const Shape shared(memory);
  if (threadIdx.x == 0) {
    prefetch_map(&params.weights);
    // Every thread that copies vectors arrives, and the one that copies boxes; then the warps that have read.
    shared.init_barriers(WARPGROUP_THREADS + 1, CONSUMERS * CONSUMER_WARPS);
  }
  __syncthreads();
  wait_for_predecessor();
  if (threadIdx.x < WARPGROUP_THREADS) {
    lower_registers<72>();
    Producer<T, PRODUCT>(params, shared).run_all();
  } else {
    raise_registers<216>();
    Consumer<T, PRODUCT>(params, shared).run_all();
  }
}

#define EXPERTS_MANY(NAME, T, PRODUCT)                                                                           \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                       \
      NAME(const __grid_constant__ HopperProductParams params) {                                                 \
    multiply_many<T, Product::PRODUCT>(params);                                                                  \
  }

#define EXPERTS_MANY_OF(DTYPE, T)                                                                                \
  EXPERTS_MANY(experts_many_sm90_up_plain_##DTYPE, T, UP_PLAIN)                                                  \
  EXPERTS_MANY(experts_many_sm90_up_gated_##DTYPE, T, UP_GATED)                                                  \
  EXPERTS_MANY(experts_many_sm90_down_##DTYPE, T, DOWN)

EXPERTS_MANY_OF(bf16, __nv_bfloat16)
EXPERTS_MANY_OF(f16, __half)

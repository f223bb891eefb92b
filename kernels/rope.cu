// Adds biases to queries, keys and values, clamps them, normalises query and key heads, rotates them (Su et al. 2021),
// and writes keys and values to the paged cache.
//
// qkv [tokens, (num_heads + 2 * num_kv_heads) * head_dim] of T: queries, keys, values; queries are written back,
// keys and values go to the cache alone. bias, as wide as a row of qkv, of single precision, or null. table
// [positions, rotary_dim] of single precision: rotary_dim / 2 cosines, then as many sines; rotary_dim may be 0. The
// cache's layer is [block][key, value][kv_head][token in block][head_dim]. head_dim is a multiple of 8, rotary_dim
// even. Weights and biases of norms are as wide as all heads that they are for, of single precision. A norm takes the
// leading head_len elements of a head; those after them are zeros that pad it, do not count, and stay.
//
// Norms come first, where there are any: a warp takes a head, or the block all heads of a kind, and writes it back
// rounded to T, which is read again for the rotation. One block per token; its threads stride over units, each of
// which is a run of LANES pairs to rotate or a vector to copy. A unit of the half pairing is LANES elements and their
// partners rotary_dim / 2 further on; of the interleaved pairing, 2 * LANES neighbours. LANES is 1 where rotary_dim
// does not divide into vectors.

#include "rope.cuh"

template <int ELEMENTS, typename T> __device__ inline void load(const T *source, float (&values)[ELEMENTS]) {
  if constexpr (ELEMENTS % 8 == 0) {
#pragma unroll
    for (int i = 0; i < ELEMENTS / 8; i++) {
      float part[8];
      unpack_vector<T>(reinterpret_cast<const uint4 *>(source)[i], part);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        values[8 * i + j] = part[j];
      }
    }
  } else {
#pragma unroll
    for (int i = 0; i < ELEMENTS; i++) {
      values[i] = to_float(source[i]);
    }
  }
}

template <int ELEMENTS, typename T> __device__ inline void store(T *target, const float (&values)[ELEMENTS]) {
  if constexpr (ELEMENTS % 8 == 0) {
#pragma unroll
    for (int i = 0; i < ELEMENTS / 8; i++) {
      float part[8];
#pragma unroll
      for (int j = 0; j < 8; j++) {
        part[j] = values[8 * i + j];
      }
      reinterpret_cast<uint4 *>(target)[i] = pack_vector<T>(part);
    }
  } else {
#pragma unroll
    for (int i = 0; i < ELEMENTS; i++) {
      target[i] = from_float<T>(values[i]);
    }
  }
}

// Elements from `element` of a token's row on, with their biases, clamped; those that went through a norm have all
// of that behind them.
template <int ELEMENTS, typename T>
__device__ inline void load_biased(const RopeParams &params, const T *row, uint32_t element,
                                   float (&values)[ELEMENTS]) {
  load<ELEMENTS>(row + element, values);
  const uint32_t first_value = (params.num_heads + params.num_kv_heads) * params.head_dim;
  if (params.query_weight != nullptr && element < first_value) {
    return;
  }
  if (params.bias != nullptr) {
#pragma unroll
    for (int i = 0; i < ELEMENTS; i++) {
      values[i] += params.bias[element + i];
    }
  }
#pragma unroll
  for (int i = 0; i < ELEMENTS; i++) {
    values[i] = clamp(values[i], params.clamp);
  }
}

// Elements that are normalised together, and their parameters. Padding stands among them where the span is of several
// heads.
template <typename T> struct NormSpan {
  T *values;
  // Of the projection; may be null, as `bias`.
  const float *added;
  const float *weight;
  const float *bias;
  uint32_t width;
  // Elements without the padding.
  uint32_t count;
};

// Adds, clamps and normalises a span by threads `first`, `first + stride` and so on; `sum` adds up over them.
template <typename T, typename Sum>
__device__ inline void normalize(const RopeParams &params, const NormSpan<T> &span, uint32_t first, uint32_t stride,
                                 Sum sum) {
  const auto element = [&](uint32_t i) {
    const float added = span.added == nullptr ? 0.0f : span.added[i];
    return clamp(to_float(span.values[i]) + added, params.clamp);
  };
  const bool has_padding = span.count < span.width;
  const auto is_padding = [&](uint32_t i) { return has_padding && i % params.head_dim >= params.head_len; };
  const float count = static_cast<float>(span.count);
  float mean = 0.0f;
  if (params.is_layer != 0) {
    float total = 0.0f;
    for (uint32_t i = first; i < span.width; i += stride) {
      total += is_padding(i) ? 0.0f : element(i);
    }
    mean = sum(total) / count;
  }
  float squares = 0.0f;
  for (uint32_t i = first; i < span.width; i += stride) {
    const float centred = is_padding(i) ? 0.0f : element(i) - mean;
    squares += centred * centred;
  }
  const float scale = rsqrtf(sum(squares) / count + params.epsilon);
  for (uint32_t i = first; i < span.width; i += stride) {
    if (is_padding(i)) {
      continue;
    }
    const float bias = span.bias == nullptr ? 0.0f : span.bias[i];
    span.values[i] = from_float<T>((element(i) - mean) * scale * span.weight[i] + bias);
  }
}

// `num_heads` heads of the token's queries or keys from head `from_kind` on.
template <typename T>
__device__ inline NormSpan<T> span_of(const RopeParams &params, T *row, bool is_key, uint32_t from_kind,
                                      uint32_t num_heads) {
  const uint32_t offset = from_kind * params.head_dim;
  const uint32_t start = (is_key ? params.num_heads * params.head_dim : 0) + offset;
  const float *weight = is_key ? params.key_weight : params.query_weight;
  const float *bias = is_key ? params.key_bias : params.query_bias;
  // The padding of the last head is left out.
  const uint32_t width = (num_heads - 1) * params.head_dim + params.head_len;
  return {row + start, params.bias == nullptr ? nullptr : params.bias + start, weight + offset,
          bias == nullptr ? nullptr : bias + offset, width, num_heads * params.head_len};
}

template <typename T> __device__ inline void normalize_heads(const RopeParams &params, T *row) {
  if (params.takes_width != 0) {
    const auto sum = [](float value) {
      // The sum before this one used the same shared memory.
      __syncthreads();
      return block_sum(value);
    };
    normalize<T>(params, span_of(params, row, false, 0, params.num_heads), threadIdx.x, blockDim.x, sum);
    normalize<T>(params, span_of(params, row, true, 0, params.num_kv_heads), threadIdx.x, blockDim.x, sum);
  } else {
    const auto sum = [](float value) { return warp_sum(value); };
    const uint32_t num_warps = blockDim.x / WARP_THREADS;
    for (uint32_t head = threadIdx.x / WARP_THREADS; head < params.num_heads + params.num_kv_heads;
         head += num_warps) {
      const bool is_key = head >= params.num_heads;
      const uint32_t from_kind = is_key ? head - params.num_heads : head;
      const NormSpan<T> span = span_of(params, row, is_key, from_kind, 1);
      normalize<T>(params, span, threadIdx.x % WARP_THREADS, WARP_THREADS, sum);
    }
  }
  // The rotation's threads read what others have written.
  __syncthreads();
}

// Pairs `LANES * unit ..` of the head whose elements start at `head` in the row; they go to `target`.
template <typename T, int LANES>
__device__ inline void rotate_halves(const RopeParams &params, const T *row, uint32_t head, T *target,
                                     const float *angles, uint32_t unit) {
  const uint32_t half = params.rotary_dim / 2;
  float first[LANES];
  float second[LANES];
  load_biased<LANES>(params, row, head + unit * LANES, first);
  load_biased<LANES>(params, row, head + half + unit * LANES, second);
#pragma unroll
  for (int i = 0; i < LANES; i++) {
    rotate(first[i], second[i], angles[unit * LANES + i], angles[half + unit * LANES + i]);
  }
  store<LANES>(target + unit * LANES, first);
  store<LANES>(target + half + unit * LANES, second);
}

template <typename T, int LANES>
__device__ inline void rotate_neighbours(const RopeParams &params, const T *row, uint32_t head, T *target,
                                         const float *angles, uint32_t unit) {
  const uint32_t half = params.rotary_dim / 2;
  float values[2 * LANES];
  load_biased<2 * LANES>(params, row, head + unit * 2 * LANES, values);
#pragma unroll
  for (int i = 0; i < LANES; i++) {
    rotate(values[2 * i], values[2 * i + 1], angles[unit * LANES + i], angles[half + unit * LANES + i]);
  }
  store<2 * LANES>(target + unit * 2 * LANES, values);
}

template <typename T, int LANES, bool IS_INTERLEAVED>
__device__ inline void rope_and_write_kv(const RopeParams &params) {
  // What the step's first kernels wrote is there before the kernel before this one has ended.
  const uint32_t token = blockIdx.x;
  const bool is_token = token < params.header->num_tokens;
  const TokenHeads<T> heads = locate<T>(params, token, is_token ? params.cache_places[token] : 0);
  const uint32_t position = is_token ? params.positions[token] : 0;
  wait_for_predecessor();
  start_successor();
  if (!is_token) {
    return;
  }
  if (params.query_weight != nullptr) {
    normalize_heads<T>(params, heads.qkv);
  }
  const uint32_t num_keys_end = params.num_heads + params.num_kv_heads;
  const auto target = [&](uint32_t head) {
    if (head < params.num_heads) {
      return heads.qkv + head * params.head_dim;
    }
    return head < num_keys_end ? heads.keys + (head - params.num_heads) * heads.cache_head_stride
                               : heads.values + (head - num_keys_end) * heads.cache_head_stride;
  };

  const uint32_t units = params.rotary_dim / 2 / LANES;
  const float *angles = params.table + static_cast<uint64_t>(position) * params.rotary_dim;
  for (uint32_t index = threadIdx.x; index < num_keys_end * units; index += blockDim.x) {
    const uint32_t head = index / units;
    const uint32_t unit = index % units;
    if constexpr (IS_INTERLEAVED) {
      rotate_neighbours<T, LANES>(params, heads.qkv, head * params.head_dim, target(head), angles, unit);
    } else {
      rotate_halves<T, LANES>(params, heads.qkv, head * params.head_dim, target(head), angles, unit);
    }
  }

  // What does not rotate. Of queries only what changes is written.
  constexpr int COPIED = LANES % 8 == 0 ? 8 : 2;
  const bool changes_queries =
      params.query_weight == nullptr && (params.bias != nullptr || params.clamp < INFINITY);
  const uint32_t first_head = changes_queries ? 0 : params.num_heads;
  const uint32_t rest_units = (params.head_dim - params.rotary_dim) / COPIED;
  const uint32_t num_rest = (num_keys_end - first_head) * rest_units;
  const uint32_t value_units = params.head_dim / COPIED;
  const uint32_t num_copied = num_rest + params.num_kv_heads * value_units;
  for (uint32_t index = threadIdx.x; index < num_copied; index += blockDim.x) {
    const bool is_value = index >= num_rest;
    const uint32_t place = is_value ? index - num_rest : index;
    const uint32_t per_head = is_value ? value_units : rest_units;
    const uint32_t head = (is_value ? num_keys_end : first_head) + place / per_head;
    const uint32_t element = (is_value ? 0 : params.rotary_dim) + place % per_head * COPIED;
    float values[COPIED];
    load_biased<COPIED>(params, heads.qkv, head * params.head_dim + element, values);
    store<COPIED>(target(head) + element, values);
  }
}

#define ROPE(NAME, T, LANES, IS_INTERLEAVED)                                                                     \
  extern "C" __global__ void __launch_bounds__(256) NAME(const __grid_constant__ RopeParams params) {            \
    rope_and_write_kv<T, LANES, IS_INTERLEAVED>(params);                                                         \
  }

ROPE(rope_half_bf16_8, __nv_bfloat16, 8, false)
ROPE(rope_half_bf16_1, __nv_bfloat16, 1, false)
ROPE(rope_half_f16_8, __half, 8, false)
ROPE(rope_half_f16_1, __half, 1, false)
ROPE(rope_interleaved_bf16_8, __nv_bfloat16, 8, true)
ROPE(rope_interleaved_bf16_1, __nv_bfloat16, 1, true)
ROPE(rope_interleaved_f16_8, __half, 8, true)
ROPE(rope_interleaved_f16_1, __half, 1, true)

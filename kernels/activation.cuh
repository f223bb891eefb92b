// Activation functions.

#pragma once

#include "common.cuh"

// x / (1 + 2^y), to about two units in the last place; 0 for an infinite y, whatever x.
__device__ inline float over_power(float x, float y) {
  float power;
  float inverse;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(y));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + power));
  return inverse == 0.0f ? 0.0f : x * inverse;
}

struct Silu {
  __device__ static float apply(float x) { return over_power(x, -LOG2_E * x); }
};

struct Gelu {
  __device__ static float apply(float x) {
    const float share = 0.5f * (1.0f + erff(x * 0.70710678f));
    return share == 0.0f ? 0.0f : x * share;
  }
};

// 0.5 x (1 + tanh(y)) = x sigmoid(2 y) with y = sqrt(2 / pi) (x + 0.044715 x^3).
struct GeluTanh {
  __device__ static float apply(float x) {
    return over_power(x, x * (-1.5957691f * LOG2_E - 0.07135481f * LOG2_E * (x * x)));
  }
};

struct QuickGelu {
  __device__ static float apply(float x) { return over_power(x, -LOG2_E * 1.702f * x); }
};

// A NaN stays one, which fmaxf would drop.
struct Relu {
  __device__ static float apply(float x) { return x < 0.0f ? 0.0f : x; }
};

struct ReluSquared {
  __device__ static float apply(float x) { return x < 0.0f ? 0.0f : x * x; }
};

// The functions by their numbers, which are those of `Activation::ALL` in ops.rs.
__device__ inline float activate(uint32_t function, float x) {
  switch (function) {
  case 0:
    return Silu::apply(x);
  case 1:
    return Gelu::apply(x);
  case 2:
    return GeluTanh::apply(x);
  case 3:
    return QuickGelu::apply(x);
  case 4:
    return Relu::apply(x);
  default:
    return ReluSquared::apply(x);
  }
}

template <typename Function> __device__ inline void apply_each(float (&values)[8]) {
#pragma unroll
  for (int i = 0; i < 8; i++) {
    values[i] = Function::apply(values[i]);
  }
}

// The same for 8 values, which choose the function once.
__device__ inline void activate(uint32_t function, float (&values)[8]) {
  switch (function) {
  case 0:
    return apply_each<Silu>(values);
  case 1:
    return apply_each<Gelu>(values);
  case 2:
    return apply_each<GeluTanh>(values);
  case 3:
    return apply_each<QuickGelu>(values);
  case 4:
    return apply_each<Relu>(values);
  default:
    return apply_each<ReluSquared>(values);
  }
}

// The row of the weights that row `8 * part + row` of a product's tile stands for, where block `block` owns
// WEIGHT_TILES tiles of 16. With a gate, whose rows are the first half of the weights, a tile has 8 of the gate's rows
// and the other half's 8 of the same features. Rows past the end repeat the last.
template <int WEIGHT_TILES, bool IS_GATED>
__device__ inline uint64_t weight_row(uint32_t block, int part, uint32_t row, uint32_t out_features) {
  const uint32_t last = out_features - 1;
  if constexpr (IS_GATED) {
    const uint32_t feature = block * 8 * WEIGHT_TILES + part / 2 * 8 + row;
    return min(feature, last) + part % 2 * out_features;
  } else {
    return min(block * 16 * WEIGHT_TILES + part * 8 + row, last);
  }
}

// Activation functions.

#pragma once

#include <cstdint>

// x * sigmoid(y), to about two units in the last place.
__device__ inline float times_sigmoid(float x, float y) { return __fdividef(x, 1.0f + __expf(-y)); }

struct Silu {
  __device__ static float apply(float x) { return times_sigmoid(x, x); }
};

struct Gelu {
  __device__ static float apply(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678f)); }
};

// 0.5 x (1 + tanh(y)) = x sigmoid(2 y) with y = sqrt(2 / pi) (x + 0.044715 x^3).
struct GeluTanh {
  __device__ static float apply(float x) { return times_sigmoid(x, x * (1.5957691f + 0.07135481f * x * x)); }
};

struct QuickGelu {
  __device__ static float apply(float x) { return times_sigmoid(x, 1.702f * x); }
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

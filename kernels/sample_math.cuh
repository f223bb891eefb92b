// The sampler's elementary functions and random numbers, bit for bit those of the CPU sampler
// (src/backend/cpu/sample/{math,philox}.rs): IEEE single-precision operations in a fixed order, none of them
// contracted to a fused multiply-add.

#pragma once

#include <cstdint>

__device__ inline float multiply_add_unfused(float a, float b, float c) { return __fadd_rn(__fmul_rn(a, b), c); }

constexpr float LN_2_HIGH = 0.6933594f;
constexpr float LN_2_LOW = -2.1219444e-4f;

// No Gumbel variate is larger.
constexpr float GUMBEL_MAX = 22.2f;

// 1 as a weight.
constexpr uint32_t WEIGHT_ONE = 1u << 30;

// e^x for x <= 0; everything below -87 counts as -87.
__device__ inline float exp_nonpositive(float x) {
  constexpr float ROUND = 12582912.0f;
  constexpr float LOG2_E = 1.44269504088896340736f;
  x = x > -87.0f ? x : -87.0f;
  const float rounded = multiply_add_unfused(x, LOG2_E, ROUND);
  const float power = __fsub_rn(rounded, ROUND);
  const float r = __fsub_rn(__fsub_rn(x, __fmul_rn(power, LN_2_HIGH)), __fmul_rn(power, LN_2_LOW));
  float p = 1.3814599e-3f;
  p = multiply_add_unfused(p, r, 8.368717e-3f);
  p = multiply_add_unfused(p, r, 4.166839e-2f);
  p = multiply_add_unfused(p, r, 1.6666521e-1f);
  p = multiply_add_unfused(p, r, 4.9999993e-1f);
  const float mantissa = __fadd_rn(multiply_add_unfused(__fmul_rn(r, r), p, r), 1.0f);
  const uint32_t exponent = __float_as_uint(rounded) - __float_as_uint(ROUND) + 127u;
  return __fmul_rn(mantissa, __uint_as_float(exponent << 23));
}

// ln x for positive normal x.
__device__ inline float ln_positive(float x) {
  constexpr uint32_t SQRT_HALF_BITS = 0x3f3504f3u;
  const uint32_t offset = __float_as_uint(x) - SQRT_HALF_BITS;
  const float power = static_cast<float>(static_cast<int32_t>(offset) >> 23);
  const float f = __fsub_rn(__uint_as_float((offset & 0x007fffffu) + SQRT_HALF_BITS), 1.0f);
  float p = -7.63449e-2f;
  p = multiply_add_unfused(p, f, 1.2761973e-1f);
  p = multiply_add_unfused(p, f, -1.3160368e-1f);
  p = multiply_add_unfused(p, f, 1.4201718e-1f);
  p = multiply_add_unfused(p, f, -1.6623336e-1f);
  p = multiply_add_unfused(p, f, 2.0001228e-1f);
  p = multiply_add_unfused(p, f, -2.5000822e-1f);
  p = multiply_add_unfused(p, f, 3.3333332e-1f);
  const float square = __fmul_rn(f, f);
  const float tail = __fadd_rn(__fmul_rn(square, __fsub_rn(__fmul_rn(f, p), 0.5f)), __fmul_rn(power, LN_2_LOW));
  return __fadd_rn(__fmul_rn(power, LN_2_HIGH), __fadd_rn(f, tail));
}

// A standard Gumbel variate.
__device__ inline float gumbel(uint32_t bits) {
  constexpr float BELOW_ONE = 1.0f - 1.0f / 16777216.0f;
  constexpr float SCALE = 1.0f / 2147483648.0f;
  float v = __fmul_rn(__fadd_rn(__int2float_rn(static_cast<int32_t>(bits >> 1)), 0.5f), SCALE);
  v = v < BELOW_ONE ? v : BELOW_ONE;
  const float rest = __fsub_rn(1.0f, v);
  const float quotient = __fdiv_rn(__fmul_rn(-ln_positive(rest), v), __fsub_rn(1.0f, rest));
  return -ln_positive(rest == 1.0f ? v : quotient);
}

// e^x for x <= 0 in fixed point with 30 fractional bits, cut off.
__device__ inline uint32_t weight_of(float x) {
  return static_cast<uint32_t>(__float2int_rz(__fmul_rn(exp_nonpositive(x), static_cast<float>(WEIGHT_ONE))));
}

// Philox4x32-10 (Salmon et al. 2011).
__device__ inline uint4 philox(uint4 counter, uint2 key) {
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint32_t high0 = __umulhi(0xd2511f53u, counter.x);
    const uint32_t low0 = 0xd2511f53u * counter.x;
    const uint32_t high1 = __umulhi(0xcd9e8d57u, counter.z);
    const uint32_t low1 = 0xcd9e8d57u * counter.z;
    counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
    key.x += 0x9e3779b9u;
    key.y += 0xbb67ae85u;
  }
  return counter;
}

// Random words of tokens 64 (block / 16) + block % 16 + {0, 16, 32, 48}.
__device__ inline uint4 token_noise(uint64_t seed, uint32_t output_index, uint32_t block) {
  const uint2 key = make_uint2(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  return philox(make_uint4(block, output_index, 0, 0), key);
}

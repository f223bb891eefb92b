// What all kernels share: element types, 16-byte vectors, reductions over warps and blocks.
//
// Tensors are row-major. `T` is the type of weights and activations, __nv_bfloat16 or __half; sums are in
// single precision. Base addresses are aligned to 256 bytes and widths are multiples of 8 elements, so that
// every row starts at a multiple of 16 bytes.

#pragma once

#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

constexpr int WARP_THREADS = 32;
constexpr unsigned FULL_WARP = 0xffffffffu;
constexpr float LOG2_E = 1.4426950408889634f;

// A kernel may be launched while the one before it still runs (programmatic dependent launch, sm_90 and later), so
// that its blocks are in place and hold what does not depend on the other when that ends. Such a kernel calls
// `wait_for_predecessor` in every thread before it touches what the kernel before it reads or writes, and only
// after that `start_successor`: what earlier kernels wrote is there from the start. A kernel that fills the device
// lets its successor start near its own end, because blocks that are placed while others run end up unevenly
// spread over the multiprocessors, unless these have room for no more of them than one wave (skinny.cuh).
__device__ inline void start_successor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

__device__ inline void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// 8 elements of 2 bytes, loaded and stored at once.
constexpr int VECTOR_ELEMENTS = 8;
constexpr uint32_t VECTOR_BYTES = 16;

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float to_float(__half value) { return __half2float(value); }

template <typename T> __device__ inline T from_float(float value);
template <> __device__ inline float from_float<float>(float value) { return value; }
template <> __device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <> __device__ inline __half from_float<__half>(float value) { return __float2half_rn(value); }

__device__ inline float2 unpack(uint32_t word, __nv_bfloat16) {
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
}
__device__ inline float2 unpack(uint32_t word, __half) {
  return __half22float2(*reinterpret_cast<const __half2 *>(&word));
}

// The two elements of a 32-bit word, the one at the lower address first.
template <typename T> __device__ inline float2 unpack(uint32_t word) { return unpack(word, T{}); }

template <typename T> __device__ inline uint32_t pack(float low, float high);
template <> __device__ inline uint32_t pack<__nv_bfloat16>(float low, float high) {
  __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<uint32_t *>(&pair);
}
template <> __device__ inline uint32_t pack<__half>(float low, float high) {
  __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<uint32_t *>(&pair);
}

template <typename T> __device__ inline void unpack_vector(const uint4 &vector, float (&values)[8]) {
  const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float2 pair = unpack<T>(words[i]);
    values[2 * i] = pair.x;
    values[2 * i + 1] = pair.y;
  }
}

template <typename T> __device__ inline uint4 pack_vector(const float (&values)[8]) {
  return make_uint4(pack<T>(values[0], values[1]), pack<T>(values[2], values[3]), pack<T>(values[4], values[5]),
                    pack<T>(values[6], values[7]));
}

__device__ inline float warp_sum(float value) {
#pragma unroll
  for (int offset = WARP_THREADS / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(FULL_WARP, value, offset);
  }
  return value;
}

// The sum over a block of up to 1024 threads, whole warps, in every thread.
__device__ inline float block_sum(float value) {
  __shared__ float warp_sums[WARP_THREADS];
  const int warp = threadIdx.x / WARP_THREADS;
  const int lane = threadIdx.x % WARP_THREADS;
  value = warp_sum(value);
  if (lane == 0) {
    warp_sums[warp] = value;
  }
  __syncthreads();
  const int num_warps = blockDim.x / WARP_THREADS;
  return warp_sum(lane < num_warps ? warp_sums[lane] : 0.0f);
}

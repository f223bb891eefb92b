// Thin wrappers of the instructions that feed the tensor cores (sm_80 and later).
//
// Fragments of mma.m16n8k16, for a thread with `group = lane / 4` and `pair = lane % 4`:
//   A [16, 16]: word 0 is row `group`, columns 2 pair and 2 pair + 1; word 1 row group + 8; words 2 and 3 the
//   same 8 columns further on.
//   B [16, 8]: word 0 is rows 2 pair and 2 pair + 1 of column `group`; word 1 the same 8 rows further on.
//   C [16, 8]: elements 0 and 1 are row `group`, columns 2 pair and 2 pair + 1; elements 2 and 3 row group + 8.

#pragma once

#include "common.cuh"

// c += a * b.
template <typename T> __device__ inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

template <>
__device__ inline void mma<__nv_bfloat16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <> __device__ inline void mma<__half>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
               "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline uint32_t shared_address(const void *pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Four 8 by 8 matrices; lanes 8 i to 8 i + 7 give the rows of matrix i.
__device__ inline void load_matrices(uint32_t (&words)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address));
}

// The same, each matrix transposed.
__device__ inline void load_matrices_transposed(uint32_t (&words)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(address));
}

// The transpose of an 8 by 8 matrix whose row `lane / 4` holds `word` at columns 2 (lane % 4) and the next.
__device__ inline uint32_t transpose_matrix(uint32_t word) {
  uint32_t transposed;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(transposed) : "r"(word));
  return transposed;
}

// Of two pairs, the first elements and the second ones.
__device__ inline uint32_t low_halves(uint32_t first, uint32_t second) { return __byte_perm(first, second, 0x5410); }
__device__ inline uint32_t high_halves(uint32_t first, uint32_t second) { return __byte_perm(first, second, 0x7632); }

// Starts a copy of 16 bytes to shared memory; zeros are written instead where `is_valid` is false.
__device__ inline void copy_async(uint32_t target, const void *source, bool is_valid) {
  const int source_bytes = is_valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source), "r"(source_bytes));
}

// Closes a group of copies.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;"); }

// Waits until at most `PENDING` of this thread's groups are incomplete.
template <int PENDING> __device__ inline void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// 2^x; minus infinity gives 0.
__device__ inline float exp2_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

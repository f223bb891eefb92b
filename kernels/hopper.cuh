// Thin wrappers of the instructions that only sm_90a has, or has first: warpgroup products (wgmma), barriers that
// count bytes (mbarrier) and copies of tensor tiles (TMA).
//
// Tiles in shared memory are cut into panels of PANEL_BYTES (32, 64 or 128) per row. A panel's rows follow each
// other without gaps, and the 16-byte vectors of a row are permuted by the swizzle of that width, which both
// the copies and the products apply; the permutation never leaves the row.

#pragma once

#include "tensor_core.cuh"

constexpr int WARPGROUP_THREADS = 128;

// A tensor map as the driver encodes it.
struct alignas(128) TensorMap {
  uint64_t words[16];
};
static_assert(sizeof(TensorMap) == 128, "mirrored in driver.rs");

// True in one lane of a converged warp.
__device__ inline bool elect_lane() {
  uint32_t is_elected;
  asm volatile("{\n"
               ".reg .pred elected;\n"
               "elect.sync _|elected, 0xffffffff;\n"
               "selp.u32 %0, 1, 0, elected;\n"
               "}"
               : "=r"(is_elected));
  return is_elected != 0;
}

__device__ inline void store_shared(uint32_t address, uint4 vector) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(vector.x), "r"(vector.y), "r"(vector.z),
               "r"(vector.w)
               : "memory");
}

__device__ inline uint4 load_shared(uint32_t address) {
  uint4 vector;
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(vector.x), "=r"(vector.y), "=r"(vector.z), "=r"(vector.w)
               : "r"(address)
               : "memory");
  return vector;
}

// Stores four 8 x 8 matrices of 2-byte elements, of which thread `i` holds elements 2 (i % 4) and 2 (i % 4) + 1 of
// row i / 4; threads 8 m to 8 m + 7 say where the rows of matrix m go, 16 bytes each.
__device__ inline void store_matrices(uint32_t row, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(a), "r"(b), "r"(c),
               "r"(d)
               : "memory");
}

// Four words per thread, of which thread `i` of a quad gets all of number `i`, in the order of the threads.
__device__ inline uint4 gather_quad(const uint32_t (&words)[4]) {
  const bool is_odd = threadIdx.x % 2 == 1;
  const bool is_high = threadIdx.x % 4 >= 2;
  const uint32_t a = __shfl_xor_sync(FULL_WARP, is_odd ? words[0] : words[1], 1);
  const uint32_t b = __shfl_xor_sync(FULL_WARP, is_odd ? words[2] : words[3], 1);
  // Of numbers `odd` and `odd + 2`: the pair's words, from the lower thread and from the upper.
  const uint32_t low[2] = {is_odd ? a : words[0], is_odd ? words[1] : a};
  const uint32_t high[2] = {is_odd ? b : words[2], is_odd ? words[3] : b};
  const uint32_t c = __shfl_xor_sync(FULL_WARP, is_high ? low[0] : high[0], 2);
  const uint32_t d = __shfl_xor_sync(FULL_WARP, is_high ? low[1] : high[1], 2);
  return is_high ? make_uint4(c, d, high[0], high[1]) : make_uint4(low[0], low[1], c, d);
}

// Barriers in shared memory, 8 bytes each.

__device__ inline void init_barrier(uint32_t barrier, uint32_t num_arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(num_arrivals) : "memory");
}

// Makes initialised barriers visible to copies.
__device__ inline void fence_barrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// One arrival for a warp, after what its threads have read and written.
__device__ inline void arrive_as_warp(uint32_t barrier) {
  __syncwarp();
  if (threadIdx.x % WARP_THREADS == 0) {
    arrive(barrier);
  }
}

// Arrives and lets the phase wait for `num_bytes` of copies more.
__device__ inline void arrive_expecting(uint32_t barrier, uint32_t num_bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(num_bytes) : "memory");
}

// Arrives at the barrier of block `rank` of the cluster that lies where `barrier` does in this one. Orders nothing that
// this block wrote before the other block's reads: that would cost a fence over the device.
__device__ inline void arrive_at(uint32_t rank, uint32_t barrier) {
  asm volatile("{\n"
               ".reg .b32 remote;\n"
               "mapa.shared::cluster.u32 remote, %0, %1;\n"
               "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
               "}" ::"r"(barrier),
               "r"(rank)
               : "memory");
}

__device__ inline uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// All threads of all blocks of the cluster meet. Orders nothing that they wrote to memory: that would cost a fence over
// the device.
__device__ inline void meet_cluster() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\n"
               "barrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}

// Whether the phase of this parity is complete, without waiting.
__device__ inline bool is_complete(uint32_t barrier, uint32_t parity) {
  uint32_t result;
  asm volatile("{\n"
               ".reg .pred complete;\n"
               "mbarrier.test_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
               "selp.u32 %0, 1, 0, complete;\n"
               "}"
               : "=r"(result)
               : "r"(barrier), "r"(parity)
               : "memory");
  return result != 0;
}

// Waits until the phase of this parity is complete.
__device__ inline void wait(uint32_t barrier, uint32_t parity) {
  uint32_t result;
  do {
    asm volatile("{\n"
                 ".reg .pred complete;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 complete, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, complete;\n"
                 "}"
                 : "=r"(result)
                 : "r"(barrier), "r"(parity)
                 : "memory");
  } while (result == 0);
}

// Starts copying the box of `map` at (column, row) to `target`; parts outside the tensor become zeros. The bytes
// of the whole box count on `barrier`.
__device__ inline void copy_box(uint32_t target, const TensorMap *map, int column, int row, uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
               ::"r"(target), "l"(map), "r"(column), "r"(row), "r"(barrier)
               : "memory");
}

// The same for all blocks of the cluster whose bits are set in `blocks`: the box and its bytes arrive at the same
// places of each.
__device__ inline void copy_box_to(uint16_t blocks, uint32_t target, const TensorMap *map, int column, int row,
                                   uint32_t barrier) {
  asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
               "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(target),
               "l"(map), "r"(column), "r"(row), "r"(barrier), "h"(blocks)
               : "memory");
}

__device__ inline void prefetch_map(const TensorMap *map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Orders this thread's ordinary accesses to shared memory before later ones of copies and products.
__device__ inline void fence_async_proxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

template <int REGISTERS> __device__ inline void raise_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS> __device__ inline void lower_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

// Named barriers of `num_threads` threads, some of which only arrive.
__device__ inline void sync_named(uint32_t index, uint32_t num_threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(index), "r"(num_threads) : "memory");
}
__device__ inline void arrive_named(uint32_t index, uint32_t num_threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(index), "r"(num_threads) : "memory");
}

// Describes a swizzled tile at `address`, a multiple of 8 rows, to a product. `panel_stride_bytes` leads to the
// next panel where the product walks along rows (transposed operands); others pass any value.
template <int PANEL_BYTES> __device__ inline uint64_t describe_tile(uint32_t address, uint32_t panel_stride_bytes) {
  constexpr uint64_t SWIZZLE = PANEL_BYTES == 128 ? 1 : PANEL_BYTES == 64 ? 2 : 3;
  constexpr uint64_t EIGHT_ROWS = 8 * PANEL_BYTES;
  return SWIZZLE << 62 | EIGHT_ROWS >> 4 << 32 | static_cast<uint64_t>(panel_stride_bytes >> 4) << 16 |
         (address & 0x3ffff) >> 4;
}

// The description of the tile `offset_bytes` further on.
__device__ inline uint64_t advance(uint64_t tile, uint32_t offset_bytes) { return tile + (offset_bytes >> 4); }

// Orders the registers that products use after earlier accesses to them.
__device__ inline void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most `PENDING` of the warpgroup's groups of products are incomplete.
template <int PENDING> __device__ inline void wait_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from moving accesses to registers of products across this point.
template <int N> __device__ inline void hold(float (&registers)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) {
    asm volatile("" : "+f"(registers[i])::"memory");
  }
}
template <int N> __device__ inline void hold(uint32_t (&registers)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) {
    asm volatile("" : "+r"(registers[i])::"memory");
  }
}

// Products c [64, N] (+)= a [64, 16] * b of a warpgroup. Warp `w` holds rows 16 w to 16 w + 15 of c and of an `a`
// in registers, as fragments of mma.m16n8k16 side by side.
//
// multiply_shared: a and b in shared memory, b as N rows of 16 elements; c is overwritten unless `is_added`.
// add_transposed: a in registers, b in shared memory as 16 rows of N elements; always adds.
template <typename T, int N> struct Products;

#define FLOATS_8(c, i)                                                                                           \
  "+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]), "+f"(c[i + 5]), "+f"(c[i + 6]),     \
      "+f"(c[i + 7])
#define FLOATS_32(c, i) FLOATS_8(c, i), FLOATS_8(c, i + 8), FLOATS_8(c, i + 16), FLOATS_8(c, i + 24)
#define PLACES_32                                                                                                \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                       \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PLACES_40 PLACES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define PLACES_48 PLACES_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define PLACES_64                                                                                                \
  PLACES_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PLACES_96                                                                                                \
  PLACES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                 \
            "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define PLACES_112                                                                                               \
  PLACES_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define PLACES_128                                                                                               \
  PLACES_112 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

// P0 to P4 are the places after those of c.
#define PRODUCTS(T, TYPE, N, PLACES, P0, P1, P2, P3, P4, ...)                                                    \
  template <> struct Products<T, N> {                                                                            \
    __device__ static inline void multiply_shared(float (&c)[N / 2], uint64_t a, uint64_t b, int is_added) {     \
      asm volatile("{\n"                                                                                         \
                   ".reg .pred added;\n"                                                                         \
                   "setp.ne.b32 added, " P2 ", 0;\n"                                                             \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" PLACES "}, " P0 ", " P1  \
                   ", added, 1, 1, 0, 0;\n"                                                                      \
                   "}"                                                                                           \
                   : __VA_ARGS__                                                                                 \
                   : "l"(a), "l"(b), "r"(is_added));                                                             \
    }                                                                                                            \
    __device__ static inline void add_transposed(float (&c)[N / 2], const uint32_t *a, uint64_t b) {             \
      asm volatile("{\n"                                                                                         \
                   ".reg .pred added;\n"                                                                         \
                   "setp.eq.b32 added, 0, 0;\n"                                                                  \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." TYPE "." TYPE " {" PLACES "}, {" P0 ", " P1 \
                   ", " P2 ", " P3 "}, " P4 ", added, 1, 1, 1;\n"                                                \
                   "}"                                                                                           \
                   : __VA_ARGS__                                                                                 \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                        \
    }                                                                                                            \
  };

#define PRODUCTS_OF(T, TYPE)                                                                                     \
  PRODUCTS(T, TYPE, 64, PLACES_32, "%32", "%33", "%34", "%35", "%36", FLOATS_32(c, 0))                           \
  PRODUCTS(T, TYPE, 80, PLACES_40, "%40", "%41", "%42", "%43", "%44", FLOATS_32(c, 0), FLOATS_8(c, 32))          \
  PRODUCTS(T, TYPE, 96, PLACES_48, "%48", "%49", "%50", "%51", "%52", FLOATS_32(c, 0), FLOATS_8(c, 32),          \
           FLOATS_8(c, 40))                                                                                      \
  PRODUCTS(T, TYPE, 128, PLACES_64, "%64", "%65", "%66", "%67", "%68", FLOATS_32(c, 0), FLOATS_32(c, 32))        \
  PRODUCTS(T, TYPE, 192, PLACES_96, "%96", "%97", "%98", "%99", "%100", FLOATS_32(c, 0), FLOATS_32(c, 32),       \
           FLOATS_32(c, 64))                                                                                     \
  PRODUCTS(T, TYPE, 224, PLACES_112, "%112", "%113", "%114", "%115", "%116", FLOATS_32(c, 0), FLOATS_32(c, 32),  \
           FLOATS_32(c, 64), FLOATS_8(c, 96), FLOATS_8(c, 104))                                                  \
  PRODUCTS(T, TYPE, 256, PLACES_128, "%128", "%129", "%130", "%131", "%132", FLOATS_32(c, 0), FLOATS_32(c, 32),  \
           FLOATS_32(c, 64), FLOATS_32(c, 96))

PRODUCTS_OF(__nv_bfloat16, "bf16")
PRODUCTS_OF(__half, "f16")

#undef PRODUCTS_OF
#undef PRODUCTS
#undef PLACES_128
#undef PLACES_112
#undef PLACES_96
#undef PLACES_64
#undef PLACES_48
#undef PLACES_40
#undef PLACES_32
#undef FLOATS_32
#undef FLOATS_8

// Place in a ring of buffers: the parity says how often it has come round.
template <int STAGES> struct Ring {
  uint32_t stage = 0;
  uint32_t parity = 0;

  __device__ inline void advance() {
    stage++;
    if (stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
};

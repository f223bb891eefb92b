// Ends of a product on Hopper (linear_sm90.cu) that store to `out`: the sums as they are, through an activation, or
// added to what is there. An end has the parameters of its kernels, OUT_COLUMNS of a tile of COLUMNS, and `run`, which
// finishes a share of a tile in shared memory.

#pragma once

#include "activation.cuh"
#include "linear_sm90.cuh"

// Where a share of the sums goes.
template <typename T> struct OutColumn {
  uint4 *first;
  uint64_t row_vectors;
  bool leaves_cache;

  __device__ inline OutColumn(const LinearParams &params, const Share &share)
      : first(reinterpret_cast<uint4 *>(static_cast<T *>(params.out) +
                                        static_cast<uint64_t>(share.tile.row) * params.out_features + share.column())),
        row_vectors(params.out_features / VECTOR_ELEMENTS), leaves_cache(params.leaves_cache != 0) {}

  __device__ inline uint4 load(uint32_t row) const { return first[row * row_vectors]; }

  __device__ inline void store(uint32_t row, uint4 vector) const {
    if (leaves_cache) {
      __stcs(first + row * row_vectors, vector);
    } else {
      first[row * row_vectors] = vector;
    }
  }
};

template <typename T, int COLUMNS> struct Stored {
  using Params = LinearParams;
  static constexpr int OUT_COLUMNS = COLUMNS;
  static constexpr int BATCH = 4;
  using Loaded = uint4;

  const LinearShape<COLUMNS> shared;
  const OutColumn<T> out;
  const uint32_t vector;

  __device__ inline Loaded load(uint32_t row) const { return load_shared(shared.sums(row, vector)); }
  __device__ inline void finish(uint32_t row, Loaded sums) const { out.store(row, sums); }

  __device__ static inline void run(const Params &params, LinearShape<COLUMNS> shared, const Share &share) {
    finish_rows(Stored{shared, OutColumn<T>(params, share), share.vector}, share);
  }
};

// activation(sum + bias), or with a gate, whose sums are the first half of a tile's columns, activation(gate) * up.
template <typename T, int COLUMNS, bool IS_GATED> struct Activated {
  using Params = LinearParams;
  static constexpr int OUT_COLUMNS = IS_GATED ? COLUMNS / 2 : COLUMNS;

  template <typename Function> struct Finisher {
    static constexpr int BATCH = 4;
    struct Loaded {
      uint4 sums;
      uint4 up;
    };

    const LinearShape<COLUMNS> shared;
    const OutColumn<T> out;
    const uint32_t vector;
    float bias[VECTOR_ELEMENTS];
    float up_bias[VECTOR_ELEMENTS];

    __device__ inline Finisher(const Params &params, LinearShape<COLUMNS> shared, const Share &share)
        : shared(shared), out(params, share), vector(share.vector) {
      load_row(params.bias, share.column(), bias);
      if constexpr (IS_GATED) {
        load_row(params.bias, params.out_features + share.column(), up_bias);
      }
    }

    __device__ inline Loaded load(uint32_t row) const {
      const uint32_t up = IS_GATED ? vector + OUT_COLUMNS / VECTOR_ELEMENTS : vector;
      return {load_shared(shared.sums(row, vector)), IS_GATED ? load_shared(shared.sums(row, up)) : uint4()};
    }

    __device__ inline void finish(uint32_t row, const Loaded &loaded) const {
      float values[VECTOR_ELEMENTS];
      float up[VECTOR_ELEMENTS];
      unpack_vector<T>(loaded.sums, values);
      if constexpr (IS_GATED) {
        unpack_vector<T>(loaded.up, up);
      }
#pragma unroll
      for (int i = 0; i < VECTOR_ELEMENTS; i++) {
        values[i] = Function::apply(values[i] + bias[i]);
        if constexpr (IS_GATED) {
          values[i] *= up[i] + up_bias[i];
        }
      }
      out.store(row, pack_vector<T>(values));
    }
  };

  template <typename Function>
  __device__ static inline void run_as(const Params &params, LinearShape<COLUMNS> shared, const Share &share) {
    finish_rows(Finisher<Function>(params, shared, share), share);
  }

  __device__ static inline void run(const Params &params, LinearShape<COLUMNS> shared, const Share &share) {
    switch (params.function) {
    case 0:
      return run_as<Silu>(params, shared, share);
    case 1:
      return run_as<Gelu>(params, shared, share);
    case 2:
      return run_as<GeluTanh>(params, shared, share);
    case 3:
      return run_as<QuickGelu>(params, shared, share);
    case 4:
      return run_as<Relu>(params, shared, share);
    default:
      return run_as<ReluSquared>(params, shared, share);
    }
  }
};

// out += sum + biases. A row's element is loaded for use by the thread that stores it.
template <typename T, int COLUMNS> struct Added {
  using Params = AddedParams;
  static constexpr int OUT_COLUMNS = COLUMNS;
  static constexpr int BATCH = 4;
  struct Loaded {
    uint4 sums;
    uint4 residual;
  };

  const LinearShape<COLUMNS> shared;
  const OutColumn<T> out;
  const uint32_t vector;
  float bias[VECTOR_ELEMENTS];

  __device__ inline Added(const Params &params, LinearShape<COLUMNS> shared, const Share &share)
      : shared(shared), out(params, share), vector(share.vector) {
    float second[VECTOR_ELEMENTS];
    load_row(params.bias, share.column(), bias);
    load_row(params.second_bias, share.column(), second);
#pragma unroll
    for (int i = 0; i < VECTOR_ELEMENTS; i++) {
      bias[i] += second[i];
    }
  }

  __device__ inline Loaded load(uint32_t row) const {
    return {load_shared(shared.sums(row, vector)), out.load(row)};
  }

  __device__ inline void finish(uint32_t row, const Loaded &loaded) const {
    float values[VECTOR_ELEMENTS];
    float residual[VECTOR_ELEMENTS];
    unpack_vector<T>(loaded.sums, values);
    unpack_vector<T>(loaded.residual, residual);
#pragma unroll
    for (int i = 0; i < VECTOR_ELEMENTS; i++) {
      values[i] += residual[i] + bias[i];
    }
    out.store(row, pack_vector<T>(values));
  }

  __device__ static inline void run(const Params &params, LinearShape<COLUMNS> shared, const Share &share) {
    finish_rows(Added(params, shared, share), share);
  }
};

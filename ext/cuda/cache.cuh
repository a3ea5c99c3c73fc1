// The sequences of a call as kernels take them: by value, so that a graph which replays the launch needs no copy.
#pragma once

#include "common.cuh"
#include "qvl/cuda/cache.h"

namespace qvl::cuda {

// Of one launch: what is passed to a kernel may take 4 KiB. More sequences are more launches.
constexpr int kMostSequences = 64;

struct Sequences {
  void* k[kMostSequences];
  void* v[kMostSequences];
  float* k_scale[kMostSequences];
  float* v_scale[kMostSequences];
  int32_t first[kMostSequences + 1];  // row of the call that is its first new token; then the rows of the launch
  int32_t count;

  __device__ int tokens(int i) const { return first[i + 1] - first[i]; }

  // Whose row it is, counted from the first of the launch.
  __device__ int owner(int row) const {
    int low = 0, high = count - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (first[middle + 1] <= row) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }
};

// Sequences of a launch, the first of them `from`, with rows counted from 0.
inline Sequences taken(const CacheSequence* from, int64_t count) {
  Sequences made{};
  made.count = static_cast<int32_t>(count);
  for (int64_t i = 0; i < count; ++i) {
    made.k[i] = from[i].k;
    made.v[i] = from[i].v;
    made.k_scale[i] = from[i].k_scale;
    made.v_scale[i] = from[i].v_scale;
    made.first[i + 1] = made.first[i] + static_cast<int32_t>(from[i].tokens);
  }
  return made;
}

// What the 16-byte accesses of kernels need of a pointer, and of a stride of elements of `size` bytes.
inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }
inline bool aligned(int64_t stride, int64_t size) { return stride * size % 16 == 0; }

// That of all keys and values; scales are read one by one.
inline bool aligned(const CacheSequence* sequences, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (!aligned(sequences[i].k) || !aligned(sequences[i].v)) return false;
  }
  return true;
}

inline int64_t bytes_of(DType dtype) { return dtype == DType::float32 ? 4 : dtype == DType::int8 ? 1 : 2; }

}  // namespace qvl::cuda

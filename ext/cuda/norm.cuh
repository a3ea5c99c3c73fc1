// What a normalisation and its gradient share.
#pragma once

#include "common.cuh"
#include "qvl/cuda/norm.h"

namespace qvl::cuda {

// Sums of several numbers at once, the same in all threads of a block of whole warps. `shared` has room for 32 floats
// for each number, and is used once in a kernel, or again only after a __syncthreads.
template <int K>
__device__ inline void sum_across_block(float (&x)[K], float* shared) {
#pragma unroll
  for (int k = 0; k < K; ++k) x[k] = across_warp(x[k], Sum());
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  if (warps == 1) return;
  if (lane_index() == 0) {
#pragma unroll
    for (int k = 0; k < K; ++k) shared[k * kWarp + warp_index()] = x[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < K; ++k) x[k] = across_warp(lane_index() < warps ? shared[k * kWarp + lane_index()] : 0.0f, Sum());
}

// f(j, element of the row) for each of the packs of N that are this thread's, up to kEach.
template <int N, int kEach, class F>
__device__ inline void each_pack(int packs, const F& f) {
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int pack = static_cast<int>(threadIdx.x) + j * static_cast<int>(blockDim.x);
    if (pack < packs) f(j, pack * N);
  }
}

// What a row is moved and multiplied by. `shift` is what the rounding of a large mean left behind.
struct Moments {
  float mean, shift, scale;

  __device__ float normal(float x) const { return (x - mean - shift) * scale; }
};

// From sums over x - mean, of it and of its squares; mean and rest are 0 for RMS.
__device__ inline Moments moments_of(float mean, float rest, float squares, int64_t width, float epsilon) {
  const float shift = rest / static_cast<float>(width);
  const float variance = squares / static_cast<float>(width) - shift * shift;
  return {mean, shift, 1.0f / sqrtf(fmaxf(variance, 0.0f) + epsilon)};
}

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// Threads of a block that share `packs` packs, `each` to a thread at most.
inline int64_t threads_for(int64_t packs, int64_t each) { return divided_up(divided_up(packs, each), kWarp) * kWarp; }

}  // namespace qvl::cuda

// What kernels are written with: element types, reductions, streaming loads, launches. Everything that is not plain CUDA
// C++ stands here or in mma.cuh, each with a twin for running without a GPU (see emulated/), and nowhere else.
//
// Kernels keep to what the twin knows: blocks of one to three dimensions; static and dynamic shared memory;
// __syncthreads, __syncwarp; __shfl_sync, __shfl_xor_sync, __shfl_down_sync, __ballot_sync, each by all 32 lanes of a
// warp; atomicAdd, atomicMax, atomicMin; __threadfence. A warp's lanes may part ways between two of these, not across.
#pragma once

#ifdef QVL_EMULATED
#include "emulated/copies.h"
#include "emulated/cuda.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

#include "qvl/cuda/common.h"

namespace qvl::cuda {

using bfloat16 = __nv_bfloat16;
using float16 = __half;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(float16 x) { return __half2float(x); }

template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline bfloat16 from_float<bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ inline float16 from_float<float16>(float x) {
  return __float2half_rn(x);
}

// N elements that are read and written as one: 16 bytes, or less where T is small.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};
// As many as a thread reads at once.
template <class T>
constexpr int kWide = 16 / static_cast<int>(sizeof(T));

// That what is read or written as one lies where a GPU can do so.
__device__ inline void require_aligned(const void* pointer, size_t size) {
#ifdef QVL_EMULATED
  emulated::require_aligned(pointer, size);
#endif
}

// The integer, or the vector of such, that is as large as a pack.
template <int bytes>
struct WordOf;
template <>
struct WordOf<1> { using Type = uint8_t; };
template <>
struct WordOf<2> { using Type = uint16_t; };
template <>
struct WordOf<4> { using Type = uint32_t; };
template <>
struct WordOf<8> { using Type = uint2; };
template <>
struct WordOf<16> { using Type = uint4; };

template <class T, int N>
__device__ inline Pack<T, N> load(const T* from) {
  require_aligned(from, sizeof(Pack<T, N>));
  const auto word = *reinterpret_cast<const typename WordOf<sizeof(Pack<T, N>)>::Type*>(from);
  Pack<T, N> x;
  memcpy(&x, &word, sizeof(x));
  return x;
}
template <class T, int N>
__device__ inline void store(T* to, const Pack<T, N>& x) {
  require_aligned(to, sizeof(x));
  typename WordOf<sizeof(x)>::Type word;
  memcpy(&word, &x, sizeof(x));
#ifndef QVL_EMULATED
  // Left to itself nvcc now and then takes a vector apart and stores its elements one by one.
  if constexpr (sizeof(x) == 16) {
    asm volatile("st.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(word.x), "r"(word.y), "r"(word.z), "r"(word.w) : "memory");
    return;
  } else if constexpr (sizeof(x) == 8) {
    asm volatile("st.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(word.x), "r"(word.y) : "memory");
    return;
  }
#endif
  *reinterpret_cast<decltype(word)*>(to) = word;
}
template <class T, int N>
__device__ inline Pack<T, N> packed(const float (&x)[N]) {
  Pack<T, N> made;
#pragma unroll
  for (int i = 0; i < N; ++i) made.at[i] = from_float<T>(x[i]);
  return made;
}
template <class T, int N>
__device__ inline void widened(const Pack<T, N>& x, float (&to)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) to[i] = to_float(x.at[i]);
}

// 16 bytes that are read once, as weights are: they need not stay in the first-level cache.
__device__ inline uint4 load_once(const void* from) {
#ifdef QVL_EMULATED
  require_aligned(from, 16);
  return *static_cast<const uint4*>(from);
#else
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(from));
  return x;
#endif
}

// 2**x and 1/x, to about 22 bits.
__device__ inline float exp2_fast(float x) {
#ifdef QVL_EMULATED
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}
__device__ inline float reciprocal_fast(float x) {
#ifdef QVL_EMULATED
  return 1.0f / x;
#else
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}
constexpr float kLog2e = 1.4426950408889634f;

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;
__device__ inline int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp_index() { return static_cast<int>(threadIdx.x) / kWarp; }

struct Sum {
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct Largest {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

// The same value in all lanes of a group of `width` neighbours.
template <class Op>
__device__ inline float across_warp(float x, Op op, int width = kWarp) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    if (step < width) x = op(x, __shfl_xor_sync(kAllLanes, x, step));
  }
  return x;
}

// The same value in all threads of a block of one dimension and whole warps. Every thread calls it; `shared` has room for
// a float for each warp, and may be used again after the next __syncthreads.
template <class Op>
__device__ inline float across_block(float x, Op op, float nothing, float* shared) {
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  x = across_warp(x, op);
  if (warps == 1) return x;
  __syncthreads();  // of an earlier use
  if (lane_index() == 0) shared[warp_index()] = x;
  __syncthreads();
  x = lane_index() < warps ? shared[lane_index()] : nothing;
  return across_warp(x, op);
}

// Dynamic shared memory of the block, aligned to 16 bytes.
__device__ inline unsigned char* shared_memory() {
#ifdef QVL_EMULATED
  return emulated::shared_memory();
#else
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
#endif
}

// 16 bytes from device to shared memory while the thread goes on. Copies since the last commit are a group;
// cp_async_wait<n> waits until no more than n groups of this thread are under way.
__device__ inline void cp_async16(void* to_shared, const void* from) {
#ifdef QVL_EMULATED
  emulated::copy_later(to_shared, from, 16, true);
#else
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(to_shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
#endif
}
// The same of 16 or 4 bytes that are set to zero where they are not `real`; `from` is to be an address even then.
template <int kBytes>
__device__ inline void cp_async_or_zero(void* to_shared, const void* from, bool real) {
  static_assert(kBytes == 16 || kBytes == 4, "what cp.async knows, but for 8");
#ifdef QVL_EMULATED
  emulated::copy_later(to_shared, from, kBytes, real);
#else
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(to_shared));
  const int bytes = real ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
  }
#endif
}
__device__ inline void cp_async_commit() {
#ifdef QVL_EMULATED
  emulated::commit_copies();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int groups>
__device__ inline void cp_async_wait() {
#ifdef QVL_EMULATED
  emulated::wait_for_copies(groups);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
#endif
}

constexpr int64_t divided_up(int64_t x, int64_t by) { return (x + by - 1) / by; }

// Keeps what the device said for qvl_cuda_error.
Status refused(const char* what);

// Puts a kernel on the stream. `shared`: bytes of dynamic shared memory, which may be more than 48 KiB.
template <class... Parameters, class... Arguments>
Status launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, int64_t shared, void* stream,
              const Arguments&... arguments) {
#ifdef QVL_EMULATED
  (void)stream;
  const bool done =
      emulated::run(grid, block, static_cast<size_t>(shared), [&] { kernel(static_cast<Parameters>(arguments)...); });
  return done ? Status::ok : refused(emulated::error());
#else
  if (shared > 48 * 1024) {
    const auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return refused(cudaGetErrorString(error));
  }
  kernel<<<grid, block, static_cast<size_t>(shared), static_cast<cudaStream_t>(stream)>>>(
      static_cast<Parameters>(arguments)...);
  const auto error = cudaGetLastError();
  return error == cudaSuccess ? Status::ok : refused(cudaGetErrorString(error));
#endif
}

// Multiprocessors of the current device: how many blocks it takes to keep it busy.
int multiprocessors();
// Bytes of shared memory that a block may have, static and dynamic together.
int64_t most_shared_memory();

// f(element of the C++ type), for the types that activations have.
template <class F>
Status with_type(DType dtype, const F& f) {
  switch (dtype) {
    case DType::float32: return f(float{});
    case DType::bfloat16: return f(bfloat16{});
    case DType::float16: return f(float16{});
    default: return Status::unsupported;
  }
}

}  // namespace qvl::cuda

// CUDA as far as kernels use it, on a CPU: for tests where no GPU is. block.cc runs the threads.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <type_traits>

#include "types.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __constant__ static const
// One copy that all threads of a block see, as they take turns on one thread of the CPU. Being thread-local puts all of
// them side by side, where block.cc finds them to fill them with garbage.
#define __shared__ static thread_local
#define __grid_constant__

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace emulated {

// Where in the source a thread waits. `what` is the name of the function called.
struct Site {
  const char* what;
  const char* file;
  int line;
};

using Body = void (*)(const void*);
// Runs body(context) for every thread of every block; false on misuse, which `error` describes.
bool run_blocks(dim3 grid, dim3 block, size_t shared, Body body, const void* context);
const char* error();
template <class F>
bool run(dim3 grid, dim3 block, size_t shared, const F& body) {
  return run_blocks(grid, block, shared, [](const void* f) { (*static_cast<const F*>(f))(); }, &body);
}

unsigned char* shared_memory();

inline uint64_t blocks_begun = 0;

// Ends the launch with this message; does not return.
[[noreturn]] void fail(const char* message, ...) __attribute__((format(printf, 1, 2)));

constexpr int kSlot = 64;  // bytes that a lane can give the others at once
struct Slot {
  alignas(16) unsigned char bytes[kSlot];
};
// Waits until all 32 lanes have come here, each with `bytes` bytes, and gives what each brought: the slots of 32 lanes,
// to be read before the next call.
const Slot* exchange(const void* mine, size_t bytes, unsigned mask, Site site);
// Waits for all threads of the block.
void wait_for_block(Site site);

inline int lane() {
  return static_cast<int>((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32);
}

template <class T>
T value_of(const Slot* slots, int lane) {
  T value;
  memcpy(&value, slots[lane].bytes, sizeof(T));
  return value;
}

// A pointer is a multiple of `size`, as the access that a GPU makes through it has to be.
inline void require_aligned(const void* pointer, size_t size) {
  if (reinterpret_cast<uintptr_t>(pointer) % size != 0) {
    fail("an access of %zu bytes at an address that is no multiple of %zu", size, size);
  }
}

// mma.sync.m16n8k16, fragments as mma.cuh has them: products are exact, sums float32 in the order of k.
template <class T>
void multiply_tiles(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                    Site site = {"multiply_tiles", __builtin_FILE(), __builtin_LINE()});

}  // namespace emulated

// As last parameters these take the caller's line.
#define QVL_CALLER const char *file = __builtin_FILE(), int line = __builtin_LINE()
inline void __syncthreads(QVL_CALLER) { emulated::wait_for_block({"__syncthreads", file, line}); }
inline void __syncwarp(unsigned mask = 0xffffffffu, QVL_CALLER) {
  emulated::exchange(nullptr, 0, mask, {"__syncwarp", file, line});
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __shfl_sync(unsigned mask, T x, int from, int width = 32, QVL_CALLER) {
  const auto* slots = emulated::exchange(&x, sizeof(T), mask, {"__shfl_sync", file, line});
  const int lane = emulated::lane();
  return emulated::value_of<T>(slots, (lane & ~(width - 1)) + (from & (width - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T x, int bits, int width = 32, QVL_CALLER) {
  const auto* slots = emulated::exchange(&x, sizeof(T), mask, {"__shfl_xor_sync", file, line});
  const int lane = emulated::lane(), from = lane ^ bits;
  // A higher group is out of reach, as in PTX.
  return from < (lane & ~(width - 1)) + width ? emulated::value_of<T>(slots, from) : x;
}
template <class T>
T __shfl_down_sync(unsigned mask, T x, unsigned by, int width = 32, QVL_CALLER) {
  const auto* slots = emulated::exchange(&x, sizeof(T), mask, {"__shfl_down_sync", file, line});
  const int lane = emulated::lane(), from = lane + static_cast<int>(by);
  return from < (lane & ~(width - 1)) + width ? emulated::value_of<T>(slots, from) : x;
}
template <class T>
T __shfl_up_sync(unsigned mask, T x, unsigned by, int width = 32, QVL_CALLER) {
  const auto* slots = emulated::exchange(&x, sizeof(T), mask, {"__shfl_up_sync", file, line});
  const int lane = emulated::lane(), from = lane - static_cast<int>(by);
  return from >= (lane & ~(width - 1)) ? emulated::value_of<T>(slots, from) : x;
}
inline unsigned __ballot_sync(unsigned mask, int predicate, QVL_CALLER) {
  const int set = predicate != 0;
  const auto* slots = emulated::exchange(&set, sizeof(set), mask, {"__ballot_sync", file, line});
  unsigned votes = 0;
  for (int i = 0; i < 32; ++i) votes |= static_cast<unsigned>(emulated::value_of<int>(slots, i)) << i;
  return votes;
}
inline int __any_sync(unsigned mask, int predicate, QVL_CALLER) {
  return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, QVL_CALLER) {
  return __ballot_sync(mask, predicate, file, line) == 0xffffffffu;
}
#undef QVL_CALLER

template <class T, class U>
T atomicAdd(T* at, U x) {
  static_assert(!std::is_floating_point_v<T>, "sums in an order that changes are not wanted here");
  const T old = *at;
  *at = old + static_cast<T>(x);
  return old;
}
template <class T, class U>
T atomicMax(T* at, U x) {
  const T old = *at;
  if (old < static_cast<T>(x)) *at = static_cast<T>(x);
  return old;
}
template <class T, class U>
T atomicMin(T* at, U x) {
  const T old = *at;
  if (static_cast<T>(x) < old) *at = static_cast<T>(x);
  return old;
}
template <class T, class U>
T atomicOr(T* at, U x) {
  const T old = *at;
  *at = old | static_cast<T>(x);
  return old;
}
template <class T, class U>
T atomicExch(T* at, U x) {
  const T old = *at;
  *at = static_cast<T>(x);
  return old;
}
template <class T, class U, class V>
T atomicCAS(T* at, U expected, V x) {
  const T old = *at;
  if (old == static_cast<T>(expected)) *at = static_cast<T>(x);
  return old;
}

template <class T>
T __ldg(const T* from) { return *from; }
template <class T>
T __ldcs(const T* from) { return *from; }
template <class T>
T __ldcg(const T* from) { return *from; }
template <class T>
void __stcs(T* to, T x) { *to = x; }
template <class T>
void __stcg(T* to, T x) { *to = x; }

inline float rsqrtf(float x) { return static_cast<float>(1.0 / sqrt(static_cast<double>(x))); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline int __float2int_rn(float x) { return static_cast<int>(nearbyintf(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; ++i) y |= (x >> i & 1u) << (31 - i);
  return y;
}
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
  return c;
}
// Bytes of the eight of y:x, as `selector` numbers them, four bits each; bit 3 asks for the sign.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t both = static_cast<uint64_t>(y) << 32 | x;
  unsigned made = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned pick = selector >> 4 * i & 15u;
    unsigned byte = static_cast<unsigned>(both >> 8 * (pick & 7u)) & 255u;
    if (pick & 8u) byte = byte & 128u ? 255u : 0u;
    made |= byte << 8 * i;
  }
  return made;
}

#define QVL_LEAST_AND_MOST(T)                               \
  inline T min(T a, T b) { return b < a ? b : a; }          \
  inline T max(T a, T b) { return a < b ? b : a; }
QVL_LEAST_AND_MOST(int)
QVL_LEAST_AND_MOST(unsigned)
QVL_LEAST_AND_MOST(long)
QVL_LEAST_AND_MOST(unsigned long)
QVL_LEAST_AND_MOST(long long)
QVL_LEAST_AND_MOST(unsigned long long)
#undef QVL_LEAST_AND_MOST
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }

namespace emulated {

inline float widened(__nv_bfloat16 x) { return __bfloat162float(x); }
inline float widened(__half x) { return __half2float(x); }

template <class T>
void multiply_tiles(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site) {
  // What a lane brings: its elements of A, then those of B, widened.
  struct Fragment {
    float a[8], b[4];
  };
  static_assert(sizeof(Fragment) <= kSlot, "fits");
  Fragment mine;
  for (int i = 0; i < 8; ++i) mine.a[i] = widened(T{static_cast<uint16_t>(a[i / 2] >> 16 * (i % 2))});
  for (int i = 0; i < 4; ++i) mine.b[i] = widened(T{static_cast<uint16_t>(b[i / 2] >> 16 * (i % 2))});
  const Slot* slots = exchange(&mine, sizeof(mine), 0xffffffffu, site);
  const int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int upper = i / 2, column = 2 * t + i % 2;  // row g + 8 upper of D
    for (int k = 0; k < 16; ++k) {
      const int owner = k % 8 / 2, high = k % 2, far = k / 8;
      const auto* left = reinterpret_cast<const Fragment*>(slots[g * 4 + owner].bytes);
      const auto* right = reinterpret_cast<const Fragment*>(slots[column * 4 + owner].bytes);
      d[i] += left->a[2 * (2 * far + upper) + high] * right->b[2 * far + high];
    }
  }
}

}  // namespace emulated

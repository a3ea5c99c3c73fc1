// Products of small tiles on the tensor cores (sm_80 and later), a warp at a time.
//
// d [16, 8] += a [16, 16] b [16, 8], in float32. Of lane l, with g = l / 4 and t = l % 4:
//   a[0] = A[g][2t, 2t+1], a[1] = A[g+8][2t, 2t+1], a[2] = A[g][2t+8, 2t+9], a[3] = A[g+8][2t+8, 2t+9]
//   b[0] = B[2t, 2t+1][g], b[1] = B[2t+8, 2t+9][g]
//   d[0] = D[g][2t], d[1] = D[g][2t+1], d[2] = D[g+8][2t], d[3] = D[g+8][2t+1]
// with the first of two elements in the low half of a register.
#pragma once

#include "common.cuh"

namespace qvl::cuda {

template <class T>
__device__ inline void multiply_tiles(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(sizeof(T) == 2, "bfloat16 or float16");
#ifdef QVL_EMULATED
  emulated::multiply_tiles<T>(d, a, b);
#else
  if constexpr (std::is_same_v<T, bfloat16>) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

// Two neighbours in one register, the first in the low half.
template <class T>
__device__ inline uint32_t two(T first, T second) {
  static_assert(sizeof(T) == 2, "bfloat16 or float16");
  const Pack<T, 2> both{{first, second}};
  uint32_t bits;
  memcpy(&bits, &both, 4);
  return bits;
}

// The sums of two pairs of neighbours, each rounded.
template <class T>
__device__ inline uint32_t add_two(uint32_t a, uint32_t b) {
  static_assert(sizeof(T) == 2, "bfloat16 or float16");
#ifdef QVL_EMULATED
  Pack<T, 2> left, right;
  memcpy(&left, &a, 4);
  memcpy(&right, &b, 4);
  return two(from_float<T>(to_float(left.at[0]) + to_float(right.at[0])),
             from_float<T>(to_float(left.at[1]) + to_float(right.at[1])));
#else
  std::conditional_t<std::is_same_v<T, bfloat16>, __nv_bfloat162, __half2> left, right;
  memcpy(&left, &a, 4);
  memcpy(&right, &b, 4);
  const auto sum = __hadd2(left, right);
  uint32_t bits;
  memcpy(&bits, &sum, 4);
  return bits;
#endif
}

// (x & mask) | bits, in one instruction: left to itself nvcc takes two.
__device__ inline uint32_t masked_or(uint32_t x, uint32_t mask, uint32_t bits) {
#ifdef QVL_EMULATED
  return (x & mask) | bits;
#else
  uint32_t y;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(y) : "r"(x), "r"(mask), "r"(bits));
  return y;
#endif
}

// The low halves of two registers, and the high ones: a pair of each of two rows makes two pairs along the column.
__device__ inline uint32_t low_halves(uint32_t first, uint32_t second) { return __byte_perm(first, second, 0x5410); }
__device__ inline uint32_t high_halves(uint32_t first, uint32_t second) { return __byte_perm(first, second, 0x7632); }

// The two int8 in bytes 0 and 2, exact as T: their bits go into the significand of a power of two, which is taken off.
template <class T>
__device__ inline uint32_t widened_codes(uint32_t bytes) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    // Seven bits on 128; for a negative code they are 128 more than the code, so that 256 has to go.
    return add_two<T>(masked_or(bytes, 0x007f007f, 0x43004300), masked_or(bytes, 0x00800080, 0xc300c300));
  } else {
    // All eight on 1024, the sign turned, which adds 128.
    return add_two<T>((bytes & 0x00ff00ff) ^ 0x64806480, 0xe480e480);
  }
}

}  // namespace qvl::cuda

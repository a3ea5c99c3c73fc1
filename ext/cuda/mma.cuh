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

}  // namespace qvl::cuda

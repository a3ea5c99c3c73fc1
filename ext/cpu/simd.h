// Vectors of float32 in the width of the level a file is compiled for, for code that is the same on all of them.
#pragma once

#include <stdint.h>
#include <string.h>

#include "qvl/common.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef QVL_LEVEL
#error "compile this for a level, see qvl/isa.h"
#endif

#define QVL_INLINE static inline __attribute__((always_inline))

namespace qvl {
namespace QVL_LEVEL {

// A bfloat16 is the upper half of a float32.
QVL_INLINE float widen(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

// Rounded to the nearest, ties to even; NaN stays NaN.
QVL_INLINE bf16 narrow(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}

#if defined(__AVX512F__)

constexpr int kLanes = 16;
using vf = __m512;
QVL_INLINE vf load(const float* p) { return _mm512_loadu_ps(p); }
QVL_INLINE vf load(const bf16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
QVL_INLINE void store(float* p, vf x) { _mm512_storeu_ps(p, x); }
QVL_INLINE vf broadcast(float x) { return _mm512_set1_ps(x); }
QVL_INLINE vf add(vf a, vf b) { return _mm512_add_ps(a, b); }
QVL_INLINE vf sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
QVL_INLINE vf mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
QVL_INLINE vf fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }  // a * b + c
QVL_INLINE vf max(vf a, vf b) { return _mm512_max_ps(a, b); }
QVL_INLINE vf min(vf a, vf b) { return _mm512_min_ps(a, b); }
QVL_INLINE vf abs(vf a) { return _mm512_abs_ps(a); }
QVL_INLINE float sum(vf a) { return _mm512_reduce_add_ps(a); }
QVL_INLINE float largest(vf a) { return _mm512_reduce_max_ps(a); }

#elif defined(__AVX2__)

constexpr int kLanes = 8;
using vf = __m256;
QVL_INLINE vf load(const float* p) { return _mm256_loadu_ps(p); }
QVL_INLINE vf load(const bf16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
QVL_INLINE void store(float* p, vf x) { _mm256_storeu_ps(p, x); }
QVL_INLINE vf broadcast(float x) { return _mm256_set1_ps(x); }
QVL_INLINE vf add(vf a, vf b) { return _mm256_add_ps(a, b); }
QVL_INLINE vf sub(vf a, vf b) { return _mm256_sub_ps(a, b); }
QVL_INLINE vf mul(vf a, vf b) { return _mm256_mul_ps(a, b); }
QVL_INLINE vf fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
QVL_INLINE vf max(vf a, vf b) { return _mm256_max_ps(a, b); }
QVL_INLINE vf min(vf a, vf b) { return _mm256_min_ps(a, b); }
QVL_INLINE vf abs(vf a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
QVL_INLINE float sum(vf a) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}
QVL_INLINE float largest(vf a) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}

#else  // four lanes in the compiler's own vectors: SSE2, NEON, or plain arithmetic

constexpr int kLanes = 4;
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
QVL_INLINE vf load(const float* p) {
  vf x;
  memcpy(&x, p, sizeof x);
  return x;
}
QVL_INLINE vf load(const bf16* p) { return vf{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}; }
QVL_INLINE void store(float* p, vf x) { memcpy(p, &x, sizeof x); }
QVL_INLINE vf broadcast(float x) { return vf{x, x, x, x}; }
QVL_INLINE vf add(vf a, vf b) { return a + b; }
QVL_INLINE vf sub(vf a, vf b) { return a - b; }
QVL_INLINE vf mul(vf a, vf b) { return a * b; }
QVL_INLINE vf fma(vf a, vf b, vf c) { return a * b + c; }
QVL_INLINE vf max(vf a, vf b) { return a > b ? a : b; }
QVL_INLINE vf min(vf a, vf b) { return a < b ? a : b; }
QVL_INLINE vf abs(vf a) { return max(a, -a); }
QVL_INLINE float sum(vf a) { return (a[0] + a[1]) + (a[2] + a[3]); }
QVL_INLINE float largest(vf a) {
  const float x = a[0] > a[1] ? a[0] : a[1], y = a[2] > a[3] ? a[2] : a[3];
  return x > y ? x : y;
}

#endif

QVL_INLINE vf zero() { return broadcast(0.0f); }

}  // namespace QVL_LEVEL
}  // namespace qvl

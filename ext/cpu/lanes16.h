// Sixteen lanes, the width of a panel of outputs, in one, two or more registers: what the linear kernels are made of.
// `Dot` is the level's way to add to each lane the product of four int8 weights and four int8 activations.
#pragma once

#include "simd.h"

namespace qvl {
namespace QVL_LEVEL {

#if defined(__AVX512F__)

struct F16 {
  __m512 v;
};
struct I16 {
  __m512i v;
};
QVL_INLINE F16 load16(const float* p) { return {_mm512_loadu_ps(p)}; }
QVL_INLINE void store16(float* p, F16 a) { _mm512_storeu_ps(p, a.v); }
QVL_INLINE F16 zero16() { return {_mm512_setzero_ps()}; }
QVL_INLINE F16 broadcast16(float x) { return {_mm512_set1_ps(x)}; }
QVL_INLINE F16 fma16(F16 a, F16 b, F16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
QVL_INLINE F16 minus_product16(F16 a, F16 b, F16 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a * b
QVL_INLINE F16 mul16(F16 a, F16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
QVL_INLINE F16 add16(F16 a, F16 b) { return {_mm512_add_ps(a.v, b.v)}; }
QVL_INLINE I16 izero16() { return {_mm512_setzero_si512()}; }
QVL_INLINE F16 to_float16(I16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
QVL_INLINE F16 load_half16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
QVL_INLINE F16 load_byte16(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
// 16 lanes of 2 bfloat16: the first ones and the second ones.
QVL_INLINE void load_pairs16(const bf16* p, F16& first, F16& second) {
  const __m512i both = _mm512_loadu_si512(p);
  first.v = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
  second.v = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000))));
}

QVL_INLINE __m512i four(const int8_t* x) {
  int32_t bits;
  memcpy(&bits, x, 4);
  return _mm512_set1_epi32(bits);
}

struct W8 {
  __m512i v;
#if !defined(__AVX512VNNI__)
  __m512i magnitude;
  __mmask64 negative;
#endif
};
struct W4 {
  __m512i low, high;
};
QVL_INLINE W4 load_w4(const void* p) {
  const __m512i mask = _mm512_set1_epi8(15), both = _mm512_loadu_si512(p);
  return {_mm512_and_si512(both, mask), _mm512_and_si512(_mm512_srli_epi16(both, 4), mask)};
}

#if defined(__AVX512VNNI__)
// The instruction wants one unsigned side: 128 is added to the weights, and taken back with the sum of activations.
constexpr float kOffset8 = 128.0f;
QVL_INLINE W8 load_w8(const void* p) { return {_mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128))}; }
QVL_INLINE I16 dot8(I16 acc, const W8& w, const int8_t* x) { return {_mm512_dpbusd_epi32(acc.v, w.v, four(x))}; }
QVL_INLINE I16 dot4(I16 acc, const W4& w, const int8_t* x) {
  return {_mm512_dpbusd_epi32(_mm512_dpbusd_epi32(acc.v, w.low, four(x)), w.high, four(x + 4))};
}
#else
constexpr float kOffset8 = 0.0f;
QVL_INLINE W8 load_w8(const void* p) {
  const __m512i w = _mm512_loadu_si512(p);
  return {w, _mm512_abs_epi8(w), _mm512_movepi8_mask(w)};
}
// No pair exceeds 2 * 128 * 127, so the 16-bit sums do not saturate.
QVL_INLINE I16 dot8(I16 acc, const W8& w, const int8_t* x) {
  const __m512i x4 = four(x), turned = _mm512_mask_sub_epi8(x4, w.negative, _mm512_setzero_si512(), x4);
  const __m512i pairs = _mm512_maddubs_epi16(w.magnitude, turned);
  return {_mm512_add_epi32(acc.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
}
QVL_INLINE I16 dot4(I16 acc, const W4& w, const int8_t* x) {
  const __m512i pairs =
      _mm512_add_epi16(_mm512_maddubs_epi16(w.low, four(x)), _mm512_maddubs_epi16(w.high, four(x + 4)));
  return {_mm512_add_epi32(acc.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
}
#endif

#elif defined(__AVX2__)

struct F16 {
  __m256 a, b;
};
struct I16 {
  __m256i a, b;
};
QVL_INLINE F16 load16(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
QVL_INLINE void store16(float* p, F16 x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
QVL_INLINE F16 zero16() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
QVL_INLINE F16 broadcast16(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
QVL_INLINE F16 fma16(F16 x, F16 y, F16 z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
QVL_INLINE F16 minus_product16(F16 x, F16 y, F16 z) {
  return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
QVL_INLINE F16 mul16(F16 x, F16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
QVL_INLINE F16 add16(F16 x, F16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
QVL_INLINE I16 izero16() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
QVL_INLINE F16 to_float16(I16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
QVL_INLINE F16 load_half16(const uint16_t* p) {
  const __m128i* halves = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
QVL_INLINE F16 load_byte16(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))};
}
QVL_INLINE void load_pairs16(const bf16* p, F16& first, F16& second) {
  const __m256i* halves = reinterpret_cast<const __m256i*>(p);
  const __m256i a = _mm256_loadu_si256(halves), b = _mm256_loadu_si256(halves + 1);
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  first = {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
  second = {_mm256_castsi256_ps(_mm256_and_si256(a, upper)), _mm256_castsi256_ps(_mm256_and_si256(b, upper))};
}

QVL_INLINE __m256i four(const int8_t* x) {
  int32_t bits;
  memcpy(&bits, x, 4);
  return _mm256_set1_epi32(bits);
}

struct W8 {
  __m256i a, b;
#if !defined(__AVXVNNI__)
  __m256i magnitude_a, magnitude_b;
#endif
};
struct W4 {
  __m256i low_a, low_b, high_a, high_b;
};
QVL_INLINE W4 load_w4(const void* p) {
  const __m256i* halves = static_cast<const __m256i*>(p);
  const __m256i a = _mm256_loadu_si256(halves), b = _mm256_loadu_si256(halves + 1), mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(a, mask), _mm256_and_si256(b, mask), _mm256_and_si256(_mm256_srli_epi16(a, 4), mask),
          _mm256_and_si256(_mm256_srli_epi16(b, 4), mask)};
}

#if defined(__AVXVNNI__)
constexpr float kOffset8 = 128.0f;
QVL_INLINE W8 load_w8(const void* p) {
  const __m256i* halves = static_cast<const __m256i*>(p);
  const __m256i offset = _mm256_set1_epi8(-128);
  return {_mm256_xor_si256(_mm256_loadu_si256(halves), offset),
          _mm256_xor_si256(_mm256_loadu_si256(halves + 1), offset)};
}
QVL_INLINE I16 dot8(I16 acc, const W8& w, const int8_t* x) {
  const __m256i x4 = four(x);
  return {_mm256_dpbusd_avx_epi32(acc.a, w.a, x4), _mm256_dpbusd_avx_epi32(acc.b, w.b, x4)};
}
QVL_INLINE I16 dot4(I16 acc, const W4& w, const int8_t* x) {
  const __m256i x4 = four(x), y4 = four(x + 4);
  return {_mm256_dpbusd_avx_epi32(_mm256_dpbusd_avx_epi32(acc.a, w.low_a, x4), w.high_a, y4),
          _mm256_dpbusd_avx_epi32(_mm256_dpbusd_avx_epi32(acc.b, w.low_b, x4), w.high_b, y4)};
}
#else
constexpr float kOffset8 = 0.0f;
QVL_INLINE W8 load_w8(const void* p) {
  const __m256i* halves = static_cast<const __m256i*>(p);
  const __m256i a = _mm256_loadu_si256(halves), b = _mm256_loadu_si256(halves + 1);
  return {a, b, _mm256_abs_epi8(a), _mm256_abs_epi8(b)};
}
// No pair exceeds 2 * 128 * 127, so the 16-bit sums do not saturate.
QVL_INLINE I16 dot8(I16 acc, const W8& w, const int8_t* x) {
  const __m256i x4 = four(x), ones = _mm256_set1_epi16(1);
  const __m256i a = _mm256_maddubs_epi16(w.magnitude_a, _mm256_sign_epi8(x4, w.a));
  const __m256i b = _mm256_maddubs_epi16(w.magnitude_b, _mm256_sign_epi8(x4, w.b));
  return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(a, ones)), _mm256_add_epi32(acc.b, _mm256_madd_epi16(b, ones))};
}
QVL_INLINE I16 dot4(I16 acc, const W4& w, const int8_t* x) {
  const __m256i x4 = four(x), y4 = four(x + 4), ones = _mm256_set1_epi16(1);
  const __m256i a = _mm256_add_epi16(_mm256_maddubs_epi16(w.low_a, x4), _mm256_maddubs_epi16(w.high_a, y4));
  const __m256i b = _mm256_add_epi16(_mm256_maddubs_epi16(w.low_b, x4), _mm256_maddubs_epi16(w.high_b, y4));
  return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(a, ones)), _mm256_add_epi32(acc.b, _mm256_madd_epi16(b, ones))};
}
#endif

#else
#include "lanes16_portable.h"
#endif

}  // namespace QVL_LEVEL
}  // namespace qvl

// More of simd.h: parts of vectors, int8 storage, exponentials.
#pragma once

#include "simd.h"

namespace qvl {
namespace QVL_LEVEL {

#if defined(__AVX512F__)

constexpr int kRegisters = 32;
QVL_INLINE vf load(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
QVL_INLINE vf load_some(const float* p, int n) { return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p); }
QVL_INLINE void store_some(float* p, vf a, int n) { _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), a); }
// Ties to even; for values below 2**22.
QVL_INLINE vf nearest(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
QVL_INLINE vf divide(vf a, vf b) { return _mm512_div_ps(a, b); }
// The first n lanes, the rest 0.
QVL_INLINE vf masked(vf a, int n) { return _mm512_maskz_mov_ps(static_cast<__mmask16>((1u << n) - 1), a); }
// a * 2**n for whole n in -127 .. 127; at -127 the result is 0.
QVL_INLINE vf scale_by_power(vf a, vf n) {
  const __m512i bits = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
  return _mm512_mul_ps(a, _mm512_castsi512_ps(bits));
}
QVL_INLINE void store(bf16* p, vf a) {
  const __m512i bits = _mm512_castps_si512(a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  const __m512i kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
}
QVL_INLINE void store(int8_t* p, vf a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a)));
}
// The sums of four vectors, to p[0 .. 3].
QVL_INLINE void store_sums(float* p, vf a, vf b, vf c, vf d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

#elif defined(__AVX2__)

constexpr int kRegisters = 16;
QVL_INLINE vf load(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
QVL_INLINE __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
QVL_INLINE vf load_some(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
QVL_INLINE void store_some(float* p, vf a, int n) { _mm256_maskstore_ps(p, first_lanes(n), a); }
QVL_INLINE vf nearest(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
QVL_INLINE vf divide(vf a, vf b) { return _mm256_div_ps(a, b); }
QVL_INLINE vf masked(vf a, int n) { return _mm256_and_ps(a, _mm256_castsi256_ps(first_lanes(n))); }
QVL_INLINE vf scale_by_power(vf a, vf n) {
  const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(a, _mm256_castsi256_ps(bits));
}
QVL_INLINE void store(bf16* p, vf a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  const __m256i kept = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(kept, kept), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}
QVL_INLINE void store(int8_t* p, vf a) {
  const __m256i whole = _mm256_cvtps_epi32(a);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
QVL_INLINE void store_sums(float* p, vf a, vf b, vf c, vf d) {
  const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  const __m256 all = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
  _mm_storeu_ps(p, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}

#else

#if defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif
QVL_INLINE vf load(const int8_t* p) {
  return vf{static_cast<float>(p[0]), static_cast<float>(p[1]), static_cast<float>(p[2]), static_cast<float>(p[3])};
}
QVL_INLINE vf load_some(const float* p, int n) {
  vf a = zero();
  for (int i = 0; i < n; ++i) a[i] = p[i];
  return a;
}
QVL_INLINE void store_some(float* p, vf a, int n) {
  for (int i = 0; i < n; ++i) p[i] = a[i];
}
// By the addition that leaves no bits behind the point.
QVL_INLINE vf nearest(vf a) { return (a + 12582912.0f) - 12582912.0f; }
QVL_INLINE vf divide(vf a, vf b) { return a / b; }
QVL_INLINE vf masked(vf a, int n) {
  for (int i = n; i < 4; ++i) a[i] = 0.0f;
  return a;
}
QVL_INLINE vf scale_by_power(vf a, vf n) {
  const vi bits = (__builtin_convertvector(n, vi) + 127) << 23;
  return a * reinterpret_cast<vf>(bits);
}
QVL_INLINE void store(bf16* p, vf a) {
  for (int i = 0; i < 4; ++i) p[i] = narrow(a[i]);
}
QVL_INLINE void store(int8_t* p, vf a) {
  const vf whole = nearest(a);
  for (int i = 0; i < 4; ++i) p[i] = static_cast<int8_t>(whole[i]);
}
QVL_INLINE void store_sums(float* p, vf a, vf b, vf c, vf d) { p[0] = sum(a), p[1] = sum(b), p[2] = sum(c), p[3] = sum(d); }

#endif

// The first n elements of any storage type, the rest 0; and into the first n.
template <typename T>
QVL_INLINE vf load_some(const T* p, int n) {
  T whole[kLanes] = {};
  for (int i = 0; i < n; ++i) whole[i] = p[i];
  return load(whole);
}
template <typename T>
QVL_INLINE void store_some(T* p, vf a, int n) {
  T whole[kLanes];
  store(whole, a);
  for (int i = 0; i < n; ++i) p[i] = whole[i];
}

// e**f and 2**f for small f (half a power of two to each side), to 2e-9 before rounding.
QVL_INLINE vf exp_near_zero(vf f) {
  vf y = broadcast(0.0013829420786350965f);
  y = fma(y, f, broadcast(0.008374771103262901f));
  y = fma(y, f, broadcast(0.0416683591902256f));
  y = fma(y, f, broadcast(0.1666642129421234f));
  y = fma(y, f, broadcast(0.49999991059303284f));
  y = fma(y, f, broadcast(1.0f));
  return fma(y, f, broadcast(1.0f));
}
QVL_INLINE vf exp2_near_zero(vf f) {
  vf y = broadcast(0.00015337577497120947f);
  y = fma(y, f, broadcast(0.0013399859890341759f));
  y = fma(y, f, broadcast(0.009618519805371761f));
  y = fma(y, f, broadcast(0.05550329014658928f));
  y = fma(y, f, broadcast(0.24022646248340607f));
  y = fma(y, f, broadcast(0.6931471824645996f));
  return fma(y, f, broadcast(1.0f));
}

// e**x; 0 below -88, and above 88 the value there. A NaN stays one, which is why the limits come first.
QVL_INLINE vf exp(vf x) {
  x = min(broadcast(88.02f), max(broadcast(-88.02f), x));
  const vf n = nearest(mul(x, broadcast(1.44269504f)));
  // ln 2 in two parts, of which the first times n is exact.
  const vf f = fma(n, broadcast(2.12194440e-4f), fma(n, broadcast(-0.693359375f), x));
  return scale_by_power(exp_near_zero(f), n);
}

// 2**x for x up to 127; 0 below -126.5, so also at minus infinity. A NaN stays one.
QVL_INLINE vf exp2(vf x) {
  x = max(broadcast(-127.0f), x);
  const vf n = nearest(x);
  return scale_by_power(exp2_near_zero(sub(x, n)), n);
}

// x / (1 + e**(-slope x))
QVL_INLINE vf gated(vf x, float slope) {
  const vf one = broadcast(1.0f);
  return divide(x, add(one, exp(mul(x, broadcast(-slope)))));
}

// f(i, n) for each vector of `count` elements: n elements from i on, fewer than kLanes only in the last.
template <typename F>
QVL_INLINE void each_vector(int64_t count, const F& f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) f(i, kLanes);
  if (i < count) f(i, static_cast<int>(count - i));
}
// The same with whole vectors where they are whole, which the two functions below make cheap.
template <typename T>
QVL_INLINE vf load_up_to(const T* p, int n) {
  return n == kLanes ? load(p) : load_some(p, n);
}
template <typename T>
QVL_INLINE void store_up_to(T* p, vf a, int n) {
  n == kLanes ? store(p, a) : store_some(p, a, n);
}

QVL_INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
QVL_INLINE int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
QVL_INLINE void clear(float* p, int64_t n) { memset(p, 0, sizeof(float) * static_cast<size_t>(n)); }

}  // namespace QVL_LEVEL
}  // namespace qvl

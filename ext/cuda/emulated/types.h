// Vectors and 16-bit floats as CUDA has them, for a C++ compiler.
#pragma once

#include <stdint.h>
#include <string.h>

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
  unsigned x, y, z;
};

#define QVL_VECTORS(name, element)                                                                         \
  struct alignas(2 * sizeof(element)) name##2 {                                                            \
    element x, y;                                                                                          \
  };                                                                                                       \
  struct alignas(4 * sizeof(element) > 16 ? 16 : 4 * sizeof(element)) name##4 {                            \
    element x, y, z, w;                                                                                    \
  };                                                                                                       \
  inline name##2 make_##name##2(element x, element y) { return {x, y}; }                                   \
  inline name##4 make_##name##4(element x, element y, element z, element w) { return {x, y, z, w}; }
QVL_VECTORS(char, signed char)
QVL_VECTORS(uchar, unsigned char)
QVL_VECTORS(short, short)
QVL_VECTORS(ushort, unsigned short)
QVL_VECTORS(int, int)
QVL_VECTORS(uint, unsigned)
QVL_VECTORS(float, float)
QVL_VECTORS(longlong, long long)
QVL_VECTORS(double, double)
#undef QVL_VECTORS

namespace emulated {
template <class To, class From>
inline To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "of one size");
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}
}  // namespace emulated

inline float __uint_as_float(unsigned x) { return emulated::same_bits<float>(x); }
inline float __int_as_float(int x) { return emulated::same_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return emulated::same_bits<unsigned>(x); }
inline int __float_as_int(float x) { return emulated::same_bits<int>(x); }
inline long long __double_as_longlong(double x) { return emulated::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulated::same_bits<double>(x); }

struct alignas(2) __nv_bfloat16 {
  uint16_t bits;
};
struct alignas(2) __half {
  uint16_t bits;
};
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short x) { return {x}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __half __ushort_as_half(unsigned short x) { return {x}; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }

inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) {
  const uint32_t bits = __float_as_uint(x);
  if (x != x) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline float __half2float(__half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  if (rest >= 0x7c00) return __uint_as_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  // As if the exponent had float's bias, then put right by an exact product, which serves subnormals too.
  const float size = __uint_as_float(rest << 13) * 0x1p112f;
  return __uint_as_float(sign | __float_as_uint(size));
}
inline __half __float2half_rn(float x) {
  const uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return {0x7fff};
  if (rest >= 0x477ff000) return {static_cast<uint16_t>(sign | 0x7c00)};  // 65520 and more: infinity
  if (rest < 0x38800000) {
    // Subnormal: the sum has the last place of a subnormal, 2**-24, and is rounded to it.
    const float sum = __uint_as_float(rest) + 0.5f;
    return {static_cast<uint16_t>(sign | (__float_as_uint(sum) - 0x3f000000))};
  }
  return {static_cast<uint16_t>(sign | ((rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13))};
}

// The part of lanes16.h for CPUs without AVX2; included there, within the namespace of the level.
struct F16 {
  vf v[4];
};
struct I16 {
  vi v[4];
};
#define QVL_EACH for (int i = 0; i < 4; ++i)
QVL_INLINE F16 load16(const float* p) {
  F16 r;
  QVL_EACH r.v[i] = load(p + 4 * i);
  return r;
}
QVL_INLINE void store16(float* p, F16 a) { QVL_EACH store(p + 4 * i, a.v[i]); }
QVL_INLINE F16 broadcast16(float x) {
  F16 r;
  QVL_EACH r.v[i] = broadcast(x);
  return r;
}
QVL_INLINE F16 zero16() { return broadcast16(0.0f); }
QVL_INLINE F16 fma16(F16 a, F16 b, F16 c) {
  QVL_EACH c.v[i] += a.v[i] * b.v[i];
  return c;
}
QVL_INLINE F16 minus_product16(F16 a, F16 b, F16 c) {
  QVL_EACH c.v[i] -= a.v[i] * b.v[i];
  return c;
}
QVL_INLINE F16 mul16(F16 a, F16 b) {
  QVL_EACH a.v[i] *= b.v[i];
  return a;
}
QVL_INLINE F16 add16(F16 a, F16 b) {
  QVL_EACH a.v[i] += b.v[i];
  return a;
}
QVL_INLINE I16 izero16() {
  I16 r;
  QVL_EACH r.v[i] = vi{0, 0, 0, 0};
  return r;
}
QVL_INLINE F16 to_float16(I16 a) {
  F16 r;
  QVL_EACH r.v[i] = vf{float(a.v[i][0]), float(a.v[i][1]), float(a.v[i][2]), float(a.v[i][3])};
  return r;
}
QVL_INLINE F16 load_half16(const uint16_t* p) {
  float values[16];
  for (int i = 0; i < 16; ++i) values[i] = ::qvl::half_to_float(p[i]);
  return load16(values);
}
QVL_INLINE F16 load_byte16(const uint8_t* p) {
  float values[16];
  for (int i = 0; i < 16; ++i) values[i] = p[i];
  return load16(values);
}
QVL_INLINE void load_pairs16(const bf16* p, F16& first, F16& second) {
  QVL_EACH {
    vi both;
    memcpy(&both, p + 8 * i, 16);
    const vi low = both << 16, high = both & static_cast<int32_t>(0xffff0000);
    memcpy(&first.v[i], &low, 16);
    memcpy(&second.v[i], &high, 16);
  }
}

constexpr float kOffset8 = 0.0f;
#if defined(__SSE2__)
struct W8 {  // the 1st and 3rd of each four weights, and the 2nd and 4th, as 16-bit numbers
  __m128i even[4], odd[4];
};
struct W4 {
  W8 low, high;
};
QVL_INLINE W8 spread(const __m128i* w) {
  W8 r;
  QVL_EACH {
    r.even[i] = _mm_srai_epi16(_mm_slli_epi16(w[i], 8), 8);
    r.odd[i] = _mm_srai_epi16(w[i], 8);
  }
  return r;
}
QVL_INLINE W8 load_w8(const void* p) {
  __m128i w[4];
  QVL_EACH w[i] = _mm_loadu_si128(static_cast<const __m128i*>(p) + i);
  return spread(w);
}
QVL_INLINE W4 load_w4(const void* p) {
  __m128i low[4], high[4];
  const __m128i mask = _mm_set1_epi8(15);
  QVL_EACH {
    const __m128i both = _mm_loadu_si128(static_cast<const __m128i*>(p) + i);
    low[i] = _mm_and_si128(both, mask);
    high[i] = _mm_and_si128(_mm_srli_epi16(both, 4), mask);
  }
  return {spread(low), spread(high)};
}
QVL_INLINE I16 dot8(I16 acc, const W8& w, const int8_t* x) {
  const __m128i even = _mm_set1_epi32(static_cast<int32_t>(static_cast<uint32_t>(x[2]) << 16 | (x[0] & 0xffff)));
  const __m128i odd = _mm_set1_epi32(static_cast<int32_t>(static_cast<uint32_t>(x[3]) << 16 | (x[1] & 0xffff)));
  QVL_EACH {
    const __m128i sum = _mm_add_epi32(_mm_madd_epi16(w.even[i], even), _mm_madd_epi16(w.odd[i], odd));
    acc.v[i] += reinterpret_cast<const vi&>(sum);
  }
  return acc;
}
#else
struct W8 {
  int8_t v[64];
};
struct W4 {
  W8 low, high;
};
QVL_INLINE W8 load_w8(const void* p) {
  W8 r;
  memcpy(r.v, p, 64);
  return r;
}
QVL_INLINE W4 load_w4(const void* p) {
  const uint8_t* bytes = static_cast<const uint8_t*>(p);
  W4 r;
  for (int i = 0; i < 64; ++i) {
    r.low.v[i] = bytes[i] & 15;
    r.high.v[i] = bytes[i] >> 4;
  }
  return r;
}
QVL_INLINE I16 dot8(I16 acc, const W8& w, const int8_t* x) {
  for (int i = 0; i < 16; ++i) {
    int32_t sum = 0;
    for (int j = 0; j < 4; ++j) sum += w.v[4 * i + j] * x[j];
    acc.v[i / 4][i % 4] += sum;
  }
  return acc;
}
#endif
QVL_INLINE I16 dot4(I16 acc, const W4& w, const int8_t* x) { return dot8(dot8(acc, w.low, x), w.high, x + 4); }
#undef QVL_EACH

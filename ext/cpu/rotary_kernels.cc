// levels: portable avx2 avx512
// The arithmetic of rotary_store for one level.
#include "lanes.h"
#include "rotary_kernels.h"

namespace qvl {
namespace QVL_LEVEL {

static inline vf biased(const float* x, const float* bias, int64_t i, int n) {
  const vf value = load_up_to(x + i, n);
  return bias ? add(value, load_up_to(bias + i, n)) : value;
}

// One head, turned, to float32.
static inline void turn(const float* x, const float* bias, const float* cos, const float* sin, int64_t dim, float* to) {
  const int64_t half = dim / 2;
  const float* second_bias = bias ? bias + half : nullptr;
  each_vector(half, [&](int64_t i, int n) {
    const vf c = load_up_to(cos + i, n), s = load_up_to(sin + i, n);
    const vf first = biased(x, bias, i, n), second = biased(x + half, second_bias, i, n);
    store_up_to(to + i, sub(mul(first, c), mul(second, s)), n);
    store_up_to(to + half + i, fma(second, c, mul(first, s)), n);
  });
}

static inline void keep(const float* x, int64_t dim, float* to, float*) {
  memcpy(to, x, sizeof(float) * static_cast<size_t>(dim));
}
static inline void keep(const float* x, int64_t dim, bf16* to, float*) {
  each_vector(dim, [&](int64_t i, int n) { store_up_to(to + i, load_up_to(x + i, n), n); });
}
static inline void keep(const float* x, int64_t dim, int8_t* to, float* scale) {
  // The difference of a number and itself is 0, and of what is none or infinite no number: it is to spoil the head, whose
  // codes could not hold it, and not to pass for some number.
  vf most = zero(), odd = zero();
  each_vector(dim, [&](int64_t i, int n) {
    const vf value = load_up_to(x + i, n);
    most = max(most, abs(value));
    odd = add(odd, sub(value, value));
  });
  *scale = largest(most) / 127.0f + sum(odd);
  if (*scale != *scale) {
    memset(to, 0, static_cast<size_t>(dim));
    return;
  }
  const vf inverse = broadcast(*scale > 0.0f ? 1.0f / *scale : 0.0f);
  each_vector(dim, [&](int64_t i, int n) { store_up_to(to + i, mul(load_up_to(x + i, n), inverse), n); });
}

template <typename T>
static void store_row(const RotaryParams& p, int64_t row, const RotaryTarget& target, int64_t token) {
  const int64_t dim = p.dim;
  const float *cos = p.cos + row * (dim / 2), *sin = p.sin + row * (dim / 2);
  alignas(64) float turned[kMostRotaryDim];
  for (int64_t h = 0; h < p.kv_heads; ++h) {
    const int64_t at = h * dim, place = (token * p.kv_heads + h) * dim, scale = token * p.kv_heads + h;
    turn(p.k + row * p.k_stride + at, p.k_bias ? p.k_bias + at : nullptr, cos, sin, dim, turned);
    keep(turned, dim, static_cast<T*>(target.k) + place, target.k_scale + scale);
    const float* v = p.v + row * p.v_stride + at;
    if (p.v_bias) {
      each_vector(dim, [&](int64_t i, int n) { store_up_to(turned + i, biased(v, p.v_bias + at, i, n), n); });
      v = turned;
    }
    keep(v, dim, static_cast<T*>(target.v) + place, target.v_scale + scale);
  }
  for (int64_t h = 0; h < p.heads; ++h) {
    const int64_t at = h * dim;
    turn(p.q + row * p.q_stride + at, p.q_bias ? p.q_bias + at : nullptr, cos, sin, dim,
         p.q_out + row * p.heads * dim + at);
  }
}

static void store_any(const RotaryParams& p, int64_t row, const RotaryTarget& target, int64_t token) {
  if (p.storage == DType::float32) return store_row<float>(p, row, target, token);
  if (p.storage == DType::bfloat16) return store_row<bf16>(p, row, target, token);
  store_row<int8_t>(p, row, target, token);
}

extern const RotaryKernels rotary_kernels;
const RotaryKernels rotary_kernels = {store_any};

}  // namespace QVL_LEVEL
}  // namespace qvl

// levels: portable avx2 avx512
// The arithmetic of RMS and layer normalisation and their gradients for one level. A row stays in the first cache between its passes.
#include <math.h>

#include "lanes.h"
#include "norm_kernels.h"

namespace qvl {
namespace QVL_LEVEL {

// The row to normalise: x itself, or x + delta, written to `sum` on the way. f(part) sees each vector of it.
template <typename F>
static inline const float* each_of_row(const NormParams& p, int64_t row, const F& f) {
  const float* x = p.x + row * p.width;
  if (!p.delta) {
    each_vector(p.width, [&](int64_t i, int n) { f(load_up_to(x + i, n), n); });
    return x;
  }
  const float* delta = p.delta + row * p.width;
  float* sum = p.sum + row * p.width;
  each_vector(p.width, [&](int64_t i, int n) {
    const vf both = add(load_up_to(x + i, n), load_up_to(delta + i, n));
    store_up_to(sum + i, both, n);
    f(both, n);
  });
  return sum;
}

static void rms(const NormParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    vf squares = zero();
    const float* x = each_of_row(p, row, [&](vf a, int) { squares = fma(a, a, squares); });
    const vf scale = broadcast(1.0f / sqrtf(sum(squares) / static_cast<float>(p.width) + p.epsilon));
    float* out = p.out + row * p.width;
    each_vector(p.width, [&](int64_t i, int n) {
      store_up_to(out + i, mul(mul(load_up_to(x + i, n), scale), load_up_to(p.weight + i, n)), n);
    });
  }
}

// What a row is moved and multiplied by so that its mean is 0 and its variance 1.
struct Moments {
  vf mean, shift, scale;  // of which `shift` is what the rounding of a large mean left behind
};

static inline Moments moments_of(const float* x, int64_t size, float total, float epsilon) {
  const float width = static_cast<float>(size);
  const vf mean = broadcast(total / width);
  vf squares = zero(), rest = zero();
  each_vector(size, [&](int64_t i, int n) {
    // The lanes behind a row's end must not count as elements of -mean.
    const vf apart = sub(load_up_to(x + i, n), n == kLanes ? mean : masked(mean, n));
    squares = fma(apart, apart, squares);
    rest = add(rest, apart);
  });
  const float shift = sum(rest) / width;
  const float variance = sum(squares) / width - shift * shift;
  return {mean, broadcast(shift), broadcast(1.0f / sqrtf((variance > 0.0f ? variance : 0.0f) + epsilon))};
}

static inline vf normal_of(vf x, const Moments& m) { return mul(sub(sub(x, m.mean), m.shift), m.scale); }

static void layer(const NormParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    vf total = zero();
    const float* x = each_of_row(p, row, [&](vf a, int) { total = add(total, a); });
    const Moments moments = moments_of(x, p.width, sum(total), p.epsilon);
    float* out = p.out + row * p.width;
    each_vector(p.width, [&](int64_t i, int n) {
      const vf normal = normal_of(load_up_to(x + i, n), moments);
      store_up_to(out + i, fma(normal, load_up_to(p.weight + i, n), load_up_to(p.bias + i, n)), n);
    });
  }
}

static inline void increase(float* to, vf by, int n) { store_up_to(to, add(load_up_to(to, n), by), n); }

// With g = grad_out * weight and y = x * scale: grad_x = scale * (g - y * mean(g * y)).
static void rms_grad(const NormGradParams& p, int64_t begin, int64_t end, float* to_weight, float*) {
  const float width = static_cast<float>(p.width);
  if (to_weight) clear(to_weight, p.width);
  for (int64_t row = begin; row < end; ++row) {
    const float *x = p.x + row * p.width, *grad = p.grad_out + row * p.width;
    vf squares = zero(), along = zero();
    each_vector(p.width, [&](int64_t i, int n) {
      const vf a = load_up_to(x + i, n), g = mul(load_up_to(grad + i, n), load_up_to(p.weight + i, n));
      squares = fma(a, a, squares);
      along = fma(a, g, along);
    });
    const float root = 1.0f / sqrtf(sum(squares) / width + p.epsilon);
    const vf scale = broadcast(root), pull = broadcast(sum(along) * root / width);
    const float* more = p.grad_sum ? p.grad_sum + row * p.width : nullptr;
    each_vector(p.width, [&](int64_t i, int n) {
      const vf y = mul(load_up_to(x + i, n), scale), g = load_up_to(grad + i, n);
      if (to_weight) increase(to_weight + i, mul(g, y), n);
      if (!p.grad_x) return;
      const vf to = mul(scale, sub(mul(g, load_up_to(p.weight + i, n)), mul(y, pull)));
      store_up_to(p.grad_x + row * p.width + i, more ? add(to, load_up_to(more + i, n)) : to, n);
    });
  }
}

// With g = grad_out * weight and y the normal row: grad_x = scale * (g - mean(g) - y * mean(g * y)).
static void layer_grad(const NormGradParams& p, int64_t begin, int64_t end, float* to_weight, float* to_bias) {
  const float width = static_cast<float>(p.width);
  if (to_weight) clear(to_weight, p.width);
  if (to_bias) clear(to_bias, p.width);
  for (int64_t row = begin; row < end; ++row) {
    const float *x = p.x + row * p.width, *grad = p.grad_out + row * p.width;
    vf total = zero(), level = zero(), along = zero();
    each_vector(p.width, [&](int64_t i, int n) { total = add(total, load_up_to(x + i, n)); });
    const Moments moments = moments_of(x, p.width, sum(total), p.epsilon);
    each_vector(p.width, [&](int64_t i, int n) {
      const vf g = mul(load_up_to(grad + i, n), load_up_to(p.weight + i, n));
      level = add(level, g);
      along = fma(g, normal_of(load_up_to(x + i, n), moments), along);
    });
    const vf mean = broadcast(sum(level) / width), pull = broadcast(sum(along) / width);
    const float* more = p.grad_sum ? p.grad_sum + row * p.width : nullptr;
    each_vector(p.width, [&](int64_t i, int n) {
      const vf y = normal_of(load_up_to(x + i, n), moments), g = load_up_to(grad + i, n);
      if (to_weight) increase(to_weight + i, mul(g, y), n);
      if (to_bias) increase(to_bias + i, g, n);
      if (!p.grad_x) return;
      const vf to = mul(moments.scale, sub(sub(mul(g, load_up_to(p.weight + i, n)), mean), mul(y, pull)));
      store_up_to(p.grad_x + row * p.width + i, more ? add(to, load_up_to(more + i, n)) : to, n);
    });
  }
}

static void columns(const ColumnParams& p, int64_t begin, int64_t end, float* to) {
  clear(to, p.width);
  for (int64_t row = begin; row < end; ++row)
    each_vector(p.width, [&](int64_t i, int n) { increase(to + i, load_up_to(p.x + row * p.width + i, n), n); });
}

extern const NormKernels norm_kernels;
const NormKernels norm_kernels = {rms, layer, rms_grad, layer_grad, columns};

}  // namespace QVL_LEVEL
}  // namespace qvl

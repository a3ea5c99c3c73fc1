// levels: portable avx2 avx512
// The arithmetic of RMS and layer normalisation for one level. A row stays in the first cache between its passes.
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

static void layer(const NormParams& p, int64_t begin, int64_t end) {
  const float width = static_cast<float>(p.width);
  for (int64_t row = begin; row < end; ++row) {
    vf total = zero();
    const float* x = each_of_row(p, row, [&](vf a, int) { total = add(total, a); });
    const vf mean = broadcast(sum(total) / width);
    vf squares = zero(), rest = zero();
    each_vector(p.width, [&](int64_t i, int n) {
      // The lanes behind a row's end must not count as elements of -mean.
      const vf apart = sub(load_up_to(x + i, n), n == kLanes ? mean : masked(mean, n));
      squares = fma(apart, apart, squares);
      rest = add(rest, apart);
    });
    // What the rounding of a large mean left behind.
    const float shift = sum(rest) / width;
    const float variance = sum(squares) / width - shift * shift;
    const vf scale = broadcast(1.0f / sqrtf((variance > 0.0f ? variance : 0.0f) + p.epsilon));
    float* out = p.out + row * p.width;
    each_vector(p.width, [&](int64_t i, int n) {
      const vf normal = mul(sub(sub(load_up_to(x + i, n), mean), broadcast(shift)), scale);
      store_up_to(out + i, fma(normal, load_up_to(p.weight + i, n), load_up_to(p.bias + i, n)), n);
    });
  }
}

extern const NormKernels norm_kernels;
const NormKernels norm_kernels = {rms, layer};

}  // namespace QVL_LEVEL
}  // namespace qvl

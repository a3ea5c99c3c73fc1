// levels: portable avx2 avx512
// The arithmetic of the gates for one level.
#include "activation_kernels.h"
#include "lanes.h"

namespace qvl {
namespace QVL_LEVEL {

static void swiglu(const ActivationParams& p, int64_t row, int64_t begin, int64_t end) {
  const float* x = p.x + row * p.x_stride + begin;
  const float* up = p.up + row * p.up_stride + begin;
  float* out = p.out + row * p.width + begin;
  each_vector(end - begin, [&](int64_t i, int n) {
    store_up_to(out + i, mul(gated(load_up_to(x + i, n), 1.0f), load_up_to(up + i, n)), n);
  });
}

static void quick_gelu(const ActivationParams& p, int64_t row, int64_t begin, int64_t end) {
  const float* x = p.x + row * p.x_stride + begin;
  float* out = p.out + row * p.width + begin;
  each_vector(end - begin, [&](int64_t i, int n) { store_up_to(out + i, gated(load_up_to(x + i, n), 1.702f), n); });
}

extern const ActivationKernels activation_kernels;
const ActivationKernels activation_kernels = {swiglu, quick_gelu};

}  // namespace QVL_LEVEL
}  // namespace qvl

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

// The derivative of x * sigmoid(slope x) from x and the sigmoid. Beyond 100 to either side one of the sigmoid and what is
// left of it to 1 is as good as 0; the limits keep what it is multiplied by from mattering.
static inline vf gated_slope(vf x, vf sigmoid, float slope) {
  const vf scaled = min(broadcast(100.0f), max(broadcast(-100.0f), mul(x, broadcast(slope))));
  return mul(sigmoid, fma(scaled, sub(broadcast(1.0f), sigmoid), broadcast(1.0f)));
}

static inline vf sigmoid_of(vf x, float slope) {
  const vf one = broadcast(1.0f);
  return divide(one, add(one, exp(mul(x, broadcast(-slope)))));
}

static void swiglu_grad(const ActivationGradParams& p, int64_t row, int64_t begin, int64_t end) {
  const int64_t at = row * p.x_stride + begin;
  const float* grad = p.grad + row * p.width + begin;
  each_vector(end - begin, [&](int64_t i, int n) {
    const vf x = load_up_to(p.x + at + i, n), g = load_up_to(grad + i, n);
    const vf sigmoid = sigmoid_of(x, 1.0f);
    store_up_to(p.grad_up + at + i, mul(g, mul(x, sigmoid)), n);
    store_up_to(p.grad_x + at + i, mul(mul(g, load_up_to(p.up + at + i, n)), gated_slope(x, sigmoid, 1.0f)), n);
  });
}

static void quick_gelu_grad(const ActivationGradParams& p, int64_t row, int64_t begin, int64_t end) {
  const int64_t at = row * p.x_stride + begin;
  const float* grad = p.grad + row * p.width + begin;
  each_vector(end - begin, [&](int64_t i, int n) {
    const vf x = load_up_to(p.x + at + i, n);
    const vf slope = gated_slope(x, sigmoid_of(x, 1.702f), 1.702f);
    store_up_to(p.grad_x + at + i, mul(load_up_to(grad + i, n), slope), n);
  });
}

extern const ActivationKernels activation_kernels;
const ActivationKernels activation_kernels = {swiglu, quick_gelu, swiglu_grad, quick_gelu_grad};

}  // namespace QVL_LEVEL
}  // namespace qvl

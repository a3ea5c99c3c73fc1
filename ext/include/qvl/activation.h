// The gates of the language model and of the vision tower, element by element.
#pragma once

#include "qvl/common.h"

namespace qvl {

struct ActivationParams {
  const float* x;   // [rows, width], x_stride from row to row
  const float* up;  // swiglu only: like x, up_stride
  float* out;       // [rows, width], one behind the other; may be x where its rows lie so too
  int64_t rows;
  int64_t width;
  int64_t x_stride;
  int64_t up_stride;
};

// out = x * sigmoid(x) * up
Status swiglu(const ActivationParams& params);

// out = x * sigmoid(1.702 x)
Status quick_gelu(const ActivationParams& params);

struct ActivationGradParams {
  const float* x;     // [rows, width], x_stride from row to row
  const float* up;    // swiglu only: like x
  const float* grad;  // of the loss, with respect to out: [rows, width], one behind the other
  float* grad_x;      // like x, x_stride
  float* grad_up;     // swiglu only: like x, x_stride
  int64_t rows;
  int64_t width;
  int64_t x_stride;
};

Status swiglu_grad(const ActivationGradParams& params);
Status quick_gelu_grad(const ActivationGradParams& params);

}  // namespace qvl

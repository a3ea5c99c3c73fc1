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

}  // namespace qvl

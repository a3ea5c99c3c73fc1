// Normalisation of rows, with the residual stream updated in the same pass.
#pragma once

#include "qvl/common.h"

namespace qvl {

// Rows of `width` floats, one behind the other.
struct NormParams {
  const float* x;
  const float* delta;   // null, or what is added to x before it is normalised
  float* sum;           // with delta: x + delta; may be x or delta itself
  const float* weight;  // [width]
  const float* bias;    // [width]; layer_norm only
  float* out;
  int64_t rows;
  int64_t width;
  float epsilon;
};

// out = x / sqrt(mean(x**2) + epsilon) * weight
Status rms_norm(const NormParams& params);

// out = (x - mean(x)) / sqrt(mean((x - mean(x))**2) + epsilon) * weight + bias
Status layer_norm(const NormParams& params);

}  // namespace qvl

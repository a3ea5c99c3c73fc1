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

// What a normalisation gives back. Rows of `width` floats, one behind the other.
struct NormGradParams {
  const float* x;            // what was normalised: x + delta where there was a delta
  const float* weight;       // [width]
  const float* grad_out;     // of the loss, with respect to out
  const float* grad_sum;     // null, or with respect to `sum`, which is added to grad_x
  float* grad_x;             // null where it is not wanted; also that of delta
  float* grad_weight;        // null where it is not wanted, or [width]
  float* grad_bias;          // like grad_weight; layer_norm only
  int64_t rows;
  int64_t width;
  float epsilon;
};

// Sums over rows are taken in blocks of fixed size joined in pairs: no number of threads changes them.
Status rms_norm_grad(const NormGradParams& params);
Status layer_norm_grad(const NormGradParams& params);

struct ColumnParams {
  const float* x;  // [rows, width], one row behind the other
  float* out;      // [width]
  int64_t rows;
  int64_t width;
};

// out = the sum of all rows, taken in the same way: the gradient of what is added to every row.
Status column_sums(const ColumnParams& params);

}  // namespace qvl

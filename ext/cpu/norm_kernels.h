// What norm.cc needs of each level: rows begin .. end.
#pragma once

#include "qvl/norm.h"

namespace qvl {

struct NormKernels {
  void (*rms)(const NormParams&, int64_t begin, int64_t end);
  void (*layer)(const NormParams&, int64_t begin, int64_t end);
  // What these rows add to the gradients of weight and bias goes to `weight` and `bias`, null or [width].
  void (*rms_grad)(const NormGradParams&, int64_t begin, int64_t end, float* weight, float* bias);
  void (*layer_grad)(const NormGradParams&, int64_t begin, int64_t end, float* weight, float* bias);
  void (*columns)(const ColumnParams&, int64_t begin, int64_t end, float* to);
};

}  // namespace qvl

// What activation.cc needs of each level: elements begin .. end of one row.
#pragma once

#include "qvl/activation.h"

namespace qvl {

struct ActivationKernels {
  void (*swiglu)(const ActivationParams&, int64_t row, int64_t begin, int64_t end);
  void (*quick_gelu)(const ActivationParams&, int64_t row, int64_t begin, int64_t end);
  void (*swiglu_grad)(const ActivationGradParams&, int64_t row, int64_t begin, int64_t end);
  void (*quick_gelu_grad)(const ActivationGradParams&, int64_t row, int64_t begin, int64_t end);
};

}  // namespace qvl

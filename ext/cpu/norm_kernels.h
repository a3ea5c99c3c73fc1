// What norm.cc needs of each level: rows begin .. end.
#pragma once

#include "qvl/norm.h"

namespace qvl {

struct NormKernels {
  void (*rms)(const NormParams&, int64_t begin, int64_t end);
  void (*layer)(const NormParams&, int64_t begin, int64_t end);
};

}  // namespace qvl

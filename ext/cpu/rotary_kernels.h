// What rotary.cc needs of each level: one row of the projections, which is token `token` of a target.
#pragma once

#include "qvl/rotary.h"

namespace qvl {

struct RotaryKernels {
  void (*row)(const RotaryParams&, int64_t row, const RotaryTarget&, int64_t token);
};

}  // namespace qvl

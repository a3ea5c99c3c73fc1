// Matrix products of training: operands of float32 rounded to bfloat16, sums in float32. Only where there is a unit
// for it: tiles (AMX), or dot products of pairs (AVX512-BF16).
#pragma once

#include "qvl/common.h"

namespace qvl {

// out = A B + bias. A: [m, k], or stored as [k, m] where turned; B: [k, n], or stored as [n, k] where turned; out: [m, n].
// All contiguous; bias: [n], or nullptr for none.
struct ProductParams {
  int64_t m, n, k;
  const float* a;
  const float* b;
  bool a_turned, b_turned;
  const float* bias;
  float* out;
};

// Whether the level in use has such a unit.
bool has_product();

// Status::unsupported without one.
Status product(const ProductParams& params);

}  // namespace qvl

// The two linear layers of a block with the gate between them.
#pragma once

#include "qvl/linear.h"

namespace qvl {

enum class Gate : int32_t { swiglu, quick_gelu };

struct MlpParams {
  const float* x;             // [rows, k], x_stride from row to row
  int64_t rows, x_stride;
  Gate gate;
  const LinearWeight* inner;  // swiglu: two, that of the gate and that of what it lets through; quick_gelu: one
  const LinearWeight* down;   // its inputs are the outputs of one of them
  const float* residual;      // as out, or nullptr
  float* out;                 // [rows, n of down], out_stride from row to row; may be the residual
  int64_t out_stride;
};

// down(silu(gate x) * up x), or down(quick_gelu(fc1 x)), each with its bias, plus the residual. The numbers are those of
// the three ops one after the other, but for a multiplication and an addition that are joined on the tile unit, where what
// lies between the layers is bfloat16.
Status mlp(const MlpParams& params);

}  // namespace qvl

// y = x W^T + bias + residual, with W stored in panels of 16 outputs. docs/quantization.md has the formats; in short,
// for P = ceil(n / 16) panels and k_padded inputs:
//   bfloat16  data [P][k_padded / 2][16][2]
//   int8      data [P][k_padded / 4][16][4], w = q * scale
//   int4      data [P][k_padded / 8][16][4], low half of a byte for inputs 0..3, high half for 4..7; w = (q - zero) * scale
// Scales are float32 [P][16] (int8, one for an output) or float16 [P][k_padded / group][16]; zeros are uint8, shaped as
// the scales, or missing, which means 8 for int4 and 0 for int8. What pads is zero.
#pragma once

#include "qvl/common.h"

namespace qvl {

constexpr int64_t kPanel = 16;
// Inputs that share one scale when activations are quantised for a weight with one scale an output.
constexpr int64_t kActivationGroup = 128;

struct LinearWeight {
  DType dtype;            // bfloat16, int8 or int4
  int64_t n, k;           // outputs, inputs
  int64_t k_padded;       // see padded_inputs
  int64_t group;          // inputs that share a scale, 0: one scale an output
  const void* data;
  const void* scales;
  const uint8_t* zeros;
  const float* bias;      // [n] or nullptr
};

struct LinearParams {
  const float* x;         // [rows, k], x_stride from row to row
  int64_t rows, x_stride;
  const LinearWeight* weights;  // `count` of the same dtype, k and group; their outputs lie one after the other
  int64_t count;
  const float* residual;  // as out, or nullptr
  float* out;             // [rows, sum of n], out_stride from row to row; may be the residual
  int64_t out_stride;
};

int64_t padded_inputs(DType dtype, int64_t k, int64_t group);

// Float32 arithmetic for bfloat16 weights and few rows, bfloat16 where the CPU has it for many; int8 activations,
// quantised by row and group, for int8 and int4 weights, or bfloat16 ones on AMX.
Status linear(const LinearParams& params);

// The same for a float32 matrix as it is, for few rows: w is [k, n] with `in_major`, else [n, k].
struct DenseParams {
  const float* x;
  int64_t rows, x_stride;
  const float* w;
  int64_t n, k;
  bool in_major;
  const float* bias;
  const float* residual;
  float* out;
  int64_t out_stride;
};
Status linear_dense(const DenseParams& params);

struct PackParams {
  const void* source;     // float32 or bfloat16, element (output, input) at output * n_stride + input * k_stride
  DType source_dtype;
  int64_t n_stride, k_stride;
  LinearWeight* weight;   // sizes set, data, scales and zeros to be written; zeros == nullptr asks for symmetric int4
};
// Any rows of panels can be packed by themselves: n is then that of the block.
Status pack(const PackParams& params);
// Rows of W as float32 [count, k]; all n rows, in order, where rows is nullptr. Serves as an embedding.
Status unpack(const LinearWeight& weight, const int64_t* rows, int64_t count, float* out);

}  // namespace qvl

// y = x W^T + bias + residual, with W packed as on the CPU: see qvl/linear.h and docs/quantization.md.
#pragma once

#include "qvl/cuda/common.h"
#include "qvl/linear.h"

namespace qvl::cuda {

struct LinearParams {
  DType dtype;    // bfloat16 or float16: of x, residual and out
  const void* x;  // [rows, k], x_stride from row to row
  int64_t rows, x_stride;
  const LinearWeight* weights;  // host memory, their pointers the device's; `count` of the same dtype (int8 or int4), k
                                // and group; their outputs lie one after the other
  int64_t count;
  const void* residual;  // as out, or null
  void* out;             // [rows, sum of n], out_stride from row to row; may be the residual
  int64_t out_stride;
  void* workspace;
};

// From this many rows on, widening W once (unpack) and a dense product are quicker.
constexpr int64_t kMostLinearRows = 64;

struct UnpackParams {
  DType dtype;                 // of out: bfloat16 or float16
  const LinearWeight* weight;  // host memory, its pointers the device's; int8 or int4
  const int64_t* rows;         // null for all n in order, or [count]: which rows; serves as an embedding
  int64_t count;
  void* out;  // [count, k]
};

}  // namespace qvl::cuda

// For decoding and small batches, rows up to kMostLinearRows. Weights are widened to dtype on the way; sums are float32, with
// the scale of a group applied to its sum.
// `unsupported`: more than 8 weights, zero points of int8, weights that do not begin at multiples of 16 bytes, and an x that
// does not while its rows could be read where they lie (k a multiple of 64, rows of whole 16 bytes). Zero points are below 128.
QVL_CUDA_API qvl::Status qvl_cuda_linear(const qvl::cuda::LinearParams* params, void* stream);
QVL_CUDA_API int64_t qvl_cuda_linear_workspace(const qvl::cuda::LinearParams* params);
QVL_CUDA_API qvl::Status qvl_cuda_unpack(const qvl::cuda::UnpackParams* params, void* stream);

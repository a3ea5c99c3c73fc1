// Normalisation of rows, with the residual stream updated in the same pass.
#pragma once

#include "qvl/cuda/common.h"

namespace qvl::cuda {

// Rows of `width` elements, one behind the other, all of `dtype`: bfloat16, float16 or float32.
struct NormParams {
  DType dtype;
  const void* x;
  const void* delta;      // null, or what is added to x before it is normalised
  void* sum;              // with delta: x + delta, rounded to dtype (which is what is normalised); may be x or delta
  const void* weight;     // [width]
  const void* bias;       // [width]; layer_norm only
  const int64_t* gather;  // layer_norm only: null, or [rows], the row of x that each row of out is made from
  void* out;
  int64_t rows;
  int64_t width;
  float epsilon;
};

// What a normalisation gives back.
struct NormGradParams {
  DType dtype;
  const void* x;         // what was normalised: x + delta where there was a delta
  const void* weight;    // [width]
  const void* grad_out;  // of the loss, with respect to out
  const void* grad_sum;  // null, or with respect to `sum`, which is added to grad_x
  void* grad_x;          // null where it is not wanted; also that of delta
  float* grad_weight;    // null where it is not wanted, or float32 [width]
  float* grad_bias;      // like grad_weight; layer_norm only
  void* workspace;
  int64_t rows;
  int64_t width;
  float epsilon;
};

}  // namespace qvl::cuda

// out = x / sqrt(mean(x**2) + epsilon) * weight
QVL_CUDA_API qvl::Status qvl_cuda_rms_norm(const qvl::cuda::NormParams* params, void* stream);
// out = (x - mean(x)) / sqrt(mean((x - mean(x))**2) + epsilon) * weight + bias. With `gather` it also brings the 2x2
// neighbours of a picture together, for patches that come row by row.
QVL_CUDA_API qvl::Status qvl_cuda_layer_norm(const qvl::cuda::NormParams* params, void* stream);
// Sums over rows are taken in an order that depends on sizes alone: gradients are the same every time.
QVL_CUDA_API qvl::Status qvl_cuda_rms_norm_grad(const qvl::cuda::NormGradParams* params, void* stream);
QVL_CUDA_API qvl::Status qvl_cuda_layer_norm_grad(const qvl::cuda::NormGradParams* params, void* stream);
QVL_CUDA_API int64_t qvl_cuda_norm_grad_workspace(const qvl::cuda::NormGradParams* params);

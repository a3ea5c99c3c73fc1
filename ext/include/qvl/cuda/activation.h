// The gates of the language model and of the vision tower, element by element.
#pragma once

#include "qvl/cuda/common.h"

namespace qvl::cuda {

struct ActivationParams {
  DType dtype;     // bfloat16, float16 or float32, of everything
  const void* x;   // [rows, width], x_stride from row to row
  const void* up;  // swiglu only: like x, up_stride
  void* out;       // [rows, width], one behind the other; may be x where its rows lie so too
  int64_t rows;
  int64_t width;
  int64_t x_stride;
  int64_t up_stride;
};

struct ActivationGradParams {
  DType dtype;
  const void* x;     // [rows, width], x_stride from row to row
  const void* up;    // swiglu only: like x
  const void* grad;  // of the loss, with respect to out: [rows, width], one behind the other
  void* grad_x;      // like x, x_stride
  void* grad_up;     // swiglu only: like x, x_stride
  int64_t rows;
  int64_t width;
  int64_t x_stride;
};

}  // namespace qvl::cuda

// out = x * sigmoid(x) * up
QVL_CUDA_API qvl::Status qvl_cuda_swiglu(const qvl::cuda::ActivationParams* params, void* stream);
// out = x * sigmoid(1.702 x)
QVL_CUDA_API qvl::Status qvl_cuda_quick_gelu(const qvl::cuda::ActivationParams* params, void* stream);
QVL_CUDA_API qvl::Status qvl_cuda_swiglu_grad(const qvl::cuda::ActivationGradParams* params, void* stream);
QVL_CUDA_API qvl::Status qvl_cuda_quick_gelu_grad(const qvl::cuda::ActivationGradParams* params, void* stream);

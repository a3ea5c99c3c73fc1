// The loss of a chunk of rows of logits, and its gradient in their place.
#pragma once

#include "qvl/cuda/common.h"

namespace qvl::cuda {

// With the products before and behind it, which are cuBLAS's, this is linear + cross-entropy without whole logits.
struct CrossEntropyParams {
  DType dtype;             // bfloat16, float16 or float32: of the logits
  void* logits;            // [rows, vocab], stride from row to row; with `gradient` overwritten
  const int64_t* targets;  // [rows]; a negative one is passed over: its loss and gradient are 0; of one that no logit
                           // is for they are not numbers
  const float* weights;    // null, or [rows]: how much each row counts
  float* losses;           // [rows]: weight * -log softmax(logits)[target]
  int64_t rows;
  int64_t vocab;
  int64_t stride;
  float grad_scale;  // what gradients are multiplied by, besides the weight
  bool gradient;     // logits := grad_scale * weight * (softmax(logits) - onehot(target))
};

}  // namespace qvl::cuda

QVL_CUDA_API qvl::Status qvl_cuda_cross_entropy(const qvl::cuda::CrossEntropyParams* params, void* stream);

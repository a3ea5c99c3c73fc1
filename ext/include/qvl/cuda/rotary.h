// From the rows of the q, k and v projections to attention: bias, M-RoPE, and the new keys and values stored.
#pragma once

#include "qvl/cuda/cache.h"

namespace qvl::cuda {

struct RotaryParams {
  DType dtype;         // bfloat16, float16 or float32: of q, k, v, the biases and q_out
  DType storage;       // dtype, or int8: round(x / scale) with scale the largest of a head and token over 127
  const void* q;       // [rows, heads, dim], q_stride from row to row; the rows of all sequences, one after the other
  const void* k;       // [rows, kv_heads, dim], k_stride
  const void* v;       // like k, v_stride
  const void* q_bias;  // null, or [heads, dim]
  const void* k_bias;  // null, or [kv_heads, dim]
  const void* v_bias;  // like k_bias
  const float* cos;    // [rows, dim / 2]
  const float* sin;    // like cos
  void* q_out;         // [rows, heads, dim], one behind the other; may be q where its rows lie so too
  const CacheSequence* sequences;  // host memory
  const int32_t* starts;           // [count], device memory: rows of each cache before the new ones
  int64_t count;
  int64_t heads;
  int64_t kv_heads;
  int64_t dim;  // a multiple of 16, at most 256
  int64_t q_stride;
  int64_t k_stride;
  int64_t v_stride;
};

// Turns the heads of rows where they lie, as the vision tower needs it.
struct RotateParams {
  DType dtype;
  void* x;           // [rows, heads, dim], stride from row to row
  const float* cos;  // [rows, dim / 2]
  const float* sin;  // like cos
  int64_t rows;
  int64_t heads;  // those of q and of k where both lie side by side
  int64_t dim;    // a multiple of 8, at most 256
  int64_t stride;
};

}  // namespace qvl::cuda

// Half-split rotation: element i pairs with i + dim / 2. In float32, rounded only where it is stored.
QVL_CUDA_API qvl::Status qvl_cuda_rotary_store(const qvl::cuda::RotaryParams* params, void* stream);
QVL_CUDA_API qvl::Status qvl_cuda_rotate(const qvl::cuda::RotateParams* params, void* stream);
// x sin -> -x sin: the way back of the rotation, for its gradient.
QVL_CUDA_API qvl::Status qvl_cuda_rotate_grad(const qvl::cuda::RotateParams* params, void* stream);

// Attention of the newest tokens of sequences to all of their own cache.
#pragma once

#include "qvl/cuda/cache.h"

namespace qvl::cuda {

struct AttentionParams {
  DType dtype;    // bfloat16 or float16 (float32 in tests): of q and out
  DType storage;  // of keys and values: dtype, or int8
  const void* q;  // [rows, heads, dim], q_stride from row to row; the rows of all sequences, one after the other
  void* out;      // like q, out_stride
  const CacheSequence* sequences;  // host memory; `tokens` is the number of its queries, at most kMostQueries
  const int32_t* starts;           // [count], device memory: keys before the first of the new tokens
  int64_t count;
  int64_t heads;
  int64_t kv_heads;  // a divisor of heads
  int64_t dim;       // a multiple of 16, at most 256
  int64_t q_stride;
  int64_t out_stride;
  int64_t most_keys;  // at least the keys that any sequence sees; decides how the context is split
  float scale;
  void* workspace;
};
constexpr int64_t kMostQueries = 16;

}  // namespace qvl::cuda

// softmax(scale q k^T) v. New token i of a sequence (counted from 0) sees starts + i + 1 keys, which are in the cache
// already. For decoding and checking drafts; prefill is FlashAttention's. What other sequences hold does not touch a row;
// the order of its sums follows from `starts`, `tokens`, `count` and most_keys. Values of a sequence's new tokens have to be
// finite: one that is not reaches its earlier tokens too.
QVL_CUDA_API qvl::Status qvl_cuda_attention(const qvl::cuda::AttentionParams* params, void* stream);
QVL_CUDA_API int64_t qvl_cuda_attention_workspace(const qvl::cuda::AttentionParams* params);

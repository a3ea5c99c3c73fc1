// Attention over sequences, each with its own keys and values.
#pragma once

#include "qvl/common.h"

namespace qvl {

// One sequence: `queries` new tokens that see `keys` tokens.
struct AttentionSequence {
  const float* q;        // [queries, heads, dim], q_stride from token to token
  float* out;            // [queries, heads, dim], out_stride
  const void* k;         // [keys, kv_heads, dim] as stored, k_stride
  const void* v;         // like k, v_stride
  const float* k_scale;  // int8 only: [keys, kv_heads], what an element is to be multiplied by
  const float* v_scale;  // int8 only: like k_scale
  const float* cos;      // null, or with float32 storage: [keys, dim / 2]; then q and k are turned before they meet
  const float* sin;      // like cos
  int64_t queries;
  int64_t keys;
  float* softmax;  // null, or [queries, heads, 2] for the gradients: the largest score, for powers of 2, and 1 / the sum
};

struct AttentionParams {
  const AttentionSequence* sequences;
  int64_t count;
  int64_t heads;
  int64_t kv_heads;  // a divisor of heads
  int64_t dim;       // even, at most kMostAttentionDim
  int64_t q_stride;
  int64_t k_stride;
  int64_t v_stride;
  int64_t out_stride;
  DType storage;  // of k and v: float32, bfloat16 or int8
  bool causal;    // the last query sees every key, the one before it all but one, and so on; queries <= keys
  float scale;
  bool rounded;  // where that is faster, q, k, v and the weights may be rounded to bfloat16 on their way
};
constexpr int64_t kMostAttentionDim = 256;

// softmax(scale q k^T) v in float32. A row of the result depends neither on the other rows of the call nor on the
// number of threads, with one exception: up to kFewQueries queries go another way than more of them.
Status attention(const AttentionParams& params);
constexpr int64_t kFewQueries = 24;

// What goes back through one sequence: the operands and results of `attention`, whose keys were float32.
struct AttentionGradSequence {
  const float* q;         // as given to attention, as are the next four
  const float* k;
  const float* v;
  const float* cos;
  const float* sin;
  const float* out;       // [queries, heads, dim], one behind the other
  const float* softmax;   // [queries, heads, 2]
  const float* grad;      // of the loss, with respect to out
  float* grad_q;          // like q, q_stride from token to token
  float* grad_k;          // like k, k_stride
  float* grad_v;          // like v, v_stride
  int64_t queries;
  int64_t keys;
};

struct AttentionGradParams {
  const AttentionGradSequence* sequences;
  int64_t count;
  int64_t heads;
  int64_t kv_heads;
  int64_t dim;  // even, at most kMostAttentionDim
  int64_t q_stride;
  int64_t k_stride;
  int64_t v_stride;
  bool causal;
  float scale;
};

// Scores are computed again, a block of keys at a time. The gradients of a sequence depend neither on the others of the
// call nor on the number of threads, to the last bit.
Status attention_grad(const AttentionGradParams& params);

}  // namespace qvl

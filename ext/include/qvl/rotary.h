// From the rows of the q, k and v projections to attention: bias, M-RoPE, and the new keys and values stored.
#pragma once

#include "qvl/common.h"

namespace qvl {

// Where the new tokens of one sequence go.
struct RotaryTarget {
  void* k;         // the first of its new rows, [tokens, kv_heads, dim] as stored, one behind the other
  void* v;         // like k
  float* k_scale;  // int8 only: [tokens, kv_heads]
  float* v_scale;  // int8 only: like k_scale
  int64_t tokens;
};

struct RotaryParams {
  const float* q;  // [rows, heads, dim], q_stride from row to row; the rows of all targets, one after the other
  const float* k;  // [rows, kv_heads, dim], k_stride
  const float* v;  // like k, v_stride
  const float* q_bias;  // null, or [heads, dim]
  const float* k_bias;  // null, or [kv_heads, dim]
  const float* v_bias;  // like k_bias
  const float* cos;     // [rows, dim / 2]
  const float* sin;     // like cos
  float* q_out;         // [rows, heads, dim], one behind the other; may be q where its rows lie so too
  const RotaryTarget* targets;
  int64_t count;
  int64_t heads;
  int64_t kv_heads;
  int64_t dim;  // even, at most kMostRotaryDim
  int64_t q_stride;
  int64_t k_stride;
  int64_t v_stride;
  DType storage;  // float32, bfloat16, or int8: round(x / scale) with scale the largest of a head and token over 127
};
constexpr int64_t kMostRotaryDim = 256;

// Half-split rotation: element i pairs with i + dim / 2. In float32, rounded only where it is stored.
Status rotary_store(const RotaryParams& params);

}  // namespace qvl

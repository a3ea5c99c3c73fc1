// The memory in which a layer keeps the keys and values of sequences.
#pragma once

#include "qvl/cuda/common.h"

namespace qvl::cuda {

// One sequence of a call. The array of them lies in host memory and goes to the kernels by value.
struct CacheSequence {
  void* k;         // [capacity, kv_heads, dim] as stored, one behind the other
  void* v;         // like k
  float* k_scale;  // int8 only: [capacity, kv_heads], what an element is to be multiplied by
  float* v_scale;  // int8 only: like k_scale
  int64_t tokens;  // new tokens of this sequence: its rows in the call, behind those of the sequences before it
};

}  // namespace qvl::cuda

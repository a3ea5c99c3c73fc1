// What the bodies of attention share: how the keys of a sequence are split into parts, and where the parts lie.
//
// A block sums over one part of a sequence's keys, for the query heads of one head of keys, so that keys and values are
// read once. How many parts there are is fixed by sizes; how long they are follows from the keys that the sequence has
// when the kernel runs, so that a graph made for a long context is as quick on a short one. Parts that begin behind the
// last key are left out, and join_parts brings the others together, in their order.
#pragma once

#include "cache.cuh"
#include "qvl/cuda/attention.h"

namespace qvl::cuda {

constexpr int kSlice = 16;         // keys that a warp multiplies at a time
constexpr int kPartMultiple = 64;  // of keys in a part

struct AttentionCall {
  const void* q;  // rows of this launch only, as with all that follows
  void* out;
  float* sums;   // [rows, heads, splits, dim]: sums of values, each times its weight
  float2* tops;  // [rows, heads, splits]: the largest score, and the sum of weights, which are power_of(score - top)
  const int32_t* starts;
  int64_t q_stride, out_stride;
  int32_t heads, kv_heads, dim;
  int32_t splits, least_part;
  float scale;  // of scores; with log2(e) in it where weights are powers of two
  Sequences sequences;
};

// Keys in a part of a sequence that has `keys`.
__device__ inline int part_length(const AttentionCall& p, int keys) {
  const int even = (keys + p.splits - 1) / p.splits;
  return max(p.least_part, (even + kPartMultiple - 1) / kPartMultiple * kPartMultiple);
}

// The part of a block: keys begin .. end - 1 of those of its sequence.
struct Part {
  int sequence, begin, end;
  int start;  // keys before the first new token
};
__device__ inline Part part_of(const AttentionCall& p, int sequence) {
  const int start = p.starts[sequence], keys = start + p.sequences.tokens(sequence), length = part_length(p, keys);
  const int begin = static_cast<int>(blockIdx.x) * length;
  return {sequence, begin, min(begin + length, keys), start};
}

// Where a row of one head writes: `number` counts rows of the launch and heads.
__device__ inline int64_t row_number(const AttentionCall& p, int sequence, int token, int head) {
  return static_cast<int64_t>(p.sequences.first[sequence] + token) * p.heads + head;
}

// Writes four elements of a row's part, or of `out` where there is only one.
template <class T>
__device__ inline void put_part(const AttentionCall& p, int sequence, int token, int head, int element,
                                const float (&sum)[4], float top, float total) {
  if (p.splits == 1) {
    const int64_t row = p.sequences.first[sequence] + token;
    float mean[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) mean[i] = sum[i] / total;
    store(static_cast<T*>(p.out) + row * p.out_stride + static_cast<int64_t>(head) * p.dim + element, packed<T>(mean));
    return;
  }
  const int64_t slot = row_number(p, sequence, token, head) * p.splits + blockIdx.x;
  store(p.sums + slot * p.dim + element, packed<float>(sum));
  if (element == 0) p.tops[slot] = make_float2(top, total);
}

// The body of float32 has powers of e, which keep more digits of a large score; the others have the quicker ones of 2.
template <class T>
constexpr bool kPowersOfE = std::is_same_v<T, float>;
template <class T>
__device__ inline float power_of(float x) {
  return kPowersOfE<T> ? expf(x) : exp2_fast(x);
}
// What a sum below one top counts for below another; 0 where it is that of no key at all.
template <class T>
__device__ inline float weight_of(float top, float other) {
  return top == -INFINITY ? 0.0f : power_of<T>(top - other);
}

// Sums over parts, by type of the queries: 16-bit ones on the tensor cores. `tokens`: the most of a sequence.
template <class T>
Status attend_parts(const AttentionCall& call, bool narrow, int tokens, void* stream);
Status attend_parts_float(const AttentionCall& call, bool narrow, int tokens, void* stream);

}  // namespace qvl::cuda

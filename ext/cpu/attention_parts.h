// What both ways through attention share: packing operands and the softmax of a tile of scores.
#pragma once

#include "qvl/attention.h"
#include "qvl/threads.h"
#include "tile.h"

namespace qvl {
namespace QVL_LEVEL {

constexpr int64_t kBlockKeys = 128;  // keys whose scores are held at a time
// From row to row of packed operands: an odd number of cache lines, or powers of two would share a few sets of a cache.
constexpr int64_t kKeyStride = kBlockKeys + 16;
static inline int64_t row_stride(int64_t n) { return (n + 15) / 16 * 16 + ((n + 15) / 16 % 2 == 0 ? 16 : 0); }
constexpr float kNothing = -__builtin_inff();
constexpr float kLog2E = 1.44269504088896341f;

// to[i] = from[i] * scale for i < n
template <typename T>
static inline void widen(const T* from, float scale, float* to, int64_t n) {
  each_vector(n, [&](int64_t i, int some) {
    store_up_to(to + i, mul(load_up_to(from + i, some), broadcast(scale)), some);
  });
}

// Half-split rotation of one head: element i pairs with i + dim / 2. `to` may be `from`.
static inline void rotate(const float* from, const float* cos, const float* sin, float scale, float* to,
                          int64_t dim) {
  const int64_t half = dim / 2;
  each_vector(half, [&](int64_t i, int n) {
    const vf c = mul(load_up_to(cos + i, n), broadcast(scale)), s = mul(load_up_to(sin + i, n), broadcast(scale));
    const vf first = load_up_to(from + i, n), second = load_up_to(from + half + i, n);
    store_up_to(to + i, sub(mul(first, c), mul(second, s)), n);
    store_up_to(to + half + i, fma(second, c, mul(first, s)), n);
  });
}

// One key as float32, scaled or turned as it has to be.
template <typename T>
static inline void unpack_key(const T* k, float scale, const float*, const float*, float* to, int64_t dim) {
  widen(k, scale, to, dim);
}
static inline void unpack_key(const float* k, float, const float* cos, const float* sin, float* to, int64_t dim) {
  cos ? rotate(k, cos, sin, 1.0f, to, dim) : widen(k, 1.0f, to, dim);
}

// Queries first .. last of one group of heads, as rows of `dim`: all heads of a query, then those of the next. Scaled
// so that the softmax may use powers of two.
static inline void pack_queries(const AttentionParams& p, const AttentionSequence& s, int64_t kv_head, int64_t first,
                         int64_t last, float* to) {
  const int64_t group = p.heads / p.kv_heads, half = p.dim / 2;
  const float scale = p.scale * kLog2E;
  const int64_t past = s.keys - s.queries;
  for (int64_t query = first; query < last; ++query)
    for (int64_t g = 0; g < group; ++g, to += p.dim) {
      const float* from = s.q + query * p.q_stride + (kv_head * group + g) * p.dim;
      if (s.cos)
        rotate(from, s.cos + (past + query) * half, s.sin + (past + query) * half, scale, to, p.dim);
      else
        widen(from, scale, to, p.dim);
    }
}

// How many of the keys from `start` on a query sees; may be negative.
template <typename Params, typename Sequence>
static inline int64_t keys_seen(const Params& p, const Sequence& s, int64_t query, int64_t start) {
  return (p.causal ? s.keys - s.queries + query + 1 : s.keys) - start;
}

// State of the softmax of some rows over the blocks of keys seen so far.
struct Softmax {
  float* highest;  // of the scores
  float* total;    // of the weights
  float* carry;    // what sums over earlier blocks must be multiplied by

  void reset(int64_t rows) const {
    for (int64_t r = 0; r < rows; ++r) highest[r] = kNothing, total[r] = 0.0f;
  }
};

// The highest scores of rows and the carry. `seen(row)`: the columns that count; `columns`: all, a multiple of the width.
template <typename Seen>
static inline void soften_state(float* scores, int64_t stride, int64_t rows, int64_t columns, const Softmax& state, Seen seen) {
  for (int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * stride;
    const int64_t count = seen(r);
    for (int64_t c = count < 0 ? 0 : count; c < columns; ++c) row[c] = kNothing;
    vf most = broadcast(kNothing);
    for (int64_t c = 0; c < columns; c += kLanes) most = max(most, load(row + c));
    const float before = state.highest[r], now = largest(most);
    state.highest[r] = before > now ? before : now;
    // Nothing seen yet and nothing now: any finite number keeps the weights at 0.
    state.carry[r] = before - state.highest[r];
    if (state.highest[r] == kNothing) state.carry[r] = 0.0f;
  }
  for (int64_t r = 0; r < rows; r += kLanes) {
    const int n = static_cast<int>(lesser(rows - r, kLanes));
    store_up_to(state.carry + r, exp2(load_up_to(state.carry + r, n)), n);
  }
}

// Turn rows of scores into weights.
template <typename Seen>
static inline void soften(float* scores, int64_t stride, int64_t rows, int64_t columns, const Softmax& state, Seen seen) {
  soften_state(scores, stride, rows, columns, state, seen);
  for (int64_t r = 0; r < rows; ++r) {
    float* row = scores + r * stride;
    const vf top = broadcast(state.highest[r] == kNothing ? 0.0f : state.highest[r]);
    vf total = zero();
    for (int64_t c = 0; c < columns; c += kLanes) {
      const vf weight = exp2(sub(load(row + c), top));
      store(row + c, weight);
      total = add(total, weight);
    }
    state.total[r] = state.total[r] * state.carry[r] + sum(total);
  }
}

}  // namespace QVL_LEVEL
}  // namespace qvl

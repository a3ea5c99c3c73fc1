// Attention of few queries to many keys, as in decoding: bound by reading the keys and values, which are taken from
// where and how they are stored. The keys are cut into parts of fixed size that threads share; parts are joined in
// their order, so that neither threads nor the number of queries in a call change a result.
#pragma once

#include <math.h>

#include "attention_parts.h"

namespace qvl {
namespace QVL_LEVEL {

// Rows of stored keys or values. Heads lie side by side, so the rows of one are apart and the CPU does not foresee them.
template <typename T>
struct Stored {
  const T* first;
  int64_t stride;
};

template <typename T>
static inline void fetch(const Stored<T>& rows, int64_t from, int64_t to, int64_t dim) {
  for (int64_t j = from; j < to; ++j) {
    const char* row = reinterpret_cast<const char*>(rows.first + j * rows.stride);
    for (int64_t i = 0; i < dim * static_cast<int64_t>(sizeof(T)); i += 64) __builtin_prefetch(row + i, 0, 2);
  }
}

// Scores of kRows queries and 4 keys a time; columns up to the next multiple of 4 are written. kFetch: keys further on,
// of which `there` follow the n, and the values of these keys are on their way meanwhile.
template <int kRows, bool kFetch, typename T>
static inline void dot_rows(const float* q, int64_t dim, const Stored<T>& keys, const Stored<T>& values, int64_t n,
                            int64_t there, float* scores) {
  constexpr int64_t kAhead = 16;
  const T* k = keys.first;
  const int64_t stride = keys.stride;
  for (int64_t j = 0; j < n; j += 4) {
    const T* key[4];
    for (int i = 0; i < 4; ++i) key[i] = k + lesser(j + i, n - 1) * stride;
    if (kFetch) {
      fetch(keys, lesser(j + kAhead, there), lesser(j + kAhead + 4, there), dim);
      fetch(values, j, lesser(j + 4, n), dim);
    }
    vf sums[kRows][4];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sums[r][i] = zero();
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) {
      vf ks[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) ks[i] = load(key[i] + d);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const vf x = load(q + r * dim + d);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) sums[r][i] = fma(x, ks[i], sums[r][i]);
      }
    }
    if (d < dim)
      for (int r = 0; r < kRows; ++r)
        for (int i = 0; i < 4; ++i)
          sums[r][i] = fma(load_some(q + r * dim + d, static_cast<int>(dim - d)), load_some(key[i] + d, static_cast<int>(dim - d)), sums[r][i]);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
      store_sums(scores + r * kBlockKeys + j, sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
  }
}

template <typename T>
static inline void dot(const float* q, int64_t rows, int64_t dim, const Stored<T>& keys, const Stored<T>& values,
                       int64_t n, int64_t there, float* scores) {
  constexpr int kMost = kRegisters == 32 ? 6 : 2;
  int64_t r = 0;
  if (rows >= kMost) {
    dot_rows<kMost, true>(q, dim, keys, values, n, there, scores);
    r = kMost;
  }
  for (; r + kMost <= rows; r += kMost) {
    dot_rows<kMost, false>(q + r * dim, dim, keys, values, n, there, scores + r * kBlockKeys);
  }
  for (; r + 2 <= rows; r += 2) {
    dot_rows<2, false>(q + r * dim, dim, keys, values, n, there, scores + r * kBlockKeys);
  }
  if (r < rows) dot_rows<1, false>(q + r * dim, dim, keys, values, n, there, scores + r * kBlockKeys);
}

// rows of scores times the scales of the keys, [n] with kv_heads between them
static inline void scale_columns(float* scores, int64_t rows, const float* scales, int64_t step, int64_t n) {
  alignas(64) float packed[kBlockKeys];
  for (int64_t j = 0; j < n; ++j) packed[j] = scales[j * step];
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < n; ++j) scores[r * kBlockKeys + j] *= packed[j];
}

// Room for what one part gives: sums [rows][padded], then highest and total [rows] each.
static inline int64_t part_floats(int64_t rows, int64_t padded) { return round_up(rows * (padded + 2), 16); }

// Keys from .. to for every query of the sequence and the heads of one group, into `result`.
template <typename T>
static bool attend_part(const AttentionParams& p, const AttentionSequence& s, int64_t kv_head, int64_t from, int64_t to,
                        float* result) {
  const int64_t group = p.heads / p.kv_heads, rows = s.queries * group, padded = round_up(p.dim, kLanes);
  const int64_t some = round_up(rows, 16);
  float* queries = scratch_of<float>(8, some * (p.dim + kBlockKeys + 1) + kBlockKeys * padded);
  if (!queries) return false;
  float* scores = queries + some * p.dim;
  float* values = scores + some * kBlockKeys;
  float* sums = result;
  const Softmax softmax{sums + rows * padded, sums + rows * (padded + 1), values + kBlockKeys * padded};
  pack_queries(p, s, kv_head, 0, s.queries, queries);
  softmax.reset(rows);
  clear(sums, rows * padded);
  for (int64_t start = from; start < to; start += kBlockKeys) {
    const int64_t n = lesser(kBlockKeys, to - start), columns = round_up(n, kLanes);
    const T* k = static_cast<const T*>(s.k) + start * p.k_stride + kv_head * p.dim;
    const T* v = static_cast<const T*>(s.v) + start * p.v_stride + kv_head * p.dim;
    const int64_t scale = start * p.kv_heads + kv_head;
    dot<T>(queries, rows, p.dim, {k, p.k_stride}, {v, p.v_stride}, n, to - start,
           scores);
    if (s.k_scale) scale_columns(scores, rows, s.k_scale + scale, p.kv_heads, n);
    soften(scores, kBlockKeys, rows, columns, softmax,
           [&](int64_t r) { return lesser(n, keys_seen(p, s, r / group, start)); });
    if (s.v_scale) scale_columns(scores, rows, s.v_scale + scale, p.kv_heads, n);
    if (p.dim % kLanes == 0) {
      multiply<T>({n, scores, kBlockKeys, v, p.v_stride, sums, padded, softmax.carry}, rows, padded);
      continue;
    }
    for (int64_t j = 0; j < n; ++j) {
      widen(v + j * p.v_stride, 1.0f, values + j * padded, p.dim);
      clear(values + j * padded + p.dim, padded - p.dim);
    }
    multiply<float>({n, scores, kBlockKeys, values, padded, sums, padded, softmax.carry}, rows, padded);
  }
  return true;
}

// Join the parts of one group of heads and write its outputs.
static bool join_parts(const AttentionParams& p, const AttentionSequence& s, int64_t kv_head, int64_t parts,
                       const float* results) {
  const int64_t group = p.heads / p.kv_heads, rows = s.queries * group, padded = round_up(p.dim, kLanes);
  const int64_t size = part_floats(rows, padded);
  float* sums = scratch_of<float>(9, padded);
  if (!sums) return false;
  for (int64_t row = 0; row < rows; ++row) {
    float top = kNothing, total = 0.0f;
    for (int64_t i = 0; i < parts; ++i) {
      const float highest = results[i * size + rows * padded + row];
      top = highest > top ? highest : top;
    }
    clear(sums, padded);
    for (int64_t i = 0; i < parts; ++i) {
      const float* part = results + i * size;
      const float part_total = part[rows * (padded + 1) + row];
      if (part_total == 0.0f) continue;  // saw nothing
      const float weight = exp2f(part[rows * padded + row] - top);
      total += weight * part_total;
      for (int64_t d = 0; d < padded; d += kLanes)
        store(sums + d, fma(broadcast(weight), load(part + row * padded + d), load(sums + d)));
    }
    float* out = s.out + row / group * p.out_stride + (kv_head * group + row % group) * p.dim;
    widen(sums, 1.0f / total, out, p.dim);
    if (s.softmax) {
      float* state = s.softmax + 2 * (row / group * p.heads + kv_head * group + row % group);
      state[0] = top, state[1] = 1.0f / total;
    }
  }
  return true;
}

}  // namespace QVL_LEVEL
}  // namespace qvl

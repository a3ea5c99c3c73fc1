// Attention of many queries: blocks of keys are packed once for a hundred rows and more, then a tile of rows at a time
// makes scores, weights and sums while they lie in the first cache.
#pragma once

#include "attention_parts.h"
#include "transpose.h"

namespace qvl {
namespace QVL_LEVEL {

constexpr int64_t kTileRows = 30;  // a multiple of the 5 and 6 rows of the products

// kLanes keys as columns: rows [kLanes][stride] to [dim] rows of kKeyStride.
static inline void turn_over(const float* rows, int64_t stride, int64_t dim, float* keys) {
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) transpose(rows + d, stride, keys + d * kKeyStride, kKeyStride);
  for (; d < dim; ++d)
    for (int64_t i = 0; i < kLanes; ++i) keys[d * kKeyStride + i] = rows[i * stride + d];
}

// Keys start .. start + n of one head turned over, [dim][kKeyStride], and values as rows of `row_stride(dim)` floats.
template <typename T>
static inline void pack_keys(const AttentionParams& p, const AttentionSequence& s, int64_t kv_head, int64_t start,
                             int64_t n, float* keys, float* values) {
  const int64_t half = p.dim / 2, padded = round_up(p.dim, kLanes), stride = row_stride(p.dim);
  alignas(64) float rows[kLanes * kMostAttentionDim];
  const T* k = static_cast<const T*>(s.k) + start * p.k_stride + kv_head * p.dim;
  const T* v = static_cast<const T*>(s.v) + start * p.v_stride + kv_head * p.dim;
  const auto scale = [&](const float* scales, int64_t j) {
    return scales ? scales[(start + j) * p.kv_heads + kv_head] : 1.0f;
  };
  for (int64_t j = 0; j < n; j += kLanes) {
    for (int64_t i = j; i < j + kLanes; ++i) {
      float* row = rows + (i - j) * padded;
      if (i >= n) {
        clear(row, padded);
        continue;
      }
      const int64_t angles = (start + i) * half;
      unpack_key(k + i * p.k_stride, scale(s.k_scale, i), s.cos ? s.cos + angles : nullptr, s.sin + angles, row,
                 p.dim);
      widen(v + i * p.v_stride, scale(s.v_scale, i), values + i * stride, p.dim);
      clear(values + i * stride + p.dim, padded - p.dim);
    }
    turn_over(rows, padded, p.dim, keys + j);
  }
}

// One group of heads, queries first .. last.
template <typename T>
static bool attend_blocks(const AttentionParams& p, const AttentionSequence& s, int64_t kv_head, int64_t first,
                          int64_t last) {
  const int64_t group = p.heads / p.kv_heads, rows = (last - first) * group;
  const int64_t padded = round_up(p.dim, kLanes), stride = row_stride(p.dim), some = round_up(rows, 16);
  const int64_t seen_by_last = keys_seen(p, s, last - 1, 0);
  float* queries = scratch_of<float>(8, some * (p.dim + padded + 3) + kKeyStride * (p.dim + stride + kTileRows));
  if (!queries) return false;
  float* keys = queries + some * p.dim;
  float* values = keys + kKeyStride * p.dim;
  float* scores = values + kBlockKeys * stride;
  float* sums = scores + kKeyStride * kTileRows;
  float* state = sums + some * padded;
  const Softmax softmax{state, state + some, state + 2 * some};
  pack_queries(p, s, kv_head, first, last, queries);
  softmax.reset(rows);
  clear(sums, rows * padded);
  for (int64_t start = 0; start < seen_by_last; start += kBlockKeys) {
    const int64_t n = lesser(kBlockKeys, seen_by_last - start), columns = round_up(n, kLanes);
    pack_keys<T>(p, s, kv_head, start, n, keys, values);
    for (int64_t row = 0; row < rows; row += kTileRows) {
      const int64_t count = lesser(kTileRows, rows - row);
      if (keys_seen(p, s, first + (row + count - 1) / group, start) <= 0) continue;
      const Softmax part{softmax.highest + row, softmax.total + row, softmax.carry + row};
      multiply<float>({p.dim, queries + row * p.dim, p.dim, keys, kKeyStride, scores, kKeyStride, nullptr}, count,
                      columns);
      soften(scores, kKeyStride, count, columns, part,
             [&](int64_t r) { return lesser(n, keys_seen(p, s, first + (row + r) / group, start)); });
      multiply<float>({n, scores, kKeyStride, values, stride, sums + row * padded, padded, part.carry}, count, padded);
    }
  }
  for (int64_t row = 0; row < rows; ++row) {
    float* out = s.out + (first + row / group) * p.out_stride + (kv_head * group + row % group) * p.dim;
    widen(sums + row * padded, 1.0f / softmax.total[row], out, p.dim);
    if (s.softmax) {
      float* state = s.softmax + 2 * ((first + row / group) * p.heads + kv_head * group + row % group);
      state[0] = softmax.highest[row], state[1] = 1.0f / softmax.total[row];
    }
  }
  return true;
}

}  // namespace QVL_LEVEL
}  // namespace qvl

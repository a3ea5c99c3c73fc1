// Small matrix products for attention, whose operands lie in the first caches: C = A B, rows of A broadcast over the
// vectors of B. Every element of C is summed in the order of the inner dimension, whatever the tiling.
#pragma once

#include "lanes.h"

namespace qvl {
namespace QVL_LEVEL {

// Operands of one product. C = A B, or C = C * carry[row] + A B where carry is given.
template <typename B>
struct Product {
  int64_t depth;
  const float* a;
  int64_t a_stride;
  const B* b;
  int64_t b_stride;
  float* c;
  int64_t c_stride;
  const float* carry;
  int64_t a_step = 1;  // from column to column of A: with 1 for a_stride, A is read turned over
};

template <int kRows, int kVecs, typename B>
static inline void multiply_tile(const Product<B>& p, int64_t row, int64_t column) {
  vf sums[kRows][kVecs];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) sums[r][v] = zero();
  const float* a = p.a + row * p.a_stride;
  const B* b = p.b + column;
  for (int64_t k = 0; k < p.depth; ++k, a += p.a_step, b += p.b_stride) {
    vf bs[kVecs];
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) bs[v] = load(b + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const vf x = broadcast(a[r * p.a_stride]);
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) sums[r][v] = fma(x, bs[v], sums[r][v]);
    }
  }
  float* c = p.c + row * p.c_stride + column;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) {
      float* at = c + r * p.c_stride + v * kLanes;
      store(at, p.carry ? fma(load(at), broadcast(p.carry[row + r]), sums[r][v]) : sums[r][v]);
    }
}

// Rows of a tile of so many vectors that leave room in the registers for B and a broadcast element.
template <int kVecs>
constexpr int tile_rows() {
  const int rows = (kRegisters - kVecs - 1) / kVecs;
  return rows > 8 ? 8 : rows;
}

// The last rows, fewer than kRows + 1.
template <int kRows, int kVecs, typename B>
static inline void multiply_rest(const Product<B>& p, int64_t row, int64_t column, int64_t rest) {
  if constexpr (kRows > 0) {
    if (rest == kRows) return multiply_tile<kRows, kVecs>(p, row, column);
    multiply_rest<kRows - 1, kVecs>(p, row, column, rest);
  }
}

template <int kVecs, typename B>
static inline void multiply_columns(const Product<B>& p, int64_t rows, int64_t column) {
  constexpr int kRows = tile_rows<kVecs>();
  int64_t row = 0;
  for (; row + kRows <= rows; row += kRows) multiply_tile<kRows, kVecs>(p, row, column);
  multiply_rest<kRows - 1, kVecs>(p, row, column, rows - row);
}

// All of C: rows x columns, the latter in whole vectors.
template <typename B>
static inline void multiply(const Product<B>& p, int64_t rows, int64_t columns) {
  constexpr int kWide = kRegisters == 32 ? 4 : 2;
  int64_t column = 0;
  int64_t vecs = columns / kLanes;
  if (kRegisters == 32 && vecs % 4 == 1 && vecs > 1) {  // 5 in place of 4 and a slow 1
    multiply_columns<kRegisters == 32 ? 5 : 2>(p, rows, column);
    column += 5 * kLanes, vecs -= 5;
  }
  for (; vecs >= kWide; vecs -= kWide, column += kWide * kLanes) multiply_columns<kWide>(p, rows, column);
  if (vecs == 3) multiply_columns<3>(p, rows, column);
  if (vecs == 2) multiply_columns<2>(p, rows, column);
  if (vecs == 1) multiply_columns<1>(p, rows, column);
}

}  // namespace QVL_LEVEL
}  // namespace qvl

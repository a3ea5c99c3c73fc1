// The loops around a linear body: blocks of rows and panels that keep their sums in registers, blocks of inputs whose
// weights stay in the first-level cache, and what is added at the end.
//
// A body is a struct with
//   kRows, kPanels        the block of rows and panels whose sums fit the registers
//   kLonePanels           panels at a time for a single row
//   kStep                 inputs of a block, a multiple of its granularity
//   granularity(tiles)    inputs that must stay together
//   add<rows, panels>(tiles, row data, tile, row in tile, weight, panel, first input, last input, sums)
//   scale(weight, panel)  a factor of each output, or ones
#pragma once

#include "lanes16.h"
#include "linear_kernels.h"
#include "qvl/threads.h"

namespace qvl {
namespace QVL_LEVEL {

// Bias, residual and a last panel that is not full.
QVL_INLINE void finish(const LinearParams& p, const Panels& panels, int64_t panel, int64_t row, F16 value) {
  const LinearWeight& w = *panels.weight;
  const int64_t output = panel * kPanel, column = panels.column + output;
  float* out = p.out + row * p.out_stride + column;
  const float* residual = p.residual ? p.residual + row * p.out_stride + column : nullptr;
  if (output + kPanel <= w.n) {
    if (w.bias) value = add16(value, load16(w.bias + output));
    if (residual) value = add16(value, load16(residual));
    store16(out, value);
    return;
  }
  float values[kPanel];
  store16(values, value);
  for (int64_t i = 0; output + i < w.n; ++i) {
    out[i] = values[i] + (w.bias ? w.bias[output + i] : 0.0f) + (residual ? residual[i] : 0.0f);
  }
}

struct Span {
  int64_t first, last;  // inputs
  bool begins, ends;
};

template <class Body, int rows, int panels>
QVL_INLINE void one_block(const LinearParams& p, const Tiles& t, const Panels& q, int64_t tile, int64_t row,
                          int64_t panel, const Span& span, float* kept) {
  F16 sums[rows][panels];
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < panels; ++i) sums[r][i] = span.begins ? zero16() : load16(kept + (r * panels + i) * kPanel);
  }
  Body::template add<rows, panels>(t, tile, row, *q.weight, panel, span.first, span.last, sums);
  for (int r = 0; r < rows; ++r) {
    for (int i = 0; i < panels; ++i) {
      if (span.ends) {
        const F16 value = mul16(sums[r][i], Body::scale(*q.weight, panel + i));
        finish(p, q, panel + i, tile * t.height + row + r, value);
      } else {
        store16(kept + (r * panels + i) * kPanel, sums[r][i]);
      }
    }
  }
}

template <class Body, int panels>
static void rows_of_block(const LinearParams& p, const Tiles& t, const Panels& q, int64_t tile, int64_t row, int64_t n,
                          int64_t panel, const Span& span, float* kept) {
  static_assert(Body::kRows <= 8, "add cases");
  switch (n) {
#define QVL_CASE(rows)                                                                                    \
  case rows:                                                                                              \
    if constexpr (rows <= Body::kRows) one_block<Body, rows, panels>(p, t, q, tile, row, panel, span, kept); \
    break;
    QVL_CASE(1) QVL_CASE(2) QVL_CASE(3) QVL_CASE(4) QVL_CASE(5) QVL_CASE(6) QVL_CASE(7) QVL_CASE(8)
#undef QVL_CASE
  }
}

template <class Body, int panels>
static void many_rows(const LinearParams& p, const Tiles& t, const Panels& q, int64_t first, int64_t last,
                      int64_t panel) {
  const int64_t end_row = last * t.height < t.rows ? last * t.height : t.rows;
  float* kept = scratch_of<float>(8, (end_row - first * t.height) * panels * kPanel);
  const int64_t grain = Body::granularity(t), step = Body::kStep < grain ? grain : Body::kStep / grain * grain;
  for (int64_t k = 0; k < t.k_padded; k += step) {
    const int64_t stop = k + step < t.k_padded ? k + step : t.k_padded;
    const Span span{k, stop, k == 0, stop == t.k_padded};
    float* block = kept;
    for (int64_t tile = first; tile < last; ++tile) {
      const int64_t here = t.rows - tile * t.height < t.height ? t.rows - tile * t.height : t.height;
      for (int64_t row = 0; row < here; row += Body::kRows) {
        const int64_t n = here - row < Body::kRows ? here - row : Body::kRows;
        rows_of_block<Body, panels>(p, t, q, tile, row, n, panel, span, block);
        block += n * panels * kPanel;
      }
    }
  }
}

template <class Body>
static void run_body(const LinearParams& p, const Tiles& t, const Panels& q, int64_t first, int64_t last) {
  int64_t panel = q.first;
  const int64_t end = q.first + q.count;
  if (t.height == 1) {
    const Span all{0, t.k_padded, true, true};
    for (; panel + Body::kLonePanels <= end; panel += Body::kLonePanels) {
      one_block<Body, 1, Body::kLonePanels>(p, t, q, 0, 0, panel, all, nullptr);
    }
    for (; panel < end; ++panel) one_block<Body, 1, 1>(p, t, q, 0, 0, panel, all, nullptr);
    return;
  }
  for (; panel + Body::kPanels <= end; panel += Body::kPanels) {
    many_rows<Body, Body::kPanels>(p, t, q, first, last, panel);
  }
  for (; panel < end; ++panel) many_rows<Body, 1>(p, t, q, first, last, panel);
}

}  // namespace QVL_LEVEL
}  // namespace qvl

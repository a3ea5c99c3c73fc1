// How a linear layer of many rows is taken apart, for the launch functions that are made of one.
#pragma once

#include "linear_kernels.h"
#include "qvl/threads.h"

namespace qvl {

// From here on the arithmetic counts, not the reading of weights.
constexpr int64_t kManyRows = 16;

static inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The body for weights of this kind and so many rows, at the level in use.
const LinearKernels& linear_body(DType dtype, int64_t rows);

// Memory for so many activations, as the weight and the body want them, in two slots of scratch. data is nullptr when
// there is none.
Tiles new_tiles(const LinearWeight& weight, int64_t rows, const LinearKernels& body, int slot);

void prepare_tiles(const LinearParams& params, const LinearKernels& body, const Tiles& tiles);

// Outputs from activations that are ready.
void multiply(const LinearParams& params, const LinearKernels& body, const Tiles& tiles);

// f(first column, last column, first tile, last tile) for ranges that cover both, on all threads; at most so many in a
// range. Ranges of the same columns follow one another, so their weights are in the cache for the later ones. All are of
// one size, as far as that goes, for the threads to end together. `even`: what the numbers of a range are multiples of.
template <class F>
void each_range(int64_t columns, int64_t most_columns, int64_t even, int64_t tiles, int64_t most_tiles, const F& f) {
  const int64_t bands = divide_up(tiles, most_tiles), height = divide_up(divide_up(tiles, bands), 2) * 2;
  const int64_t parts = divide_up(columns, most_columns * threads()) * threads();
  const int64_t width = divide_up(divide_up(columns, parts), even) * even;
  parallel(divide_up(columns, width) * bands, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t tile = i % bands * height, column = i / bands * width;
      f(column, column + width < columns ? column + width : columns, tile,
        tile + height < tiles ? tile + height : tiles);
    }
  });
}

}  // namespace qvl

// What the launch function of products and their bodies agree on.
#pragma once

#include "qvl/product.h"

namespace qvl {

// An operand to be rounded: `outer` rows of out (for A) or columns (for B), with k numbers each. Its tiles are
// [outer / 16][k / 32] blocks of 1 KiB, the last ones filled up with zeros.
struct Operand {
  const float* from;
  bool k_first;  // stored as [k, outer]
  bool of_b;
  int64_t outer, k;
  uint8_t* to;
};

struct ProductKernels {
  // Slab i: numbers of 32 k where k comes first, else of 16 rows.
  void (*round)(const Operand& operand, int64_t slab);
  // Tiles [first, last) of rows with panels [begin, end) of columns.
  void (*run)(const ProductParams& params, const uint8_t* a, const uint8_t* b, int64_t begin, int64_t end, int64_t first,
              int64_t last);
};

}  // namespace qvl

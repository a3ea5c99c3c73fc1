// What the launch function of the linear layer and the bodies of each level agree on.
#pragma once

#include "qvl/linear.h"
#include "qvl/mlp.h"

namespace qvl {

// Activations made ready for a body: cut in tiles of `height` rows (16, or 1 for a single row), and each tile in chunks
// of 64 bytes of inputs: [tile][chunk][height][64 bytes]. Rows that do not exist are zero.
struct Tiles {
  uint8_t* data;
  float* scales;  // [tile][group][height], for int8 activations
  float* sums;    // the sums of the quantised inputs of a group, likewise
  int64_t rows, height;
  int64_t k_padded, group, groups;
  int64_t tile_bytes;
};

// Consecutive panels of one weight. `column` is where the first output of the weight itself lies in a row of out.
struct Panels {
  const LinearWeight* weight;
  int64_t first, count, column;
};

struct LinearKernels {
  int64_t activation_bytes;  // of one input in a tile: 1, 2 or 4
  // With many rows, at most so many panels and tiles at a time: what a body keeps in the second-level cache.
  int64_t most_panels, most_tiles;
  // Rows 16 t to 16 t + 15 (or the only row) of x into tile t.
  void (*prepare)(const LinearParams& params, const Tiles& tiles, int64_t tile);
  // Outputs of `panels` for the rows of tiles [first, last).
  void (*run)(const LinearParams& params, const Tiles& tiles, const Panels& panels, int64_t first, int64_t last);
  // The first layer of an MLP from the tiles `in`, gated, as tiles `out` for the second. Of pairs of panels [begin, end):
  // one of each weight where there are two, else two neighbours. nullptr where a body has no such thing.
  void (*gated)(const MlpParams& params, const Tiles& in, const Tiles& out, int64_t begin, int64_t end, int64_t first,
                int64_t last);
};

struct DenseKernels {
  // Outputs [begin, end) of all rows.
  void (*in_major)(const DenseParams& params, int64_t begin, int64_t end);
  void (*out_major)(const DenseParams& params, int64_t begin, int64_t end);
};

struct PackKernels {
  // Panels [begin, end).
  void (*pack)(const PackParams& params, int64_t begin, int64_t end);
};

}  // namespace qvl

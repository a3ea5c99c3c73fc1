// What the kernels of the linear layer are told, and what ends each of them: bias, residual, rounding.
#pragma once

#include "common.cuh"
#include "qvl/cuda/linear.h"

namespace qvl::cuda {

constexpr int kUnit = 64;        // inputs that a warp takes at a time
constexpr int kMostWeights = 8;  // of one call

struct LinearSide {
  const uint8_t* data;
  const void* scales;
  const uint8_t* zeros;
  const float* bias;
  int32_t n;
  int32_t first_panel, first_column;  // of those before it in the call
};

struct LinearJob {
  LinearSide sides[kMostWeights];
  const void* x;
  const void* residual;
  void* out;
  float* sums;  // [splits, rows, columns] where several blocks share the inputs, or null
  int64_t x_stride, out_stride;
  int32_t count, panels, columns, rows;
  int32_t units, units_each;  // of all inputs, and those of one block
  int32_t stored_units;       // with those that only pad
  int32_t groups, group_shift;  // scales of an output; log2 of the units that share one
  int32_t across, along;        // warps of a block side by side, and those that share the inputs of one tile
};

// The weight that a panel, counted over all of them, belongs to.
__device__ inline int side_of(const LinearJob& job, int panel) {
  int side = 0;
  while (side + 1 < job.count && panel >= job.sides[side + 1].first_panel) ++side;
  return side;
}

template <class T>
__device__ inline void finish(const LinearJob& job, const LinearSide& side, int row, int output, float sum) {
  if (side.bias != nullptr) sum += side.bias[output];
  const int64_t at = row * job.out_stride + side.first_column + output;
  if (job.residual != nullptr) sum += to_float(static_cast<const T*>(job.residual)[at]);
  static_cast<T*>(job.out)[at] = from_float<T>(sum);
}

// Warps of a multiprocessor that a kernel's registers are to leave room for.
constexpr int resident_warps(int tiles) { return tiles <= 1 ? 20 : tiles == 2 ? 16 : 12; }

// How a product is cut. Depends on sizes and the device alone, so results are the same every time.
struct LinearPlan {
  int tiles;  // of 8 rows; 0: up to 4 rows and one panel to a warp, in place of two panels
  int across, along, splits;
  int64_t blocks;
};

// The grouping of scales, for the kernels: no groups, groups of whole units, groups of half a unit.
enum class Scaling { one, units, halves };

// One each for int8 and int4, since they take long to compile.
Status linear_int8(const LinearPlan& plan, Scaling scaling, DType dtype, const LinearJob& job, void* stream);
Status linear_int4(const LinearPlan& plan, Scaling scaling, DType dtype, const LinearJob& job, void* stream);

}  // namespace qvl::cuda

// The kernel of the linear layer. Its warps read weights straight into registers, several units ahead; x is small, lies in
// the caches, and is read by whoever needs it. Warps of a tile share its inputs, unit by unit in turn, so that a block reads
// its panels from front to back; their sums meet in shared memory.
#pragma once

#include "linear_lanes.cuh"

namespace qvl::cuda {

template <class K>
using Sums = float[2][K::kTiles][4];  // [product][tile of rows][as multiply_tiles has them]

// The products of a load, for one tile of rows.
template <class K>
__device__ inline void multiply_load(const Weights<K>& weights, const typename Inputs<K>::Run& x, float (&first)[4],
                                     float (&second)[4]) {
#pragma unroll
  for (int run = 0; run < K::kRuns; ++run) {
    const uint32_t b[2] = {x.at[2 * run], x.at[2 * run + 1]};
    multiply_tiles<typename K::T>(first, weights[run][0], b);
    multiply_tiles<typename K::T>(second, weights[run][1], b);
  }
}

// Products of one unit, in steps that share a scale, or of one load where there is one scale an output. Integers are
// multiplied as they are, and the sums of a group by its scale.
template <class K>
__device__ inline void multiply(const Unit<K>& unit, const Inputs<K>& inputs, int at, Sums<K>& sums) {
  constexpr bool kOne = K::kScaling == Scaling::one;
  constexpr int kSteps = kOne ? K::kLoads : K::kSets, kLoads = K::kLoads / kSteps, kProducts = kSteps * K::kTiles;
  // x is read this many products ahead, into 16 registers.
  constexpr int kRoom = (K::kTiles == 8 ? 4 : 8) / (kLoads * K::kRuns), kAhead = kRoom < kProducts ? kRoom : kProducts;
  typename Inputs<K>::Run x[kAhead][kLoads];
  const auto read = [&](int product) {
    inputs.read(at, product / K::kTiles * kLoads, product % K::kTiles, x[product % kAhead]);
  };
#pragma unroll
  for (int product = 0; product < kAhead; ++product) read(product);
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    Weights<K> weights[kLoads];
    if constexpr (K::kTiles > 1) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) widen<K>(unit, step * kLoads + i, weights[i]);
    }
#pragma unroll
    for (int tile = 0; tile < K::kTiles; ++tile) {
      const int product = step * K::kTiles + tile;
      float part[2][4] = {};
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if constexpr (K::kTiles == 1) widen<K>(unit, step * kLoads + i, weights[i]);
        multiply_load<K>(weights[i], x[product % kAhead][i], kOne ? sums[0][tile] : part[0],
                         kOne ? sums[1][tile] : part[1]);
      }
      if (product + kAhead < kProducts) read(product + kAhead);
      if constexpr (kOne) continue;
      float scales[4];
      widen_scales<K>(unit, step, scales);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        sums[i / 4][tile][i % 4] += part[i / 4][i % 4] * scales[i / 4 * 2 + i % 4 / 2];
      }
    }
  }
}

// Units first, first + step, ... before end.
template <class K>
__device__ inline void multiply_all(const Source<K>& source, const Inputs<K>& x, int first, int end, int step,
                                    Sums<K>& sums) {
  Unit<K> units[K::kDepth];
#pragma unroll
  for (int i = 0; i < K::kDepth; ++i) {
    if (first + i * step < end) source.fetch(first + i * step, units[i]);
  }
  for (int unit = first; unit < end; unit += K::kDepth * step) {
#pragma unroll
    for (int i = 0; i < K::kDepth; ++i) {
      const int now = unit + i * step, then = now + K::kDepth * step;
      if (now >= end) break;
      multiply<K>(units[i], x, now, sums);
      if (then < end) source.fetch(then, units[i]);
    }
  }
}

// Shared memory of a block: [tile][slice][row][output], where a slice is what one warp, or a half of one, has summed. The
// pitch keeps the lanes' stores apart.
template <class K>
struct Slices {
  static constexpr int kOutputs = K::kPanels * static_cast<int>(kPanel), kPitch = kOutputs + 4;
  static constexpr int kTilesAtOnce = K::kTiles < 4 ? K::kTiles : 4;
  static constexpr int kRows = K::kOnePanel ? 4 : 8 * kTilesAtOnce;
  static constexpr int kOfWarp = K::kOnePanel ? 2 : 1;
  static int64_t bytes(int across, int along) {
    return static_cast<int64_t>(across) * along * kOfWarp * kRows * kPitch * 4;
  }
};

// The warp's sums of rows `first` tiles and on.
template <class K>
__device__ inline void put(const Sums<K>& sums, const Lane& lane, int first, float* slice) {
  using S = Slices<K>;
  if constexpr (K::kOnePanel) {
    float* to = slice + (lane.part * S::kRows + lane.t) * S::kPitch + lane.four * 4;
    const bool upper = lane.part == 1;
    store(to, Pack<float, 4>{{upper ? sums[0][0][1] : sums[0][0][0], upper ? sums[0][0][3] : sums[0][0][2],
                              upper ? sums[1][0][1] : sums[1][0][0], upper ? sums[1][0][3] : sums[1][0][2]}});
  } else {
#pragma unroll
    for (int i = 0; i < S::kTilesAtOnce; ++i) {
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const auto& a = sums[0][first + i];
        const auto& b = sums[1][first + i];
        store(slice + (8 * i + 2 * lane.t + odd) * S::kPitch + lane.g * 4,
              Pack<float, 4>{{a[odd], a[2 + odd], b[odd], b[2 + odd]}});
      }
    }
  }
}

// Sums of all slices, in order, go out: rows `first` and on, `rows` of them, of all tiles of the block.
template <class K>
__device__ inline void join(const LinearJob& job, const float* shared, int first, int rows) {
  using S = Slices<K>;
  const int slices = job.along * S::kOfWarp;
  for (int i = threadIdx.x; i < job.across * rows * S::kOutputs; i += blockDim.x) {
    const int output = i % S::kOutputs, row = i / S::kOutputs % rows, tile = i / S::kOutputs / rows;
    const int panel = (static_cast<int>(blockIdx.x) * job.across + tile) * K::kPanels + output / 16;
    if (panel >= job.panels) continue;
    const LinearSide& side = job.sides[side_of(job, panel)];
    const int place = (panel - side.first_panel) * 16 + output % 16;
    if (place >= side.n) continue;
    const float* from = shared + (tile * slices * S::kRows + row) * S::kPitch + output;
    float sum = 0.0f;
#pragma unroll 8
    for (int s = 0; s < slices; ++s) sum += from[s * S::kRows * S::kPitch];
    if constexpr (K::kScaling == Scaling::one) sum *= static_cast<const float*>(side.scales)[place];
    if (job.sums != nullptr) {
      const int64_t line = static_cast<int64_t>(blockIdx.y) * job.rows + first + row;
      job.sums[line * job.columns + side.first_column + place] = sum;
    } else {
      finish<typename K::T>(job, side, first + row, place, sum);
    }
  }
}

template <class K>
__global__ void __launch_bounds__(K::kWarps * kWarp) linear_kernel(const LinearJob job) {
  using S = Slices<K>;
  float* shared = reinterpret_cast<float*>(shared_memory());
  const Lane lane;
  const int warp = warp_index(), tile = static_cast<int>(blockIdx.x) * job.across + warp / job.along;
  const int begin = static_cast<int>(blockIdx.y) * job.units_each;
  const int end = begin + job.units_each < job.units ? begin + job.units_each : job.units;
  Sums<K> sums = {};
  multiply_all<K>(Source<K>(job, lane, tile), Inputs<K>(job, lane), begin + warp % job.along, end, job.along, sums);
#pragma unroll
  for (int first = 0; first < K::kTiles; first += S::kTilesAtOnce) {
    if (first > 0) __syncthreads();
    put<K>(sums, lane, first, shared + warp * S::kOfWarp * S::kRows * S::kPitch);
    __syncthreads();
    const int rows = job.rows - 8 * first < S::kRows ? job.rows - 8 * first : S::kRows;
    join<K>(job, shared, 8 * first, rows);
  }
}

template <class K>
Status launch_linear(const LinearPlan& plan, const LinearJob& job, void* stream) {
  const dim3 grid(static_cast<unsigned>(plan.blocks), static_cast<unsigned>(plan.splits));
  const int64_t shared = Slices<K>::bytes(plan.across, plan.along);
  return launch(linear_kernel<K>, grid, dim3(static_cast<unsigned>(plan.across * plan.along * kWarp)), shared, stream, job);
}

template <class T, bool int4, Scaling scaling>
Status launch_linear(const LinearPlan& plan, const LinearJob& job, void* stream) {
  switch (plan.tiles) {
    case 0: return launch_linear<LinearKind<T, int4, scaling, 0>>(plan, job, stream);
    case 1: return launch_linear<LinearKind<T, int4, scaling, 1>>(plan, job, stream);
    case 2: return launch_linear<LinearKind<T, int4, scaling, 2>>(plan, job, stream);
    case 4: return launch_linear<LinearKind<T, int4, scaling, 4>>(plan, job, stream);
    case 8: return launch_linear<LinearKind<T, int4, scaling, 8>>(plan, job, stream);
    default: return Status::unsupported;
  }
}

}  // namespace qvl::cuda

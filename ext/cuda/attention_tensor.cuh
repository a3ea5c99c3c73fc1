// The kernel of attention_tiles.cuh, and how it is launched.
#pragma once

#include "attention_tiles.cuh"

namespace qvl::cuda {

// How the warps of a block share its work. Where one tile holds all rows each warp takes keys of its own, and waits for
// nobody; where there are more tiles, warps of different tiles take the same keys, and all wait for each other.
struct Team {
  int tile, share;  // of this warp
  int tiles, shares;
};
__device__ inline Team team_of(int rows, int warps) {
  const int tiles = rows <= 16 ? 1 : rows <= 32 ? 2 : warps;
  return {warp_index() % tiles, warp_index() / tiles, tiles, warps / tiles};
}
__device__ inline void wait_for(const Team& team) {
  if (team.tiles == 1) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

template <int kDim>
__device__ inline void put_sums(const Tile<kDim>& tile, float* rows, float2* tops) {
  const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = across_warp(tile.total[half], Sum{}, 4);
    const int row = warp_index() * 16 + g + 8 * half;
    if (t == 0) tops[row] = make_float2(tile.top[half], total);
#pragma unroll
    for (int b = 0; b < kDim / 64; ++b) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // 16 columns: the eight of one element of a fragment, then those of the next
        Pack<float, 4> four;
#pragma unroll
        for (int j = 0; j < 4; ++j) four.at[j] = tile.sum[b][i % 2 * 4 + j][2 * half + i / 2];
        store(rows + row * (kDim + 4) + 64 * b + 16 * t + 4 * i, four);
      }
    }
  }
}

// Joins what the warps of a tile have summed, in their order.
template <class T, class L>
__device__ inline void join_warps(const AttentionCall& p, const Part& part, const Team& team, int kv_head, int first,
                                  int rows, const float* sums, const float2* tops) {
  const int group = p.heads / p.kv_heads, fours = p.dim / 4;
  const int most = min(rows, team.tiles * 16) * fours;
  for (int i = static_cast<int>(threadIdx.x); i < most; i += L::kThreads) {
    const int row = i / fours, element = i % fours * 4, token = (first + row) / group;
    if (part.start + token + 1 <= part.begin) continue;  // sees nothing of this part
    float top = -INFINITY;
    for (int s = 0; s < team.shares; ++s) top = fmaxf(top, tops[(s * team.tiles) * 16 + row].x);
    float sum[4] = {}, total = 0.0f;
    for (int s = 0; s < team.shares; ++s) {
      const int from = (s * team.tiles) * 16 + row;
      const float weight = weight_of<T>(tops[from].x, top);
      const auto four = load<float, 4>(sums + from * L::kSumStride + element);
      total += weight * tops[from].y;
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[j] += weight * four.at[j];
    }
    put_part<T>(p, part.sequence, token, kv_head * group + first + row - token * group, element, sum, top, total);
  }
}

// Grid: parts, heads of keys and sets of rows, sequences.
template <class T, class S, int kDim>
__global__ void __launch_bounds__(Layout<S, kDim>::kThreads, kDim > 128 ? 2 : 3)
    attend(const __grid_constant__ AttentionCall p) {
  using L = Layout<S, kDim>;
  const int kv_head = static_cast<int>(blockIdx.y) % p.kv_heads, set = static_cast<int>(blockIdx.y) / p.kv_heads;
  const Part part = part_of(p, static_cast<int>(blockIdx.z));
  const int first = set * L::kRows, rows = p.sequences.tokens(part.sequence) * (p.heads / p.kv_heads) - first;
  if (part.begin >= part.end || rows <= 0) return;
  const Team team = team_of(rows, L::kWarps);
  unsigned char* shared = shared_memory();
  const auto stage = [&](int step) { return shared + step % L::kStages * L::kStageBytes; };
  const int steps = (part.end - part.begin + L::kStep - 1) / L::kStep;
  const auto copy = [&](int step) {
    const int key = part.begin + step * L::kStep + warp_index() * kSlice;
    if (step < steps) copy_slice<S, kDim>(p, part, kv_head, key, stage(step) + warp_index() * L::kSliceBytes);
    cp_async_commit();
  };
#pragma unroll
  for (int step = 0; step < L::kStages; ++step) copy(step);
  Tile<kDim> tile;
  start_tile<T, S, kDim>(p, part, kv_head, first + team.tile * 16, tile);
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<L::kStages - 1>();
    wait_for(team);
    for (int i = team.share; team.tile * 16 < rows && i < L::kWarps; i += team.shares) {
      const int key = part.begin + step * L::kStep + i * kSlice;
      if (key >= part.end) break;
      const unsigned char* slice = stage(step) + i * L::kSliceBytes;
      float x[2][4];
      score<T, S, kDim>(p, slice, key, tile, x);
      weigh<T, S, kDim>(x, tile);
      add_values<T, S, kDim>(slice, x, tile);
    }
    wait_for(team);
    copy(step + L::kStages);
  }
  cp_async_wait<0>();
  __syncthreads();
  auto* sums = reinterpret_cast<float*>(shared);
  auto* tops = reinterpret_cast<float2*>(shared + L::kTops);
  put_sums<kDim>(tile, sums, tops);
  __syncthreads();
  join_warps<T, L>(p, part, team, kv_head, first, rows, sums, tops);
}

template <class T, class S, int kDim>
Status launch_attend(const AttentionCall& call, int tokens, void* stream) {
  using L = Layout<S, kDim>;
  const int64_t sets = divided_up(int64_t{tokens} * (call.heads / call.kv_heads), L::kRows);
  const dim3 grid(static_cast<unsigned>(call.splits), static_cast<unsigned>(call.kv_heads * sets),
                  static_cast<unsigned>(call.sequences.count));
  return launch(attend<T, S, kDim>, grid, dim3(L::kThreads), L::kShared, stream, call);
}

template <class T, class S>
Status attend_stored(const AttentionCall& call, int tokens, void* stream) {
  if (call.dim <= 64) return launch_attend<T, S, 64>(call, tokens, stream);
  if (call.dim <= 128) return launch_attend<T, S, 128>(call, tokens, stream);
  return launch_attend<T, S, 256>(call, tokens, stream);
}

template <class T>
Status attend_parts(const AttentionCall& call, bool narrow, int tokens, void* stream) {
  return narrow ? attend_stored<T, int8_t>(call, tokens, stream) : attend_stored<T, T>(call, tokens, stream);
}

}  // namespace qvl::cuda

// Choosing among many places at once, without sorting: sums over a block, and a selection by digits.
#pragma once

#include "sampling.cuh"

namespace qvl::cuda {

constexpr int kWarps = kThreads / kWarp;

// The sum of what the threads before this one bring, and that of all.
struct Before {
  Mass mine, all;
};
__device__ inline Before sum_before(Mass x) {
  __shared__ Mass of_warps[kWarps];
  Mass upto = x;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const Mass other = __shfl_up_sync(kAllLanes, upto, step);
    if (lane_index() >= step) upto += other;
  }
  __syncthreads();  // of an earlier use
  if (lane_index() == kWarp - 1) of_warps[warp_index()] = upto;
  __syncthreads();
  Before sums{upto - x, 0};
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) {
    if (warp < warp_index()) sums.mine += of_warps[warp];
    sums.all += of_warps[warp];
  }
  return sums;
}

__device__ inline Mass largest_of_block(Mass x) {
  __shared__ Mass of_warps[kWarps];
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const Mass other = __shfl_xor_sync(kAllLanes, x, step);
    x = other > x ? other : x;
  }
  __syncthreads();
  if (lane_index() == 0) of_warps[warp_index()] = x;
  __syncthreads();
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) x = of_warps[warp] > x ? of_warps[warp] : x;
  return x;
}

// The first of n numbers with which their sum is at least `target`, which is above 0 and not above the sum of all.
struct Reached {
  int64_t index;
  Mass before;  // the sum without it
};
template <class F>
__device__ Reached first_reaching(Mass target, int64_t n, const F& number) {
  __shared__ Reached found;
  const int64_t each = divided_up(n, kThreads), begin = threadIdx.x * each;
  const int64_t end = begin + each < n ? begin + each : n;
  Mass sum = 0;
  for (int64_t i = begin; i < end; ++i) sum += number(i);
  Mass before = sum_before(sum).mine;
  if (before < target && before + sum >= target) {
    int64_t i = begin;
    for (; before + number(i) < target; ++i) before += number(i);
    found = {i, before};
  }
  __syncthreads();
  const Reached result = found;
  __syncthreads();
  return result;
}

// True in the block that is the last of its row to come here; it then sees what the others wrote.
__device__ inline bool last_of_row(uint32_t* done, int64_t parts) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(done, 1u) == static_cast<uint32_t>(parts - 1);
  __syncthreads();
  __threadfence();
  return last;
}

// f(place) of all lists of a row, a warp a list.
template <class F>
__device__ void each_listed(const Notes& notes, int64_t parts, const F& f) {
  for (int64_t part = warp_index(); part < parts; part += kWarps) {
    const uint32_t n = __ldcg(notes.found + part);
    for (uint32_t i = lane_index(); i < n; i += kWarp) f(__ldcg(notes.list + part * kPart + i));
  }
}

// The lowest place that stays when the listed ones go on from the highest until their sum is `target`: of how many they
// are, or of their weights. Equal scores stay together where it is how many. By digits of 8 bits, the highest first; what
// lies above a digit is settled, and lower digits are not looked at once all that share it stay.
template <bool by_weight>
__device__ Mass lowest_that_stays(const Notes& notes, int64_t parts, Mass target, float top, const Mass* powers) {
  constexpr int kDigits = 256;
  static_assert(kDigits == kThreads);
  __shared__ Mass sums[kDigits];
  __shared__ uint32_t counts[kDigits];
  Mass known = 0;
  for (int shift = 56; shift >= (by_weight ? 0 : 32); shift -= 8) {
    sums[threadIdx.x] = 0;
    counts[threadIdx.x] = 0;
    __syncthreads();
    each_listed(notes, parts, [&](Mass place) {
      // Two shifts, since one by 64 means nothing.
      if ((place ^ known) >> shift >> 8 != 0) return;
      const int digit = static_cast<int>(place >> shift & (kDigits - 1));
      atomicAdd(&counts[digit], 1u);
      atomicAdd(&sums[digit], by_weight ? weight_of(score_at(place), top, powers) : Mass{1});
    });
    __syncthreads();
    const Reached reached = first_reaching(target, kDigits, [&](int64_t i) { return sums[kDigits - 1 - i]; });
    const int digit = kDigits - 1 - static_cast<int>(reached.index);
    known |= static_cast<Mass>(digit) << shift;
    target -= reached.before;
    const bool all = counts[digit] == 1 || sums[digit] == target;
    __syncthreads();
    if (all) break;
  }
  // Places that are not listed may lie between what is known of the lowest and the lowest itself.
  Mass lowest = ~Mass{0};
  each_listed(notes, parts, [&](Mass place) { lowest = place >= known && place < lowest ? place : lowest; });
  return ~largest_of_block(~lowest);
}

}  // namespace qvl::cuda

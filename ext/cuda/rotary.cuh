// How heads are turned: by groups of neighbouring lanes.
//
// A group, a power of two of lanes, turns heads. A lane holds W elements of the first half of a head and the W of the
// second half that they pair with, so that an access is one of 16 bytes, or of 8 where W is 4 of a 16-bit type. With
// many rows a group takes several heads of its row, for which it reads the tables once, and whose loads are all under
// way together; with few it takes one, so that there are enough groups to hide how long memory takes.
#pragma once

#include "common.cuh"

namespace qvl::cuda {

constexpr int kTurnThreads = 128;
constexpr int kManyHeads = 4;

// How (row, heads) are spread over groups of lanes.
struct Spread {
  uint32_t rows;
  uint32_t chunks;  // groups to a row
  int32_t lanes;    // of a group: a power of two
  int32_t shift;    // which
};

// What a lane is to do. Lanes without work go on, for the sake of shuffles.
struct Place {
  int row, head;  // head: the first of its group
  int element;    // the first of its elements of half a head
  bool works;
};

template <int W, int H>
__device__ inline Place place_of(const Spread& spread, int half) {
  const unsigned thread = blockIdx.x * kTurnThreads + threadIdx.x;
  const unsigned group = thread >> spread.shift, row = group / spread.chunks;
  Place place;
  place.element = static_cast<int>(thread & (spread.lanes - 1)) * W;
  place.row = static_cast<int>(row);
  place.head = static_cast<int>(group - row * spread.chunks) * H;
  place.works = row < spread.rows && place.element < half;
  return place;
}

template <int W>
struct Tables {
  float cos[W], sin[W];

  __device__ void read(const float* cosines, const float* sines, int64_t at) {
#pragma unroll
    for (int i = 0; i < W; i += 4) {
      const auto c = load<float, 4>(cosines + at + i), s = load<float, 4>(sines + at + i);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        cos[i + j] = c.at[j];
        sin[i + j] = s.at[j];
      }
    }
  }
  __device__ void turn(float (&first)[W], float (&second)[W]) const {
#pragma unroll
    for (int i = 0; i < W; ++i) {
      const float x = first[i];
      first[i] = x * cos[i] - second[i] * sin[i];
      second[i] = second[i] * cos[i] + x * sin[i];
    }
  }
};

template <class T, int W>
__device__ inline void read_half(const T* from, float (&to)[W]) {
  widened(load<T, W>(from), to);
}

template <class T, int W>
__device__ inline void add_half(const T* from, float (&to)[W]) {
  float more[W];
  read_half(from, more);
#pragma unroll
  for (int i = 0; i < W; ++i) to[i] += more[i];
}

constexpr int64_t kMostThreads = int64_t{1} << 31;

// Of groups that take `heads` heads each, of `all`, `width` elements of half a head to a lane.
inline Spread spread_of(int64_t rows, int64_t all, int64_t heads, int64_t half, int64_t width) {
  Spread made{static_cast<uint32_t>(rows), static_cast<uint32_t>(divided_up(all, heads)), 1, 0};
  while (made.lanes * width < half) made.lanes *= 2, ++made.shift;
  return made;
}

inline int64_t threads_of(const Spread& spread) { return int64_t{spread.rows} * spread.chunks * spread.lanes; }

// f(std::integral_constant of the heads that a group takes, their spread).
template <class F>
Status with_spread(int64_t rows, int64_t all, int64_t half, int64_t width, const F& f) {
  const Spread many = spread_of(rows, all, kManyHeads, half, width);
  // Half of what a multiprocessor can hold.
  if (threads_of(many) >= int64_t{1024} * multiprocessors()) return f(std::integral_constant<int, kManyHeads>{}, many);
  return f(std::integral_constant<int, 1>{}, spread_of(rows, all, 1, half, width));
}

inline dim3 blocks_of(const Spread& spread) {
  return dim3(static_cast<unsigned>(divided_up(threads_of(spread), kTurnThreads)));
}

}  // namespace qvl::cuda

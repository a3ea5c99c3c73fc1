// Attention of 16-bit queries on the tensor cores: how keys lie in shared memory, and what a warp makes of them.
//
// Fragments are read from shared memory in pieces of 8 neighbouring elements of a key, of which each lane has its own:
// of the 32 elements 32 b .. 32 b + 31 lane t (of four) has those from 8 t on. A product over elements may take them in
// any order that both sides share, so queries are read in the same pieces. Of values a lane has 8 neighbours of each of
// its keys, which are 8 columns of the result: lane t ends up with columns 16 t .. 16 t + 15 of 64.
#pragma once

#include "attention.cuh"
#include "mma.cuh"

namespace qvl::cuda {

// S: how keys and values are stored. kDim: the room of a head, at least its size; what is left over is zero.
template <class S, int kDim>
struct Layout {
  static constexpr bool kNarrow = sizeof(S) == 1;
  static constexpr int kWarps = kDim > 128 ? 2 : 4;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kRows = kWarps * 16;           // of queries and heads that a block can take
  static constexpr int kStep = kWarps * kSlice;       // keys that are brought in together: a slice by each warp
  static constexpr int kStages = 2;                   // steps under way or at work
  static constexpr int kBytes = kDim * sizeof(S);     // of a key
  // Apart by so much that the lanes of an access meet in no bank. Of keys 8 rows and 4 pieces of each are read
  // together, two of the rows at a time (four where pieces are of 8 bytes); of values 4 rows, every other one, and 8
  // pieces.
  static constexpr int kKeyStride = kBytes + 32 * sizeof(S);
  static constexpr int kValueStride = kBytes + 16;
  static constexpr int kValues = kSlice * kKeyStride;
  static constexpr int kScales = kValues + kSlice * kValueStride;
  static constexpr int kSliceBytes = kScales + (kNarrow ? 2 * kSlice * 4 : 0);
  static constexpr int kStageBytes = kWarps * kSliceBytes;
  // When all is summed the same memory takes the sums of all warps.
  static constexpr int kSumStride = kDim + 4;
  static constexpr int kTops = kRows * kSumStride * 4;
  static constexpr int kSumBytes = kTops + kRows * 8;
  static constexpr int kShared = kStages * kStageBytes > kSumBytes ? kStages * kStageBytes : kSumBytes;
  static_assert(kDim % 64 == 0 && kStep <= kPartMultiple, "whole pieces; parts are whole steps");
};

// Brings in the keys from `key` on, those behind the end of the part as zeros: what lies there may be anything.
template <class S, int kDim>
__device__ inline void copy_slice(const AttentionCall& p, const Part& part, int kv_head, int key, unsigned char* to) {
  using L = Layout<S, kDim>;
  constexpr int kPieces = L::kBytes / 16, kAtOnce = kWarp / kPieces;  // of a key; keys at once
  static_assert(kAtOnce * kPieces == kWarp && kSlice % kAtOnce == 0, "a lane has the same piece of every key");
  const S* keys = static_cast<const S*>(p.sequences.k[part.sequence]);
  const S* values = static_cast<const S*>(p.sequences.v[part.sequence]);
  const int piece = lane_index() % kPieces, number = lane_index() / kPieces, element = piece * kWide<S>;
  const int64_t row = static_cast<int64_t>(p.kv_heads) * p.dim;
  const int left = element < p.dim ? part.end - key - number : 0;  // keys from this lane's first on
  int64_t from = (key + number) * row + static_cast<int64_t>(kv_head) * p.dim + element;
  unsigned char* place = to + piece * 16;
#pragma unroll
  for (int i = 0; i < kSlice; i += kAtOnce) {
    const bool real = i < left;
    const int64_t at = real ? from : 0;
    cp_async_or_zero<16>(place + (number + i) * L::kKeyStride, keys + at, real);
    cp_async_or_zero<16>(place + L::kValues + (number + i) * L::kValueStride, values + at, real);
    from += kAtOnce * row;
  }
  if constexpr (L::kNarrow) {
    const int number = lane_index() % kSlice;
    const float *k_scales = p.sequences.k_scale[part.sequence], *v_scales = p.sequences.v_scale[part.sequence];
    const float* scales = lane_index() < kSlice ? k_scales : v_scales;
    const bool real = key + number < part.end;
    const int64_t from = real ? static_cast<int64_t>(key + number) * p.kv_heads + kv_head : 0;
    cp_async_or_zero<4>(to + L::kScales + lane_index() * 4, scales + from, real);
  }
}

// Sixteen rows of queries and heads of a warp, and what was summed for them: of a lane those of rows g and g + 8.
template <int kDim>
struct Tile {
  uint32_t query[kDim / 32][2][4];
  float sum[kDim / 64][8][4];
  float top[2], total[2];
  int visible[2];  // keys that the row sees; 0 where there is no row
};

// 8 elements of a query, as pairs, in the order in which those of a key come.
template <class T, bool kNarrow>
__device__ inline Pack<uint32_t, 4> query_piece(const T* from) {
  const auto pairs = load<uint32_t, 4>(reinterpret_cast<const uint32_t*>(from));
  if constexpr (!kNarrow) return pairs;
  const auto [a, b, c, d] = pairs.at;
  return {{low_halves(a, b), high_halves(a, b), low_halves(c, d), high_halves(c, d)}};
}

// row: of the tile's first among those of the head of keys, which are the heads of its group, token by token.
template <class T, class S, int kDim>
__device__ inline void start_tile(const AttentionCall& p, const Part& part, int kv_head, int row, Tile<kDim>& tile) {
  const int group = p.heads / p.kv_heads, rows = p.sequences.tokens(part.sequence) * group;
  const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int mine = row + g + 8 * half, token = mine / group;
    const T* query = static_cast<const T*>(p.q) + (p.sequences.first[part.sequence] + token) * p.q_stride +
                     static_cast<int64_t>(kv_head * group + mine - token * group) * p.dim;
#pragma unroll
    for (int b = 0; b < kDim / 32; ++b) {
      const int element = 32 * b + 8 * t;
      Pack<uint32_t, 4> piece{};
      if (mine < rows && element < p.dim) piece = query_piece<T, Layout<S, kDim>::kNarrow>(query + element);
#pragma unroll
      for (int i = 0; i < 4; ++i) tile.query[b][i / 2][i % 2 * 2 + half] = piece.at[i];
    }
    tile.visible[half] = mine < rows ? part.start + token + 1 : 0;
    tile.top[half] = -INFINITY;
    tile.total[half] = 0.0f;
  }
#pragma unroll
  for (int b = 0; b < kDim / 64; ++b) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) tile.sum[b][j][i] = 0.0f;
    }
  }
}

// 8 elements of a key as four pairs.
template <class T, class S>
__device__ inline Pack<uint32_t, 4> key_piece(const unsigned char* from) {
  if constexpr (sizeof(S) == 2) {
    return load<uint32_t, 4>(reinterpret_cast<const uint32_t*>(from));
  } else {
    const auto [a, b] = load<uint32_t, 2>(reinterpret_cast<const uint32_t*>(from)).at;
    return {{widened_codes<T>(a), widened_codes<T>(a >> 8), widened_codes<T>(b), widened_codes<T>(b >> 8)}};
  }
}

// The pairs that 8 elements of two keys make, one of each key.
template <class T, class S>
__device__ inline void value_pieces(const unsigned char* first, const unsigned char* second, uint32_t (&pairs)[8]) {
  constexpr int kWords = 2 * sizeof(S);
  const auto a = load<uint32_t, kWords>(reinterpret_cast<const uint32_t*>(first));
  const auto b = load<uint32_t, kWords>(reinterpret_cast<const uint32_t*>(second));
#pragma unroll
  for (int i = 0; i < kWords; ++i) {
    const uint32_t low = low_halves(a.at[i], b.at[i]), high = high_halves(a.at[i], b.at[i]);
    if constexpr (sizeof(S) == 2) {
      pairs[2 * i] = low;
      pairs[2 * i + 1] = high;
    } else {
      pairs[4 * i] = widened_codes<T>(low);
      pairs[4 * i + 1] = widened_codes<T>(low >> 8);
      pairs[4 * i + 2] = widened_codes<T>(high);
      pairs[4 * i + 3] = widened_codes<T>(high >> 8);
    }
  }
}

// A power of two by which weights are raised, where those of a 16-bit float would soon be too small for it: the largest
// weight is 1, and the scale of a value, which a weight is multiplied by first, at most 65504 / 127.
template <class T, class S>
constexpr float kLift = std::is_same_v<T, bfloat16> ? 0.0f : sizeof(S) == 1 ? 6.0f : 14.0f;

// The scores of a slice, key by key what the row sees: of lane (g, t) those of keys 8 j + 2 t and the next.
template <class T, class S, int kDim>
__device__ inline void score(const AttentionCall& p, const unsigned char* slice, int key, const Tile<kDim>& tile,
                             float (&x)[2][4]) {
  using L = Layout<S, kDim>;
  const int g = lane_index() / 4, t = lane_index() % 4;
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) x[j][i] = 0.0f;
  }
#pragma unroll
  for (int b = 0; b < kDim / 32; ++b) {
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const auto piece =
          key_piece<T, S>(slice + (8 * j + g) * L::kKeyStride + (32 * b + 8 * t) * static_cast<int>(sizeof(S)));
      const uint32_t first[2] = {piece.at[0], piece.at[1]}, second[2] = {piece.at[2], piece.at[3]};
      multiply_tiles<T>(x[j], tile.query[b][0], first);
      multiply_tiles<T>(x[j], tile.query[b][1], second);
    }
  }
#pragma unroll
  for (int j = 0; j < 2; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int number = 8 * j + 2 * t + i % 2;
      float scale = p.scale;
      if constexpr (L::kNarrow) scale *= reinterpret_cast<const float*>(slice + L::kScales)[number];
      x[j][i] = key + number < tile.visible[i / 2] ? x[j][i] * scale : -INFINITY;
    }
  }
}

// Scores to weights, and what was summed before to their new top.
template <class T, class S, int kDim>
__device__ inline void weigh(float (&x)[2][4], Tile<kDim>& tile) {
  float factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int i = 2 * half;
    float top = fmaxf(fmaxf(x[0][i], x[0][i + 1]), fmaxf(x[1][i], x[1][i + 1]));
    top = fmaxf(tile.top[half], across_warp(top, Largest{}, 4));
    const float anchor = top == -INFINITY ? 0.0f : top;  // no key yet
    factor[half] = exp2_fast(tile.top[half] - anchor);
    tile.top[half] = top;
    float total = 0.0f;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      x[j][i] = exp2_fast(x[j][i] - (anchor - kLift<T, S>));
      x[j][i + 1] = exp2_fast(x[j][i + 1] - (anchor - kLift<T, S>));
      total += x[j][i] + x[j][i + 1];
    }
    tile.total[half] = tile.total[half] * factor[half] + total;
  }
  // Tops soon stay what they are.
  if (__ballot_sync(kAllLanes, factor[0] != 1.0f || factor[1] != 1.0f) == 0) return;
#pragma unroll
  for (int b = 0; b < kDim / 64; ++b) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) tile.sum[b][j][i] *= factor[i / 2];
    }
  }
}

// Adds weights times values.
template <class T, class S, int kDim>
__device__ inline void add_values(const unsigned char* slice, float (&x)[2][4], Tile<kDim>& tile) {
  using L = Layout<S, kDim>;
  const int g = lane_index() / 4, t = lane_index() % 4;
  if constexpr (L::kNarrow) {
    const float* scales = reinterpret_cast<const float*>(slice + L::kScales) + kSlice;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) x[j][i] *= scales[8 * j + 2 * t + i % 2];
    }
  }
  uint32_t weights[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    weights[i] = two(from_float<T>(x[i / 2][i % 2 * 2]), from_float<T>(x[i / 2][i % 2 * 2 + 1]));
  }
#pragma unroll
  for (int b = 0; b < kDim / 64; ++b) {
    const unsigned char* values = slice + L::kValues + (64 * b + 8 * g) * static_cast<int>(sizeof(S));
    uint32_t near[8], far[8];
    value_pieces<T, S>(values + 2 * t * L::kValueStride, values + (2 * t + 1) * L::kValueStride, near);
    value_pieces<T, S>(values + (2 * t + 8) * L::kValueStride, values + (2 * t + 9) * L::kValueStride, far);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const uint32_t pairs[2] = {near[j], far[j]};
      multiply_tiles<T>(tile.sum[b][j], weights, pairs);
    }
  }
}

}  // namespace qvl::cuda

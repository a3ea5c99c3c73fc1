// Attention of float32 queries, without tensor cores: eight lanes take a key, a block sixteen at a time.
#include "attention.cuh"

namespace qvl::cuda {
namespace {

constexpr int kLanes = 8;
constexpr int kThreads = 128;
constexpr int kGroups = kThreads / kLanes;

// Of a lane: fours of elements, kLanes apart, of the query and of what its group has summed.
template <int kFours>
struct Summed {
  float query[kFours][4], sum[kFours][4];
  float top, total;
};

// Elements of a key or value as they are stored; zeros where there are none.
template <class S, int kFours>
__device__ inline void read_fours(const S* from, int dim, bool real, float (&to)[kFours][4]) {
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    const int element = (i * kLanes + lane_index() % kLanes) * 4;
    Pack<S, 4> four{};
    if (real && element < dim) four = load<S, 4>(from + element);
#pragma unroll
    for (int j = 0; j < 4; ++j) to[i][j] = static_cast<float>(four.at[j]);
  }
}

// Takes in one key for each group. Every lane of a warp comes here, those without a key too.
template <class S, int kFours>
__device__ inline void take_key(const AttentionCall& p, int sequence, int kv_head, int key, bool real,
                                Summed<kFours>& mine) {
  const int64_t number = static_cast<int64_t>(real ? key : 0) * p.kv_heads + kv_head;
  float key_part[kFours][4], value[kFours][4];
  read_fours(static_cast<const S*>(p.sequences.k[sequence]) + number * p.dim, p.dim, real, key_part);
  read_fours(static_cast<const S*>(p.sequences.v[sequence]) + number * p.dim, p.dim, real, value);
  float score = 0.0f;
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) score += mine.query[i][j] * key_part[i][j];
  }
  score = across_warp(score, Sum{}, kLanes) * p.scale;
  if (!real) return;
  float scale = 1.0f;
  if constexpr (sizeof(S) == 1) {
    score *= p.sequences.k_scale[sequence][number];
    scale = p.sequences.v_scale[sequence][number];
  }
  const float top = fmaxf(mine.top, score);
  const float factor = weight_of<float>(mine.top, top), weight = weight_of<float>(score, top);
  mine.top = top;
  mine.total = mine.total * factor + weight;
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) mine.sum[i][j] = mine.sum[i][j] * factor + weight * scale * value[i][j];
  }
}

// Grid: parts, heads token by token, sequences.
template <class S, int kFours>
__global__ void __launch_bounds__(kThreads) attend_float(const __grid_constant__ AttentionCall p) {
  constexpr int kRoom = kFours * kLanes * 4;
  __shared__ __align__(16) float sums[kGroups][kRoom];
  __shared__ float2 tops[kGroups];
  const int head = static_cast<int>(blockIdx.y) % p.heads, token = static_cast<int>(blockIdx.y) / p.heads;
  const Part part = part_of(p, static_cast<int>(blockIdx.z));
  const int end = min(part.end, part.start + token + 1);
  if (token >= p.sequences.tokens(part.sequence) || part.begin >= end) return;
  const int group = static_cast<int>(threadIdx.x) / kLanes, kv_head = head / (p.heads / p.kv_heads);
  const auto* query = static_cast<const float*>(p.q) + (p.sequences.first[part.sequence] + token) * p.q_stride +
                      static_cast<int64_t>(head) * p.dim;
  Summed<kFours> mine{};
  mine.top = -INFINITY;
  read_fours(query, p.dim, true, mine.query);
  for (int key = part.begin; key < end; key += kGroups) {
    take_key<S>(p, part.sequence, kv_head, key + group, key + group < end, mine);
  }
#pragma unroll
  for (int i = 0; i < kFours; ++i) {
    store(&sums[group][(i * kLanes + lane_index() % kLanes) * 4], packed<float>(mine.sum[i]));
  }
  if (lane_index() % kLanes == 0) tops[group] = make_float2(mine.top, mine.total);
  __syncthreads();
  const int element = static_cast<int>(threadIdx.x) * 4;
  if (element >= p.dim) return;
  float top = -INFINITY, total = 0.0f, sum[4] = {};
  for (int i = 0; i < kGroups; ++i) top = fmaxf(top, tops[i].x);
  for (int i = 0; i < kGroups; ++i) {
    const float weight = weight_of<float>(tops[i].x, top);
    total += weight * tops[i].y;
#pragma unroll
    for (int j = 0; j < 4; ++j) sum[j] += weight * sums[i][element + j];
  }
  put_part<float>(p, part.sequence, token, head, element, sum, top, total);
}

template <class S>
Status attend_stored(const AttentionCall& call, int tokens, void* stream) {
  const dim3 grid(static_cast<unsigned>(call.splits), static_cast<unsigned>(call.heads * tokens),
                  static_cast<unsigned>(call.sequences.count));
  const auto kernel = call.dim <= 128 ? attend_float<S, 4> : attend_float<S, 8>;
  return launch(kernel, grid, dim3(kThreads), 0, stream, call);
}

}  // namespace

Status attend_parts_float(const AttentionCall& call, bool narrow, int tokens, void* stream) {
  return narrow ? attend_stored<int8_t>(call, tokens, stream) : attend_stored<float>(call, tokens, stream);
}

}  // namespace qvl::cuda

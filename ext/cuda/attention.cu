// Attention of the newest tokens: how keys are split into parts, which bodies sum over them, and how parts are joined.
#include <algorithm>

#include "attention.cuh"

namespace qvl::cuda {
namespace {

constexpr int kJoinThreads = 256;
constexpr int kMostSplits = kJoinThreads;

// ---- Joining parts ----

// Grid: heads, tokens, sequences. A warp takes every eighth part, the block then adds up the warps in their order.
template <class T>
__global__ void __launch_bounds__(kJoinThreads) join_parts(const __grid_constant__ AttentionCall p) {
  constexpr int kWarps = kJoinThreads / kWarp, kAtOnce = 8, kMostDim = 256;
  __shared__ float weights[kMostSplits], room[kWarps];
  __shared__ __align__(16) float sums[kWarps][kMostDim];
  const int head = static_cast<int>(blockIdx.x), token = static_cast<int>(blockIdx.y);
  const int sequence = static_cast<int>(blockIdx.z), tokens = p.sequences.tokens(sequence);
  if (token >= tokens) return;
  const int start = p.starts[sequence], length = part_length(p, start + tokens);
  const int parts = (start + token + length) / length;  // those that begin before start + token + 1
  const int64_t first = row_number(p, sequence, token, head) * p.splits;
  const int mine = static_cast<int>(threadIdx.x);
  const float2 part = mine < parts ? p.tops[first + mine] : make_float2(-INFINITY, 0.0f);
  const float top = across_block(part.x, Largest{}, -INFINITY, room);
  const float weight = weight_of<T>(part.x, top);
  weights[mine] = weight;
  const float total = across_block(weight * part.y, Sum{}, 0.0f, room);  // its barriers also serve the weights
  for (int at = lane_index() * 4; at < p.dim; at += kWarp * 4) {
    float sum[4] = {};
    for (int i = warp_index(); i < parts; i += kWarps * kAtOnce) {
      Pack<float, 4> fours[kAtOnce]{};
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (i + j * kWarps < parts) fours[j] = load<float, 4>(p.sums + (first + i + j * kWarps) * p.dim + at);
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        const float weight = i + j * kWarps < parts ? weights[i + j * kWarps] : 0.0f;
#pragma unroll
        for (int k = 0; k < 4; ++k) sum[k] += weight * fours[j].at[k];
      }
    }
    store(&sums[warp_index()][at], packed<float>(sum));
  }
  __syncthreads();
  if (mine >= p.dim) return;
  float sum = 0.0f;
  for (int i = 0; i < kWarps; ++i) sum += sums[i][mine];
  const int64_t row = p.sequences.first[sequence] + token;
  static_cast<T*>(p.out)[row * p.out_stride + static_cast<int64_t>(head) * p.dim + mine] = from_float<T>(sum / total);
}

// ---- How many parts ----

constexpr int64_t kLongestPart = 2048;  // of a sequence much longer than the others; no block has more to do alone
// A shorter part than two steps takes as long as two, which are brought in together; where there are blocks enough, a
// part should be worth what a block costs to begin and to end.
constexpr int64_t kShortestPart = 128, kShortestOfMany = 512;

struct Split {
  int64_t splits, least_part;
};

int64_t most_tokens(const AttentionParams& p) {
  int64_t most = 0;
  for (int64_t i = 0; i < p.count; ++i) most = std::max(most, p.sequences[i].tokens);
  return most;
}

// Two blocks to a multiprocessor, as far as there are keys enough for them.
Split split_of(const AttentionParams& p) {
  const int64_t blocks = std::max<int64_t>(1, p.kv_heads * p.count), processors = multiprocessors();
  const int64_t least = blocks >= processors ? kShortestOfMany : kShortestPart;
  const int64_t filling = std::max(2 * processors / blocks, divided_up(p.most_keys, kLongestPart));
  const int64_t possible = std::min<int64_t>(divided_up(p.most_keys, least), kMostSplits);
  return {std::max<int64_t>(1, std::min(filling, possible)), least};
}

struct Scratch {
  int64_t rows, sums, tops;  // of all rows; bytes
};
Scratch scratch_of(const AttentionParams& p) {
  int64_t rows = 0;
  for (int64_t i = 0; i < p.count; ++i) rows += p.sequences[i].tokens;
  const int64_t splits = split_of(p).splits;
  if (splits == 1) return {rows, 0, 0};
  const int64_t slots = rows * p.heads * splits;
  return {rows, slots * p.dim * 4, slots * 8};
}

// ---- Launches ----

bool has_body(const AttentionParams& p) {
  const int64_t size = bytes_of(p.dtype);
  if (p.storage != p.dtype && p.storage != DType::int8) return false;
  if (p.dim < 16 || p.dim > 256 || p.dim % 16 != 0) return false;
  if (p.kv_heads < 1 || p.heads < 1 || p.heads % p.kv_heads != 0) return false;
  if (p.most_keys > INT32_MAX / 2 || most_tokens(p) > kMostQueries) return false;
  return aligned(p.q) && aligned(p.out) && aligned(p.workspace) && aligned(p.q_stride, size) &&
         aligned(p.out_stride, size) && aligned(p.sequences, p.count);
}

// Of the sequences from `first` on, whose first row is `row`.
AttentionCall call_of(const AttentionParams& p, int64_t first, int64_t row) {
  const int64_t size = bytes_of(p.dtype);
  const Split split = split_of(p);
  AttentionCall call{};
  call.q = static_cast<const char*>(p.q) + row * p.q_stride * size;
  call.out = static_cast<char*>(p.out) + row * p.out_stride * size;
  const int64_t slot = row * p.heads * split.splits;
  if (split.splits > 1) {
    auto* sums = static_cast<float*>(p.workspace);
    call.sums = sums + slot * p.dim;
    call.tops = reinterpret_cast<float2*>(static_cast<char*>(p.workspace) + scratch_of(p).sums) + slot;
  }
  call.starts = p.starts + first;
  call.q_stride = p.q_stride, call.out_stride = p.out_stride;
  call.heads = static_cast<int32_t>(p.heads), call.kv_heads = static_cast<int32_t>(p.kv_heads);
  call.dim = static_cast<int32_t>(p.dim);
  call.splits = static_cast<int32_t>(split.splits), call.least_part = static_cast<int32_t>(split.least_part);
  call.scale = p.dtype == DType::float32 ? p.scale : p.scale * kLog2e;
  call.sequences = taken(p.sequences + first, std::min<int64_t>(p.count - first, kMostSequences));
  return call;
}

template <class T>
Status attend(const AttentionCall& call, bool narrow, int tokens, void* stream) {
  Status status;
  if constexpr (std::is_same_v<T, float>) {
    status = attend_parts_float(call, narrow, tokens, stream);
  } else {
    status = attend_parts<T>(call, narrow, tokens, stream);
  }
  if (status != Status::ok || call.splits == 1) return status;
  const dim3 grid(static_cast<unsigned>(call.heads), static_cast<unsigned>(tokens),
                  static_cast<unsigned>(call.sequences.count));
  return launch(join_parts<T>, grid, dim3(kJoinThreads), 0, stream, call);
}

}  // namespace
}  // namespace qvl::cuda

qvl::Status qvl_cuda_attention(const qvl::cuda::AttentionParams* params, void* stream) {
  using namespace qvl::cuda;
  const AttentionParams& p = *params;
  if (!has_body(p)) return qvl::Status::unsupported;
  const int tokens = static_cast<int>(most_tokens(p));
  if (tokens == 0) return qvl::Status::ok;
  int64_t row = 0;
  for (int64_t first = 0; first < p.count; first += kMostSequences) {
    const AttentionCall call = call_of(p, first, row);
    row += call.sequences.first[call.sequences.count];
    const auto status = with_type(p.dtype, [&](auto element) {
      return attend<decltype(element)>(call, p.storage == qvl::DType::int8, tokens, stream);
    });
    if (status != qvl::Status::ok) return status;
  }
  return qvl::Status::ok;
}

int64_t qvl_cuda_attention_workspace(const qvl::cuda::AttentionParams* params) {
  const auto scratch = qvl::cuda::scratch_of(*params);
  return scratch.sums + scratch.tops;
}

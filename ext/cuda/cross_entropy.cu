// The loss of rows of logits, a block a row. A first pass finds the largest and the sum of exponentials together; where
// gradients are wanted it keeps as much of the row as the multiprocessor has room for, which the second pass then need
// not read again: of 152064 logits in 16 bits three quarters on sm_90.
#include "qvl/cuda/cross_entropy.h"

#include "common.cuh"

namespace qvl::cuda {
namespace {

constexpr int kMostThreads = 1024;

// Some logits of a row: the largest, and the sum of exp(logit - largest).
struct Total {
  float largest, sum;
};

// exp(x), with T's precision to spare.
template <class T>
__device__ float power_of(float x) {
  if constexpr (sizeof(T) == 4) {
    return expf(x);
  } else {
    return exp2_fast(x * kLog2e);
  }
}

template <class T, int N>
__device__ void add(Total& total, const float (&x)[N]) {
  float most = x[0];
#pragma unroll
  for (int i = 1; i < N; ++i) most = fmaxf(most, x[i]);
  if (most > total.largest) {
    total.sum *= power_of<T>(total.largest - most);  // 0 of nothing yet
    total.largest = most;
  }
  // So that the difference of two infinities does not spoil the sum.
  const float base = total.largest == -INFINITY ? 0.0f : total.largest;
#pragma unroll
  for (int i = 0; i < N; ++i) total.sum += power_of<T>(x[i] - base);
}

// What is multiplied with (softmax - onehot): 0 where nothing of the row is wanted, not even of what is not a number.
__device__ float scale_of(const CrossEntropyParams& p, int64_t row) {
  const float weight = p.weights ? p.weights[row] : 1.0f;
  return p.targets[row] < 0 ? 0.0f : weight;
}

// How a row is cut: `wide` packs from its begin on, the first `kept` of which stay in shared memory, and single logits.
template <class T>
struct Row {
  T* logits;
  int64_t vocab, wide, kept;
  Pack<T, kWide<T>>* memory;

  __device__ Row(const CrossEntropyParams& p, int64_t room)
      : logits(static_cast<T*>(p.logits) + static_cast<int64_t>(blockIdx.x) * p.stride),
        vocab(p.vocab),
        wide(reinterpret_cast<uintptr_t>(logits) % 16 == 0 ? p.vocab / kWide<T> : 0),
        kept(room < wide ? room : wide),
        memory(reinterpret_cast<Pack<T, kWide<T>>*>(shared_memory())) {}
};

template <class T>
__device__ Total total_of(const Row<T>& row) {
  constexpr int N = kWide<T>, kAhead = 4;  // loads under way at a time
  Total total{-INFINITY, 0.0f};
  for (int64_t first = threadIdx.x; first < row.wide; first += kAhead * static_cast<int64_t>(blockDim.x)) {
    Pack<T, N> some[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int64_t i = first + j * static_cast<int64_t>(blockDim.x);
      if (i < row.wide) some[j] = load<T, N>(row.logits + i * N);
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int64_t i = first + j * static_cast<int64_t>(blockDim.x);
      if (i >= row.wide) break;
      if (i < row.kept) row.memory[i] = some[j];
      float x[N];
      widened(some[j], x);
      add<T>(total, x);
    }
  }
  for (int64_t i = row.wide * N + threadIdx.x; i < row.vocab; i += blockDim.x) {
    const float x[1] = {to_float(row.logits[i])};
    add<T>(total, x);
  }
  return total;
}

// The total of the row from those of the threads.
template <class T>
__device__ Total joined(const Total& mine) {
  __shared__ float shared[kMostThreads / kWarp];
  Total total;
  total.largest = across_block(mine.largest, Largest{}, -INFINITY, shared);
  total.sum = across_block(mine.sum * power_of<T>(mine.largest - total.largest), Sum{}, 0.0f, shared);
  return total;
}

// Overwrites the row. Threads find in shared memory what they have put there themselves.
template <class T>
__device__ void write_gradient(const Row<T>& row, const Total& total, int64_t target, float scale) {
  constexpr int N = kWide<T>;
  const float over = scale / total.sum;
  const auto of = [&](float x, int64_t i) {
    const float power = power_of<T>(x - total.largest);
    return i == target ? scale * (power / total.sum - 1.0f) : over * power;
  };
  for (int64_t i = threadIdx.x; i < row.wide; i += blockDim.x) {
    float x[N];
    widened(i < row.kept ? row.memory[i] : load<T, N>(row.logits + i * N), x);
#pragma unroll
    for (int j = 0; j < N; ++j) x[j] = of(x[j], i * N + j);
    store(row.logits + i * N, packed<T, N>(x));
  }
  for (int64_t i = row.wide * N + threadIdx.x; i < row.vocab; i += blockDim.x) {
    row.logits[i] = from_float<T>(of(to_float(row.logits[i]), i));
  }
}

template <class T>
__device__ void fill(const Row<T>& row, float value) {
  constexpr int N = kWide<T>;
  float x[N];
#pragma unroll
  for (int j = 0; j < N; ++j) x[j] = value;
  const Pack<T, N> all = packed<T, N>(x);
  for (int64_t i = threadIdx.x; i < row.wide; i += blockDim.x) store(row.logits + i * N, all);
  for (int64_t i = row.wide * N + threadIdx.x; i < row.vocab; i += blockDim.x) row.logits[i] = all.at[0];
}

template <class T>
__global__ void __launch_bounds__(kMostThreads) cross_entropy(const CrossEntropyParams p, int64_t room) {
  const Row<T> row(p, room);
  const int64_t target = p.targets[blockIdx.x];
  const float weight = scale_of(p, blockIdx.x);
  if (weight == 0.0f || target >= p.vocab) {
    // A target that no logit is for is a mistake that training should notice.
    const float value = target >= p.vocab ? NAN : 0.0f;
    if (threadIdx.x == 0) p.losses[blockIdx.x] = value;
    if (p.gradient) fill(row, value);
    return;
  }
  // Read before anything is overwritten: across_block has a barrier on the way.
  const float likely = to_float(row.logits[target]);
  const Total total = joined<T>(total_of(row));
  if (threadIdx.x == 0) p.losses[blockIdx.x] = weight * (logf(total.sum) + (total.largest - likely));
  if (p.gradient) write_gradient(row, total, target, weight * p.grad_scale);
}

}  // namespace
}  // namespace qvl::cuda

qvl::Status qvl_cuda_cross_entropy(const qvl::cuda::CrossEntropyParams* params, void* stream) {
  using namespace qvl::cuda;
  const CrossEntropyParams& p = *params;
  if (p.rows == 0) return qvl::Status::ok;
  return with_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    const int64_t packs = p.vocab / kWide<T>;
    const int threads = packs >= kMostThreads ? kMostThreads : packs >= 256 ? 256 : 64;
    const int64_t most = (most_shared_memory() - 1024) / 16;  // what joins threads needs some too
    const int64_t room = !p.gradient ? 0 : packs < most ? packs : most;
    return launch(cross_entropy<T>, dim3(static_cast<unsigned>(p.rows)), dim3(threads), room * 16, stream, p, room);
  });
}

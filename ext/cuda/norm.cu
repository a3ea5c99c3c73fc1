// RMS and layer normalisation. A block has a row, of which each thread holds its packs in registers between the passes;
// weights are under way before the sum over the row is known.
#include "norm.cuh"

namespace qvl::cuda {
namespace {

// With more packs to a thread, blocks are smaller and more rows under way; with fewer, a single row is done sooner.
constexpr int most_threads(int each) { return each == 1 ? 1024 : each == 2 ? 256 : 512; }

template <class T, bool kLayer>
__device__ const T* row_of(const NormParams& p, int64_t row) {
  return static_cast<const T*>(p.x) + (kLayer && p.gather ? p.gather[row] : row) * p.width;
}

template <class T, int N, int kEach>
struct Row {
  Pack<T, N> at[kEach];
  int packs;

  template <class F>
  __device__ void each(const F& f) const {
    each_pack<N, kEach>(packs, f);
  }
  __device__ void read(const void* from) {
    each([&](int j, int i) { at[j] = load<T, N>(static_cast<const T*>(from) + i); });
  }
  // f(x) summed over the elements of this thread.
  template <class F>
  __device__ float sum(const F& f) const {
    float total = 0.0f;
    each([&](int j, int) {
#pragma unroll
      for (int k = 0; k < N; ++k) total += f(to_float(at[j].at[k]));
    });
    return total;
  }
};

template <class T, int N, int kEach>
__device__ void add_and_keep(Row<T, N, kEach>& x, const Row<T, N, kEach>& delta, T* to) {
  x.each([&](int j, int i) {
#pragma unroll
    for (int k = 0; k < N; ++k) x.at[j].at[k] = from_float<T>(to_float(x.at[j].at[k]) + to_float(delta.at[j].at[k]));
    store(to + i, x.at[j]);
  });
}

template <bool kLayer, class RowType>
__device__ Moments moments_of_row(const RowType& x, int64_t width, float epsilon) {
  __shared__ float shared[3 * kWarp];
  if constexpr (!kLayer) {
    float squares[1] = {x.sum([](float a) { return a * a; })};
    sum_across_block(squares, shared);
    return moments_of(0.0f, 0.0f, squares[0], width, epsilon);
  }
  float total[1] = {x.sum([](float a) { return a; })};
  sum_across_block(total, shared);
  const float mean = total[0] / static_cast<float>(width);
  float apart[2] = {x.sum([=](float a) { return a - mean; }), x.sum([=](float a) { return (a - mean) * (a - mean); })};
  sum_across_block(apart, shared + kWarp);
  return moments_of(mean, apart[0], apart[1], width, epsilon);
}

template <class T, int N, int kEach, bool kLayer>
__global__ void __launch_bounds__(most_threads(kEach)) norm_kernel(NormParams p) {
  const int64_t row = blockIdx.x, at = row * p.width;
  Row<T, N, kEach> x, delta, weight, bias;
  x.packs = delta.packs = weight.packs = bias.packs = static_cast<int>(p.width) / N;
  x.read(row_of<T, kLayer>(p, row));
  if (p.delta) delta.read(static_cast<const T*>(p.delta) + at);
  weight.read(p.weight);
  if constexpr (kLayer) bias.read(p.bias);
  if (p.delta) add_and_keep(x, delta, static_cast<T*>(p.sum) + at);
  const Moments moments = moments_of_row<kLayer>(x, p.width, p.epsilon);
  x.each([&](int j, int i) {
    Pack<T, N> made;
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const float normal = kLayer ? moments.normal(to_float(x.at[j].at[k])) : to_float(x.at[j].at[k]) * moments.scale;
      const float shift = kLayer ? to_float(bias.at[j].at[k]) : 0.0f;
      made.at[k] = from_float<T>(normal * to_float(weight.at[j].at[k]) + shift);
    }
    store(static_cast<T*>(p.out) + at + i, made);
  });
}

// Any width and alignment: element by element, and read again for every pass.
constexpr int kAnyThreads = 256;

template <class T>
struct AnyRow {
  const T* from;
  int64_t width;

  template <class F>
  __device__ float sum(const F& f) const {
    float total = 0.0f;
    for (int64_t i = threadIdx.x; i < width; i += kAnyThreads) total += f(to_float(from[i]));
    return total;
  }
};

template <class T, bool kLayer>
__global__ void __launch_bounds__(kAnyThreads) any_norm_kernel(NormParams p) {
  const int64_t row = blockIdx.x, at = row * p.width;
  AnyRow<T> x{row_of<T, kLayer>(p, row), p.width};
  if (p.delta) {
    const T* delta = static_cast<const T*>(p.delta) + at;
    T* sum = static_cast<T*>(p.sum) + at;
    for (int64_t i = threadIdx.x; i < p.width; i += kAnyThreads) {
      sum[i] = from_float<T>(to_float(x.from[i]) + to_float(delta[i]));
    }
    x.from = sum;  // whose elements each thread reads where it wrote them
  }
  const Moments moments = moments_of_row<kLayer>(x, p.width, p.epsilon);
  const T *weight = static_cast<const T*>(p.weight), *bias = static_cast<const T*>(p.bias);
  for (int64_t i = threadIdx.x; i < p.width; i += kAnyThreads) {
    const float shift = kLayer ? to_float(bias[i]) : 0.0f;
    static_cast<T*>(p.out)[at + i] = from_float<T>(moments.normal(to_float(x.from[i])) * to_float(weight[i]) + shift);
  }
}

template <class T, bool kLayer>
Status norm_rows(const NormParams& p, void* stream) {
  constexpr int N = kWide<T>;
  const dim3 grid(static_cast<unsigned>(p.rows));
  const auto run = [&](auto each) {
    constexpr int kEach = decltype(each)::value;
    const dim3 block(static_cast<unsigned>(threads_for(p.width / N, kEach)));
    return launch(norm_kernel<T, N, kEach, kLayer>, grid, block, 0, stream, p);
  };
  const bool whole = p.width % N == 0 && aligned(p.x) && aligned(p.delta) && aligned(p.sum) && aligned(p.weight) &&
                     aligned(p.bias) && aligned(p.out);
  const int64_t packs = p.width / N;
  if (!whole || packs > 4 * most_threads(4)) return launch(any_norm_kernel<T, kLayer>, grid, dim3(kAnyThreads), 0, stream, p);
  const bool few = p.rows <= 2 * multiprocessors();
  if (packs <= 64 || (few && packs <= most_threads(1))) return run(std::integral_constant<int, 1>());
  if (packs <= 2 * most_threads(2)) return run(std::integral_constant<int, 2>());
  return run(std::integral_constant<int, 4>());
}

template <bool kLayer>
Status norm(const NormParams& p, void* stream) {
  if (p.rows > 0x7fffffff) return Status::unsupported;
  if (p.gather && (p.delta || !kLayer)) return Status::unsupported;
  return with_type(p.dtype, [&](auto element) {
    if (p.rows <= 0 || p.width <= 0) return Status::ok;
    return norm_rows<decltype(element), kLayer>(p, stream);
  });
}

}  // namespace
}  // namespace qvl::cuda

using namespace qvl::cuda;

qvl::Status qvl_cuda_rms_norm(const NormParams* params, void* stream) { return norm<false>(*params, stream); }
qvl::Status qvl_cuda_layer_norm(const NormParams* params, void* stream) { return norm<true>(*params, stream); }

// Gradients of the normalisations. A block has some neighbouring rows, one after the other, and each thread its columns
// of them: what columns add to the gradients of weight and bias stays in registers until the block has done all its rows,
// and a second kernel adds the blocks' sums up, in an order that depends on sizes alone.
#include "norm.cuh"

namespace qvl::cuda {
namespace {

constexpr int kMostThreads = 512;
// Blocks at most, and rows of a block at least: the sums of blocks are to be small beside the rows.
constexpr int64_t kMostParts = 512, kLeastRows = 4;

int64_t rows_of_part(int64_t rows) {
  const int64_t even = divided_up(rows, kMostParts);
  return even > kLeastRows ? even : kLeastRows;
}
int64_t parts_of(int64_t rows) { return rows > 0 ? divided_up(rows, rows_of_part(rows)) : 0; }

struct Job {
  NormGradParams p;
  int64_t rows;   // of a block
  float* weight;  // [blocks, width] or null
  float* bias;
};

// Sums over a row with g = grad_out * weight: over x - mean, its squares, g, and g (x - mean).
struct Sums {
  float rest, squares, of_grad, of_both;
};

// With y the normalised row: grad_x = scale * (g - mean(g) - y * mean(g * y)), where mean(g) counts for layer_norm only.
struct Slope {
  Moments moments;
  float of_grad, of_both;  // mean(g), mean(g y)

  __device__ float at(float x, float grad) const {
    return moments.scale * (grad - of_grad - moments.normal(x) * of_both);
  }
};

template <bool kLayer>
__device__ Slope slope_of(float mean, const Sums& sums, int64_t width, float epsilon) {
  const Moments moments = moments_of(mean, sums.rest, sums.squares, width, epsilon);
  const float count = static_cast<float>(width);
  const float both = (sums.of_both - moments.shift * sums.of_grad) * moments.scale / count;
  return {moments, kLayer ? sums.of_grad / count : 0.0f, both};
}

// `row` has sum(f), with f(x, g) for each element of this thread. `shared` for 5 * 32 floats.
template <bool kLayer, class Row>
__device__ Slope slope_of_row(const Row& row, int64_t width, float epsilon, float* shared) {
  float mean = 0.0f;
  if constexpr (kLayer) {
    float total[1] = {row.sum([](float x, float) { return x; })};
    sum_across_block(total, shared);
    mean = total[0] / static_cast<float>(width);
    float sums[4] = {row.sum([=](float x, float) { return x - mean; }),
                     row.sum([=](float x, float) { return (x - mean) * (x - mean); }),
                     row.sum([](float, float g) { return g; }), row.sum([=](float x, float g) { return g * (x - mean); })};
    sum_across_block(sums, shared + kWarp);
    return slope_of<true>(mean, {sums[0], sums[1], sums[2], sums[3]}, width, epsilon);
  }
  float sums[2] = {row.sum([](float x, float) { return x * x; }), row.sum([](float x, float g) { return g * x; })};
  sum_across_block(sums, shared);
  return slope_of<false>(0.0f, {0.0f, sums[0], 0.0f, sums[1]}, width, epsilon);
}

template <class T, int N, int kEach>
struct Columns {
  Pack<T, N> x[kEach], grad[kEach], weight[kEach];
  int packs;

  template <class F>
  __device__ void each(const F& f) const {
    each_pack<N, kEach>(packs, f);
  }
  __device__ void read(const NormGradParams& p, int64_t row) {
    each([&](int j, int i) {
      x[j] = load<T, N>(static_cast<const T*>(p.x) + row * p.width + i);
      grad[j] = load<T, N>(static_cast<const T*>(p.grad_out) + row * p.width + i);
    });
  }
  __device__ float g(int j, int k) const { return to_float(grad[j].at[k]) * to_float(weight[j].at[k]); }
  template <class F>
  __device__ float sum(const F& f) const {
    float total = 0.0f;
    each([&](int j, int) {
#pragma unroll
      for (int k = 0; k < N; ++k) total += f(to_float(x[j].at[k]), g(j, k));
    });
    return total;
  }
};

template <int N>
__device__ void store_floats(float* to, const float (&x)[N]) {
#pragma unroll
  for (int k = 0; k < N; k += 4) store(to + k, Pack<float, 4>{{x[k], x[k + 1], x[k + 2], x[k + 3]}});
}

template <class T, int N, int kEach, bool kLayer>
__global__ void __launch_bounds__(kMostThreads) grad_kernel(Job job) {
  __shared__ float shared[2][5 * kWarp];  // in turns, so that a row's sums need not wait for who still reads the last
  const NormGradParams& p = job.p;
  const int64_t begin = blockIdx.x * job.rows, end = begin + job.rows < p.rows ? begin + job.rows : p.rows;
  Columns<T, N, kEach> now;
  now.packs = static_cast<int>(p.width) / N;
  now.each([&](int j, int i) { now.weight[j] = load<T, N>(static_cast<const T*>(p.weight) + i); });
  now.read(p, begin);
  float to_weight[kEach][N] = {}, to_bias[kEach][N] = {};
  for (int64_t row = begin; row < end; ++row) {
    Columns<T, N, kEach> next = now;
    Pack<T, N> more[kEach];
    now.each([&](int j, int i) {
      if (p.grad_sum) more[j] = load<T, N>(static_cast<const T*>(p.grad_sum) + row * p.width + i);
    });
    if (row + 1 < end) next.read(p, row + 1);
    const Slope slope = slope_of_row<kLayer>(now, p.width, p.epsilon, shared[(row - begin) % 2]);
    now.each([&](int j, int i) {
      float made[N];
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const float x = to_float(now.x[j].at[k]), grad = to_float(now.grad[j].at[k]);
        to_weight[j][k] += grad * slope.moments.normal(x);
        if constexpr (kLayer) to_bias[j][k] += grad;
        made[k] = slope.at(x, now.g(j, k)) + (p.grad_sum ? to_float(more[j].at[k]) : 0.0f);
      }
      if (p.grad_x) store(static_cast<T*>(p.grad_x) + row * p.width + i, packed<T, N>(made));
    });
    now = next;
  }
  now.each([&](int j, int i) {
    const int64_t at = blockIdx.x * p.width + i;
    if (job.weight) store_floats(job.weight + at, to_weight[j]);
    if (job.bias) store_floats(job.bias + at, to_bias[j]);
  });
}

// Any width and alignment: element by element, read again for every pass, sums in memory.
constexpr int kAnyThreads = 256;

template <class T>
struct AnyColumns {
  const T *x, *grad, *weight;
  int64_t width;

  template <class F>
  __device__ void each(const F& f) const {
    for (int64_t i = threadIdx.x; i < width; i += kAnyThreads) f(i, to_float(x[i]), to_float(grad[i]));
  }
  template <class F>
  __device__ float sum(const F& f) const {
    float total = 0.0f;
    each([&](int64_t i, float a, float g) { total += f(a, g * to_float(weight[i])); });
    return total;
  }
};

template <class T, bool kLayer>
__global__ void __launch_bounds__(kAnyThreads) any_grad_kernel(Job job) {
  __shared__ float shared[5 * kWarp];
  const NormGradParams& p = job.p;
  const int64_t begin = blockIdx.x * job.rows, end = begin + job.rows < p.rows ? begin + job.rows : p.rows;
  float* weight = job.weight ? job.weight + blockIdx.x * p.width : nullptr;
  float* bias = job.bias ? job.bias + blockIdx.x * p.width : nullptr;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * p.width;
    const AnyColumns<T> now{static_cast<const T*>(p.x) + at, static_cast<const T*>(p.grad_out) + at,
                            static_cast<const T*>(p.weight), p.width};
    const Slope slope = slope_of_row<kLayer>(now, p.width, p.epsilon, shared);
    const bool first = row == begin;
    now.each([&](int64_t i, float x, float grad) {
      if (weight) weight[i] = (first ? 0.0f : weight[i]) + grad * slope.moments.normal(x);
      if (bias) bias[i] = (first ? 0.0f : bias[i]) + grad;
      const float more = p.grad_sum ? to_float(static_cast<const T*>(p.grad_sum)[at + i]) : 0.0f;
      const float made = slope.at(x, grad * to_float(now.weight[i])) + more;
      if (p.grad_x) static_cast<T*>(p.grad_x)[at + i] = from_float<T>(made);
    });
    __syncthreads();  // before `shared` is used again
  }
}

// Adds up the blocks' sums of 32 columns, of weight (blockIdx.y 0) or of bias.
constexpr int kJoinRows = 16;

__global__ void __launch_bounds__(kWarp* kJoinRows) join_kernel(Job job, int64_t parts) {
  __shared__ float sums[kJoinRows][kWarp];
  const float* from = blockIdx.y ? job.bias : job.weight;
  float* to = blockIdx.y ? job.p.grad_bias : job.p.grad_weight;
  if (!to) return;
  const int64_t width = job.p.width, column = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  const int mine = static_cast<int>(threadIdx.y);
  float sum = 0.0f;
  if (column < width) {
#pragma unroll 8
    for (int64_t part = mine; part < parts; part += kJoinRows) sum += from[part * width + column];
  }
  sums[mine][threadIdx.x] = sum;
  for (int step = kJoinRows / 2; step > 0; step /= 2) {
    __syncthreads();
    if (mine < step) sums[mine][threadIdx.x] += sums[mine + step][threadIdx.x];
  }
  if (mine == 0 && column < width) to[column] = sums[0][threadIdx.x];
}

template <class T, bool kLayer>
Status grad_rows(const Job& job, int64_t parts, void* stream) {
  constexpr int N = kWide<T>;
  const NormGradParams& p = job.p;
  const dim3 grid(static_cast<unsigned>(parts));
  const auto run = [&](auto each) {
    constexpr int kEach = decltype(each)::value;
    const dim3 block(static_cast<unsigned>(threads_for(p.width / N, kEach)));
    return launch(grad_kernel<T, N, kEach, kLayer>, grid, block, 0, stream, job);
  };
  const bool whole = p.width % N == 0 && aligned(p.x) && aligned(p.weight) && aligned(p.grad_out) &&
                     aligned(p.grad_sum) && aligned(p.grad_x) && aligned(p.workspace);
  const int64_t packs = p.width / N;
  if (!whole || packs > 2 * kMostThreads) return launch(any_grad_kernel<T, kLayer>, grid, dim3(kAnyThreads), 0, stream, job);
  return packs <= kMostThreads ? run(std::integral_constant<int, 1>()) : run(std::integral_constant<int, 2>());
}

template <bool kLayer>
Status norm_grad(const NormGradParams& p, void* stream) {
  const int64_t parts = parts_of(p.rows);
  float* sums = static_cast<float*>(p.workspace);
  float* bias = kLayer && p.grad_bias ? sums + (p.grad_weight ? parts * p.width : 0) : nullptr;
  const Job job{p, rows_of_part(p.rows), p.grad_weight ? sums : nullptr, bias};
  if (p.width <= 0) return Status::ok;
  if (!kLayer && p.grad_bias) return Status::unsupported;
  const Status status = with_type(p.dtype, [&](auto element) {
    return parts > 0 ? grad_rows<decltype(element), kLayer>(job, parts, stream) : Status::ok;
  });
  if (status != Status::ok || (!p.grad_weight && !p.grad_bias)) return status;
  const dim3 grid(static_cast<unsigned>(divided_up(p.width, kWarp)), p.grad_bias ? 2 : 1);
  return launch(join_kernel, grid, dim3(kWarp, kJoinRows), 0, stream, job, parts);
}

}  // namespace
}  // namespace qvl::cuda

using namespace qvl::cuda;

qvl::Status qvl_cuda_rms_norm_grad(const NormGradParams* params, void* stream) {
  return norm_grad<false>(*params, stream);
}
qvl::Status qvl_cuda_layer_norm_grad(const NormGradParams* params, void* stream) {
  return norm_grad<true>(*params, stream);
}
int64_t qvl_cuda_norm_grad_workspace(const NormGradParams* params) {
  const int64_t wanted = (params->grad_weight != nullptr) + (params->grad_bias != nullptr);
  return wanted * parts_of(params->rows) * params->width * static_cast<int64_t>(sizeof(float));
}

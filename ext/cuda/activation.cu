// The gates of MLPs. They are limited by memory: a thread has 16 bytes of each operand of two rows under way at once.
#include "qvl/cuda/activation.h"

#include "common.cuh"

namespace qvl::cuda {
namespace {

constexpr int kBlock = 128;
// Blocks for each multiprocessor; with more rows than these cover, a block goes on to further rows.
constexpr int64_t kBlocksEach = 64;
constexpr int64_t kMostGridRows = 65535;  // CUDA's limit of gridDim.y

template <class T>
__device__ float sigmoid(float x) {
  // 16-bit results do not show the last bits of a float.
  if constexpr (sizeof(T) == 2) return reciprocal_fast(1.0f + exp2_fast(-kLog2e * x));
  return 1.0f / (1.0f + expf(-x));
}

template <class T>
struct Swiglu {
  static constexpr bool has_up = true;
  static __device__ float value(float x, float up) { return x * sigmoid<T>(x) * up; }
  static __device__ void slope(float x, float up, float grad, float& grad_x, float& grad_up) {
    const float s = sigmoid<T>(x), passed = x * s;
    grad_up = grad * passed;
    grad_x = grad * up * (s + passed * (1.0f - s));
  }
};

template <class T>
struct QuickGelu {
  static constexpr bool has_up = false;
  static constexpr float kSlope = 1.702f;
  static __device__ float value(float x, float) { return x * sigmoid<T>(kSlope * x); }
  static __device__ void slope(float x, float, float grad, float& grad_x, float&) {
    const float s = sigmoid<T>(kSlope * x);
    grad_x = grad * (s + kSlope * x * s * (1.0f - s));
  }
};

// N neighbours of one row, and what becomes of them.
template <class T, int N, class Gate>
struct Forward {
  static constexpr int kElements = N;
  Pack<T, N> x, up;

  __device__ void read(const ActivationParams& p, int64_t row, int64_t column) {
    x = load<T, N>(static_cast<const T*>(p.x) + row * p.x_stride + column);
    if constexpr (Gate::has_up) up = load<T, N>(static_cast<const T*>(p.up) + row * p.up_stride + column);
  }
  __device__ void write(const ActivationParams& p, int64_t row, int64_t column) const {
    Pack<T, N> made;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      made.at[i] = from_float<T>(Gate::value(to_float(x.at[i]), Gate::has_up ? to_float(up.at[i]) : 1.0f));
    }
    store(static_cast<T*>(p.out) + row * p.width + column, made);
  }
};

template <class T, int N, class Gate>
struct Backward {
  static constexpr int kElements = N;
  Pack<T, N> x, up, grad;

  __device__ void read(const ActivationGradParams& p, int64_t row, int64_t column) {
    x = load<T, N>(static_cast<const T*>(p.x) + row * p.x_stride + column);
    if constexpr (Gate::has_up) up = load<T, N>(static_cast<const T*>(p.up) + row * p.x_stride + column);
    grad = load<T, N>(static_cast<const T*>(p.grad) + row * p.width + column);
  }
  __device__ void write(const ActivationGradParams& p, int64_t row, int64_t column) const {
    Pack<T, N> of_x, of_up;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      float grad_x, grad_up = 0.0f;
      Gate::slope(to_float(x.at[i]), Gate::has_up ? to_float(up.at[i]) : 1.0f, to_float(grad.at[i]), grad_x, grad_up);
      of_x.at[i] = from_float<T>(grad_x);
      of_up.at[i] = from_float<T>(grad_up);
    }
    const int64_t at = row * p.x_stride + column;
    store(static_cast<T*>(p.grad_x) + at, of_x);
    if constexpr (Gate::has_up) store(static_cast<T*>(p.grad_up) + at, of_up);
  }
};

template <class Piece, class Params>
__global__ void __launch_bounds__(kBlock) gate_kernel(Params p) {
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * kBlock + threadIdx.x) * Piece::kElements;
  if (column >= p.width) return;
  // Results may lie where operands do, so that nothing can be read ahead but by hand.
  Piece first, second;
  for (int64_t row = blockIdx.y; row < p.rows; row += 2 * static_cast<int64_t>(gridDim.y)) {
    const int64_t other = row + gridDim.y;
    first.read(p, row, column);
    if (other < p.rows) second.read(p, other, column);
    first.write(p, row, column);
    if (other < p.rows) second.write(p, other, column);
  }
}

bool whole(const void* pointer, int64_t stride, int64_t size) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride * size % 16 == 0;
}

template <class T>
bool whole(const ActivationParams& p, bool has_up) {
  const int64_t size = sizeof(T);
  return whole(p.x, p.x_stride, size) && whole(p.out, p.width, size) && (!has_up || whole(p.up, p.up_stride, size));
}

template <class T>
bool whole(const ActivationGradParams& p, bool has_up) {
  const int64_t size = sizeof(T);
  return whole(p.x, p.x_stride, size) && whole(p.grad, p.width, size) && whole(p.grad_x, p.x_stride, size) &&
         (!has_up || (whole(p.up, p.x_stride, size) && whole(p.grad_up, p.x_stride, size)));
}

template <class Piece, class Params>
Status spread(const Params& p, void* stream) {
  const int64_t columns = divided_up(p.width, int64_t{Piece::kElements} * kBlock);
  const int64_t most = divided_up(kBlocksEach * multiprocessors(), columns), rows = p.rows < most ? p.rows : most;
  const dim3 grid(static_cast<unsigned>(columns), static_cast<unsigned>(rows < kMostGridRows ? rows : kMostGridRows));
  return launch(gate_kernel<Piece, Params>, grid, dim3(kBlock), 0, stream, p);
}

template <template <class, int, class> class Piece, template <class> class Gate, class Params>
Status gated(const Params& p, void* stream) {
  return with_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    if (p.rows <= 0 || p.width <= 0) return Status::ok;
    if (whole<T>(p, Gate<T>::has_up)) return spread<Piece<T, kWide<T>, Gate<T>>>(p, stream);
    return spread<Piece<T, 1, Gate<T>>>(p, stream);
  });
}

}  // namespace
}  // namespace qvl::cuda

using namespace qvl::cuda;

qvl::Status qvl_cuda_swiglu(const ActivationParams* params, void* stream) {
  return gated<Forward, Swiglu>(*params, stream);
}
qvl::Status qvl_cuda_quick_gelu(const ActivationParams* params, void* stream) {
  return gated<Forward, QuickGelu>(*params, stream);
}
qvl::Status qvl_cuda_swiglu_grad(const ActivationGradParams* params, void* stream) {
  return gated<Backward, Swiglu>(*params, stream);
}
qvl::Status qvl_cuda_quick_gelu_grad(const ActivationGradParams* params, void* stream) {
  return gated<Backward, QuickGelu>(*params, stream);
}

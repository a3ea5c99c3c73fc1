// The rotation alone, in place, and its way back.
#include "cache.cuh"
#include "qvl/cuda/rotary.h"
#include "rotary.cuh"

namespace qvl::cuda {
namespace {

struct RotateCall {
  void* x;
  const float *cos, *sin;
  int64_t stride;
  int32_t heads, dim;
  float sign;  // of the sines
  Spread spread;
};

template <class T, int W, int H>
__global__ void __launch_bounds__(kTurnThreads) rotate(const __grid_constant__ RotateCall p) {
  const int half = p.dim / 2;
  const Place place = place_of<W, H>(p.spread, half);
  if (!place.works) return;
  T* row = static_cast<T*>(p.x) + place.row * p.stride + place.element;
  Pack<T, W> first[H], second[H];
#pragma unroll
  for (int h = 0; h < H; ++h) {
    if (place.head + h >= p.heads) continue;
    first[h] = load<T, W>(row + (place.head + h) * p.dim);
    second[h] = load<T, W>(row + (place.head + h) * p.dim + half);
  }
  Tables<W> tables;
  tables.read(p.cos, p.sin, static_cast<int64_t>(place.row) * half + place.element);
#pragma unroll
  for (int i = 0; i < W; ++i) tables.sin[i] *= p.sign;
#pragma unroll
  for (int h = 0; h < H; ++h) {
    if (place.head + h >= p.heads) continue;
    float x[W], y[W];
    widened(first[h], x);
    widened(second[h], y);
    tables.turn(x, y);
    store(row + (place.head + h) * p.dim, packed<T>(x));
    store(row + (place.head + h) * p.dim + half, packed<T>(y));
  }
}

template <class T, int W>
Status rotate_all(const RotateParams& p, float sign, void* stream) {
  RotateCall call{p.x, p.cos, p.sin, p.stride, static_cast<int32_t>(p.heads), static_cast<int32_t>(p.dim), sign, {}};
  return with_spread(p.rows, p.heads, p.dim / 2, W, [&](auto heads, const Spread& spread) {
    if (threads_of(spread) >= kMostThreads) return Status::unsupported;
    call.spread = spread;
    return launch(rotate<T, W, decltype(heads)::value>, blocks_of(spread), dim3(kTurnThreads), 0, stream, call);
  });
}

Status rotate_by(const RotateParams& p, float sign, void* stream) {
  if (p.dim < 8 || p.dim > 256 || p.dim % 8 != 0 || !aligned(p.cos) || !aligned(p.sin)) return Status::unsupported;
  if (p.rows == 0 || p.heads == 0) return Status::ok;
  return with_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    constexpr int W = kWide<T>;
    const bool wide = p.dim / 2 % W == 0 && aligned(p.x) && aligned(p.stride, sizeof(T));
    if (wide) return rotate_all<T, W>(p, sign, stream);
    if constexpr (W > 4) {
      if (reinterpret_cast<uintptr_t>(p.x) % 8 == 0 && p.stride % 4 == 0) return rotate_all<T, 4>(p, sign, stream);
    }
    return Status::unsupported;
  });
}

}  // namespace
}  // namespace qvl::cuda

qvl::Status qvl_cuda_rotate(const qvl::cuda::RotateParams* params, void* stream) {
  return qvl::cuda::rotate_by(*params, 1.0f, stream);
}
qvl::Status qvl_cuda_rotate_grad(const qvl::cuda::RotateParams* params, void* stream) {
  return qvl::cuda::rotate_by(*params, -1.0f, stream);
}

// Bias, M-RoPE and the store of new keys and values, in one launch.
#include "qvl/cuda/rotary.h"

#include <algorithm>

#include "cache.cuh"
#include "rotary.cuh"

namespace qvl::cuda {
namespace {

struct StoreCall {
  const void *q, *k, *v;
  const void *q_bias, *k_bias, *v_bias;
  const float *cos, *sin;
  void* q_out;
  const int32_t* starts;
  int64_t q_stride, k_stride, v_stride;
  int32_t heads, kv_heads, dim;
  Spread spread;
  Sequences sequences;
};

// Where a head comes from: those of q, then of k, then of v.
template <class T>
struct Source {
  const T* from;
  const T* bias;
};
template <class T>
__device__ inline Source<T> source_of(const StoreCall& p, int row, int head) {
  const void *x = p.q, *bias = p.q_bias;
  int64_t stride = p.q_stride;
  if (head >= p.heads + p.kv_heads) {
    head -= p.heads + p.kv_heads;
    x = p.v, bias = p.v_bias, stride = p.v_stride;
  } else if (head >= p.heads) {
    head -= p.heads;
    x = p.k, bias = p.k_bias, stride = p.k_stride;
  }
  const int64_t at = static_cast<int64_t>(head) * p.dim;
  return {static_cast<const T*>(x) + row * stride + at, bias ? static_cast<const T*>(bias) + at : nullptr};
}

// Codes of a head, by all lanes of a warp; `scale` is that of the group's head.
template <int W>
__device__ inline void quantize(const float (&x)[W], float inverse, int8_t* to) {
  Pack<int8_t, W> codes;
#pragma unroll
  for (int i = 0; i < W; ++i) {
    codes.at[i] = static_cast<int8_t>(max(-127, min(127, __float2int_rn(x[i] * inverse))));
  }
  store(to, codes);
}

// fmaxf leaves out what is no number, which has to spoil the scale: the codes could not hold it.
struct LargestOrNone {
  __device__ float operator()(float a, float b) const { return a > b || a != a ? a : b; }
};

template <int W>
__device__ inline float largest_of(const float (&first)[W], const float (&second)[W]) {
  const LargestOrNone larger;
  float most = 0.0f;
#pragma unroll
  for (int i = 0; i < W; ++i) most = larger(most, larger(fabsf(first[i]), fabsf(second[i])));
  return most;
}

// A head of k or v to its cache. `sequence` and `token`: where the row goes.
template <class T, class S, int W>
__device__ inline void keep(const StoreCall& p, int head, int sequence, int64_t token, const Place& place,
                            const float (&first)[W], const float (&second)[W], float most) {
  const bool values = head >= p.heads + p.kv_heads;
  const int kv_head = head - p.heads - (values ? p.kv_heads : 0);
  const int64_t at = token * p.kv_heads + kv_head;
  auto* to = static_cast<S*>(values ? p.sequences.v[sequence] : p.sequences.k[sequence]) + at * p.dim + place.element;
  if constexpr (std::is_same_v<S, int8_t>) {
    const float scale = most / 127.0f, inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    if (place.element == 0) (values ? p.sequences.v_scale[sequence] : p.sequences.k_scale[sequence])[at] = scale;
    quantize(first, inverse, to);
    quantize(second, inverse, to + p.dim / 2);
  } else {
    store(to, packed<T>(first));
    store(to + p.dim / 2, packed<T>(second));
  }
}

template <class T, class S, int H>
__global__ void __launch_bounds__(kTurnThreads, 4) store_rows(const __grid_constant__ StoreCall p) {
  constexpr int W = kWide<T>;
  const int half = p.dim / 2, last = p.heads + 2 * p.kv_heads;
  const Place place = place_of<W, H>(p.spread, half);
  Pack<T, W> first[H], second[H];
#pragma unroll
  for (int h = 0; h < H; ++h) {
    if (!place.works || place.head + h >= last) continue;
    const T* from = source_of<T>(p, place.row, place.head + h).from + place.element;
    first[h] = load<T, W>(from);
    second[h] = load<T, W>(from + half);
  }
  Tables<W> tables;
  int sequence = 0;
  int64_t token = 0;
  if (place.works) {
    tables.read(p.cos, p.sin, static_cast<int64_t>(place.row) * half + place.element);
    if (place.head + H > p.heads) {
      sequence = p.sequences.owner(place.row);
      token = p.starts[sequence] + (place.row - p.sequences.first[sequence]);
    }
  }
#pragma unroll
  for (int h = 0; h < H; ++h) {
    const int head = place.head + h;
    const bool works = place.works && head < last;
    float x[W], y[W], most = 0.0f;
    if (works) {
      widened(first[h], x);
      widened(second[h], y);
      if (const T* bias = source_of<T>(p, place.row, head).bias) {
        add_half(bias + place.element, x);
        add_half(bias + half + place.element, y);
      }
      if (head < p.heads + p.kv_heads) tables.turn(x, y);
      most = largest_of(x, y);
    }
    if constexpr (std::is_same_v<S, int8_t>) most = across_warp(most, LargestOrNone{}, p.spread.lanes);
    if (!works) continue;
    if (head >= p.heads) {
      keep<T, S>(p, head, sequence, token, place, x, y, most);
    } else {
      T* to = static_cast<T*>(p.q_out) + (static_cast<int64_t>(place.row) * p.heads + head) * p.dim + place.element;
      store(to, packed<T>(x));
      store(to + half, packed<T>(y));
    }
  }
}

template <class T, class S>
Status store_all(StoreCall& call, void* stream) {
  const int64_t rows = call.sequences.first[call.sequences.count];
  const int64_t all = call.heads + 2 * call.kv_heads;
  return with_spread(rows, all, call.dim / 2, kWide<T>, [&](auto heads, const Spread& spread) {
    if (threads_of(spread) >= kMostThreads) return Status::unsupported;
    call.spread = spread;
    return launch(store_rows<T, S, decltype(heads)::value>, blocks_of(spread), dim3(kTurnThreads), 0, stream, call);
  });
}

const void* behind(const void* from, int64_t elements, int64_t size) {
  return static_cast<const char*>(from) + elements * size;
}

// Of the sequences from `first` on, whose first row is `row`.
StoreCall call_of(const RotaryParams& p, int64_t first, int64_t row) {
  const int64_t size = bytes_of(p.dtype);
  StoreCall call{};
  call.q = behind(p.q, row * p.q_stride, size);
  call.k = behind(p.k, row * p.k_stride, size);
  call.v = behind(p.v, row * p.v_stride, size);
  call.q_bias = p.q_bias, call.k_bias = p.k_bias, call.v_bias = p.v_bias;
  call.cos = p.cos + row * (p.dim / 2), call.sin = p.sin + row * (p.dim / 2);
  call.q_out = static_cast<char*>(p.q_out) + row * p.heads * p.dim * size;
  call.starts = p.starts + first;
  call.q_stride = p.q_stride, call.k_stride = p.k_stride, call.v_stride = p.v_stride;
  call.heads = static_cast<int32_t>(p.heads), call.kv_heads = static_cast<int32_t>(p.kv_heads);
  call.dim = static_cast<int32_t>(p.dim);
  call.sequences = taken(p.sequences + first, std::min<int64_t>(p.count - first, kMostSequences));
  return call;
}

bool has_body(const RotaryParams& p) {
  const int64_t size = bytes_of(p.dtype);
  if (p.storage != p.dtype && p.storage != DType::int8) return false;
  if (p.dim < 16 || p.dim > 256 || p.dim % 16 != 0 || p.heads < 1 || p.kv_heads < 1) return false;
  for (const void* pointer : {p.q, p.k, p.v, p.q_bias, p.k_bias, p.v_bias, static_cast<const void*>(p.cos),
                              static_cast<const void*>(p.sin), static_cast<const void*>(p.q_out)}) {
    if (!aligned(pointer)) return false;
  }
  return aligned(p.q_stride, size) && aligned(p.k_stride, size) && aligned(p.v_stride, size) &&
         aligned(p.sequences, p.count);
}

}  // namespace
}  // namespace qvl::cuda

qvl::Status qvl_cuda_rotary_store(const qvl::cuda::RotaryParams* params, void* stream) {
  using namespace qvl::cuda;
  const RotaryParams& p = *params;
  if (!has_body(p)) return qvl::Status::unsupported;
  int64_t row = 0;
  for (int64_t first = 0; first < p.count; first += kMostSequences) {
    StoreCall call = call_of(p, first, row);
    const int64_t rows = call.sequences.first[call.sequences.count];
    row += rows;
    if (rows == 0) continue;
    const auto status = with_type(p.dtype, [&](auto element) {
      using T = decltype(element);
      return p.storage == qvl::DType::int8 ? store_all<T, int8_t>(call, stream) : store_all<T, T>(call, stream);
    });
    if (status != qvl::Status::ok) return status;
  }
  return qvl::Status::ok;
}

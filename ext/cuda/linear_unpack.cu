// Packed weights as numbers again: whole matrices for dense products, and rows of them, as token vectors are.
#include "linear_job.cuh"

namespace qvl::cuda {
namespace {

constexpr int kThreads = 128;

struct UnpackJob {
  const uint8_t* data;
  const void* scales;
  const uint8_t* zeros;
  const int64_t* rows;
  void* out;
  int64_t k, panel_bytes;
  int32_t group;   // 0: one scale an output
  int32_t groups;  // of an output
  bool wide;       // rows of out are aligned to 16 bytes
};

// What a packed word has: four neighbouring inputs of an output, or eight.
template <bool int4>
constexpr int kRun = int4 ? 8 : 4;

// A number is an integer of 9 bits times its scale, rounded to float32 and then to T.
template <class T, bool int4>
__device__ inline void unpack_word(const UnpackJob& job, uint32_t word, int64_t panel, int output, int64_t input,
                                   T (&to)[kRun<int4>]) {
  const int64_t at = (panel * job.groups + (job.group == 0 ? 0 : input / job.group)) * kPanel + output;
  const float scale = job.group == 0 ? static_cast<const float*>(job.scales)[at]
                                     : to_float(static_cast<const float16*>(job.scales)[at]);
  const int zero = job.zeros != nullptr ? job.zeros[at] : int4 ? 8 : 0;
#pragma unroll
  for (int i = 0; i < kRun<int4>; ++i) {
    const int code = int4 ? static_cast<int>(word >> (8 * (i % 4) + i / 4 * 4) & 15u)
                          : static_cast<int8_t>(word >> 8 * (i % 4) & 255u);
    to[i] = from_float<T>(static_cast<float>(code - zero) * scale);
  }
}

template <class T, int N>
__device__ inline void store_run(const UnpackJob& job, int64_t row, int64_t input, const T (&x)[N]) {
  constexpr int kPiece = N < kWide<T> ? N : kWide<T>;
  T* to = static_cast<T*>(job.out) + row * job.k;
#pragma unroll
  for (int first = 0; first < N; first += kPiece) {
    const int64_t at = input + first;
    if (job.wide && at + kPiece <= job.k) {
      Pack<T, kPiece> piece;
#pragma unroll
      for (int i = 0; i < kPiece; ++i) piece.at[i] = x[first + i];
      store(to + at, piece);
    } else {
#pragma unroll
      for (int i = 0; i < kPiece; ++i) {
        if (at + i < job.k) to[at + i] = x[first + i];
      }
    }
  }
}

// A block has a panel and 32 runs of inputs: a warp four of the outputs, so that its stores to a row lie side by side.
template <class T, bool int4>
__global__ void __launch_bounds__(kThreads) unpack_kernel(const UnpackJob job, int64_t count) {
  const int64_t panel = blockIdx.x, run = static_cast<int64_t>(blockIdx.y) * kWarp + lane_index();
  const int four = warp_index() * 4;
  const int64_t input = run * kRun<int4>;
  if (input >= job.k) return;
  const uint4 loaded =
      *reinterpret_cast<const uint4*>(job.data + panel * job.panel_bytes + (run * kPanel + four) * 4);
  const uint32_t words[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
#pragma unroll
  for (int o = 0; o < 4; ++o) {
    const int64_t row = panel * kPanel + four + o;
    if (row >= count) break;
    T x[kRun<int4>];
    unpack_word<T, int4>(job, words[o], panel, four + o, input, x);
    store_run(job, row, input, x);
  }
}

// A block has one row, or a part of it.
template <class T, bool int4>
__global__ void __launch_bounds__(kThreads) gather_kernel(const UnpackJob job) {
  const int64_t row = job.rows[blockIdx.x], panel = row / kPanel;
  const int output = static_cast<int>(row % kPanel);
  const int64_t run = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x, input = run * kRun<int4>;
  if (input >= job.k) return;
  const uint32_t word =
      *reinterpret_cast<const uint32_t*>(job.data + panel * job.panel_bytes + (run * kPanel + output) * 4);
  T x[kRun<int4>];
  unpack_word<T, int4>(job, word, panel, output, input, x);
  store_run(job, static_cast<int64_t>(blockIdx.x), input, x);
}

template <class T, bool int4>
Status unpack(const UnpackJob& job, int64_t count, void* stream) {
  const int64_t runs = divided_up(job.k, kRun<int4>);
  if (job.rows == nullptr) {
    const dim3 grid(static_cast<unsigned>(divided_up(count, kPanel)), static_cast<unsigned>(divided_up(runs, kWarp)));
    return launch(unpack_kernel<T, int4>, grid, dim3(kThreads), 0, stream, job, count);
  }
  const dim3 grid(static_cast<unsigned>(count), static_cast<unsigned>(divided_up(runs, kThreads)));
  return launch(gather_kernel<T, int4>, grid, dim3(kThreads), 0, stream, job);
}

}  // namespace
}  // namespace qvl::cuda

qvl::Status qvl_cuda_unpack(const qvl::cuda::UnpackParams* params, void* stream) {
  using namespace qvl::cuda;
  using qvl::DType;
  using qvl::Status;
  const qvl::LinearWeight& w = *params->weight;
  const int64_t group = w.group;
  const bool int4 = w.dtype == DType::int4;
  if (!int4 && w.dtype != DType::int8) return Status::unsupported;
  if (group != 32 && group != 64 && group != 128 && !(group == 0 && !int4)) return Status::unsupported;
  if (reinterpret_cast<uintptr_t>(w.data) % 16 != 0) return Status::unsupported;
  if (params->rows == nullptr && params->count > w.n) return Status::unsupported;
  if (params->count == 0 || w.k == 0) return params->dtype > DType::float16 ? Status::unsupported : Status::ok;
  UnpackJob job{};
  job.data = static_cast<const uint8_t*>(w.data);
  job.scales = w.scales;
  job.zeros = w.zeros;
  job.rows = params->rows;
  job.out = params->out;
  job.k = w.k;
  job.panel_bytes = w.k_padded * qvl::kPanel / (int4 ? 2 : 1);
  job.group = static_cast<int32_t>(group);
  job.groups = group == 0 ? 1 : static_cast<int32_t>(w.k_padded / group);
  return with_type(params->dtype, [&](auto element) {
    using T = decltype(element);
    job.wide = w.k * static_cast<int64_t>(sizeof(T)) % 16 == 0 && reinterpret_cast<uintptr_t>(params->out) % 16 == 0;
    return int4 ? unpack<T, true>(job, params->count, stream) : unpack<T, false>(job, params->count, stream);
  });
}

// Kernels for tests of the emulator: what it has to do right, and what it has to notice.
#include "../../../ext/cuda/mma.cuh"

using namespace qvl::cuda;

namespace {

// Sums of each block of 64 by way of shared memory, shuffles and barriers.
__global__ void sum_kernel(const float* x, float* out) {
  __shared__ float parts[2];
  const float sum = across_block(x[blockIdx.x * blockDim.x + threadIdx.x], Sum(), 0.0f, parts);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// What lies in shared memory before anything is written to it.
__global__ void poison_kernel(float* out) {
  __shared__ float fixed[32];
  const float* dynamic = reinterpret_cast<const float*>(shared_memory());
  out[threadIdx.x] = fixed[threadIdx.x] + dynamic[threadIdx.x];
  __syncthreads();
  fixed[threadIdx.x] = 1.0f;
}

// Lacks a barrier: whether a thread sees its neighbour's number depends on who comes first.
__global__ void race_kernel(int* out) {
  int* seen = reinterpret_cast<int*>(shared_memory());
  seen[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = seen[(threadIdx.x + 1) % blockDim.x];
}

__global__ void multiply_kernel(const uint32_t* a, const uint32_t* b, float* d) {
  float sums[4] = {};
  const int lane = lane_index();
  uint32_t left[4], right[2];
  for (int i = 0; i < 4; ++i) left[i] = a[lane * 4 + i];
  for (int i = 0; i < 2; ++i) right[i] = b[lane * 2 + i];
  multiply_tiles<bfloat16>(sums, left, right);
  multiply_tiles<bfloat16>(sums, left, right);
  for (int i = 0; i < 4; ++i) d[lane * 4 + i] = sums[i];
}

// Twice sixteen bytes by way of shared memory, of which only the first copy is waited for before both are read.
__global__ void copy_kernel(const float* x, float* out) {
  float* seen = reinterpret_cast<float*>(shared_memory()) + threadIdx.x * 8;
  cp_async16(seen, x);
  cp_async_commit();
  cp_async_or_zero<16>(seen + 4, x + 4, threadIdx.x % 2 == 0);
  cp_async_commit();
  cp_async_wait<1>();
  for (int i = 0; i < 8; ++i) out[threadIdx.x * 16 + i] = seen[i];
  cp_async_wait<0>();
  for (int i = 0; i < 8; ++i) out[threadIdx.x * 16 + 8 + i] = seen[i];
}

enum class Misuse : int { ended_early, other_barrier, half_a_warp, other_collective, some_lanes, behind_the_end, before, askew, far, deep };

// Takes more local memory than there is.
__device__ __noinline__ float deep(int more, volatile float* out) {
  volatile float local[1024];
  for (int i = 0; i < 1024; ++i) local[i] = static_cast<float>(more);
  return more > 100000 ? out[0] : deep(more + 1, out) + local[more % 1024];
}

__global__ void misuse_kernel(Misuse kind, float* out) {
  const auto i = static_cast<int>(threadIdx.x);
  float x = 1.0f;
  switch (kind) {
    case Misuse::ended_early:
      if (i == 5) return;
      __syncthreads();
      break;
    case Misuse::other_barrier:
      if (i < 32) {
        __syncthreads();
      } else {
        x = 2.0f;
        __syncthreads();
      }
      break;
    case Misuse::half_a_warp:
      if (i < 40) x = __shfl_sync(kAllLanes, x, 0);
      __syncthreads();
      break;
    case Misuse::other_collective:
      if (i % 2) {
        x = __shfl_sync(kAllLanes, x, 0);
      } else {
        x = __shfl_xor_sync(kAllLanes, x, 1);
      }
      break;
    case Misuse::some_lanes:
      if (i < 16) x = __shfl_sync(0xffffu, x, 0);
      break;
    case Misuse::behind_the_end: reinterpret_cast<float*>(shared_memory())[i + 1] = x; break;
    case Misuse::before: reinterpret_cast<float*>(shared_memory())[i - 1] = x; break;
    case Misuse::askew: x = load<float, 4>(out + 1).at[0]; break;
    case Misuse::far: x = out[i + 1]; break;
    case Misuse::deep: x = deep(i, out); break;
  }
  out[i] = x;
}

}  // namespace

struct ProbeParams {
  const void* a;
  const void* b;
  void* out;
  int32_t kind, blocks, threads, shared;
};

QVL_CUDA_API qvl::Status qvl_cuda_probe_sum(const ProbeParams* p, void* stream) {
  return launch(sum_kernel, dim3(p->blocks), dim3(64), 0, stream, static_cast<const float*>(p->a), static_cast<float*>(p->out));
}
QVL_CUDA_API qvl::Status qvl_cuda_probe_poison(const ProbeParams* p, void* stream) {
  return launch(poison_kernel, dim3(2), dim3(32), 128, stream, static_cast<float*>(p->out));
}
QVL_CUDA_API qvl::Status qvl_cuda_probe_copy(const ProbeParams* p, void* stream) {
  return launch(copy_kernel, dim3(1), dim3(32), 1024, stream, static_cast<const float*>(p->a), static_cast<float*>(p->out));
}
QVL_CUDA_API qvl::Status qvl_cuda_probe_race(const ProbeParams* p, void* stream) {
  return launch(race_kernel, dim3(1), dim3(64), 256, stream, static_cast<int*>(p->out));
}
QVL_CUDA_API qvl::Status qvl_cuda_probe_multiply(const ProbeParams* p, void* stream) {
  return launch(multiply_kernel, dim3(1), dim3(32), 0, stream, static_cast<const uint32_t*>(p->a),
                static_cast<const uint32_t*>(p->b), static_cast<float*>(p->out));
}
QVL_CUDA_API qvl::Status qvl_cuda_probe_misuse(const ProbeParams* p, void* stream) {
  return launch(misuse_kernel, dim3(1, p->blocks), dim3(p->threads), p->shared, stream, static_cast<Misuse>(p->kind),
                static_cast<float*>(p->out));
}
// The conversions of an array: kind 0 and 1 from 16 bits (bfloat16, float16), 2 and 3 to them.
QVL_CUDA_API qvl::Status qvl_cuda_probe_convert(const ProbeParams* p, void*) {
#ifdef QVL_EMULATED
  const auto* from = static_cast<const float*>(p->a);
  const auto* from16 = static_cast<const uint16_t*>(p->a);
  for (int i = 0; i < p->blocks; ++i) {
    if (p->kind == 0) static_cast<float*>(p->out)[i] = to_float(bfloat16{from16[i]});
    if (p->kind == 1) static_cast<float*>(p->out)[i] = to_float(float16{from16[i]});
    if (p->kind == 2) static_cast<uint16_t*>(p->out)[i] = from_float<bfloat16>(from[i]).bits;
    if (p->kind == 3) static_cast<uint16_t*>(p->out)[i] = from_float<float16>(from[i]).bits;
  }
  return qvl::Status::ok;
#else
  return qvl::Status::unsupported;
#endif
}

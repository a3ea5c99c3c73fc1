// What the library is, and what the device said.
#include "common.cuh"

namespace qvl::cuda {
namespace {
thread_local const char* last_error = "";
}

Status refused(const char* what) {
  last_error = what;
  return Status::failed;
}

#ifndef QVL_EMULATED
namespace {
// What the current device says of itself, asked once a thread and device.
struct Device {
  int index = -1, multiprocessors = 1, shared = 48 * 1024;
};
const Device& device() {
  static thread_local Device known;
  int index = 0;
  if (cudaGetDevice(&index) != cudaSuccess || index == known.index) return known;
  known = Device{};
  if (cudaDeviceGetAttribute(&known.multiprocessors, cudaDevAttrMultiProcessorCount, index) == cudaSuccess &&
      cudaDeviceGetAttribute(&known.shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, index) == cudaSuccess) {
    known.index = index;
  }
  return known;
}
}  // namespace
#endif

int multiprocessors() {
#ifdef QVL_EMULATED
  return 4;
#else
  return device().multiprocessors;
#endif
}

int64_t most_shared_memory() {
#ifdef QVL_EMULATED
  return 227 * 1024;
#else
  return device().shared;
#endif
}

}  // namespace qvl::cuda

int32_t qvl_cuda_abi() { return QVL_CUDA_ABI; }

int32_t qvl_cuda_emulated() {
#ifdef QVL_EMULATED
  return 1;
#else
  return 0;
#endif
}

const char* qvl_cuda_architectures() { return QVL_CUDA_ARCHITECTURES; }

const char* qvl_cuda_error() { return qvl::cuda::last_error; }

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

int multiprocessors() {
#ifdef QVL_EMULATED
  return 4;
#else
  static thread_local int known_device = -1, count = 0;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return 1;
  if (device != known_device) {
    if (cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 1;
    known_device = device;
  }
  return count;
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

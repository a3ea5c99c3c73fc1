// What the ops on a GPU share. They have the names, the operands and the meaning of those on a CPU; what differs is said.
//
// Conventions. An op has one parameter struct and one launch function, C-callable, `qvl_cuda_<op>(&params, stream)`. The
// struct lies in host memory and is read before the function returns; unless said otherwise its pointers are the
// device's. It puts its kernels on the stream (a cudaStream_t, passed as an address) and returns at once; it allocates
// nothing, waits for nothing and copies nothing from the host, so that a CUDA graph may capture it and replay it: sizes,
// pointers and everything else in the struct are then fixed, while what lies in device memory is read anew.
// Scratch memory is the caller's: `qvl_cuda_<op>_workspace(&params)` says how many bytes the op needs, which may depend on
// sizes alone; its contents need not be kept, nor set before, and must not be shared by two streams.
// Arithmetic is float32 with results rounded once, where they are stored. The caller has checked all sizes. Rows are
// aligned to 16 bytes: pointers and strides (in elements) are multiples of 16 bytes where a body says that it needs it.
#pragma once

#include "qvl/common.h"

#ifdef _WIN32
#define QVL_CUDA_API extern "C" __declspec(dllexport)
#else
#define QVL_CUDA_API extern "C" __attribute__((visibility("default")))
#endif

// Raised when one of these structs changes.
#define QVL_CUDA_ABI 1

// QVL_CUDA_ABI of the library.
QVL_CUDA_API int32_t qvl_cuda_abi();
// 1 where kernels are run by a CPU, thread by thread, to test them: pointers are then the host's.
QVL_CUDA_API int32_t qvl_cuda_emulated();
// Architectures compiled for, such as "sm_80 sm_90 compute_90".
QVL_CUDA_API const char* qvl_cuda_architectures();
// What the device said of the last launch of this thread that failed (Status::failed); "" when none did.
QVL_CUDA_API const char* qvl_cuda_error();

// The library of kernels for GPUs, opened while the program runs, and what its bindings share. No NVIDIA header is
// needed here, nor a GPU: the library has a C interface, and a stream is a number.
#pragma once

#include <string>

#include "module.h"
#include "qvl/cuda/activation.h"
#include "qvl/cuda/attention.h"
#include "qvl/cuda/cross_entropy.h"
#include "qvl/cuda/linear.h"
#include "qvl/cuda/norm.h"
#include "qvl/cuda/rotary.h"
#include "qvl/cuda/sampling.h"
#include "rows.h"

#define QVL_CUDA_FUNCTIONS(X)                                                                                       \
  X(rms_norm) X(layer_norm) X(rms_norm_grad) X(layer_norm_grad) X(norm_grad_workspace) X(swiglu) X(quick_gelu)     \
  X(swiglu_grad) X(quick_gelu_grad) X(rotary_store) X(rotate) X(rotate_grad) X(attention) X(attention_workspace)   \
  X(linear) X(linear_workspace) X(unpack) X(sample) X(sample_workspace) X(cross_entropy) X(error)

namespace qvl::cuda {

// Never closed: kernels may be on their way.
class Library {
 public:
  // Raises RuntimeError, in words for people, where the file cannot be opened or is of another version.
  explicit Library(const std::string& path);

  std::string path, architectures;
  bool emulated;
#define QVL_MEMBER(name) decltype(&qvl_cuda_##name) name = nullptr;
  QVL_CUDA_FUNCTIONS(QVL_MEMBER)
#undef QVL_MEMBER
};

// One call of an op: checks its operands against the first one, which says where all of them are and of what type, and
// makes room for results.
class Call {
 public:
  Call(const Library& library, const char* op, const paddle::Tensor& first, const char* argument)
      : library_(library), op_(op), place_(), dtype_(first.dtype()) {
    require(first.defined() && first.initialized(), op, argument, "has no memory");
    place_ = first.place();
    require(library.emulated ? first.is_cpu() : first.is_gpu(), op, argument, "must be a tensor on ",
            library.emulated ? "the CPU" : "a GPU", ", not on ", place_.DebugString());
  }

  const char* op() const { return op_; }
  phi::DataType type() const { return dtype_; }

  // That of the first operand, as kernels call it.
  DType dtype(const char* argument) const {
    if (dtype_ == phi::DataType::BFLOAT16) return DType::bfloat16;
    if (dtype_ == phi::DataType::FLOAT16) return DType::float16;
    require(dtype_ == phi::DataType::FLOAT32, op_, argument, "must be bfloat16, float16 or float32, not ",
            phi::DataTypeToString(dtype_));
    return DType::float32;
  }

  void check(const paddle::Tensor& x, phi::DataType dtype, const std::vector<int64_t>& shape,
             const char* argument) const {
    require(x.defined() && x.initialized() && x.place() == place_, op_, argument, "must be on ", place_.DebugString());
    require(x.dtype() == dtype, op_, argument, "must be ", phi::DataTypeToString(dtype), ", not ",
            phi::DataTypeToString(x.dtype()));
    require_shape(x, shape, op_, argument);
  }

  // Memory of an operand of this shape (-1: any) without gaps.
  void* given(const paddle::Tensor& x, phi::DataType dtype, const std::vector<int64_t>& shape,
              const char* argument) const {
    check(x, dtype, shape, argument);
    require_contiguous(x, op_, argument);
    return const_cast<void*>(x.data());
  }
  void* given(const paddle::Tensor& x, const std::vector<int64_t>& shape, const char* argument) const {
    return given(x, dtype_, shape, argument);
  }
  void* given(const Optional& x, const std::vector<int64_t>& shape, const char* argument) const {
    return x ? given(*x, dtype_, shape, argument) : nullptr;
  }
  float* floats(const paddle::Tensor& x, const std::vector<int64_t>& shape, const char* argument) const {
    return static_cast<float*>(given(x, phi::DataType::FLOAT32, shape, argument));
  }
  float* floats(const Optional& x, const std::vector<int64_t>& shape, const char* argument) const {
    return x ? floats(*x, shape, argument) : nullptr;
  }
  // Of rows that may be apart; their distance in elements.
  void* strided(const paddle::Tensor& x, const std::vector<int64_t>& shape, const char* argument,
                int64_t* stride) const {
    check(x, dtype_, shape, argument);
    *stride = row_stride_of(x, op_, argument);
    return const_cast<void*>(x.data());
  }

  paddle::Tensor empty(const std::vector<int64_t>& shape, phi::DataType dtype) const {
    return paddle::experimental::empty(shape, dtype, place_);
  }
  paddle::Tensor empty(const std::vector<int64_t>& shape) const { return empty(shape, dtype_); }
  // Memory is given back to the framework, which gives it to later work of the same stream only.
  paddle::Tensor scratch(int64_t bytes) const { return empty({bytes > 0 ? bytes : 1}, phi::DataType::UINT8); }

  template <class Params>
  void launch(Status (*body)(const Params*, void*), const Params& params, int64_t stream) const {
    Status status;
    std::string said;
    {
      py::gil_scoped_release released;
      status = body(&params, reinterpret_cast<void*>(stream));
      if (status == Status::failed) said = library_.error();
    }
    if (status == Status::no_memory) throw std::bad_alloc();
    if (status == Status::failed) throw std::runtime_error(std::string(op_) + ": the GPU refused it: " + said);
    if (status != Status::ok) {
      throw std::invalid_argument(std::string(op_) + ": no kernel takes operands of these types and sizes");
    }
  }

 private:
  const Library& library_;
  const char* op_;
  phi::Place place_;
  phi::DataType dtype_;
};

using Bound = py::class_<Library>;
void bind_norm(Bound& library);
void bind_activation(Bound& library);
void bind_attention(Bound& library);
void bind_linear(py::module_& m, Bound& library);
void bind_sampling(Bound& library);

}  // namespace qvl::cuda

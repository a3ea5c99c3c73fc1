// A weight of linear layers as Python holds it, and what the ops that take one have in common.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "checks.h"
#include "module.h"
#include "paddle/phi/api/include/api.h"
#include "pybind11/pybind11.h"
#include "qvl/linear.h"

namespace qvl {

inline DType dtype_named(const std::string& name, const char* op) {
  if (name == "bf16") return DType::bfloat16;
  if (name == "int8") return DType::int8;
  require(name == "int4", op, "kind", "must be bf16, int8 or int4, not ", name);
  return DType::int4;
}

// Memory of a buffer that stays where it is for as long as the weight lives.
inline const void* bytes_of(const py::buffer_info& info, int64_t bytes, const char* op, const char* argument) {
  require(info.size * info.itemsize == bytes, op, argument, "has ", info.size * info.itemsize, " bytes, ", bytes,
          " are needed");
  int64_t expected = info.itemsize;
  for (int64_t i = info.ndim - 1; i >= 0; --i) {
    require(info.shape[i] == 1 || info.strides[i] == expected, op, argument, "must be contiguous");
    expected *= info.shape[i];
  }
  return info.ptr;
}

struct Sizes {
  int64_t data, scales, zeros, bias;
};

// Bytes of each part, and a weight with all but its pointers. Raises when the sizes make no sense.
inline LinearWeight weight_of(const std::string& kind, int64_t n, int64_t k, int64_t group, const char* op,
                              Sizes* sizes) {
  LinearWeight w{};
  w.dtype = dtype_named(kind, op);
  require(n > 0, op, "n", "must be positive, not ", n);
  require(k > 0, op, "k", "must be positive, not ", k);
  const bool known = group == 32 || group == 64 || group == 128;
  if (w.dtype == DType::bfloat16) require(group == 0, op, "group", "must be 0 for bf16, not ", group);
  if (w.dtype == DType::int8) require(known || group == 0, op, "group", "must be 0, 32, 64 or 128, not ", group);
  if (w.dtype == DType::int4) require(known, op, "group", "must be 32, 64 or 128, not ", group);
  w.n = n;
  w.k = k;
  w.group = group;
  w.k_padded = padded_inputs(w.dtype, k, group);
  const int64_t panels = (n + kPanel - 1) / kPanel, values = panels * kPanel * w.k_padded;
  sizes->data = w.dtype == DType::bfloat16 ? 2 * values : w.dtype == DType::int8 ? values : values / 2;
  const int64_t groups = group ? values / group : 0;
  sizes->scales = w.dtype == DType::bfloat16 ? 0 : group ? 2 * groups : 4 * panels * kPanel;
  sizes->zeros = groups;
  sizes->bias = 4 * n;
  return w;
}

class PackedWeight {
 public:
  PackedWeight(const std::string& kind, int64_t n, int64_t k, int64_t group, const py::buffer& data,
               const py::object& scales, const py::object& zeros, const py::object& bias) {
    Sizes sizes;
    weight_ = weight_of(kind, n, k, group, "linear", &sizes);
    weight_.data = keep(data, sizes.data, "data");
    if (weight_.dtype != DType::bfloat16) {
      require(!scales.is_none(), "linear", "scales", "are missing for ", kind);
      weight_.scales = keep(scales, sizes.scales, "scales");
    }
    if (!zeros.is_none()) {
      require(weight_.dtype == DType::int4, "linear", "zeros", "are for int4 only");
      weight_.zeros = static_cast<const uint8_t*>(keep(zeros, sizes.zeros, "zeros"));
    }
    if (!bias.is_none()) weight_.bias = static_cast<const float*>(keep(bias, sizes.bias, "bias"));
  }

  const LinearWeight& get() const { return weight_; }

 private:
  const void* keep(const py::object& array, int64_t bytes, const char* argument) {
    infos_.push_back(std::make_unique<py::buffer_info>(array.cast<py::buffer>().request()));
    return bytes_of(*infos_.back(), bytes, "linear", argument);
  }

  LinearWeight weight_;
  std::vector<std::unique_ptr<py::buffer_info>> infos_;
};

using Residual = paddle::optional<paddle::Tensor>;

// The output's shape: that of x with the last size replaced.
inline paddle::Tensor output_for(const paddle::Tensor& x, int64_t k, int64_t n, const char* op) {
  require_cpu(x, phi::DataType::FLOAT32, op, "x");
  auto shape = x.shape();
  require(!shape.empty() && shape.back() == k, op, "x", "has shape ", shape_text(x), ", its last size must be ", k);
  shape.back() = n;
  return paddle::experimental::empty(shape, phi::DataType::FLOAT32, phi::CPUPlace());
}

// The numbers of a residual, or nullptr. `kept` holds them where the tensor itself is a view with gaps.
inline const float* residual_of(const Residual& residual, const paddle::Tensor& out, const char* op,
                                paddle::Tensor* kept) {
  if (!residual) return nullptr;
  require_cpu(*residual, phi::DataType::FLOAT32, op, "residual");
  require(residual->shape() == out.shape(), op, "residual", "has shape ", shape_text(*residual), ", the result ",
          shape_text(out));
  *kept = residual->contiguous();
  return kept->data<float>();
}

}  // namespace qvl

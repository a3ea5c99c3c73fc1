// Checks for ops on rows: tensors whose last sizes lie side by side while their rows may be apart, as in a slice of the
// columns of a matrix.
#pragma once

#include "checks.h"
#include "paddle/common/ddim.h"
#include "paddle/phi/api/include/api.h"

namespace qvl {

using Optional = paddle::optional<paddle::Tensor>;

// Elements of a row: everything but the first size.
inline int64_t row_size(const paddle::Tensor& x) {
  int64_t size = 1;
  for (size_t i = 1; i < x.shape().size(); ++i) size *= x.shape()[i];
  return size;
}

inline void require_shape(const paddle::Tensor& x, const std::vector<int64_t>& shape, const char* op,
                          const char* argument) {
  bool same = x.shape().size() == shape.size();
  for (size_t i = 0; same && i < shape.size(); ++i) same = shape[i] < 0 || x.shape()[i] == shape[i];
  if (same) return;
  std::ostringstream wanted;
  for (size_t i = 0; i < shape.size(); ++i) {
    wanted << (i ? ", " : "") << (shape[i] < 0 ? std::string("any") : std::to_string(shape[i]));
  }
  require(false, op, argument, "has shape ", shape_text(x), ", [", wanted.str(), "] is needed");
}

// From row to row, in elements. Raises when the elements of a row are not side by side.
inline int64_t row_stride_of(const paddle::Tensor& x, const char* op, const char* argument) {
  const auto shape = x.shape();
  require(!shape.empty(), op, argument, "must have at least one size");
  int64_t expected = 1;
  for (size_t i = shape.size() - 1; i > 0; --i) {
    require(shape[i] == 1 || x.strides()[static_cast<int>(i)] == expected, op, argument,
            "must have the elements of a row side by side; .contiguous() makes it so");
    expected *= shape[i];
  }
  return shape[0] > 1 ? x.strides()[0] : expected;
}

inline void require_contiguous(const paddle::Tensor& x, const char* op, const char* argument) {
  require(x.is_contiguous(), op, argument, "must be contiguous");
}

// float32 on the CPU, contiguous, of this shape (-1: any).
inline const float* floats(const paddle::Tensor& x, const std::vector<int64_t>& shape, const char* op,
                           const char* argument) {
  require_cpu(x, phi::DataType::FLOAT32, op, argument);
  require_shape(x, shape, op, argument);
  require_contiguous(x, op, argument);
  return x.data<float>();
}

inline const float* floats(const Optional& x, const std::vector<int64_t>& shape, const char* op,
                           const char* argument) {
  return x ? floats(*x, shape, op, argument) : nullptr;
}

inline paddle::Tensor new_floats(const std::vector<int64_t>& shape) {
  return paddle::experimental::empty(shape, phi::DataType::FLOAT32, phi::CPUPlace());
}

}  // namespace qvl

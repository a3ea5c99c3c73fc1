// Checks on what comes from Python. A failed one is a ValueError that names the op, the argument and what is wrong.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

#include "paddle/phi/api/include/tensor.h"
#include "paddle/utils/pybind.h"
#include "qvl/common.h"

namespace qvl {

// qvl::require(x.shape()[1] == k, "linear", "x", "has ", x.shape()[1], " columns, the weight takes ", k);
template <class... Parts>
inline void require(bool holds, const char* op, const char* argument, const Parts&... parts) {
  if (holds) return;
  std::ostringstream text;
  text << op << ": " << argument << " ";
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

inline std::string shape_text(const paddle::Tensor& x) {
  std::ostringstream text;
  text << "[";
  for (size_t i = 0; i < x.shape().size(); ++i) text << (i ? ", " : "") << x.shape()[i];
  text << "]";
  return text.str();
}

// On the CPU, dense, and of the type asked for.
inline void require_cpu(const paddle::Tensor& x, phi::DataType dtype, const char* op, const char* argument) {
  // A tensor without elements may have no memory, and no place then.
  require(x.defined() && (x.numel() == 0 || (x.initialized() && x.is_cpu())), op, argument,
          "must be a tensor on the CPU");
  require(x.dtype() == dtype, op, argument, "must be ", phi::DataTypeToString(dtype), ", not ",
          phi::DataTypeToString(x.dtype()));
}

inline void require_ok(Status status, const char* op) {
  if (status == Status::no_memory) throw std::bad_alloc();
  if (status != Status::ok) throw std::invalid_argument(std::string(op) + ": this CPU has no body for it");
}

}  // namespace qvl

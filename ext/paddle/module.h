// The list of files that add functions to the module: `void bind_<name>(py::module_&)` in <name>.cc.
#pragma once

#include "paddle/utils/pybind.h"

// Raised when the Python side and the library have to change together.
#define QVL_ABI 1

#define QVL_OPS_BOUND(X) \
  X(activation) X(attention) X(attention_grad) X(cuda_library) X(linear) X(mlp) X(norm) X(product) X(sampling) \
  X(threads_probe)

namespace qvl {
#define QVL_DECLARE(name) void bind_##name(py::module_& m);
QVL_OPS_BOUND(QVL_DECLARE)
#undef QVL_DECLARE
}  // namespace qvl

// RMS and layer normalisation, alone and with a residual added first.
#include "qvl/norm.h"

#include "module.h"
#include "rows.h"

namespace qvl {
namespace {

using Pair = std::tuple<paddle::Tensor, paddle::Tensor>;

// x [.., width] normalised; with delta, of the same shape, also x + delta.
Pair normalise(const char* op, Status (*launch)(const NormParams&), const paddle::Tensor& x, const Optional& delta,
               const paddle::Tensor& weight, const Optional& bias, float epsilon) {
  require_cpu(x, phi::DataType::FLOAT32, op, "x");
  require_contiguous(x, op, "x");
  require(!x.shape().empty(), op, "x", "must have at least one size");
  NormParams p{};
  p.width = x.shape().back();
  p.rows = p.width ? x.numel() / p.width : 0;
  p.x = x.data<float>();
  p.weight = floats(weight, {p.width}, op, "weight");
  p.bias = floats(bias, {p.width}, op, "bias");
  p.epsilon = epsilon;
  paddle::Tensor sum, out = new_floats(x.shape());
  if (delta) {
    p.delta = floats(*delta, x.shape(), op, "delta");
    sum = new_floats(x.shape());
    p.sum = sum.data<float>();
  }
  p.out = out.data<float>();
  Status status;
  {
    py::gil_scoped_release released;
    status = launch(p);
  }
  require_ok(status, op);
  return {sum, out};
}

paddle::Tensor rms(const paddle::Tensor& x, const paddle::Tensor& weight, float epsilon) {
  return std::get<1>(normalise("rms_norm", rms_norm, x, {}, weight, {}, epsilon));
}

Pair add_rms(const paddle::Tensor& x, const paddle::Tensor& delta, const paddle::Tensor& weight, float epsilon) {
  return normalise("add_rms_norm", rms_norm, x, delta, weight, {}, epsilon);
}

paddle::Tensor layer(const paddle::Tensor& x, const paddle::Tensor& weight, const paddle::Tensor& bias,
                     float epsilon) {
  return std::get<1>(normalise("layer_norm", layer_norm, x, {}, weight, bias, epsilon));
}

Pair add_layer(const paddle::Tensor& x, const paddle::Tensor& delta, const paddle::Tensor& weight,
               const paddle::Tensor& bias, float epsilon) {
  return normalise("add_layer_norm", layer_norm, x, delta, weight, bias, epsilon);
}

}  // namespace

void bind_norm(py::module_& m) {
  m.def("rms_norm", &rms, py::arg("x"), py::arg("weight"), py::arg("epsilon"));
  m.def("add_rms_norm", &add_rms, py::arg("x"), py::arg("delta"), py::arg("weight"), py::arg("epsilon"));
  m.def("layer_norm", &layer, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("epsilon"));
  m.def("add_layer_norm", &add_layer, py::arg("x"), py::arg("delta"), py::arg("weight"), py::arg("bias"),
        py::arg("epsilon"));
}

}  // namespace qvl

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

// Which gradients are wanted: of x (and delta, which has the same), weight and bias.
using Wanted = std::tuple<bool, bool, bool>;
using Gradients = std::tuple<Optional, Optional, Optional>;

// x: what was normalised; grad: with respect to the result; grad_sum: with respect to x + delta, where there is such.
Gradients go_back(const char* op, Status (*launch)(const NormGradParams&), const paddle::Tensor& x,
                  const paddle::Tensor& weight, float epsilon, const paddle::Tensor& grad, const Optional& grad_sum,
                  const Wanted& wanted) {
  require(!x.shape().empty(), op, "x", "must have at least one size");
  NormGradParams p{};
  p.width = x.shape().back();
  p.rows = p.width ? x.numel() / p.width : 0;
  p.x = floats(x, x.shape(), op, "x");
  p.weight = floats(weight, {p.width}, op, "weight");
  p.grad_out = floats(grad, x.shape(), op, "grad");
  p.grad_sum = floats(grad_sum, x.shape(), op, "grad_sum");
  p.epsilon = epsilon;
  Gradients made;
  const auto room = [](Optional& to, const std::vector<int64_t>& shape) {
    to = new_floats(shape);
    return to->data<float>();
  };
  if (std::get<0>(wanted)) p.grad_x = room(std::get<0>(made), x.shape());
  if (std::get<1>(wanted)) p.grad_weight = room(std::get<1>(made), {p.width});
  if (std::get<2>(wanted)) p.grad_bias = room(std::get<2>(made), {p.width});
  Status status;
  {
    py::gil_scoped_release released;
    status = launch(p);
  }
  require_ok(status, op);
  return made;
}

Gradients rms_back(const paddle::Tensor& x, const paddle::Tensor& weight, float epsilon, const paddle::Tensor& grad,
                   const Optional& grad_sum, const Wanted& wanted) {
  return go_back("rms_norm_grad", rms_norm_grad, x, weight, epsilon, grad, grad_sum, wanted);
}

Gradients layer_back(const paddle::Tensor& x, const paddle::Tensor& weight, float epsilon, const paddle::Tensor& grad,
                     const Optional& grad_sum, const Wanted& wanted) {
  return go_back("layer_norm_grad", layer_norm_grad, x, weight, epsilon, grad, grad_sum, wanted);
}

// x [.., width] added up over everything but its last size.
paddle::Tensor sums_of_columns(const paddle::Tensor& x) {
  const char* op = "column_sums";
  require(!x.shape().empty(), op, "x", "must have at least one size");
  ColumnParams p{};
  p.width = x.shape().back();
  p.rows = p.width ? x.numel() / p.width : 0;
  p.x = floats(x, x.shape(), op, "x");
  paddle::Tensor out = new_floats({p.width});
  p.out = out.data<float>();
  Status status;
  {
    py::gil_scoped_release released;
    status = column_sums(p);
  }
  require_ok(status, op);
  return out;
}

}  // namespace

void bind_norm(py::module_& m) {
  m.def("rms_norm", &rms, py::arg("x"), py::arg("weight"), py::arg("epsilon"));
  m.def("add_rms_norm", &add_rms, py::arg("x"), py::arg("delta"), py::arg("weight"), py::arg("epsilon"));
  m.def("layer_norm", &layer, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("epsilon"));
  m.def("add_layer_norm", &add_layer, py::arg("x"), py::arg("delta"), py::arg("weight"), py::arg("bias"),
        py::arg("epsilon"));
  m.def("rms_norm_grad", &rms_back, py::arg("x"), py::arg("weight"), py::arg("epsilon"), py::arg("grad"),
        py::arg("grad_sum"), py::arg("wanted"));
  m.def("layer_norm_grad", &layer_back, py::arg("x"), py::arg("weight"), py::arg("epsilon"), py::arg("grad"),
        py::arg("grad_sum"), py::arg("wanted"));
  m.def("column_sums", &sums_of_columns, py::arg("x"));
}

}  // namespace qvl

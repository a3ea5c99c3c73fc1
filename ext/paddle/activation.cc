// SwiGLU and quick GELU.
#include "qvl/activation.h"

#include "module.h"
#include "rows.h"

namespace qvl {
namespace {

paddle::Tensor launch(const char* op, Status (*body)(const ActivationParams&), ActivationParams p,
                      const std::vector<int64_t>& shape) {
  paddle::Tensor out = new_floats(shape);
  p.out = out.data<float>();
  Status status;
  {
    py::gil_scoped_release released;
    status = body(p);
  }
  require_ok(status, op);
  return out;
}

// gate, up: [.., width] of equal shape; or, without up, gate: [.., 2 width] with the gate in front.
paddle::Tensor gated_unit(const paddle::Tensor& gate, const Optional& up) {
  const char* op = "swiglu";
  require_cpu(gate, phi::DataType::FLOAT32, op, "gate");
  require_contiguous(gate, op, "gate");
  auto shape = gate.shape();
  require(!shape.empty() && (up || shape.back() % 2 == 0), op, "gate", "has shape ", shape_text(gate),
          ", its last size must be even where up is not given");
  ActivationParams p{};
  p.x = gate.data<float>();
  p.x_stride = p.up_stride = shape.back();
  if (up) {
    p.up = floats(*up, shape, op, "up");
  } else {
    shape.back() /= 2;
    p.up = p.x + shape.back();
  }
  p.width = shape.back();
  p.rows = p.x_stride ? gate.numel() / p.x_stride : 0;
  return launch(op, swiglu, p, shape);
}

paddle::Tensor gelu(const paddle::Tensor& x) {
  const char* op = "quick_gelu";
  require_cpu(x, phi::DataType::FLOAT32, op, "x");
  require_contiguous(x, op, "x");
  ActivationParams p{};
  p.x = x.data<float>();
  p.rows = 1;
  p.width = p.x_stride = x.numel();
  return launch(op, quick_gelu, p, x.shape());
}

Status launch(Status (*body)(const ActivationGradParams&), const ActivationGradParams& p) {
  py::gil_scoped_release released;
  return body(p);
}

// The gradients of gate and up; without up, of both in one, and None.
std::tuple<paddle::Tensor, Optional> gated_unit_grad(const paddle::Tensor& gate, const Optional& up,
                                                     const paddle::Tensor& grad) {
  const char* op = "swiglu_grad";
  auto shape = gate.shape();
  require(!shape.empty() && (up || shape.back() % 2 == 0), op, "gate", "has shape ", shape_text(gate),
          ", its last size must be even where up is not given");
  ActivationGradParams p{};
  p.x = floats(gate, shape, op, "gate");
  p.x_stride = shape.back();
  paddle::Tensor to_gate = new_floats(shape);
  Optional to_up;
  p.grad_x = to_gate.data<float>();
  if (up) {
    p.up = floats(*up, shape, op, "up");
    to_up = new_floats(shape);
    p.grad_up = to_up->data<float>();
  } else {
    shape.back() /= 2;
    p.up = p.x + shape.back();
    p.grad_up = p.grad_x + shape.back();
  }
  p.grad = floats(grad, shape, op, "grad");
  p.width = shape.back();
  p.rows = p.x_stride ? gate.numel() / p.x_stride : 0;
  require_ok(launch(swiglu_grad, p), op);
  return {to_gate, to_up};
}

paddle::Tensor gelu_grad(const paddle::Tensor& x, const paddle::Tensor& grad) {
  const char* op = "quick_gelu_grad";
  ActivationGradParams p{};
  p.x = floats(x, x.shape(), op, "x");
  p.grad = floats(grad, x.shape(), op, "grad");
  p.rows = 1;
  p.width = p.x_stride = x.numel();
  paddle::Tensor to_x = new_floats(x.shape());
  p.grad_x = to_x.data<float>();
  require_ok(launch(quick_gelu_grad, p), op);
  return to_x;
}

}  // namespace

void bind_activation(py::module_& m) {
  m.def("swiglu", &gated_unit, py::arg("gate"), py::arg("up") = Optional());
  m.def("quick_gelu", &gelu, py::arg("x"));
  m.def("swiglu_grad", &gated_unit_grad, py::arg("gate"), py::arg("up"), py::arg("grad"));
  m.def("quick_gelu_grad", &gelu_grad, py::arg("x"), py::arg("grad"));
}

}  // namespace qvl

// SwiGLU and quick GELU on a GPU, and their gradients.
#include "qvl/cuda/activation.h"

#include "cuda_library.h"

namespace qvl::cuda {
namespace {

using Tensor = paddle::Tensor;

const void* behind(const void* x, int64_t elements, phi::DataType dtype) {
  return static_cast<const char*>(x) + elements * phi::SizeOf(dtype);
}

template <class Params>
void set_rows(Params* p, const Tensor& x) {
  p->width = p->x_stride = x.shape().empty() ? 1 : x.shape().back();
  p->rows = p->width ? x.numel() / p->width : 0;
}

// gate, up: [.., width] of equal shape; or, without up, gate: [.., 2 width] with the gate in front.
std::vector<int64_t> half_shape(const Tensor& gate, const Optional& up, const char* op) {
  auto shape = gate.shape();
  require(!shape.empty() && (up || shape.back() % 2 == 0), op, "gate", "has shape ", shape_text(gate),
          ", its last size must be even where up is not given");
  if (!up) shape.back() /= 2;
  return shape;
}

Tensor gated_unit(const Library& library, const Tensor& gate, const Optional& up, int64_t stream) {
  const Call call(library, "swiglu", gate, "gate");
  const auto shape = half_shape(gate, up, call.op());
  ActivationParams p{};
  p.dtype = call.dtype("gate");
  p.x = call.given(gate, gate.shape(), "gate");
  p.width = shape.back();
  p.x_stride = p.up_stride = gate.shape().back();
  p.up = up ? call.given(*up, shape, "up") : behind(p.x, p.width, call.type());
  p.rows = p.x_stride ? gate.numel() / p.x_stride : 0;
  Tensor out = call.empty(shape);
  p.out = out.data();
  if (p.rows) call.launch(library.swiglu, p, stream);
  return out;
}

Tensor gelu(const Library& library, const Tensor& x, int64_t stream) {
  const Call call(library, "quick_gelu", x, "x");
  ActivationParams p{};
  p.dtype = call.dtype("x");
  p.x = call.given(x, x.shape(), "x");
  set_rows(&p, x);
  Tensor out = call.empty(x.shape());
  p.out = out.data();
  if (p.rows) call.launch(library.quick_gelu, p, stream);
  return out;
}

// The gradients of gate and up; without up, of both in one, and None.
std::tuple<Tensor, Optional> gated_unit_grad(const Library& library, const Tensor& gate, const Optional& up,
                                             const Tensor& grad, int64_t stream) {
  const Call call(library, "swiglu_grad", gate, "gate");
  const auto shape = half_shape(gate, up, call.op());
  ActivationGradParams p{};
  p.dtype = call.dtype("gate");
  p.x = call.given(gate, gate.shape(), "gate");
  p.width = shape.back();
  p.x_stride = gate.shape().back();
  p.rows = p.x_stride ? gate.numel() / p.x_stride : 0;
  p.grad = call.given(grad, shape, "grad");
  Tensor to_gate = call.empty(gate.shape());
  Optional to_up;
  p.grad_x = to_gate.data();
  if (up) {
    p.up = call.given(*up, shape, "up");
    to_up = call.empty(shape);
    p.grad_up = to_up->data();
  } else {
    p.up = behind(p.x, p.width, call.type());
    p.grad_up = const_cast<void*>(behind(p.grad_x, p.width, call.type()));
  }
  if (p.rows) call.launch(library.swiglu_grad, p, stream);
  return {to_gate, to_up};
}

Tensor gelu_grad(const Library& library, const Tensor& x, const Tensor& grad, int64_t stream) {
  const Call call(library, "quick_gelu_grad", x, "x");
  ActivationGradParams p{};
  p.dtype = call.dtype("x");
  p.x = call.given(x, x.shape(), "x");
  p.grad = call.given(grad, x.shape(), "grad");
  set_rows(&p, x);
  Tensor to_x = call.empty(x.shape());
  p.grad_x = to_x.data();
  if (p.rows) call.launch(library.quick_gelu_grad, p, stream);
  return to_x;
}

}  // namespace

void bind_activation(Bound& library) {
  library.def("swiglu", &gated_unit, py::arg("gate"), py::arg("up"), py::arg("stream"))
      .def("quick_gelu", &gelu, py::arg("x"), py::arg("stream"))
      .def("swiglu_grad", &gated_unit_grad, py::arg("gate"), py::arg("up"), py::arg("grad"), py::arg("stream"))
      .def("quick_gelu_grad", &gelu_grad, py::arg("x"), py::arg("grad"), py::arg("stream"));
}

}  // namespace qvl::cuda

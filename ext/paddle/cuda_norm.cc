// RMS and layer normalisation on a GPU, alone and with a residual added first, and their gradients.
#include "qvl/cuda/norm.h"

#include "cuda_library.h"

namespace qvl::cuda {
namespace {

using Tensor = paddle::Tensor;
using Pair = std::tuple<Tensor, Tensor>;
using Launch = Status (*)(const NormParams*, void*);

// x [.., width] normalised; with delta, of the same shape, also x + delta.
Pair normalise(const Library& library, const char* op, Launch body, const Tensor& x, const Optional& delta,
               const Tensor& weight, const Optional& bias, float epsilon, int64_t stream) {
  const Call call(library, op, x, "x");
  NormParams p{};
  p.dtype = call.dtype("x");
  require(!x.shape().empty(), op, "x", "must have at least one size");
  p.width = x.shape().back();
  p.x = call.given(x, x.shape(), "x");
  p.rows = p.width ? x.numel() / p.width : 0;
  p.weight = call.given(weight, {p.width}, "weight");
  p.bias = call.given(bias, {p.width}, "bias");
  p.epsilon = epsilon;
  Tensor sum, out = call.empty(x.shape());
  if (delta) {
    p.delta = call.given(*delta, x.shape(), "delta");
    sum = call.empty(x.shape());
    p.sum = sum.data();
  }
  p.out = out.data();
  if (p.rows) call.launch(body, p, stream);
  return {sum, out};
}

Tensor rms(const Library& library, const Tensor& x, const Tensor& weight, float epsilon, int64_t stream) {
  return std::get<1>(normalise(library, "rms_norm", library.rms_norm, x, {}, weight, {}, epsilon, stream));
}

Pair add_rms(const Library& library, const Tensor& x, const Tensor& delta, const Tensor& weight, float epsilon,
             int64_t stream) {
  return normalise(library, "add_rms_norm", library.rms_norm, x, delta, weight, {}, epsilon, stream);
}

Tensor layer(const Library& library, const Tensor& x, const Tensor& weight, const Tensor& bias, float epsilon,
             int64_t stream) {
  return std::get<1>(normalise(library, "layer_norm", library.layer_norm, x, {}, weight, bias, epsilon, stream));
}

Pair add_layer(const Library& library, const Tensor& x, const Tensor& delta, const Tensor& weight, const Tensor& bias,
               float epsilon, int64_t stream) {
  return normalise(library, "add_layer_norm", library.layer_norm, x, delta, weight, bias, epsilon, stream);
}

// Which gradients are wanted: of x (and delta, which has the same), weight and bias. Those of the latter are float32.
using Wanted = std::tuple<bool, bool, bool>;
using Gradients = std::tuple<Optional, Optional, Optional>;
using LaunchGrad = Status (*)(const NormGradParams*, void*);

// x: what was normalised; grad: with respect to the result; grad_sum: with respect to x + delta, where there is such.
Gradients go_back(const Library& library, const char* op, LaunchGrad body, const Tensor& x, const Tensor& weight,
                  float epsilon, const Tensor& grad, const Optional& grad_sum, const Wanted& wanted, int64_t stream) {
  const Call call(library, op, x, "x");
  NormGradParams p{};
  p.dtype = call.dtype("x");
  require(!x.shape().empty(), op, "x", "must have at least one size");
  p.width = x.shape().back();
  p.x = call.given(x, x.shape(), "x");
  p.rows = p.width ? x.numel() / p.width : 0;
  require(p.rows > 0, op, "x", "must have a row at least");
  p.weight = call.given(weight, {p.width}, "weight");
  p.grad_out = call.given(grad, x.shape(), "grad");
  p.grad_sum = call.given(grad_sum, x.shape(), "grad_sum");
  p.epsilon = epsilon;
  Gradients made;
  const auto room = [&](Optional& to, const std::vector<int64_t>& shape, phi::DataType dtype) {
    to = call.empty(shape, dtype);
    return to->data();
  };
  auto& [to_x, to_weight, to_bias] = made;
  if (std::get<0>(wanted)) p.grad_x = room(to_x, x.shape(), call.type());
  if (std::get<1>(wanted)) p.grad_weight = static_cast<float*>(room(to_weight, {p.width}, phi::DataType::FLOAT32));
  if (std::get<2>(wanted)) p.grad_bias = static_cast<float*>(room(to_bias, {p.width}, phi::DataType::FLOAT32));
  Tensor scratch = call.scratch(library.norm_grad_workspace(&p));
  p.workspace = scratch.data();
  call.launch(body, p, stream);
  return made;
}

Gradients rms_back(const Library& library, const Tensor& x, const Tensor& weight, float epsilon, const Tensor& grad,
                   const Optional& grad_sum, const Wanted& wanted, int64_t stream) {
  return go_back(library, "rms_norm_grad", library.rms_norm_grad, x, weight, epsilon, grad, grad_sum, wanted, stream);
}

Gradients layer_back(const Library& library, const Tensor& x, const Tensor& weight, float epsilon, const Tensor& grad,
                     const Optional& grad_sum, const Wanted& wanted, int64_t stream) {
  return go_back(library, "layer_norm_grad", library.layer_norm_grad, x, weight, epsilon, grad, grad_sum, wanted,
                 stream);
}

}  // namespace

void bind_norm(Bound& library) {
  library
      .def("rms_norm", &rms, py::arg("x"), py::arg("weight"), py::arg("epsilon"), py::arg("stream"))
      .def("add_rms_norm", &add_rms, py::arg("x"), py::arg("delta"), py::arg("weight"), py::arg("epsilon"),
           py::arg("stream"))
      .def("layer_norm", &layer, py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("epsilon"),
           py::arg("stream"))
      .def("add_layer_norm", &add_layer, py::arg("x"), py::arg("delta"), py::arg("weight"), py::arg("bias"),
           py::arg("epsilon"), py::arg("stream"))
      .def("rms_norm_grad", &rms_back, py::arg("x"), py::arg("weight"), py::arg("epsilon"), py::arg("grad"),
           py::arg("grad_sum"), py::arg("wanted"), py::arg("stream"))
      .def("layer_norm_grad", &layer_back, py::arg("x"), py::arg("weight"), py::arg("epsilon"), py::arg("grad"),
           py::arg("grad_sum"), py::arg("wanted"), py::arg("stream"));
}

}  // namespace qvl::cuda

// Linear layers with packed weights on a GPU. A weight is made once from tensors that hold its arrays there.
#include "qvl/cuda/linear.h"

#include "cuda_library.h"
#include "packed_weight.h"
#include "pybind11/stl.h"

namespace qvl::cuda {
namespace {

using Tensor = paddle::Tensor;

class Weight {
 public:
  // kind: int8 or int4. data, scales, zeros: the arrays of docs/quantization.md; bias: float32 [n].
  Weight(const Library& library, const std::string& kind, int64_t n, int64_t k, int64_t group, const Tensor& data,
         const Tensor& scales, const Optional& zeros, const Optional& bias) {
    const char* op = "linear";
    const Call call(library, op, data, "data");
    Sizes sizes;
    weight_ = weight_of(kind, n, k, group, op, &sizes);
    require(weight_.dtype != DType::bfloat16, op, "kind", "must be int8 or int4 on a GPU");
    require(bool(zeros) ? weight_.dtype == DType::int4 : true, op, "zeros", "are for int4 only");
    weight_.data = keep(call, data, sizes.data, "data");
    weight_.scales = keep(call, scales, sizes.scales, "scales");
    if (zeros) weight_.zeros = static_cast<const uint8_t*>(keep(call, *zeros, sizes.zeros, "zeros"));
    if (bias) weight_.bias = static_cast<const float*>(keep(call, *bias, sizes.bias, "bias"));
  }

  const LinearWeight& get() const { return weight_; }
  const Tensor& held() const { return kept_.front(); }

 private:
  const void* keep(const Call& call, const Tensor& x, int64_t bytes, const char* argument) {
    kept_.push_back(x);
    const int64_t size = x.numel() * static_cast<int64_t>(phi::SizeOf(x.dtype()));
    require(size == bytes, call.op(), argument, "has ", size, " bytes, ", bytes, " are needed");
    return call.given(x, x.dtype(), x.shape(), argument);
  }

  LinearWeight weight_;
  std::vector<Tensor> kept_;
};

Tensor apply(const Library& library, const Tensor& x, const std::vector<const Weight*>& weights,
             const Optional& residual, int64_t stream) {
  const char* op = "linear";
  require(!weights.empty() && weights.size() <= 8, op, "weights", "must be 1 to 8");
  const Call call(library, op, x, "x");
  LinearWeight parts[8];
  int64_t n = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    parts[i] = weights[i]->get();
    n += parts[i].n;
    require(parts[i].dtype == parts[0].dtype && parts[i].k == parts[0].k && parts[i].group == parts[0].group, op,
            "weights", "must agree in kind, inputs and group");
  }
  LinearParams p{};
  p.dtype = call.dtype("x");
  auto shape = x.shape();
  require(!shape.empty() && shape.back() == parts[0].k, op, "x", "has shape ", shape_text(x), ", its last size must be ",
          parts[0].k);
  p.x = call.given(x, shape, "x");
  p.rows = x.numel() / parts[0].k;
  p.x_stride = parts[0].k;
  require(p.rows > 0 && p.rows <= kMostLinearRows, op, "x", "must have 1 to ", kMostLinearRows, " rows, not ", p.rows);
  p.weights = parts;
  p.count = static_cast<int64_t>(weights.size());
  shape.back() = n;
  p.residual = call.given(residual, shape, "residual");
  Tensor out = call.empty(shape);
  p.out = out.data();
  p.out_stride = n;
  Tensor scratch = call.scratch(library.linear_workspace(&p));
  p.workspace = scratch.data();
  call.launch(library.linear, p, stream);
  return out;
}

// Rows of a matrix, or all of them in order, as bfloat16 or float16: [.. of rows, k] or [n, k].
Tensor widen(const Library& library, const Weight& weight, const Optional& rows, const std::string& dtype,
             int64_t stream) {
  const char* op = "unpack";
  require(dtype == "bfloat16" || dtype == "float16", op, "dtype", "must be bfloat16 or float16, not ", dtype);
  const Call call(library, op, weight.held(), "weight");
  const LinearWeight& w = weight.get();
  UnpackParams p{};
  p.dtype = dtype == "float16" ? DType::float16 : DType::bfloat16;
  p.weight = &w;
  std::vector<int64_t> shape{w.n};
  if (rows) {
    shape = rows->shape();
    p.rows = static_cast<const int64_t*>(call.given(*rows, phi::DataType::INT64, shape, "rows"));
  }
  p.count = rows ? rows->numel() : w.n;
  shape.push_back(w.k);
  Tensor out = call.empty(shape, dtype == "float16" ? phi::DataType::FLOAT16 : phi::DataType::BFLOAT16);
  p.out = out.data();
  call.launch(library.unpack, p, stream);
  return out;
}

}  // namespace

void bind_linear(py::module_& m, Bound& library) {
  py::class_<Weight>(m, "CudaWeight")
      .def(py::init<const Library&, const std::string&, int64_t, int64_t, int64_t, const Tensor&, const Tensor&,
                    const Optional&, const Optional&>(),
           py::arg("library"), py::arg("kind"), py::arg("n"), py::arg("k"), py::arg("group"), py::arg("data"),
           py::arg("scales"), py::arg("zeros"), py::arg("bias"));
  library.attr("MOST_ROWS") = kMostLinearRows;
  library
      .def("linear", &apply, py::arg("x"), py::arg("weights"), py::arg("residual"), py::arg("stream"))
      .def("unpack", &widen, py::arg("weight"), py::arg("rows"), py::arg("dtype"), py::arg("stream"));
}

}  // namespace qvl::cuda

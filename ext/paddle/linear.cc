// Linear layers: a weight is made once from arrays that NumPy holds (mapped from a file or not) and then called.
#include "qvl/linear.h"

#include <vector>

#include "packed_weight.h"

namespace qvl {
namespace {

paddle::Tensor apply(const paddle::Tensor& given, const std::vector<const PackedWeight*>& weights,
                     const Residual& residual) {
  require(!weights.empty() && weights.size() <= 8, "linear", "weights", "must be 1 to 8");
  LinearWeight parts[8];
  int64_t n = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    parts[i] = weights[i]->get();
    n += parts[i].n;
    require(parts[i].dtype == parts[0].dtype && parts[i].k == parts[0].k && parts[i].group == parts[0].group, "linear",
            "weights", "must agree in kind, inputs and group");
  }
  LinearParams p{};
  paddle::Tensor out = output_for(given, parts[0].k, n, "linear"), kept;
  if (given.numel() == 0) return out;
  const paddle::Tensor x = given.contiguous();
  p.x = x.data<float>();
  p.rows = x.numel() / parts[0].k;
  p.x_stride = parts[0].k;
  p.weights = parts;
  p.count = static_cast<int64_t>(weights.size());
  p.residual = residual_of(residual, out, "linear", &kept);
  p.out = out.data<float>();
  p.out_stride = n;
  Status status;
  {
    py::gil_scoped_release released;
    status = linear(p);
  }
  require_ok(status, "linear");
  return out;
}

paddle::Tensor apply_one(const paddle::Tensor& x, const PackedWeight& weight, const Residual& residual) {
  return apply(x, {&weight}, residual);
}

paddle::Tensor apply_dense(const paddle::Tensor& given, const paddle::Tensor& w, const Residual& bias,
                           const Residual& residual, bool in_major) {
  const char* op = "linear_dense";
  require_cpu(w, phi::DataType::FLOAT32, op, "weight");
  require(w.shape().size() == 2, op, "weight", "has shape ", shape_text(w), ", two sizes are needed");
  require(w.is_contiguous(), op, "weight", "must be contiguous");
  DenseParams p{};
  p.in_major = in_major;
  p.k = w.shape()[in_major ? 0 : 1];
  p.n = w.shape()[in_major ? 1 : 0];
  paddle::Tensor out = output_for(given, p.k, p.n, op), kept;
  if (out.numel() == 0) return out;
  require(p.k > 0, op, "weight", "has no inputs");
  const paddle::Tensor x = given.contiguous();
  if (bias) {
    require_cpu(*bias, phi::DataType::FLOAT32, op, "bias");
    require(bias->numel() == p.n, op, "bias", "has ", bias->numel(), " numbers, the weight ", p.n, " outputs");
    require(bias->is_contiguous(), op, "bias", "must be contiguous");
    p.bias = bias->data<float>();
  }
  p.x = x.data<float>();
  p.rows = p.k ? x.numel() / p.k : 0;
  p.x_stride = p.k;
  p.w = w.data<float>();
  p.residual = residual_of(residual, out, op, &kept);
  p.out = out.data<float>();
  p.out_stride = p.n;
  Status status;
  {
    py::gil_scoped_release released;
    status = linear_dense(p);
  }
  require_ok(status, op);
  return out;
}

// Rows of the matrix as float32, in the shape of ids with the inputs behind.
paddle::Tensor embedding(const paddle::Tensor& given, const PackedWeight& weight) {
  require_cpu(given, phi::DataType::INT64, "embedding", "ids");
  const LinearWeight& w = weight.get();
  const paddle::Tensor ids = given.numel() ? given.contiguous() : given;
  const int64_t* rows = ids.numel() ? ids.data<int64_t>() : nullptr;
  for (int64_t i = 0; i < ids.numel(); ++i) {
    require(rows[i] >= 0 && rows[i] < w.n, "embedding", "ids", "has ", rows[i], ", the weight has ", w.n, " rows");
  }
  auto shape = ids.shape();
  shape.push_back(w.k);
  paddle::Tensor out = paddle::experimental::empty(shape, phi::DataType::FLOAT32, phi::CPUPlace());
  require_ok(unpack(w, rows, ids.numel(), out.data<float>()), "embedding");
  return out;
}

void unpack_into(const PackedWeight& weight, const py::buffer& out) {
  const LinearWeight& w = weight.get();
  const py::buffer_info info = out.request(true);
  float* to = static_cast<float*>(const_cast<void*>(bytes_of(info, 4 * w.n * w.k, "unpack", "out")));
  py::gil_scoped_release released;
  require_ok(unpack(w, nullptr, w.n, to), "unpack");
}

// source: float32, or bfloat16 as uint16; [n, k] in any strides.
void pack_into(const std::string& kind, int64_t group, const py::buffer& source, const py::buffer& data,
               const py::object& scales, const py::object& zeros) {
  const py::buffer_info from = source.request();
  require(from.ndim == 2, "pack", "source", "must have two sizes, not ", from.ndim);
  require(from.format == "f" || from.format == "H", "pack", "source", "must be float32 or uint16, not ", from.format);
  Sizes sizes;
  LinearWeight w = weight_of(kind, from.shape[0], from.shape[1], group, "pack", &sizes);
  std::vector<py::buffer_info> infos;
  const auto target = [&](const py::object& array, int64_t bytes, const char* argument) {
    infos.push_back(array.cast<py::buffer>().request(true));
    return bytes_of(infos.back(), bytes, "pack", argument);
  };
  w.data = target(data, sizes.data, "data");
  if (w.dtype != DType::bfloat16) w.scales = target(scales, sizes.scales, "scales");
  if (!zeros.is_none()) {
    require(w.dtype == DType::int4, "pack", "zeros", "are for int4 only");
    w.zeros = static_cast<const uint8_t*>(target(zeros, sizes.zeros, "zeros"));
  }
  PackParams p{};
  p.source = from.ptr;
  p.source_dtype = from.format == "f" ? DType::float32 : DType::bfloat16;
  p.n_stride = from.strides[0] / from.itemsize;
  p.k_stride = from.strides[1] / from.itemsize;
  p.weight = &w;
  Status status;
  {
    py::gil_scoped_release released;
    status = pack(p);
  }
  require_ok(status, "pack");
}

}  // namespace

void bind_linear(py::module_& m) {
  py::class_<PackedWeight>(m, "PackedWeight")
      .def(py::init<const std::string&, int64_t, int64_t, int64_t, const py::buffer&, const py::object&,
                    const py::object&, const py::object&>(),
           py::arg("kind"), py::arg("n"), py::arg("k"), py::arg("group"), py::arg("data"), py::arg("scales"),
           py::arg("zeros"), py::arg("bias"));
  m.def("linear", &apply_one, py::arg("x"), py::arg("weight"), py::arg("residual") = Residual());
  m.def("linear", &apply, py::arg("x"), py::arg("weights"), py::arg("residual") = Residual());
  m.def("linear_dense", &apply_dense, py::arg("x"), py::arg("weight"), py::arg("bias") = Residual(),
        py::arg("residual") = Residual(), py::arg("in_major") = true);
  m.def("embedding", &embedding, py::arg("ids"), py::arg("weight"));
  m.def("unpack", &unpack_into, py::arg("weight"), py::arg("out"));
  m.def("pack", &pack_into, py::arg("kind"), py::arg("group"), py::arg("source"), py::arg("data"), py::arg("scales"),
        py::arg("zeros"));
}

}  // namespace qvl

// The MLP of a block: two linear layers and the gate between them as one op.
#include "qvl/mlp.h"

#include "packed_weight.h"

namespace qvl {
namespace {

paddle::Tensor apply(const paddle::Tensor& given, const std::vector<const PackedWeight*>& inner,
                     const PackedWeight& down, const std::string& gate, const Residual& residual) {
  const char* op = "mlp";
  require(gate == "swiglu" || gate == "quick_gelu", op, "gate", "must be swiglu or quick_gelu, not ", gate);
  const size_t count = gate == "swiglu" ? 2 : 1;
  require(inner.size() == count, op, "inner", "must be ", count, " weights for ", gate, ", not ", inner.size());
  LinearWeight parts[2];
  for (size_t i = 0; i < count; ++i) {
    const LinearWeight& part = parts[i] = inner[i]->get();
    require(part.dtype == parts[0].dtype && part.k == parts[0].k && part.n == parts[0].n && part.group == parts[0].group,
            op, "inner", "must agree in kind, sizes and group");
  }
  require(down.get().k == parts[0].n, op, "down", "has ", down.get().k, " inputs, there are ", parts[0].n);
  MlpParams p{};
  paddle::Tensor out = output_for(given, parts[0].k, down.get().n, op), kept;
  if (given.numel() == 0) return out;
  const paddle::Tensor x = given.contiguous();
  p.x = x.data<float>();
  p.rows = x.numel() / parts[0].k;
  p.x_stride = parts[0].k;
  p.gate = count == 2 ? Gate::swiglu : Gate::quick_gelu;
  p.inner = parts;
  p.down = &down.get();
  p.residual = residual_of(residual, out, op, &kept);
  p.out = out.data<float>();
  p.out_stride = down.get().n;
  Status status;
  {
    py::gil_scoped_release released;
    status = mlp(p);
  }
  require_ok(status, op);
  return out;
}

}  // namespace

void bind_mlp(py::module_& m) {
  m.def("mlp", &apply, py::arg("x"), py::arg("inner"), py::arg("down"), py::arg("gate"),
        py::arg("residual") = Residual());
}

}  // namespace qvl

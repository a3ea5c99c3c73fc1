// Matrix products of training, rounded to bfloat16.
#include "qvl/product.h"

#include "module.h"
#include "rows.h"

namespace qvl {
namespace {

// A B + bias of float32 matrices; turned ones are multiplied transposed.
paddle::Tensor multiplied(const paddle::Tensor& a, const paddle::Tensor& b, const Optional& bias, bool a_turned,
                          bool b_turned) {
  const char* op = "product";
  ProductParams p{};
  p.a = floats(a, {-1, -1}, op, "a");
  p.m = a.shape()[a_turned ? 1 : 0];
  p.k = a.shape()[a_turned ? 0 : 1];
  p.n = b.shape().size() == 2 ? b.shape()[b_turned ? 0 : 1] : -1;
  p.b = b_turned ? floats(b, {p.n, p.k}, op, "b") : floats(b, {p.k, p.n}, op, "b");
  p.a_turned = a_turned;
  p.b_turned = b_turned;
  p.bias = floats(bias, {p.n}, op, "bias");
  paddle::Tensor out = new_floats({p.m, p.n});
  p.out = out.data<float>();
  Status status;
  {
    py::gil_scoped_release released;
    status = product(p);
  }
  require_ok(status, op);
  return out;
}

}  // namespace

void bind_product(py::module_& m) {
  m.def("has_product", &has_product, "Whether this CPU, at the level in use, has bodies for `product`.");
  m.def("product", &multiplied, py::arg("a"), py::arg("b"), py::arg("bias") = Optional(), py::arg("a_turned") = false,
        py::arg("b_turned") = false);
}

}  // namespace qvl

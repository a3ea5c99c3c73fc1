// The choice of a token, on NumPy arrays.
#include "qvl/sampling.h"

#include "checks.h"
#include "module.h"
#include "pybind11/numpy.h"

namespace qvl {
namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Ids = py::array_t<int64_t, py::array::c_style>;

int64_t draw(const py::array& logits, const Ids& seen, float penalty, const Ids& banned, float temperature,
             int64_t top_k, double top_p, float min_logit, double uniform) {
  const char* op = "sample";
  require(Floats::check_(logits) && logits.ndim() == 1 && logits.size() > 0, op, "logits",
          "must be float32 [vocab_size], contiguous");
  require(temperature >= 0.0f, op, "temperature", "must be 0 (greedy) or more, not ", temperature);
  require(uniform >= 0.0 && uniform < 1.0, op, "uniform", "must be 0 or more and below 1, not ", uniform);
  SamplingParams p{};
  p.logits = static_cast<const float*>(logits.data());
  p.count = logits.size();
  p.seen = seen.data();
  p.seen_count = seen.size();
  p.penalty = penalty;
  p.banned = banned.data();
  p.banned_count = banned.size();
  p.greedy = temperature == 0.0f;
  p.temperature = temperature;
  p.top_k = top_k;
  p.top_p = top_p;
  p.min_logit = min_logit;
  p.uniform = uniform;
  int64_t token;
  {
    py::gil_scoped_release released;
    token = sample(p);
  }
  if (token == -2) throw std::bad_alloc();
  return token;
}

}  // namespace

void bind_sampling(py::module_& m) {
  m.def("sample", &draw, py::arg("logits"), py::arg("seen"), py::arg("penalty"), py::arg("banned"),
        py::arg("temperature"), py::arg("top_k"), py::arg("top_p"), py::arg("min_logit"), py::arg("uniform"));
}

}  // namespace qvl

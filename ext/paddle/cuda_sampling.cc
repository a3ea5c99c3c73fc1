// The choice of tokens on a GPU, and the loss of a chunk of logits.
#include "qvl/cuda/sampling.h"

#include "cuda_library.h"
#include "qvl/cuda/cross_entropy.h"

namespace qvl::cuda {
namespace {

using Tensor = paddle::Tensor;

// settings: bytes on the device, so that one copy brings them there: a SamplingRule for each row, then the numbers that
// the rules call seen, then the banned ones, int64. Returns int64 [rows], -1 where no logit is a finite number.
Tensor draw(const Library& library, const Tensor& logits, const Tensor& settings, int64_t seen, int64_t banned,
            int64_t stream) {
  const Call call(library, "sample", logits, "logits");
  require(logits.shape().size() == 2 && logits.numel() > 0, call.op(), "logits", "has shape ", shape_text(logits),
          ", [rows, vocabulary] is needed");
  SamplingParams p{};
  p.dtype = call.dtype("logits");
  p.rows = logits.shape()[0], p.count = logits.shape()[1];
  p.logits = call.strided(logits, logits.shape(), "logits", &p.stride);
  require(seen >= 0 && banned >= 0, call.op(), "seen", "and banned must be 0 or more");
  const int64_t rules = p.rows * static_cast<int64_t>(sizeof(SamplingRule));
  const char* bytes = static_cast<const char*>(
      call.given(settings, phi::DataType::UINT8, {rules + (seen + banned) * 8}, "settings"));
  p.rules = reinterpret_cast<const SamplingRule*>(bytes);
  p.seen = reinterpret_cast<const int64_t*>(bytes + rules);
  p.banned = p.seen + seen;
  Tensor tokens = call.empty({p.rows}, phi::DataType::INT64);
  p.tokens = static_cast<int64_t*>(tokens.data());
  Tensor scratch = call.scratch(library.sample_workspace(&p));
  p.workspace = scratch.data();
  call.launch(library.sample, p, stream);
  return tokens;
}

// Losses float32 [rows] of logits [rows, vocabulary], which with `gradient` become their gradient times grad_scale.
Tensor loss(const Library& library, const Tensor& logits, const Tensor& targets, const Optional& weights,
            float grad_scale, bool gradient, int64_t stream) {
  const Call call(library, "cross_entropy", logits, "logits");
  require(logits.shape().size() == 2 && logits.numel() > 0, call.op(), "logits", "has shape ", shape_text(logits),
          ", [rows, vocabulary] is needed");
  CrossEntropyParams p{};
  p.dtype = call.dtype("logits");
  p.rows = logits.shape()[0], p.vocab = logits.shape()[1];
  p.logits = call.strided(logits, logits.shape(), "logits", &p.stride);
  p.targets = static_cast<const int64_t*>(call.given(targets, phi::DataType::INT64, {p.rows}, "targets"));
  p.weights = call.floats(weights, {p.rows}, "weights");
  p.grad_scale = grad_scale;
  p.gradient = gradient;
  Tensor losses = call.empty({p.rows}, phi::DataType::FLOAT32);
  p.losses = static_cast<float*>(losses.data());
  call.launch(library.cross_entropy, p, stream);
  return losses;
}

}  // namespace

void bind_sampling(Bound& library) {
  library.attr("RULE_BYTES") = sizeof(SamplingRule);
  library
      .def("sample", &draw, py::arg("logits"), py::arg("settings"), py::arg("seen"), py::arg("banned"),
           py::arg("stream"))
      .def("cross_entropy", &loss, py::arg("logits"), py::arg("targets"), py::arg("weights"), py::arg("grad_scale"),
           py::arg("gradient"), py::arg("stream"));
}

}  // namespace qvl::cuda

// Rotary embeddings, the cache and attention of the newest tokens on a GPU.
#include "qvl/cuda/attention.h"

#include <algorithm>
#include <cmath>

#include "cuda_library.h"
#include "pybind11/stl.h"
#include "qvl/cuda/rotary.h"

namespace qvl::cuda {
namespace {

using Tensor = paddle::Tensor;

// (keys, values, key_scales or None, value_scales or None, rows before the new ones, new rows): keys and values
// [capacity, kv_heads, dim] in the type of the queries or int8, scales float32 [capacity, kv_heads]. The rows before are
// what a check goes by; kernels read them from `starts`.
using CacheTuple = std::tuple<Tensor, Tensor, Optional, Optional, int64_t, int64_t>;
// Biases of the projections, [heads D], [kv_heads D] and [kv_heads D], or None where they were added before.
using Biases = std::tuple<Optional, Optional, Optional>;

struct Sequences {
  std::vector<CacheSequence> each;
  DType storage;
  int64_t kv_heads, dim;
  const int32_t* starts;
};

// rows: what the new rows must add up to. starts: int32, one for each cache.
Sequences sequences_of(const Call& call, const std::vector<CacheTuple>& caches, const Tensor& starts, int64_t rows) {
  const char* op = call.op();
  require(!caches.empty(), op, "caches", "must be one at least");
  const Tensor& first = std::get<0>(caches[0]);
  require(first.shape().size() == 3, op, "keys", "has shape ", shape_text(first), ", three sizes are needed");
  Sequences made{};
  made.kv_heads = first.shape()[1], made.dim = first.shape()[2];
  const bool narrow = first.dtype() == phi::DataType::INT8;
  made.storage = narrow ? DType::int8 : call.dtype("q");
  for (const auto& [keys, values, key_scales, value_scales, start, tokens] : caches) {
    const int64_t capacity = keys.shape().empty() ? 0 : keys.shape()[0];
    const phi::DataType stored = narrow ? phi::DataType::INT8 : call.type();
    const auto scales = [&](const Optional& x, const char* argument) {
      require(bool(x) == narrow, op, argument, "are for int8 keys and values, and needed there");
      return call.floats(x, {capacity, made.kv_heads}, argument);
    };
    require(start >= 0 && tokens >= 0 && start + tokens <= capacity, op, "caches", "has room for ", capacity,
            " tokens, not for ", tokens, " behind ", start);
    CacheSequence s{};
    s.k = call.given(keys, stored, {capacity, made.kv_heads, made.dim}, "keys");
    s.v = call.given(values, stored, {capacity, made.kv_heads, made.dim}, "values");
    s.k_scale = scales(key_scales, "key_scales");
    s.v_scale = scales(value_scales, "value_scales");
    s.tokens = tokens;
    made.each.push_back(s);
    rows -= tokens;
  }
  require(rows == 0, op, "caches", "must take as many new rows as q has; ", rows, " are left over");
  const int64_t count = static_cast<int64_t>(caches.size());
  made.starts = static_cast<const int32_t*>(call.given(starts, phi::DataType::INT32, {count}, "starts"));
  return made;
}

// q: [N, heads D], k and v: [N, kv_heads D]; or q alone, [N, (heads + 2 kv_heads) D].
void set_projections(RotaryParams* p, const Call& call, const Tensor& q, const Optional& k, const Optional& v) {
  const char* op = call.op();
  const int64_t rows = q.shape()[0], kv_width = p->kv_heads * p->dim;
  require(bool(k) == bool(v), op, "v", "must be given when k is, and only then");
  const int64_t width = p->heads * p->dim + (k ? 0 : 2 * kv_width);
  p->q = call.strided(q, {rows, width}, "q", &p->q_stride);
  if (k) {
    p->k = call.strided(*k, {rows, kv_width}, "k", &p->k_stride);
    p->v = call.strided(*v, {rows, kv_width}, "v", &p->v_stride);
  } else {
    const int64_t bytes = static_cast<int64_t>(phi::SizeOf(call.type()));
    p->k_stride = p->v_stride = p->q_stride;
    p->k = static_cast<const char*>(p->q) + p->heads * p->dim * bytes;
    p->v = static_cast<const char*>(p->k) + kv_width * bytes;
  }
}

// Returns the turned queries [N, heads, D]; keys and values go into the caches.
Tensor turn_and_store(const Library& library, const Tensor& q, const Optional& k, const Optional& v,
                      const Biases& biases, const Tensor& cos, const Tensor& sin, int64_t heads,
                      const std::vector<CacheTuple>& caches, const Tensor& starts, int64_t stream) {
  const Call call(library, "rotary_store", q, "q");
  require(q.shape().size() == 2, call.op(), "q", "has shape ", shape_text(q), ", two sizes are needed");
  const int64_t rows = q.shape()[0];
  const Sequences sequences = sequences_of(call, caches, starts, rows);
  RotaryParams p{};
  p.dtype = call.dtype("q");
  p.storage = sequences.storage;
  p.heads = heads, p.kv_heads = sequences.kv_heads, p.dim = sequences.dim;
  require(heads > 0 && heads % p.kv_heads == 0, call.op(), "heads", "must be a multiple of ", p.kv_heads, ", not ",
          heads);
  set_projections(&p, call, q, k, v);
  p.q_bias = call.given(std::get<0>(biases), {heads * p.dim}, "q_bias");
  p.k_bias = call.given(std::get<1>(biases), {p.kv_heads * p.dim}, "k_bias");
  p.v_bias = call.given(std::get<2>(biases), {p.kv_heads * p.dim}, "v_bias");
  p.cos = call.floats(cos, {rows, p.dim / 2}, "cos");
  p.sin = call.floats(sin, {rows, p.dim / 2}, "sin");
  p.sequences = sequences.each.data();
  p.count = static_cast<int64_t>(sequences.each.size());
  p.starts = sequences.starts;
  Tensor out = call.empty({rows, heads, p.dim});
  p.q_out = out.data();
  call.launch(library.rotary_store, p, stream);
  return out;
}

// q: [N, heads, D], whose keys are in the caches. most_keys: at least those that any of them sees. Returns [N, heads D].
Tensor attend(const Library& library, const Tensor& q, const std::vector<CacheTuple>& caches, const Tensor& starts,
              int64_t most_keys, int64_t stream) {
  const Call call(library, "attention", q, "q");
  require(q.shape().size() == 3, call.op(), "q", "has shape ", shape_text(q), ", three sizes are needed");
  const int64_t rows = q.shape()[0], heads = q.shape()[1];
  const Sequences sequences = sequences_of(call, caches, starts, rows);
  AttentionParams p{};
  p.dtype = call.dtype("q");
  p.storage = sequences.storage;
  p.heads = heads, p.kv_heads = sequences.kv_heads, p.dim = sequences.dim;
  require(heads > 0 && heads % p.kv_heads == 0, call.op(), "q", "has ", heads, " heads, not a multiple of ",
          p.kv_heads);
  p.q = call.strided(q, {rows, heads, p.dim}, "q", &p.q_stride);
  for (const auto& cache : caches) {
    const int64_t tokens = std::get<5>(cache);
    require(tokens <= kMostQueries, call.op(), "caches", "may have ", kMostQueries, " new tokens, not ", tokens);
    require(std::get<4>(cache) + tokens <= most_keys, call.op(), "most_keys", "is ", most_keys, ", fewer than the ",
            std::get<4>(cache) + tokens, " keys of a sequence");
  }
  p.sequences = sequences.each.data();
  p.count = static_cast<int64_t>(sequences.each.size());
  p.starts = sequences.starts;
  p.most_keys = most_keys;
  p.scale = 1.0f / std::sqrt(static_cast<float>(p.dim));
  Tensor out = call.empty({rows, heads * p.dim});
  p.out = out.data();
  p.out_stride = heads * p.dim;
  Tensor scratch = call.scratch(library.attention_workspace(&p));
  p.workspace = scratch.data();
  call.launch(library.attention, p, stream);
  return out;
}

// Turns the heads of x [N, heads, D] where they lie, or back again.
void turn(const Library& library, const Tensor& x, const Tensor& cos, const Tensor& sin, bool back, int64_t stream) {
  const Call call(library, back ? "rotate_grad" : "rotate", x, "x");
  require(x.shape().size() == 3, call.op(), "x", "has shape ", shape_text(x), ", three sizes are needed");
  RotateParams p{};
  p.dtype = call.dtype("x");
  p.rows = x.shape()[0], p.heads = x.shape()[1], p.dim = x.shape()[2];
  p.x = call.strided(x, x.shape(), "x", &p.stride);
  p.cos = call.floats(cos, {p.rows, p.dim / 2}, "cos");
  p.sin = call.floats(sin, {p.rows, p.dim / 2}, "sin");
  call.launch(back ? library.rotate_grad : library.rotate, p, stream);
}

}  // namespace

void bind_attention(Bound& library) {
  library.attr("MOST_QUERIES") = kMostQueries;
  library
      .def("rotary_store", &turn_and_store, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("biases"),
           py::arg("cos"), py::arg("sin"), py::arg("heads"), py::arg("caches"), py::arg("starts"), py::arg("stream"))
      .def("attention", &attend, py::arg("q"), py::arg("caches"), py::arg("starts"), py::arg("most_keys"),
           py::arg("stream"))
      .def("rotate", &turn, py::arg("x"), py::arg("cos"), py::arg("sin"), py::arg("back"), py::arg("stream"));
}

}  // namespace qvl::cuda

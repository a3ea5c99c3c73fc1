// Attention: of the vision tower, over sequences laid end to end, and with caches (rotary, cache write and attention).
#include "qvl/attention.h"

#include <cmath>

#include "cache_rows.h"
#include "module.h"
#include "qvl/rotary.h"

namespace qvl {
namespace {

using Spans = std::vector<std::pair<int64_t, int64_t>>;

void require_heads(int64_t heads, int64_t kv_heads, int64_t dim, const char* op, const char* argument) {
  require(heads > 0 && kv_heads > 0 && heads % kv_heads == 0, op, argument, "has ", kv_heads,
          " heads of keys, of which ", heads, " heads of queries must be a multiple");
  require(dim > 0 && dim % 2 == 0 && dim <= kMostAttentionDim, op, "q", "has heads of ", dim,
          ", which must be even and at most ", kMostAttentionDim);
}

void launch(AttentionParams p, const std::vector<AttentionSequence>& sequences, const char* op) {
  p.sequences = sequences.data();
  p.count = static_cast<int64_t>(sequences.size());
  p.out_stride = p.heads * p.dim;
  p.scale = 1.0f / std::sqrt(static_cast<float>(p.dim));
  Status status;
  {
    py::gil_scoped_release released;
    status = attention(p);
  }
  require_ok(status, op);
}

// q: [N, heads, D]; k, v: [M, kv_heads, D]; spans: (queries, keys) of each sequence. Rows may be apart.
paddle::Tensor over_spans(const paddle::Tensor& q, const paddle::Tensor& k, const paddle::Tensor& v, const Spans& spans,
                          bool causal, bool rounded) {
  const char* op = "attention";
  require_cpu(q, phi::DataType::FLOAT32, op, "q");
  require_cpu(k, phi::DataType::FLOAT32, op, "k");
  require_cpu(v, phi::DataType::FLOAT32, op, "v");
  require_shape(q, {-1, -1, -1}, op, "q");
  require_shape(k, {-1, -1, q.shape()[2]}, op, "k");
  require_shape(v, k.shape(), op, "v");
  AttentionParams p{};
  p.heads = q.shape()[1], p.kv_heads = k.shape()[1], p.dim = q.shape()[2];
  require_heads(p.heads, p.kv_heads, p.dim, op, "k");
  p.q_stride = row_stride_of(q, op, "q");
  p.k_stride = row_stride_of(k, op, "k");
  p.v_stride = row_stride_of(v, op, "v");
  p.causal = causal;
  p.rounded = rounded;
  paddle::Tensor out = new_floats(q.shape());
  std::vector<AttentionSequence> sequences;
  int64_t queries = 0, keys = 0;
  for (const auto& [n, m] : spans) {
    require(n >= 0 && m >= 1 && (!causal || n <= m), op, "spans", "has ", n, " queries for ", m, " keys");
    AttentionSequence s{};
    s.q = q.data<float>() + queries * p.q_stride;
    s.out = out.data<float>() + queries * p.heads * p.dim;
    s.k = k.data<float>() + keys * p.k_stride;
    s.v = v.data<float>() + keys * p.v_stride;
    s.queries = n, s.keys = m;
    sequences.push_back(s);
    queries += n, keys += m;
  }
  require(queries == q.shape()[0] && keys == k.shape()[0], op, "spans", "must add up to ", q.shape()[0], " queries and ",
          k.shape()[0], " keys, not to ", queries, " and ", keys);
  launch(p, sequences, op);
  return out;
}

// qkv: [N, 3 heads D]; cos, sin: [N, D / 2]; lengths of the slices. Returns [N, heads D].
paddle::Tensor vision(const paddle::Tensor& qkv, const paddle::Tensor& cos, const paddle::Tensor& sin, int64_t heads,
                      const std::vector<int64_t>& lengths, bool rounded) {
  const char* op = "vision_attention";
  require_cpu(qkv, phi::DataType::FLOAT32, op, "qkv");
  require_shape(qkv, {-1, -1}, op, "qkv");
  require_contiguous(qkv, op, "qkv");
  const int64_t rows = qkv.shape()[0], width = qkv.shape()[1] / 3;
  require(heads > 0 && qkv.shape()[1] == 3 * width && width % heads == 0, op, "qkv", "has ", qkv.shape()[1],
          " columns, which must be a multiple of 3 times ", heads, " heads");
  AttentionParams p{};
  p.heads = p.kv_heads = heads, p.dim = width / heads;
  p.rounded = rounded;
  require_heads(heads, heads, p.dim, op, "heads");
  p.q_stride = p.k_stride = p.v_stride = 3 * width;
  const float* c = floats(cos, {rows, p.dim / 2}, op, "cos");
  const float* s = floats(sin, {rows, p.dim / 2}, op, "sin");
  paddle::Tensor out = new_floats({rows, width});
  std::vector<AttentionSequence> sequences;
  int64_t row = 0;
  for (const int64_t n : lengths) {
    require(n >= 0 && row + n <= rows, op, "lengths", "must add up to ", rows);
    const float* q = qkv.data<float>() + row * p.q_stride;
    AttentionSequence sequence{};
    sequence.q = q, sequence.k = q + width, sequence.v = q + 2 * width;
    sequence.out = out.data<float>() + row * width;
    sequence.cos = c + row * (p.dim / 2), sequence.sin = s + row * (p.dim / 2);
    sequence.queries = sequence.keys = n;
    sequences.push_back(sequence);
    row += n;
  }
  require(row == rows, op, "lengths", "must add up to ", rows, ", not to ", row);
  launch(p, sequences, op);
  return out;
}

// The rows of the projections: q [N, heads D], k and v [N, kv_heads D]; or q alone, [N, (heads + 2 kv_heads) D].
struct Projections {
  RotaryParams p;
  int64_t rows;
};

Projections projections(const paddle::Tensor& q, const Optional& k, const Optional& v, const paddle::Tensor& cos,
                        const paddle::Tensor& sin, int64_t heads, int64_t kv_heads, const char* op) {
  const auto given = [&](const paddle::Tensor& x, int64_t width, const char* argument) {
    require_cpu(x, phi::DataType::FLOAT32, op, argument);
    require_shape(x, {q.shape()[0], width}, op, argument);
    return row_stride_of(x, op, argument);
  };
  require(q.shape().size() == 2, op, "q", "has shape ", shape_text(q), ", two sizes are needed");
  require(bool(k) == bool(v), op, "v", "must be given when k is, and only then");
  require(heads > 0 && kv_heads > 0, op, "heads", "must be positive, not ", heads, " and ", kv_heads);
  const int64_t heads_in_q = k ? heads : heads + 2 * kv_heads;
  require(q.shape()[1] % heads_in_q == 0, op, "q", "has ", q.shape()[1], " columns, which must be a multiple of ",
          heads_in_q, " heads");
  Projections made{};
  RotaryParams& p = made.p;
  made.rows = q.shape()[0];
  p.heads = heads, p.kv_heads = kv_heads, p.dim = q.shape()[1] / heads_in_q;
  require_heads(heads, kv_heads, p.dim, op, "q");
  p.q_stride = given(q, heads_in_q * p.dim, "q");
  p.q = q.data<float>();
  if (k) {
    p.k_stride = given(*k, kv_heads * p.dim, "k");
    p.v_stride = given(*v, kv_heads * p.dim, "v");
    p.k = k->data<float>(), p.v = v->data<float>();
  } else {
    p.k_stride = p.v_stride = p.q_stride;
    p.k = p.q + heads * p.dim, p.v = p.k + kv_heads * p.dim;
  }
  p.cos = floats(cos, {made.rows, p.dim / 2}, op, "cos");
  p.sin = floats(sin, {made.rows, p.dim / 2}, op, "sin");
  return made;
}

void store(Projections& made, const std::vector<CacheRows>& rows, DType storage, paddle::Tensor& q_out,
           const char* op) {
  std::vector<RotaryTarget> targets;
  for (const CacheRows& each : rows) {
    const int64_t before = each.start * made.p.kv_heads, bytes = before * made.p.dim * bytes_of_storage(storage);
    targets.push_back({static_cast<char*>(each.k) + bytes, static_cast<char*>(each.v) + bytes,
                       each.k_scale ? each.k_scale + before : nullptr, each.v_scale ? each.v_scale + before : nullptr,
                       each.tokens});
  }
  made.p.q_out = q_out.data<float>();
  made.p.targets = targets.data();
  made.p.count = static_cast<int64_t>(targets.size());
  made.p.storage = storage;
  Status status;
  {
    py::gil_scoped_release released;
    status = rotary_store(made.p);
  }
  require_ok(status, op);
}

// Biases of the projections, [heads D], [kv_heads D] and [kv_heads D], or None where they were added before.
using Biases = std::tuple<Optional, Optional, Optional>;

void set_biases(RotaryParams& p, const Biases& biases, const char* op) {
  p.q_bias = floats(std::get<0>(biases), {p.heads * p.dim}, op, "q_bias");
  p.k_bias = floats(std::get<1>(biases), {p.kv_heads * p.dim}, op, "k_bias");
  p.v_bias = floats(std::get<2>(biases), {p.kv_heads * p.dim}, op, "v_bias");
}

// Returns the turned queries [N, heads, D]; keys and values go into the caches.
paddle::Tensor turn_and_store(const paddle::Tensor& q, const Optional& k, const Optional& v, const Biases& biases,
                              const paddle::Tensor& cos, const paddle::Tensor& sin, int64_t heads, int64_t kv_heads,
                              const std::vector<CacheTuple>& caches) {
  const char* op = "rotary_store";
  Projections made = projections(q, k, v, cos, sin, heads, kv_heads, op);
  set_biases(made.p, biases, op);
  DType storage;
  const auto rows = checked_caches(caches, made.rows, kv_heads, made.p.dim, &storage, op);
  paddle::Tensor out = new_floats({made.rows, heads, made.p.dim});
  store(made, rows, storage, out, op);
  return out;
}

// The same, and then each sequence attends to its own cache: [N, heads D].
paddle::Tensor with_caches(const paddle::Tensor& q, const Optional& k, const Optional& v, const Biases& biases,
                           const paddle::Tensor& cos, const paddle::Tensor& sin, int64_t heads, int64_t kv_heads,
                           const std::vector<CacheTuple>& caches, bool rounded) {
  const char* op = "cached_attention";
  Projections made = projections(q, k, v, cos, sin, heads, kv_heads, op);
  set_biases(made.p, biases, op);
  AttentionParams p{};
  p.heads = heads, p.kv_heads = kv_heads, p.dim = made.p.dim;
  const auto rows = checked_caches(caches, made.rows, kv_heads, p.dim, &p.storage, op);
  paddle::Tensor turned = new_floats({made.rows, heads * p.dim}), out = new_floats({made.rows, heads * p.dim});
  store(made, rows, p.storage, turned, op);
  p.q_stride = heads * p.dim;
  p.k_stride = p.v_stride = kv_heads * p.dim;
  p.causal = true;
  p.rounded = rounded;
  std::vector<AttentionSequence> sequences;
  int64_t row = 0;
  for (const CacheRows& each : rows) {
    AttentionSequence s{};
    s.q = turned.data<float>() + row * p.q_stride;
    s.out = out.data<float>() + row * p.q_stride;
    s.k = each.k, s.v = each.v, s.k_scale = each.k_scale, s.v_scale = each.v_scale;
    s.queries = each.tokens;
    s.keys = each.start + each.tokens;
    sequences.push_back(s);
    row += each.tokens;
  }
  launch(p, sequences, op);
  return out;
}

}  // namespace

void bind_attention(py::module_& m) {
  m.def("attention", &over_spans, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("spans"), py::arg("causal"),
        py::arg("rounded") = false);
  m.def("vision_attention", &vision, py::arg("qkv"), py::arg("cos"), py::arg("sin"), py::arg("heads"),
        py::arg("lengths"), py::arg("rounded") = false);
  m.def("rotary_store", &turn_and_store, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("biases"), py::arg("cos"),
        py::arg("sin"), py::arg("heads"), py::arg("kv_heads"), py::arg("caches"));
  m.def("cached_attention", &with_caches, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("biases"), py::arg("cos"),
        py::arg("sin"), py::arg("heads"), py::arg("kv_heads"), py::arg("caches"),
        py::arg("rounded") = false);
}

}  // namespace qvl

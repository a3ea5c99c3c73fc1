// Attention that learns: what attention gives, with what its gradients need, and those gradients.
#include <cmath>

#include "module.h"
#include "qvl/attention.h"
#include "rows.h"

namespace qvl {
namespace {

using Spans = std::vector<std::pair<int64_t, int64_t>>;
using Tables = std::pair<Optional, Optional>;

// q: [N, heads D] or [N, heads, D]; k, v: [M, kv_heads D] or so; without k and v all three side by side in q.
// spans: (queries, keys) of each sequence. tables: cos and sin [M, D / 2], or None where nothing is to be turned.
struct Operands {
  const float *q, *k, *v, *cos, *sin;
  int64_t heads, kv_heads, dim, rows, key_rows, q_stride, k_stride, v_stride;

  Operands(const paddle::Tensor& q_given, const Optional& k_given, const Optional& v_given, const Tables& tables,
           int64_t heads_given, int64_t kv_heads_given, const char* op)
      : heads(heads_given), kv_heads(kv_heads_given) {
    require(heads > 0 && kv_heads > 0 && heads % kv_heads == 0, op, "kv_heads", "is ", kv_heads, ", of which ", heads,
            " heads of queries must be a multiple");
    require(bool(k_given) == bool(v_given), op, "v", "must be given when k is, and only then");
    q = floats(q_given, q_given.shape(), op, "q");
    require(q_given.shape().size() >= 2, op, "q", "has shape ", shape_text(q_given), ", two sizes are needed");
    const int64_t in_q = k_given ? heads : heads + 2 * kv_heads;
    rows = q_given.shape()[0], q_stride = row_size(q_given), dim = q_stride / in_q;
    require(dim * in_q == q_stride && dim > 0 && dim % 2 == 0 && dim <= kMostAttentionDim, op, "q", "has shape ",
            shape_text(q_given), ", its rows must be ", in_q, " heads of an even size of at most ", kMostAttentionDim);
    key_rows = rows;
    k_stride = v_stride = q_stride;
    k = q + heads * dim, v = k + kv_heads * dim;
    if (k_given) {
      k = floats(*k_given, k_given->shape(), op, "k");
      v = floats(*v_given, k_given->shape(), op, "v");
      require(k_given->shape().size() >= 2 && row_size(*k_given) == kv_heads * dim, op, "k", "has shape ",
              shape_text(*k_given), ", its rows must be ", kv_heads, " heads of ", dim);
      key_rows = k_given->shape()[0];
      k_stride = v_stride = kv_heads * dim;
    }
    require(bool(tables.first) == bool(tables.second), op, "sin", "must be given when cos is, and only then");
    cos = floats(tables.first, {key_rows, dim / 2}, op, "cos");
    sin = floats(tables.second, {key_rows, dim / 2}, op, "sin");
  }

  // each(queries, keys, rows of queries before, rows of keys before)
  template <class F>
  void each_span(const Spans& spans, bool causal, const char* op, const F& each) const {
    int64_t queries = 0, keys = 0;
    for (const auto& [n, m] : spans) {
      require(n >= 0 && m >= 1 && (!causal || n <= m) && (!cos || n == m), op, "spans", "has ", n, " queries for ", m,
              " keys");
      require(queries + n <= rows && keys + m <= key_rows, op, "spans", "must add up to ", rows, " and ", key_rows);
      each(n, m, queries, keys);
      queries += n, keys += m;
    }
    require(queries == rows && keys == key_rows, op, "spans", "must add up to ", rows, " queries and ", key_rows,
            " keys, not to ", queries, " and ", keys);
  }

  float scale() const { return 1.0f / std::sqrt(static_cast<float>(dim)); }
  const float* angles(const float* table, int64_t row) const { return table ? table + row * (dim / 2) : nullptr; }
};

// The result, [N, heads D] or with k shaped as q, and [N, heads, 2] for `attention_grad`.
std::tuple<paddle::Tensor, paddle::Tensor> forward(const paddle::Tensor& q, const Optional& k, const Optional& v,
                                                   const Tables& tables, int64_t heads, int64_t kv_heads,
                                                   const Spans& spans, bool causal) {
  const char* op = "attention_learning";
  const Operands given(q, k, v, tables, heads, kv_heads, op);
  const int64_t width = heads * given.dim;
  paddle::Tensor out = new_floats(k ? q.shape() : std::vector<int64_t>{given.rows, width});
  paddle::Tensor softmax = new_floats({given.rows, heads, 2});
  AttentionParams p{};
  p.heads = heads, p.kv_heads = kv_heads, p.dim = given.dim;
  p.q_stride = given.q_stride, p.k_stride = given.k_stride, p.v_stride = given.v_stride, p.out_stride = width;
  p.causal = causal;
  p.scale = given.scale();
  std::vector<AttentionSequence> sequences;
  given.each_span(spans, causal, op, [&](int64_t n, int64_t m, int64_t row, int64_t key) {
    AttentionSequence s{};
    s.q = given.q + row * given.q_stride;
    s.k = given.k + key * given.k_stride, s.v = given.v + key * given.v_stride;
    s.cos = given.angles(given.cos, key), s.sin = given.angles(given.sin, key);
    s.out = out.data<float>() + row * width, s.softmax = softmax.data<float>() + 2 * row * heads;
    s.queries = n, s.keys = m;
    sequences.push_back(s);
  });
  p.sequences = sequences.data();
  p.count = static_cast<int64_t>(sequences.size());
  Status status;
  {
    py::gil_scoped_release released;
    status = attention(p);
  }
  require_ok(status, op);
  return {out, softmax};
}

// The gradients of q, k and v, or of all three in one, from that of the result. What forward was given and gave.
std::tuple<paddle::Tensor, Optional, Optional> backward(const paddle::Tensor& q, const Optional& k, const Optional& v,
                                                        const Tables& tables, int64_t heads, int64_t kv_heads,
                                                        const Spans& spans, bool causal, const paddle::Tensor& out,
                                                        const paddle::Tensor& softmax, const paddle::Tensor& grad) {
  const char* op = "attention_grad";
  const Operands given(q, k, v, tables, heads, kv_heads, op);
  const int64_t width = heads * given.dim;
  const auto shape = k ? q.shape() : std::vector<int64_t>{given.rows, width};
  const float* results = floats(out, shape, op, "out");
  const float* states = floats(softmax, {given.rows, heads, 2}, op, "softmax");
  const float* back = floats(grad, shape, op, "grad");
  paddle::Tensor to_q = new_floats(q.shape());
  Optional to_k, to_v;
  float *first = to_q.data<float>(), *second = first + width, *third = second + kv_heads * given.dim;
  if (k) {
    to_k = new_floats(k->shape()), to_v = new_floats(k->shape());
    second = to_k->data<float>(), third = to_v->data<float>();
  }
  AttentionGradParams p{};
  p.heads = heads, p.kv_heads = kv_heads, p.dim = given.dim;
  p.q_stride = given.q_stride, p.k_stride = given.k_stride, p.v_stride = given.v_stride;
  p.causal = causal;
  p.scale = given.scale();
  std::vector<AttentionGradSequence> sequences;
  given.each_span(spans, causal, op, [&](int64_t n, int64_t m, int64_t row, int64_t key) {
    AttentionGradSequence s{};
    s.q = given.q + row * given.q_stride, s.grad_q = first + row * given.q_stride;
    s.k = given.k + key * given.k_stride, s.grad_k = second + key * given.k_stride;
    s.v = given.v + key * given.v_stride, s.grad_v = third + key * given.v_stride;
    s.cos = given.angles(given.cos, key), s.sin = given.angles(given.sin, key);
    s.out = results + row * width, s.softmax = states + 2 * row * heads, s.grad = back + row * width;
    s.queries = n, s.keys = m;
    sequences.push_back(s);
  });
  p.sequences = sequences.data();
  p.count = static_cast<int64_t>(sequences.size());
  Status status;
  {
    py::gil_scoped_release released;
    status = attention_grad(p);
  }
  require_ok(status, op);
  return {to_q, to_k, to_v};
}

}  // namespace

void bind_attention_grad(py::module_& m) {
  m.def("attention_learning", &forward, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("tables"), py::arg("heads"),
        py::arg("kv_heads"), py::arg("spans"), py::arg("causal"));
  m.def("attention_grad", &backward, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("tables"), py::arg("heads"),
        py::arg("kv_heads"), py::arg("spans"), py::arg("causal"), py::arg("out"), py::arg("softmax"),
        py::arg("grad"));
}

}  // namespace qvl

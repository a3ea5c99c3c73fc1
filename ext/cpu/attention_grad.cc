// Cuts the gradients of attention into tasks and hands them to the threads; the arithmetic is in
// attention_grad_kernels.cc.
#include <atomic>
#include <memory>
#include <new>
#include <vector>

#include "attention_grad_kernels.h"
#include "levels.h"
#include "qvl/attention.h"
#include "qvl/threads.h"

namespace qvl {

QVL_THREE_LEVELS(AttentionGradKernels, attention_grad_kernels)

namespace {

// The keys of a sequence are cut for as many tasks as this where it has few heads. Not for as many as there are
// threads: what each cut adds to the gradient of q is added up in its order.
constexpr int64_t kTasks = 8;
constexpr int64_t kFewestKeys = 256;
constexpr int64_t kQueries = 32;  // that are finished together

struct Task {
  const AttentionGradSequence* sequence;
  int64_t kv_head, first, last;
  QueryShare to_q;
};

struct Finish {
  const AttentionGradSequence* sequence;
  int64_t first, last;
  const float* others;
  int64_t count, step;
};

int64_t keys_of_part(const AttentionGradParams& p, const AttentionGradSequence& s) {
  const int64_t wanted = (kTasks + p.kv_heads - 1) / p.kv_heads, most = (s.keys + kFewestKeys - 1) / kFewestKeys;
  const int64_t parts = wanted < most ? wanted : most;
  return ((s.keys + parts - 1) / parts + 127) / 128 * 128;
}

int64_t parts_of(const AttentionGradSequence& s, int64_t step) { return (s.keys + step - 1) / step; }

}  // namespace

Status attention_grad(const AttentionGradParams& p) {
  if (p.dim % 2 != 0 || p.dim > kMostAttentionDim) return Status::unsupported;
  const AttentionGradKernels& body = chosen_attention_grad_kernels();
  int64_t floats = 0;
  for (int64_t i = 0; i < p.count; ++i) {
    const auto& s = p.sequences[i];
    floats += (parts_of(s, keys_of_part(p, s)) - 1) * s.queries * p.heads * p.dim;
  }
  // Not scratch memory, which would keep it: it is several times as large as q where a sequence is long.
  std::unique_ptr<float[]> others(new (std::nothrow) float[static_cast<size_t>(floats) + 1]);
  if (!others) return Status::no_memory;
  std::vector<Task> tasks;
  std::vector<Finish> finishes;
  float* next = others.get();
  for (int64_t i = 0; i < p.count; ++i) {
    const auto& s = p.sequences[i];
    const int64_t step = keys_of_part(p, s), parts = parts_of(s, step), size = s.queries * p.heads * p.dim;
    for (int64_t part = 0; part < parts; ++part) {
      const QueryShare share = part == 0 ? QueryShare{s.grad_q, p.q_stride}
                                         : QueryShare{next + (part - 1) * size, p.heads * p.dim};
      const int64_t first = part * step, last = first + step < s.keys ? first + step : s.keys;
      for (int64_t head = 0; head < p.kv_heads; ++head) tasks.push_back({&s, head, first, last, share});
    }
    for (int64_t first = 0; first < s.queries; first += kQueries) {
      const int64_t last = first + kQueries < s.queries ? first + kQueries : s.queries;
      finishes.push_back({&s, first, last, next, parts - 1, step});
    }
    next += (parts - 1) * size;
  }
  std::atomic<bool> failed{false};
  parallel(static_cast<int64_t>(tasks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Task& task = tasks[static_cast<size_t>(i)];
      if (!body.keys(p, *task.sequence, task.kv_head, task.first, task.last, task.to_q)) failed = true;
    }
  });
  if (failed) return Status::no_memory;
  parallel(static_cast<int64_t>(finishes.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Finish& each = finishes[static_cast<size_t>(i)];
      body.queries(p, *each.sequence, each.first, each.last, each.others, each.count, each.step);
    }
  });
  return Status::ok;
}

}  // namespace qvl

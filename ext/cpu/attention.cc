// Cuts attention into tasks and hands them to the threads; the arithmetic is in attention_kernels.cc.
#include "qvl/attention.h"

#include <atomic>
#include <memory>
#include <vector>

#include "attention_kernels.h"
#include "levels.h"
#include "qvl/threads.h"

namespace qvl {
QVL_THREE_LEVELS(AttentionKernels, attention_kernels)
QVL_IF_AMX(namespace amx { extern const AttentionTiles attention_tiles; })

namespace {

// A range of queries of one group of heads; or, where `group` is not negative, a range of keys for all of them.
struct Task {
  const AttentionSequence* sequence;
  int64_t kv_head, first, last, group;
  float* result;
};

// The parts of few queries of one group of heads. Who finishes the last joins them all.
struct Group {
  float* results;
  int64_t parts;
};

struct Plan {
  std::vector<Task> tasks;
  std::vector<Group> groups;
};

int64_t parts_of(const AttentionSequence& s) { return (s.keys + kPartKeys - 1) / kPartKeys; }

bool few(const AttentionSequence& s) { return s.queries <= kFewQueries && !s.cos; }

bool plan_parts(const AttentionParams& p, const AttentionKernels& body, Plan& plan) {
  int64_t floats = 0;
  for (int64_t i = 0; i < p.count; ++i) {
    const auto& s = p.sequences[i];
    if (few(s)) floats += p.kv_heads * parts_of(s) * body.part_floats(p, s);
  }
  if (floats == 0) return true;
  float* results = scratch_of<float>(0, floats);
  if (!results) return false;
  for (int64_t i = 0; i < p.count; ++i) {
    const auto& s = p.sequences[i];
    if (!few(s) || s.queries == 0) continue;
    for (int64_t head = 0; head < p.kv_heads; ++head) {
      const int64_t group = static_cast<int64_t>(plan.groups.size()), parts = parts_of(s);
      plan.groups.push_back({results, parts});
      for (int64_t part = 0; part < parts; ++part, results += body.part_floats(p, s)) {
        const int64_t first = part * kPartKeys, last = first + kPartKeys;
        plan.tasks.push_back({&s, head, first, last < s.keys ? last : s.keys, group, results});
      }
    }
  }
  return true;
}

// 512 rows share one packing of the keys, or 1024 where the rest is that much quicker; fewer where the threads would be
// left without work.
void plan_blocks(const AttentionParams& p, Plan& plan) {
  constexpr int64_t kFewestRows = 32;
  const int64_t most = p.rounded ? 1024 : 512;
  int64_t total = 0;
  for (int64_t i = 0; i < p.count; ++i) total += few(p.sequences[i]) ? 0 : p.sequences[i].queries;
  const int64_t group = p.heads / p.kv_heads;
  int64_t rows = total * p.heads / (3 * threads());
  rows = rows > most ? most : rows < kFewestRows ? kFewestRows : rows;
  const int64_t step = rows / group > 1 ? rows / group : 1;
  for (int64_t i = 0; i < p.count; ++i) {
    const auto& s = p.sequences[i];
    if (few(s)) continue;
    // The last queries first: with a causal mask they take the longest.
    for (int64_t last = s.queries; last > 0; last -= step) {
      for (int64_t head = 0; head < p.kv_heads; ++head) {
        plan.tasks.push_back({&s, head, last > step ? last - step : 0, last, -1, nullptr});
      }
    }
  }
}

auto blocks_of(const AttentionParams& p, const AttentionKernels& body) {
  QVL_IF_AMX(if (p.rounded && isa() >= Isa::amx && isa_supported(Isa::amx)) return amx::attention_tiles.blocks;)
  (void)p;
  return body.blocks;
}

}  // namespace

Status attention(const AttentionParams& p) {
  const bool stored = p.storage == DType::float32 || p.storage == DType::bfloat16 || p.storage == DType::int8;
  if (!stored || p.dim % 2 != 0 || p.dim > kMostAttentionDim) return Status::unsupported;
  const AttentionKernels& body = chosen_attention_kernels();
  const auto blocks = blocks_of(p, body);
  Plan plan;
  plan_blocks(p, plan);
  if (!plan_parts(p, body, plan)) return Status::no_memory;
  std::atomic<bool> failed{false};
  std::unique_ptr<std::atomic<int64_t>[]> left(new std::atomic<int64_t>[plan.groups.size()]);
  for (size_t i = 0; i < plan.groups.size(); ++i) left[i] = plan.groups[i].parts;
  parallel(static_cast<int64_t>(plan.tasks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Task& task = plan.tasks[static_cast<size_t>(i)];
      bool done;
      if (task.group < 0) {
        done = blocks(p, *task.sequence, task.kv_head, task.first, task.last);
      } else {
        done = body.part(p, *task.sequence, task.kv_head, task.first, task.last, task.result);
        const auto& group = plan.groups[static_cast<size_t>(task.group)];
        const bool last = left[static_cast<size_t>(task.group)].fetch_sub(1) == 1;
        if (last) done = body.join(p, *task.sequence, task.kv_head, group.parts, group.results) && done;
      }
      if (!done) failed = true;
    }
  });
  return failed ? Status::no_memory : Status::ok;
}

}  // namespace qvl

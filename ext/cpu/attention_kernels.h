// What attention.cc needs of each level.
#pragma once

#include "qvl/attention.h"

namespace qvl {

// Few queries see their keys in parts of this size, whatever the number of threads, so that results do not change.
constexpr int64_t kPartKeys = 256;

// False: no memory.
struct AttentionKernels {
  // Queries first .. last of the heads that share kv_head, to the end.
  bool (*blocks)(const AttentionParams&, const AttentionSequence&, int64_t kv_head, int64_t first, int64_t last);
  // All queries over keys first .. last, into `result` of part_floats.
  bool (*part)(const AttentionParams&, const AttentionSequence&, int64_t kv_head, int64_t first, int64_t last,
               float* result);
  // Joins the parts that lie one behind the other.
  bool (*join)(const AttentionParams&, const AttentionSequence&, int64_t kv_head, int64_t parts, const float* results);
  int64_t (*part_floats)(const AttentionParams&, const AttentionSequence&);
};

// The tile unit's way through `blocks`, which rounds operands to bfloat16.
struct AttentionTiles {
  bool (*blocks)(const AttentionParams&, const AttentionSequence&, int64_t kv_head, int64_t first, int64_t last);
};

}  // namespace qvl

// What attention_grad.cc needs of each level.
#pragma once

#include "qvl/attention.h"

namespace qvl {

// Where the share of some keys in the gradient of q goes: rows of a group's heads, `stride` from token to token.
struct QueryShare {
  float* first;
  int64_t stride;
};

struct AttentionGradKernels {
  // Keys first .. last of one head: their gradients, and those of v, to the end; and what they add to that of q, before
  // it is scaled and turned back. A query that sees none of them gets nothing written. False: no memory.
  bool (*keys)(const AttentionGradParams&, const AttentionGradSequence&, int64_t kv_head, int64_t first, int64_t last,
               const QueryShare& to_q);
  // Queries first .. last, all heads: add to the share that is in grad_q the `count` others, [queries, heads, dim] each,
  // of the keys from `step`, 2 `step` .. on; scale and turn back.
  void (*queries)(const AttentionGradParams&, const AttentionGradSequence&, int64_t first, int64_t last,
                  const float* others, int64_t count, int64_t step);
};

}  // namespace qvl

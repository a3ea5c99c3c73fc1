// levels: portable avx2 avx512
// The arithmetic of attention for one level.
#include "attention_blocks.h"
#include "attention_kernels.h"
#include "attention_few.h"

namespace qvl {
namespace QVL_LEVEL {

static bool blocks(const AttentionParams& p, const AttentionSequence& s, int64_t kv_head, int64_t first,
                   int64_t last) {
  if (p.storage == DType::float32) return attend_blocks<float>(p, s, kv_head, first, last);
  if (p.storage == DType::bfloat16) return attend_blocks<bf16>(p, s, kv_head, first, last);
  return attend_blocks<int8_t>(p, s, kv_head, first, last);
}

static bool part(const AttentionParams& p, const AttentionSequence& s, int64_t kv_head, int64_t first, int64_t last,
                 float* result) {
  if (p.storage == DType::float32) return attend_part<float>(p, s, kv_head, first, last, result);
  if (p.storage == DType::bfloat16) return attend_part<bf16>(p, s, kv_head, first, last, result);
  return attend_part<int8_t>(p, s, kv_head, first, last, result);
}

static int64_t floats(const AttentionParams& p, const AttentionSequence& s) {
  return part_floats(s.queries * (p.heads / p.kv_heads), round_up(p.dim, kLanes));
}

extern const AttentionKernels attention_kernels;
const AttentionKernels attention_kernels = {blocks, part, join_parts, floats};

}  // namespace QVL_LEVEL
}  // namespace qvl

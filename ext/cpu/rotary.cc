// Shares the rows of rotary_store out to the threads; the arithmetic is in rotary_kernels.cc.
#include "qvl/rotary.h"

#include "levels.h"
#include "qvl/threads.h"
#include "rotary_kernels.h"

namespace qvl {

QVL_THREE_LEVELS(RotaryKernels, rotary_kernels)

Status rotary_store(const RotaryParams& p) {
  const bool stored = p.storage == DType::float32 || p.storage == DType::bfloat16 || p.storage == DType::int8;
  if (!stored || p.dim % 2 != 0 || p.dim > kMostRotaryDim) return Status::unsupported;
  const RotaryKernels& body = chosen_rotary_kernels();
  int64_t rows = 0;
  for (int64_t i = 0; i < p.count; ++i) rows += p.targets[i].tokens;
  // A row of the 2B is 2048 elements: less than 8 of them are not worth another thread.
  parallel(rows, 8, [&](int64_t begin, int64_t end) {
    int64_t before = 0;
    for (int64_t i = 0; i < p.count && before < end; ++i) {
      const RotaryTarget& target = p.targets[i];
      const int64_t first = begin > before ? begin - before : 0;
      for (int64_t token = first; token < target.tokens && before + token < end; ++token) {
        body.row(p, before + token, target, token);
      }
      before += target.tokens;
    }
  });
  return Status::ok;
}

}  // namespace qvl

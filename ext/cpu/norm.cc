// Shares the rows of a normalisation out to the threads; the arithmetic is in norm_kernels.cc.
#include "qvl/norm.h"

#include "levels.h"
#include "norm_kernels.h"
#include "qvl/threads.h"

namespace qvl {

QVL_THREE_LEVELS(NormKernels, norm_kernels)

// Fewer elements than these are done before another thread wakes up.
constexpr int64_t kGrain = 16384;

static Status each_row(const NormParams& p, void (*body)(const NormParams&, int64_t, int64_t)) {
  const int64_t rows = p.width > 0 ? (kGrain + p.width - 1) / p.width : 1;
  parallel(p.rows, rows, [&](int64_t begin, int64_t end) { body(p, begin, end); });
  return Status::ok;
}

Status rms_norm(const NormParams& p) { return each_row(p, chosen_norm_kernels().rms); }

Status layer_norm(const NormParams& p) { return each_row(p, chosen_norm_kernels().layer); }

}  // namespace qvl

// Shares the rows of a normalisation out to the threads; the arithmetic is in norm_kernels.cc.
#include "qvl/norm.h"

#include "levels.h"
#include "norm_kernels.h"
#include "qvl/threads.h"

namespace qvl {

QVL_THREE_LEVELS(NormKernels, norm_kernels)

namespace {

// Fewer elements than these are done before another thread wakes up.
constexpr int64_t kGrain = 16384;
// Rows whose sum is taken one by one.
constexpr int64_t kPartRows = 32;

int64_t grain_of(int64_t width) { return width > 0 ? (kGrain + width - 1) / width : 1; }

Status each_row(const NormParams& p, void (*body)(const NormParams&, int64_t, int64_t)) {
  parallel(p.rows, grain_of(p.width), [&](int64_t begin, int64_t end) { body(p, begin, end); });
  return Status::ok;
}

// The sum of `count` rows that lie one behind the other, in pairs; they are used up.
void join(float* rows, int64_t count, int64_t width, float* out) {
  parallel(width, grain_of(count), [&](int64_t begin, int64_t end) {
    for (int64_t step = 1; step < count; step *= 2) {
      for (int64_t i = 0; i + step < count; i += 2 * step) {
        float *to = rows + i * width, *from = rows + (i + step) * width;
        for (int64_t c = begin; c < end; ++c) to[c] += from[c];
      }
    }
    for (int64_t c = begin; c < end; ++c) out[c] = count > 0 ? rows[c] : 0.0f;
  });
}

int64_t parts_of(int64_t rows) { return (rows + kPartRows - 1) / kPartRows; }

// body(part, begin, end) for each kPartRows rows.
template <class F>
void each_part(int64_t rows, int64_t width, const F& body) {
  const int64_t grain = (grain_of(width) + kPartRows - 1) / kPartRows;
  parallel(parts_of(rows), grain, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      const int64_t begin = part * kPartRows, end = begin + kPartRows;
      body(part, begin, end < rows ? end : rows);
    }
  });
}

using GradBody = void (*)(const NormGradParams&, int64_t, int64_t, float*, float*);

Status norm_grad(const NormGradParams& p, GradBody body) {
  const int64_t parts = parts_of(p.rows), size = parts * p.width;
  float* sums = scratch_of<float>(0, 2 * size + 1);
  if (!sums) return Status::no_memory;
  float *weight = p.grad_weight ? sums : nullptr, *bias = p.grad_bias ? sums + size : nullptr;
  each_part(p.rows, p.width, [&](int64_t part, int64_t begin, int64_t end) {
    const int64_t at = part * p.width;
    body(p, begin, end, weight ? weight + at : nullptr, bias ? bias + at : nullptr);
  });
  if (weight) join(weight, parts, p.width, p.grad_weight);
  if (bias) join(bias, parts, p.width, p.grad_bias);
  return Status::ok;
}

}  // namespace

Status rms_norm(const NormParams& p) { return each_row(p, chosen_norm_kernels().rms); }

Status layer_norm(const NormParams& p) { return each_row(p, chosen_norm_kernels().layer); }

Status rms_norm_grad(const NormGradParams& p) { return norm_grad(p, chosen_norm_kernels().rms_grad); }

Status layer_norm_grad(const NormGradParams& p) { return norm_grad(p, chosen_norm_kernels().layer_grad); }

Status column_sums(const ColumnParams& p) {
  const int64_t parts = parts_of(p.rows);
  float* sums = scratch_of<float>(0, parts * p.width + 1);
  if (!sums) return Status::no_memory;
  const NormKernels& kernels = chosen_norm_kernels();
  each_part(p.rows, p.width, [&](int64_t part, int64_t begin, int64_t end) {
    kernels.columns(p, begin, end, sums + part * p.width);
  });
  join(sums, parts, p.width, p.out);
  return Status::ok;
}

}  // namespace qvl

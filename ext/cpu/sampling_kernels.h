// What sampling.cc needs of each level: passes over all logits.
#pragma once

#include "qvl/sampling.h"

namespace qvl {

// Logits that are looked at together by `tops`.
constexpr int64_t kPatch = 64;
// Steps of the histogram of `weigh`, from the most likely token down; the last holds all that is below.
constexpr int64_t kSteps = 1024;
constexpr float kStep = 0.03125f;

struct SamplingKernels {
  // The largest; NaN when one is.
  float (*largest)(const float* x, int64_t n);
  // Where the first number is that equals the value; n where none does.
  int64_t (*first_of)(const float* x, float value, int64_t n);
  // to[i] = x[i] / by
  void (*divide)(const float* x, float by, float* to, int64_t n);
  // The largest of each kPatch, ceil(n / kPatch) of them.
  void (*tops)(const float* x, float* to, int64_t n);
  // to[i] = exp(x[i] - top), in double
  void (*exponentials)(const float* x, double top, double* to, int64_t n);
};

// Which step of the histogram a logit belongs to.
static inline int64_t step_of(float x, float top) {
  const float steps = (top - x) * (1.0f / kStep);
  return steps < static_cast<float>(kSteps - 1) ? static_cast<int64_t>(steps) : kSteps - 1;
}

}  // namespace qvl

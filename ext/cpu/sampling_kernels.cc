// levels: portable avx2 avx512
// The passes over all logits that sampling makes, for one level.
#include "lanes.h"
#include "sampling_kernels.h"

namespace qvl {
namespace QVL_LEVEL {

static float largest_of(const float* x, int64_t n) {
  float most = -__builtin_inff();
  // Four at a time: each step would wait for the one before.
  vf each_tops[4], each_others[4];
  for (int j = 0; j < 4; ++j) each_tops[j] = broadcast(most), each_others[j] = zero();
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) {
      const vf a = load(x + i + j * kLanes);
      each_tops[j] = max(each_tops[j], a);
      each_others[j] = add(each_others[j], sub(a, a));  // 0, or NaN from NaN and infinities
    }
  }
  const vf tops = max(max(each_tops[0], each_tops[1]), max(each_tops[2], each_tops[3]));
  const vf others = add(add(each_others[0], each_others[1]), add(each_others[2], each_others[3]));
  most = largest(tops);
  float other = sum(others);
  for (; i < n; ++i) {
    most = x[i] > most ? x[i] : most;
    other += x[i] - x[i];
  }
  if (other == 0.0f) return most;
  for (i = 0; i < n; ++i) {  // rare: who is not finite?
    if (x[i] != x[i]) return x[i];
    most = x[i] > most ? x[i] : most;
  }
  return most;
}

static int64_t first_of(const float* x, float value, int64_t n) {
  int64_t i = 0;
  for (; i + kPatch <= n; i += kPatch) {
    int found = 0;  // without a branch in the loop, so that compilers make vectors of it
    for (int64_t j = 0; j < kPatch; ++j) found |= x[i + j] == value;
    if (found) break;
  }
  while (i < n && x[i] != value) ++i;
  return i;
}

static void divide_all(const float* x, float by, float* to, int64_t n) {
  each_vector(n, [&](int64_t i, int some) { store_up_to(to + i, divide(load_up_to(x + i, some), broadcast(by)), some); });
}

static void tops(const float* x, float* to, int64_t n) {
  for (int64_t i = 0; i < n; i += kPatch, ++to) {
    const int64_t size = lesser(kPatch, n - i);
    if (size == kPatch) {
      vf most = load(x + i);
      for (int64_t j = kLanes; j < kPatch; j += kLanes) most = max(most, load(x + i + j));
      *to = largest(most);
      continue;
    }
    *to = x[i];
    for (int64_t j = 1; j < size; ++j) *to = x[i + j] > *to ? x[i + j] : *to;
  }
}

// Without branches, so that compilers make vectors of it: 2**n e**r by the coefficients of Taylor's series, which for
// |r| below 0.35 are right to the last bit but one.
static void exponentials(const float* x, double top, double* to, int64_t n) {
  constexpr double kShift = 6755399441055744.0;  // 1.5 * 2**52: adding it rounds, and leaves the number in the low bits
  for (int64_t i = 0; i < n; ++i) {
    const double exact = static_cast<double>(x[i]) - top;
    const double a = exact < -708.0 ? -708.0 : exact;
    const double shifted = a * 1.4426950408889634 + kShift;
    const double whole = shifted - kShift;
    const double r = (a - whole * 0.693147180369123816490) - whole * 1.90821492927058770002e-10;
    double y = 1.0 / 6227020800.0;
    y = y * r + 1.0 / 479001600.0;
    y = y * r + 1.0 / 39916800.0;
    y = y * r + 1.0 / 3628800.0;
    y = y * r + 1.0 / 362880.0;
    y = y * r + 1.0 / 40320.0;
    y = y * r + 1.0 / 5040.0;
    y = y * r + 1.0 / 720.0;
    y = y * r + 1.0 / 120.0;
    y = y * r + 1.0 / 24.0;
    y = y * r + 1.0 / 6.0;
    y = y * r + 0.5;
    y = y * r + 1.0;
    y = y * r + 1.0;
    int64_t bits, power;
    memcpy(&power, &shifted, 8);
    memcpy(&bits, &y, 8);
    bits += static_cast<int64_t>(static_cast<uint64_t>(power) << 52);
    memcpy(&y, &bits, 8);
    to[i] = exact < -708.0 ? 0.0 : y;
  }
}

extern const SamplingKernels sampling_kernels;
const SamplingKernels sampling_kernels = {largest_of, first_of, divide_all, tops, exponentials};

}  // namespace QVL_LEVEL
}  // namespace qvl

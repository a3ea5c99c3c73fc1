// The choice of a token. Which tokens stay and where a draw lands is decided by the same sums, in the same order, as in
// the NumPy reference; what is quick here is that most tokens are never sorted.
#include "qvl/sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "levels.h"
#include "qvl/threads.h"
#include "sampling_kernels.h"

namespace qvl {

QVL_THREE_LEVELS(SamplingKernels, sampling_kernels)

namespace {

// Sums of doubles in a different order agree better than this; nearer to top_p the order of the reference decides.
constexpr double kSlack = 1e-9;
// Fewer candidates than these are simply sorted.
constexpr int64_t kFew = 2048;

struct Candidates {
  std::vector<int64_t> ids;  // rising
  std::vector<float> scores;

  size_t size() const { return ids.size(); }
  template <typename Keep>
  void filter(const Keep& keep) {
    size_t to = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
      if (keep(i)) ids[to] = ids[i], scores[to] = scores[i], ++to;
    }
    ids.resize(to), scores.resize(to);
  }
};

// As NumPy adds up an array: eight sums side by side, and halves of what is longer than 128.
double pairwise_sum(const double* x, int64_t n) {
  if (n < 8) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; ++i) sum += x[i];
    return sum;
  }
  if (n <= 128) {
    double r[8];
    for (int64_t j = 0; j < 8; ++j) r[j] = x[j];
    int64_t i = 8;
    for (; i < n - n % 8; i += 8) {
      for (int64_t j = 0; j < 8; ++j) r[j] += x[i + j];
    }
    double sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    for (; i < n; ++i) sum += x[i];
    return sum;
  }
  int64_t half = n / 2;
  half -= half % 8;
  return pairwise_sum(x, half) + pairwise_sum(x + half, n - half);
}

std::vector<double> softmax(const SamplingKernels& body, const std::vector<float>& scores) {
  std::vector<double> weights(scores.size());
  const int64_t n = static_cast<int64_t>(scores.size());
  body.exponentials(scores.data(), body.largest(scores.data(), n), weights.data(), n);
  const double total = pairwise_sum(weights.data(), n);
  for (double& weight : weights) weight /= total;
  return weights;
}

float kth_largest(std::vector<float> values, int64_t k) {
  std::nth_element(values.begin(), values.begin() + (k - 1), values.end(), std::greater<float>());
  return values[static_cast<size_t>(k - 1)];
}

// The top_k-th largest score. No patch but the k with the largest tops can hold more than those tops do.
float top_k_threshold(const SamplingKernels& body, const float* scores, int64_t n, int64_t k) {
  std::vector<float> tops(static_cast<size_t>((n + kPatch - 1) / kPatch));
  body.tops(scores, tops.data(), n);
  if (k > static_cast<int64_t>(tops.size())) return kth_largest(std::vector<float>(scores, scores + n), k);
  const float bound = kth_largest(tops, k);
  std::vector<float> above;
  for (size_t patch = 0; patch < tops.size(); ++patch) {
    if (tops[patch] < bound) continue;
    const int64_t begin = static_cast<int64_t>(patch) * kPatch, end = std::min(n, begin + kPatch);
    for (int64_t i = begin; i < end; ++i) {
      if (scores[i] >= bound) above.push_back(scores[i]);
    }
  }
  return kth_largest(std::move(above), k);
}

Candidates collect(const float* scores, int64_t n, float threshold) {
  Candidates found;
  for (int64_t i = 0; i < n; ++i) {
    // Both comparisons fail for what is banned.
    if (scores[i] >= threshold && scores[i] > -INFINITY) found.ids.push_back(i), found.scores.push_back(scores[i]);
  }
  return found;
}

// top_p word for word: sorted from the least likely, what lies within the first 1 - top_p is dropped.
void top_p_sorted(const SamplingKernels& body, Candidates& c, double top_p) {
  std::vector<size_t> order(c.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return c.scores[a] < c.scores[b]; });
  std::vector<float> ascending(c.size());
  for (size_t i = 0; i < order.size(); ++i) ascending[i] = c.scores[order[i]];
  const std::vector<double> weights = softmax(body, ascending);
  std::vector<char> dropped(c.size(), 0);
  double sum = 0.0;
  for (size_t i = 0; i + 1 < order.size(); ++i) {
    sum += weights[i];
    if (sum <= 1.0 - top_p) dropped[order[i]] = 1;
  }
  c.filter([&](size_t i) { return !dropped[i]; });
}

// The same without sorting more than the tokens about as likely as the last that stays. False where sums come so near
// to top_p that only the order of the reference tells.
bool top_p_quick(const SamplingKernels& body, Candidates& c, double top_p) {
  const std::vector<double> weights = softmax(body, c.scores);
  const float top = body.largest(c.scores.data(), static_cast<int64_t>(c.size()));
  std::vector<double> histogram(kSteps, 0.0);
  for (size_t i = 0; i < c.size(); ++i) histogram[static_cast<size_t>(step_of(c.scores[i], top))] += weights[i];
  double above = 0.0;  // the probability of all that is more likely
  int64_t step = 0;
  while (step < kSteps - 1 && above + histogram[static_cast<size_t>(step)] < top_p) {
    above += histogram[static_cast<size_t>(step++)];
  }
  std::vector<size_t> near;
  for (size_t i = 0; i < c.size(); ++i) {
    if (step_of(c.scores[i], top) == step) near.push_back(i);
  }
  std::sort(near.begin(), near.end(), [&](size_t a, size_t b) {
    return c.scores[a] != c.scores[b] ? c.scores[a] > c.scores[b] : a > b;
  });
  std::vector<char> kept(c.size(), 0);
  size_t next = 0;
  double before = -1.0;
  for (; next < near.size() && above < top_p; ++next) {
    kept[near[next]] = 1;
    before = above;
    above += weights[near[next]];
  }
  if (before < 0.0 || top_p - before < kSlack || above - top_p < kSlack) return false;
  c.filter([&](size_t i) {
    const int64_t mine = step_of(c.scores[i], top);
    return mine < step || kept[i];
  });
  return true;
}

int64_t draw(const SamplingKernels& body, const Candidates& c, double uniform) {
  std::vector<double> sums = softmax(body, c.scores);
  double sum = 0.0;
  for (double& each : sums) each = sum += each;
  const auto past = std::upper_bound(sums.begin(), sums.end(), uniform * sum) - sums.begin();
  // A draw that rounds up to the whole sum is past the end: it means the last token with any weight.
  const auto last = std::lower_bound(sums.begin(), sums.end(), sum) - sums.begin();
  return c.ids[static_cast<size_t>(std::min(past, last))];
}

// The logits with penalty and ban: the caller's own where there are none.
const float* adjusted(const SamplingParams& p, float* copy) {
  const bool penalised = p.penalty != 1.0f && p.seen_count > 0;
  if (!penalised && p.banned_count == 0) return p.logits;
  std::copy(p.logits, p.logits + p.count, copy);
  for (int64_t i = 0; penalised && i < p.seen_count; ++i) {
    if (p.seen[i] < 0 || p.seen[i] >= p.count) continue;
    float& logit = copy[p.seen[i]];
    logit = logit < 0.0f ? logit * p.penalty : logit / p.penalty;
  }
  for (int64_t i = 0; i < p.banned_count; ++i) {
    if (p.banned[i] >= 0 && p.banned[i] < p.count) copy[p.banned[i]] = -INFINITY;
  }
  return copy;
}

}  // namespace

int64_t sample(const SamplingParams& p) {
  const SamplingKernels& body = chosen_sampling_kernels();
  float* memory = scratch_of<float>(1, p.count);
  if (!memory) return -2;
  const float* logits = adjusted(p, memory);
  const float top = body.largest(logits, p.count);
  if (!std::isfinite(top)) return -1;
  if (p.greedy) return body.first_of(logits, top, p.count);
  body.divide(logits, p.temperature, memory, p.count);
  const bool limited = p.top_k > 0 && p.top_k < p.count;
  Candidates c = collect(memory, p.count, limited ? top_k_threshold(body, memory, p.count, p.top_k) : -INFINITY);
  if (p.top_p < 1.0) {
    const bool few = static_cast<int64_t>(c.size()) <= kFew;
    if (few || !top_p_quick(body, c, p.top_p)) top_p_sorted(body, c, p.top_p);
  }
  if (p.min_logit > -INFINITY) {
    const float least = body.largest(c.scores.data(), static_cast<int64_t>(c.size())) + p.min_logit;
    c.filter([&](size_t i) { return !(c.scores[i] < least); });
  }
  return draw(body, c, p.uniform);
}

}  // namespace qvl

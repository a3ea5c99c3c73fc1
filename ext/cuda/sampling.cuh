// What the kernels of sampling share: the order and the weights of tokens, their logits, and what is noted in workspace.
//
// Weights are whole numbers, 2**44 exp(score - largest) rounded, made by integer arithmetic but for steps that every
// device rounds alike. So sums of them are exact in any order, and a draw is the same on every device and in every batch.
// Against the doubles of a CPU a bound between two tokens is off by at most 2**-45 of the largest probability for each
// token there is (5e-9 for 152064 of them; more like 1e-11, as roundings cancel): a draw or a top_p further away than
// that gives the CPU's token.
#pragma once

#include "common.cuh"
#include "qvl/cuda/sampling.h"

namespace qvl::cuda {

constexpr int kThreads = 256;
constexpr int64_t kPart = 4096;              // tokens of a block
constexpr int64_t kMostTokens = 1ll << 19;   // so that no sum of weights is 2**64 or more
constexpr int kSteps = 1024;                 // of histograms, from the most likely token down; the last has the rest
constexpr float kStepsPerLogit = 32.0f;
constexpr int kOne = 44;                     // log2 of the weight of the most likely token

using Mass = unsigned long long;  // a weight or a sum of weights; also the type that atomicAdd has

// ---- Order ----

// Rises with x; -0 and 0 are the same, and what is not a number is above all that are.
__device__ inline uint32_t key_of(float x) {
  if (x != x) return 0xffffffffu;
  const uint32_t bits = __float_as_uint(x + 0.0f);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ inline float from_key(uint32_t key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }

// Rises with the score, and with the token among equals, which is the order in which top_p lets tokens go.
__device__ inline Mass place_of(float score, int64_t token) {
  return static_cast<Mass>(key_of(score)) << 32 | static_cast<uint32_t>(token);
}
__device__ inline float score_at(Mass place) { return from_key(static_cast<uint32_t>(place >> 32)); }

__device__ inline int step_of(float score, float top) {
  const float steps = (top - score) * kStepsPerLogit;
  if (!(steps > 0.0f)) return 0;  // also of two infinities, which a very low temperature makes
  return steps < static_cast<float>(kSteps - 1) ? static_cast<int>(steps) : kSteps - 1;
}

// ---- Weights ----

// The upper half of a product.
__host__ __device__ constexpr Mass high_product(Mass a, Mass b) {
  const Mass a0 = a & 0xffffffffu, a1 = a >> 32, b0 = b & 0xffffffffu, b1 = b >> 32;
  const Mass middle = a1 * b0 + (a0 * b0 >> 32);
  const Mass other = a0 * b1 + (middle & 0xffffffffu);
  return a1 * b1 + (middle >> 32) + (other >> 32);
}

constexpr int kPowers = 256;
struct Powers {
  Mass at[kPowers];
};
// 2**(63 - i / 256)
constexpr Powers powers() {
  Powers made{};
  made.at[0] = 1ull << 63;
  for (int i = 1; i < kPowers; ++i) made.at[i] = high_product(made.at[i - 1], 0xff4ecb59511ec8a5ull);
  return made;
}
__device__ constexpr Powers kFixedPowers = powers();

// Their copy in shared memory, since every lane reads another one. By all threads; a barrier has to follow.
static_assert(kPowers == kThreads);
__device__ inline void copy_powers(Mass* to) { to[threadIdx.x] = kFixedPowers.at[threadIdx.x]; }

// 2**44 exp(score - top), rounded.
__device__ inline Mass weight_of(float score, float top, const Mass* powers) {
  if (score == top) return Mass{1} << kOne;
  const float below = top - score;
  if (!(below < 32.0f)) return 0;  // less than half
  // What rounding took from the difference, without which it would not be that of doubles.
  const float from_top = top - below;
  const float rest = (top - (below + from_top)) + (from_top - score);
  const auto difference =
      static_cast<Mass>(static_cast<long long>(below * 0x1p48f) + static_cast<long long>(rest * 0x1p48f));
  // exp(-d) = 2**-y = 2**-whole 2**-(i / 256) e**-a, with y in units of 2**-57 and a below 0.0028 in units of 2**-72.
  const Mass y = high_product(difference << 10, 0xb8aa3b295c17f0bcull);
  const int whole = static_cast<int>(y >> 57);
  if (whole > kOne + 1) return 0;
  const Mass a = high_product((y & ((Mass{1} << 49) - 1)) << 15, 0xb17217f7d1cf79acull);
  // 1 - e**-a in units of 2**-63, from a - a**2 / 2 + a**3 / 6 - a**4 / 24.
  const auto short_a = static_cast<uint32_t>(a >> 32);
  const float rough = static_cast<float>(short_a) * 0x1p-40f;
  // Not joined to multiplications with addition by one compiler and left apart by the other.
  const float fourth = __fsub_rn(1.0f / 6.0f, __fmul_rn(rough, 1.0f / 24.0f));
  const auto cubes = static_cast<uint32_t>(__fmul_rn(__fmul_rn(__fmul_rn(rough, rough), rough), fourth) * 0x1p53f);
  const Mass lost = (a >> 9) - (static_cast<Mass>(short_a) * short_a >> 18) + (static_cast<Mass>(cubes) << 10);
  const Mass power = powers[y >> 49 & (kPowers - 1)];
  return (((power - high_product(power, lost << 1)) >> (62 - kOne + whole)) + 1) >> 1;
}

// ---- Workspace ----

// What is known of a row.
struct RowState {
  Mass cut;          // tokens whose place is lower are out, as far as top_k and top_p have been looked at
  float top;         // the largest score
  int32_t drawn;     // a token has to be drawn: the row is not greedy, and its logits are numbers
  uint32_t done[3];  // blocks that are through with each of the last kernels: the last one goes on alone
  uint32_t unused;
};
static_assert(sizeof(RowState) == 32, "so that rows lie as rows_bytes says");

inline int64_t parts_of(const SamplingParams& p) { return p.count > 0 ? divided_up(p.count, kPart) : 1; }

// A row's share of workspace.
struct Notes {
  RowState* state;
  Mass* tops;        // [parts]: the place of the most likely token of each, the first of equals
  Mass* sums;        // [parts]: of the weights that are left
  Mass* masses;      // [kSteps]: weight of the tokens at each step
  Mass* list;        // [parts, kPart]: places that one of them is to be chosen from
  uint32_t* counts;  // [kSteps]: how many
  uint32_t* found;   // [parts]: places in each list
  uint32_t* seen;    // [parts, kPart / 32]: a bit a token
  uint32_t* banned;  // like seen
};

struct Workspace {
  unsigned char* memory;
  int64_t parts;

  __host__ __device__ int64_t bytes_of_row() const {
    const int64_t bytes = sizeof(RowState) + kSteps * 12 + parts * (2 * 8 + kPart * 8 + 4 + 2 * kPart / 8);
    return (bytes + 15) / 16 * 16;
  }
  __device__ Notes of(int64_t row) const {
    Notes notes;
    notes.state = reinterpret_cast<RowState*>(memory + row * bytes_of_row());
    notes.tops = reinterpret_cast<Mass*>(notes.state + 1);
    notes.sums = notes.tops + parts;
    notes.masses = notes.sums + parts;
    notes.list = notes.masses + kSteps;
    notes.counts = reinterpret_cast<uint32_t*>(notes.list + parts * kPart);
    notes.seen = notes.counts + kSteps;
    notes.banned = notes.seen + parts * (kPart / 32);
    notes.found = notes.banned + parts * (kPart / 32);
    return notes;
  }
};

// ---- Logits ----

constexpr int kEach = static_cast<int>(kPart / kThreads);  // tokens of a thread

// Of one row.
template <class T>
struct Logits {
  static constexpr int kSide = kWide<T>;             // tokens of a thread that lie side by side
  static constexpr int kSweep = kThreads * kSide;    // tokens of the block that do
  static constexpr int kSweeps = static_cast<int>(kPart) / kSweep;

  const T* logits;
  int64_t count;
  const uint32_t *seen, *banned;
  float penalty;
  bool changed;  // by penalty or ban

  __device__ Logits(const SamplingParams& p, int64_t row, const Notes& notes)
      : logits(static_cast<const T*>(p.logits) + row * p.stride),
        count(p.count),
        seen(notes.seen),
        banned(notes.banned),
        penalty(p.rules[row].penalty),
        changed((penalty != 1.0f && p.rules[row].seen_end > p.rules[row].seen_begin) ||
                p.rules[row].banned_end > p.rules[row].banned_begin) {}

  // The kSide tokens from `first` on; -infinity behind the last of all.
  __device__ void read(int64_t first, float* x) const {
    if (first + kSide <= count && reinterpret_cast<uintptr_t>(logits) % 16 == 0) {
      const Pack<T, kSide> some = load<T, kSide>(logits + first);
#pragma unroll
      for (int i = 0; i < kSide; ++i) x[i] = to_float(some.at[i]);
    } else {
#pragma unroll
      for (int i = 0; i < kSide; ++i) x[i] = first + i < count ? to_float(logits[first + i]) : -INFINITY;
    }
  }

  __device__ void change(int64_t first, float* x) const {
    const uint32_t of_seen = penalty != 1.0f ? seen[first / 32] >> first % 32 : 0;
    const uint32_t of_banned = banned[first / 32] >> first % 32;
    if (((of_seen | of_banned) & ((1u << kSide) - 1)) == 0) return;
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      if (of_seen >> i & 1u) x[i] = x[i] < 0.0f ? x[i] * penalty : x[i] / penalty;
      if (of_banned >> i & 1u) x[i] = -INFINITY;
    }
  }

  // This thread's tokens of a part: f(logit, token), in rising order.
  template <class F>
  __device__ void each(int64_t part, const F& f) const {
    const int64_t first = part * kPart + static_cast<int64_t>(threadIdx.x) * kSide;
    float x[kEach];
#pragma unroll
    for (int sweep = 0; sweep < kSweeps; ++sweep) read(first + sweep * kSweep, x + sweep * kSide);
    if (changed) {
#pragma unroll
      for (int sweep = 0; sweep < kSweeps; ++sweep) change(first + sweep * kSweep, x + sweep * kSide);
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) f(x[i], first + i / kSide * kSweep + i % kSide);
  }
};

}  // namespace qvl::cuda

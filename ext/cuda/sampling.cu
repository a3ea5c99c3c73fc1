// The choice of tokens, without sorting, by as many blocks as a row has parts of 4096 tokens: with one sequence to
// decode, a block a row would leave the device idle while one multiprocessor works through 150 000 logits several times.
// Five kernels, each of which ends at once for rows that do not need it. 16-bit logits are read as they are every time,
// with penalty, ban and temperature applied on the way, which is less to read than a float copy.
#include "qvl/cuda/sampling.h"

#include "sampling.cuh"
#include "sampling_select.cuh"

namespace qvl::cuda {
namespace {

// What a block works on.
struct Block {
  int64_t row = blockIdx.y, part = blockIdx.x;
};

__device__ bool limits(const SamplingRule& rule, int64_t count) { return rule.top_k > 0 && rule.top_k < count; }

// Sets the bits of the listed tokens that belong to a part.
__device__ void mark(const int64_t* list, int64_t begin, int64_t end, int64_t count, int64_t part, uint32_t* bits) {
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    const int64_t token = list[i];
    if (token < 0 || token >= count || token / kPart != part) continue;
    atomicOr(bits + token / 32, 1u << token % 32);
  }
}

// 1. The most likely token of each part. Prepares what later kernels find in workspace.
template <class T>
__global__ void __launch_bounds__(kThreads) find_tops(const SamplingParams p, const Workspace workspace) {
  const Block block;
  const Notes notes = workspace.of(block.row);
  const SamplingRule& rule = p.rules[block.row];
  for (int64_t i = block.part * kThreads + threadIdx.x; i < kSteps; i += workspace.parts * kThreads) {
    notes.counts[i] = 0;
    notes.masses[i] = 0;
  }
  if (block.part == 0 && threadIdx.x == 0) *notes.state = RowState{};
  const Logits<T> logits(p, block.row, notes);
  if (logits.changed) {
    for (int64_t i = threadIdx.x; i < kPart / 32; i += kThreads) {
      notes.seen[block.part * (kPart / 32) + i] = 0;
      notes.banned[block.part * (kPart / 32) + i] = 0;
    }
    __syncthreads();
    if (rule.penalty != 1.0f) mark(p.seen, rule.seen_begin, rule.seen_end, p.count, block.part, notes.seen);
    mark(p.banned, rule.banned_begin, rule.banned_end, p.count, block.part, notes.banned);
    __syncthreads();
  }
  Mass top = 0;
  logits.each(block.part, [&](float x, int64_t token) {
    const Mass place = place_of(x, 0xffffffff - token);  // the first of equals
    top = place > top ? place : top;
  });
  top = largest_of_block(top);
  if (threadIdx.x == 0) notes.tops[block.part] = top;
}

// 2. Greedy rows and those without a number are done. Of the others, how many tokens, of what weight, lie at each step
// below the most likely one, where there is a top_k or top_p.
template <class T>
__global__ void __launch_bounds__(kThreads) spread(const SamplingParams p, const Workspace workspace) {
  __shared__ Mass powers[kPowers], masses[kSteps];
  __shared__ uint32_t counts[kSteps];
  const Block block;
  const Notes notes = workspace.of(block.row);
  const SamplingRule& rule = p.rules[block.row];
  Mass place = 0;
  for (int64_t i = threadIdx.x; i < workspace.parts; i += kThreads) {
    place = notes.tops[i] > place ? notes.tops[i] : place;
  }
  place = largest_of_block(place);
  const float logit = score_at(place), top = logit / rule.temperature;
  const bool number = logit > -INFINITY && logit < INFINITY;
  const bool drawn = number && !rule.greedy;
  if (block.part == 0 && threadIdx.x == 0) {
    notes.state->top = top;
    notes.state->drawn = drawn;
    if (!drawn) p.tokens[block.row] = number ? static_cast<int64_t>(0xffffffff - (place & 0xffffffff)) : -1;
  }
  const bool weighs = rule.top_p < 1.0;
  if (!drawn || !(weighs || limits(rule, p.count))) return;
  copy_powers(powers);
  for (int i = threadIdx.x; i < kSteps; i += kThreads) masses[i] = 0, counts[i] = 0;
  __syncthreads();
  Logits<T>(p, block.row, notes).each(block.part, [&](float x, int64_t) {
    const float score = x / rule.temperature;
    if (!(score > -INFINITY)) return;
    const int step = step_of(score, top);
    atomicAdd(&counts[step], 1u);
    const Mass weight = weighs ? weight_of(score, top, powers) : 0;
    if (weight) atomicAdd(&masses[step], weight);
  });
  __syncthreads();
  for (int i = threadIdx.x; i < kSteps; i += kThreads) {
    if (counts[i]) atomicAdd(&notes.counts[i], counts[i]);
    if (masses[i]) atomicAdd(&notes.masses[i], masses[i]);
  }
}

// Lists the tokens of a part at a step.
template <class T>
__device__ void list_step(const SamplingParams& p, const Block& block, const Notes& notes, int64_t step) {
  __shared__ uint32_t found;
  const float top = notes.state->top, temperature = p.rules[block.row].temperature;
  if (threadIdx.x == 0) found = 0;
  __syncthreads();
  Logits<T>(p, block.row, notes).each(block.part, [&](float x, int64_t token) {
    const float score = x / temperature;
    if (!(score > -INFINITY) || step_of(score, top) != step) return;
    notes.list[block.part * kPart + atomicAdd(&found, 1u)] = place_of(score, token);
  });
  __syncthreads();
  if (threadIdx.x == 0) notes.found[block.part] = found;
}

// 3. top_k: the step that its last token is at, and then, by the last block of the row, the score of that token. The
// weights of the steps become those of what is left.
template <class T>
__global__ void __launch_bounds__(kThreads) apply_top_k(const SamplingParams p, const Workspace workspace) {
  __shared__ Mass powers[kPowers];
  const Block block;
  const Notes notes = workspace.of(block.row);
  const SamplingRule& rule = p.rules[block.row];
  if (!notes.state->drawn || !limits(rule, p.count)) return;
  Mass all = 0;
  for (int i = threadIdx.x; i < kSteps; i += kThreads) all += notes.counts[i];
  const Mass target = static_cast<Mass>(rule.top_k);
  if (sum_before(all).all <= target) return;
  const Reached reached = first_reaching(target, kSteps, [&](int64_t i) { return Mass{notes.counts[i]}; });
  list_step<T>(p, block, notes, reached.index);
  if (!last_of_row(&notes.state->done[0], workspace.parts)) return;
  const float top = notes.state->top;
  const Mass cut = lowest_that_stays<false>(notes, workspace.parts, target - reached.before, top, powers);
  Mass left = 0;
  if (rule.top_p < 1.0) {
    copy_powers(powers);
    __syncthreads();
    each_listed(notes, workspace.parts,
                [&](Mass place) { left += place < cut ? 0 : weight_of(score_at(place), top, powers); });
    left = sum_before(left).all;
    for (int64_t i = reached.index + 1 + threadIdx.x; i < kSteps; i += kThreads) notes.masses[i] = 0;
  }
  if (threadIdx.x == 0) {
    notes.masses[reached.index] = left;
    notes.state->cut = cut;
  }
}

// 4. top_p, likewise.
template <class T>
__global__ void __launch_bounds__(kThreads) apply_top_p(const SamplingParams p, const Workspace workspace) {
  __shared__ Mass powers[kPowers];
  const Block block;
  const Notes notes = workspace.of(block.row);
  const SamplingRule& rule = p.rules[block.row];
  if (!notes.state->drawn || !(rule.top_p < 1.0)) return;
  Mass all = 0;
  for (int i = threadIdx.x; i < kSteps; i += kThreads) all += notes.masses[i];
  all = sum_before(all).all;
  // Whoever has less than this before it stays, the most likely one in any case.
  const double share = ceil(rule.top_p * static_cast<double>(all));
  const Mass target = share < 1.0 ? 1 : share < static_cast<double>(all) ? static_cast<Mass>(share) : all;
  const Reached reached = first_reaching(target, kSteps, [&](int64_t i) { return notes.masses[i]; });
  list_step<T>(p, block, notes, reached.index);
  if (!last_of_row(&notes.state->done[1], workspace.parts)) return;
  copy_powers(powers);
  __syncthreads();
  const float top = notes.state->top;
  const Mass cut = lowest_that_stays<true>(notes, workspace.parts, target - reached.before, top, powers);
  if (threadIdx.x == 0) notes.state->cut = cut;
}

// Finds the token of a part with which the sum of weights reaches `target`; weight(logit, token) is what each has.
template <class T, class F>
__device__ void find_token(const Logits<T>& logits, const Reached& part, Mass target, const F& weight, int64_t* token) {
  constexpr int kSide = Logits<T>::kSide;
  Mass weights[kEach];
  int at = 0;
  logits.each(part.index, [&](float x, int64_t i) { weights[at++] = weight(x, i); });
  Mass before = part.before;
  // Sweeps lie one behind the other, and in each of them the tokens of the threads.
#pragma unroll
  for (int sweep = 0; sweep < Logits<T>::kSweeps; ++sweep) {
    const Mass* mine = weights + sweep * kSide;
    Mass sum = 0;
#pragma unroll
    for (int i = 0; i < kSide; ++i) sum += mine[i];
    const Before sums = sum_before(sum);
    Mass upto = before + sums.mine;
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      if (upto < target && upto + mine[i] >= target) {
        *token = part.index * kPart + sweep * Logits<T>::kSweep + static_cast<int64_t>(threadIdx.x) * kSide + i;
      }
      upto += mine[i];
    }
    before += sums.all;
  }
}

// 5. The weights of what is left, part by part; the last block of a row finds where the draw lands among them.
template <class T>
__global__ void __launch_bounds__(kThreads) draw(const SamplingParams p, const Workspace workspace) {
  __shared__ Mass powers[kPowers];
  const Block block;
  const Notes notes = workspace.of(block.row);
  const SamplingRule& rule = p.rules[block.row];
  const RowState state = *notes.state;
  if (!state.drawn) return;
  const Mass least = rule.min_logit > -INFINITY ? place_of(state.top + rule.min_logit, 0) : 0;
  const Mass cut = least > state.cut ? least : state.cut;
  const float temperature = rule.temperature;
  const Logits<T> logits(p, block.row, notes);
  copy_powers(powers);
  __syncthreads();
  const auto left = [&](float x, int64_t token) {
    const float score = x / temperature;
    return place_of(score, token) < cut ? 0 : weight_of(score, state.top, powers);
  };
  Mass sum = 0;
  logits.each(block.part, [&](float x, int64_t token) { sum += left(x, token); });
  sum = sum_before(sum).all;
  if (threadIdx.x == 0) notes.sums[block.part] = sum;
  if (!last_of_row(&notes.state->done[2], workspace.parts)) return;

  Mass total = 0;
  for (int64_t i = threadIdx.x; i < workspace.parts; i += kThreads) total += __ldcg(notes.sums + i);
  total = sum_before(total).all;
  if (threadIdx.x == 0) p.tokens[block.row] = -1;  // stays where min_p is above 1 and leaves nobody
  if (total == 0) return;
  // The first token with which the sum is more than this share. One that rounds up to the whole means the last.
  const auto share = static_cast<Mass>(rule.uniform * static_cast<double>(total));
  const Mass target = (share < total ? share : total - 1) + 1;
  // Its barriers also order what is written to `tokens`.
  const Reached part = first_reaching(target, workspace.parts, [&](int64_t i) { return __ldcg(notes.sums + i); });
  find_token(logits, part, target, left, p.tokens + block.row);
}

}  // namespace
}  // namespace qvl::cuda

qvl::Status qvl_cuda_sample(const qvl::cuda::SamplingParams* params, void* stream) {
  using namespace qvl::cuda;
  const SamplingParams& p = *params;
  const int64_t parts = parts_of(p);
  if (p.count > kMostTokens || p.rows > 65535) return qvl::Status::unsupported;
  if (p.rows == 0) return qvl::Status::ok;
  return with_type(p.dtype, [&](auto element) {
    using T = decltype(element);
    const Workspace workspace{static_cast<unsigned char*>(p.workspace), parts};
    const dim3 grid(static_cast<unsigned>(parts), static_cast<unsigned>(p.rows));
    void (*const kernels[])(SamplingParams, Workspace) = {find_tops<T>, spread<T>, apply_top_k<T>, apply_top_p<T>,
                                                          draw<T>};
    auto status = qvl::Status::ok;
    for (const auto kernel : kernels) {
      if (status == qvl::Status::ok) status = launch(kernel, grid, dim3(kThreads), 0, stream, p, workspace);
    }
    return status;
  });
}

int64_t qvl_cuda_sample_workspace(const qvl::cuda::SamplingParams* params) {
  const qvl::cuda::Workspace workspace{nullptr, qvl::cuda::parts_of(*params)};
  return params->rows * workspace.bytes_of_row();
}

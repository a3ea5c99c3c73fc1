// Drawing a token from its logits, for several rows at once.
#pragma once

#include "qvl/cuda/common.h"

namespace qvl::cuda {

// How a row is drawn; in device memory, so that a graph reads it anew. Meaning and order are those of qvl/sampling.h.
struct SamplingRule {
  int64_t seen_begin, seen_end;      // the row's part of SamplingParams::seen
  int64_t banned_begin, banned_end;  // and of banned
  int64_t top_k;                     // 0 is off
  double top_p;                      // 1 is off
  double uniform;                    // 0 or more, below 1
  float penalty;                     // 1 is off
  float temperature;
  float min_logit;  // log(min_p); -infinity is off
  int32_t greedy;
};

struct SamplingParams {
  DType dtype;         // bfloat16, float16 or float32: of the logits
  const void* logits;  // [rows, count], stride from row to row
  const SamplingRule* rules;  // [rows]
  const int64_t* seen;        // numbers outside 0 .. count - 1 are passed over; each once a row
  const int64_t* banned;      // likewise
  int64_t* tokens;            // [rows]: the token, or -1 when no logit is a finite number or one is not a number
  void* workspace;
  int64_t rows;
  int64_t count;
  int64_t stride;
};

}  // namespace qvl::cuda

// For at most 2**19 words and 65535 rows, else unsupported. Probabilities are added up as whole numbers, so a draw is the
// same on every device and whatever the other rows are. It is also the CPU's, unless it (or top_p) lies within 2**-45 of
// the largest probability for each word (5e-9 for 152064 words) of where one word ends and the next begins.
QVL_CUDA_API qvl::Status qvl_cuda_sample(const qvl::cuda::SamplingParams* params, void* stream);
QVL_CUDA_API int64_t qvl_cuda_sample_workspace(const qvl::cuda::SamplingParams* params);

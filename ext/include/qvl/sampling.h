// Drawing a token from its logits.
#pragma once

#include "qvl/common.h"

namespace qvl {

// In this order: penalty, ban, temperature, top_k, top_p, min_p, draw.
struct SamplingParams {
  const float* logits;  // [count]
  int64_t count;
  const int64_t* seen;  // each once; numbers outside 0 .. count - 1 are passed over
  int64_t seen_count;
  float penalty;          // a seen token's logit is divided by it where positive, else multiplied; 1 is off
  const int64_t* banned;  // like seen
  int64_t banned_count;
  bool greedy;  // the first of the most likely tokens; what follows is not read
  float temperature;
  int64_t top_k;    // 0 is off; tokens as likely as the last of them stay
  double top_p;     // 1 is off; the fewest tokens that have this probability together
  float min_logit;  // how far below the most likely one a token may be: log(min_p); -infinity is off
  double uniform;   // 0 or more, below 1: where in the sum of the probabilities, in rising order of tokens
};

// The token, or -1 when no logit is a finite number or one is not a number. -2: no memory.
int64_t sample(const SamplingParams& params);

}  // namespace qvl

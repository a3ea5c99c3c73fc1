// Attention of bfloat16 queries.
#include "attention_tensor.cuh"

namespace qvl::cuda {

template Status attend_parts<bfloat16>(const AttentionCall& call, bool narrow, int tokens, void* stream);

}  // namespace qvl::cuda

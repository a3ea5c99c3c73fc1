// Attention of float16 queries.
#include "attention_tensor.cuh"

namespace qvl::cuda {

template Status attend_parts<float16>(const AttentionCall& call, bool narrow, int tokens, void* stream);

}  // namespace qvl::cuda

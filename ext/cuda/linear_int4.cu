// The linear layer for int4 weights.
#include "linear_body.cuh"

namespace qvl::cuda {

Status linear_int4(const LinearPlan& plan, Scaling scaling, DType dtype, const LinearJob& job, void* stream) {
  const bool halves = scaling == Scaling::halves;
  if (dtype == DType::bfloat16) {
    return halves ? launch_linear<bfloat16, true, Scaling::halves>(plan, job, stream)
                  : launch_linear<bfloat16, true, Scaling::units>(plan, job, stream);
  }
  return halves ? launch_linear<float16, true, Scaling::halves>(plan, job, stream)
                : launch_linear<float16, true, Scaling::units>(plan, job, stream);
}

}  // namespace qvl::cuda

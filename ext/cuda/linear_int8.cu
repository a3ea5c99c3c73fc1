// The linear layer for int8 weights.
#include "linear_body.cuh"

namespace qvl::cuda {
namespace {

template <class T>
Status of_type(const LinearPlan& plan, Scaling scaling, const LinearJob& job, void* stream) {
  // Groups are rare enough here to have all sizes served as the smallest is.
  return scaling == Scaling::one ? launch_linear<T, false, Scaling::one>(plan, job, stream)
                                 : launch_linear<T, false, Scaling::halves>(plan, job, stream);
}

}  // namespace

Status linear_int8(const LinearPlan& plan, Scaling scaling, DType dtype, const LinearJob& job, void* stream) {
  return dtype == DType::bfloat16 ? of_type<bfloat16>(plan, scaling, job, stream)
                                  : of_type<float16>(plan, scaling, job, stream);
}

}  // namespace qvl::cuda

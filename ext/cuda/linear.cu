// Launch of the linear layer: how it is cut, and the two small kernels around the products.
#include "linear_job.cuh"

namespace qvl::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMostSplits = 32;

int64_t least_of(int64_t a, int64_t b) { return a < b ? a : b; }

struct Sizes {
  int64_t panels = 0, columns = 0, units = 0;
  explicit Sizes(const LinearParams& p) {
    for (int64_t i = 0; i < p.count; ++i) {
      panels += divided_up(p.weights[i].n, kPanel);
      columns += p.weights[i].n;
    }
    units = divided_up(p.weights[0].k, kUnit);
  }
};

// One launch is best where it fills the device: small layers take no longer than starting another kernel does. So a block's
// warps share the inputs first, as many as all tiles can have at once, and blocks share them only when long sums are left.
LinearPlan plan_of(const LinearParams& p, const Sizes& sizes) {
  const int64_t processors = multiprocessors(), pairs = divided_up(sizes.panels, 2);
  LinearPlan plan{};
  plan.tiles = p.rows <= 8 ? 1 : p.rows <= 16 ? 2 : p.rows <= 32 ? 4 : 8;
  if (p.rows <= 4 && pairs <= processors) plan.tiles = 0;
  const int64_t tiles = plan.tiles == 0 ? sizes.panels : pairs, resident = resident_warps(plan.tiles);
  int64_t across = 1, along = 16;
  if (plan.tiles <= 1) {
    while (along > 1 && tiles > processors * (resident / along)) along /= 2;
    if (tiles > processors * resident) along = 4;  // several rounds: short ones leave less idle at the end
  } else {
    // Rows of x that one warp brings into the cache serve those beside it.
    const int64_t warps = plan.tiles == 2 ? 8 : 4;
    for (across = 4; across > 1 && divided_up(tiles, across) < processors;) across /= 2;
    along = warps / across;
  }
  while (along > 1 && along > sizes.units) along /= 2;
  plan.across = static_cast<int>(across);
  plan.along = static_cast<int>(along);
  plan.blocks = divided_up(tiles, across);
  const int64_t room = processors * (plan.tiles <= 1 ? resident / along : 2) / plan.blocks;
  const int64_t worthwhile = sizes.units / (along * (plan.tiles <= 1 ? 8 : 4));
  const int64_t splits = least_of(least_of(room, worthwhile), kMostSplits);
  plan.splits = static_cast<int>(splits < 1 ? 1 : splits);
  return plan;
}

// Rows that are no multiple of 16 bytes apart, or far apart, or end within a unit are copied to where they are not.
bool copies(const LinearParams& p) {
  if (p.weights[0].k % kUnit != 0) return true;
  return p.rows > 1 && (p.x_stride % 8 != 0 || p.x_stride > INT32_MAX / kMostLinearRows);
}
int64_t copy_bytes(const LinearParams& p, const Sizes& sizes) {
  return copies(p) ? p.rows * sizes.units * kUnit * 2 : 0;
}

// The caller's 16-bit elements, of whatever type.
__global__ void __launch_bounds__(kThreads) pad_kernel(const uint16_t* x, uint16_t* to, int64_t stride, int64_t k,
                                                       int64_t padded) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, row = blockIdx.y;
  if (i < padded) to[row * padded + i] = i < k ? x[row * stride + i] : static_cast<uint16_t>(0);
}

template <class T>
__global__ void __launch_bounds__(kThreads) add_splits_kernel(const LinearJob job, int splits) {
  const int column = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  const int row = static_cast<int>(blockIdx.y);
  if (column >= job.columns) return;
  int i = 0;
  while (i + 1 < job.count && column >= job.sides[i + 1].first_column) ++i;
  const float* from = job.sums + static_cast<int64_t>(row) * job.columns + column;
  float sum = 0.0f;
#pragma unroll 4
  for (int s = 0; s < splits; ++s) sum += from[static_cast<int64_t>(s) * job.rows * job.columns];
  finish<T>(job, job.sides[i], row, column - job.sides[i].first_column, sum);
}

bool multiple(const void* pointer, uintptr_t of) { return reinterpret_cast<uintptr_t>(pointer) % of == 0; }

bool supported(const LinearParams& p) {
  if (p.dtype != DType::bfloat16 && p.dtype != DType::float16) return false;
  if (p.count < 1 || p.count > kMostWeights || p.rows > kMostLinearRows) return false;
  if (!copies(p) && !multiple(p.x, 16)) return false;
  const LinearWeight& first = p.weights[0];
  if (first.dtype != DType::int8 && first.dtype != DType::int4) return false;
  const int64_t group = first.group;
  if (group != 32 && group != 64 && group != 128 && !(group == 0 && first.dtype == DType::int8)) return false;
  for (int64_t i = 0; i < p.count; ++i) {
    const LinearWeight& w = p.weights[i];
    if (w.dtype != first.dtype || w.k != first.k || w.k_padded != first.k_padded || w.group != group) return false;
    if (w.zeros != nullptr && w.dtype == DType::int8) return false;
    if (!multiple(w.data, 16) || !multiple(w.scales, 8) || !multiple(w.zeros, 4)) return false;
  }
  return true;
}

LinearJob job_of(const LinearParams& p, const Sizes& sizes, const LinearPlan& plan) {
  const LinearWeight& first = p.weights[0];
  LinearJob job{};
  int32_t panels = 0, columns = 0;
  for (int64_t i = 0; i < p.count; ++i) {
    const LinearWeight& w = p.weights[i];
    job.sides[i] = {static_cast<const uint8_t*>(w.data), w.scales, w.zeros, w.bias, static_cast<int32_t>(w.n), panels,
                    columns};
    panels += static_cast<int32_t>(divided_up(w.n, kPanel));
    columns += static_cast<int32_t>(w.n);
  }
  job.x = p.x;
  job.residual = p.residual;
  job.out = p.out;
  job.x_stride = p.x_stride;
  job.out_stride = p.out_stride;
  job.count = static_cast<int32_t>(p.count);
  job.panels = panels;
  job.columns = columns;
  job.rows = static_cast<int32_t>(p.rows);
  job.units = static_cast<int32_t>(sizes.units);
  job.units_each = static_cast<int32_t>(divided_up(sizes.units, plan.splits));
  job.stored_units = static_cast<int32_t>(first.k_padded / kUnit);
  job.groups = first.group == 0 ? 1 : static_cast<int32_t>(first.k_padded / first.group);
  job.across = plan.across;
  job.along = plan.along;
  return job;
}

}  // namespace
}  // namespace qvl::cuda

int64_t qvl_cuda_linear_workspace(const qvl::cuda::LinearParams* params) {
  using namespace qvl::cuda;
  if (params->rows == 0) return 0;
  const Sizes sizes(*params);
  const LinearPlan plan = plan_of(*params, sizes);
  return copy_bytes(*params, sizes) + (plan.splits > 1 ? plan.splits * params->rows * sizes.columns * 4 : 0);
}

qvl::Status qvl_cuda_linear(const qvl::cuda::LinearParams* params, void* stream) {
  using namespace qvl::cuda;
  using qvl::DType;
  using qvl::Status;
  const qvl::cuda::LinearParams& p = *params;
  if (!supported(p)) return Status::unsupported;
  const Sizes sizes(p);
  if (p.rows == 0 || sizes.columns == 0) return Status::ok;
  const LinearPlan plan = plan_of(p, sizes);
  LinearJob job = job_of(p, sizes, plan);
  const unsigned rows = static_cast<unsigned>(p.rows);
  if (copies(p)) {
    const int64_t padded = sizes.units * kUnit;
    const dim3 grid(static_cast<unsigned>(divided_up(padded, kThreads)), rows);
    const Status status = launch(pad_kernel, grid, dim3(kThreads), 0, stream, static_cast<const uint16_t*>(p.x),
                                 static_cast<uint16_t*>(p.workspace), p.x_stride, p.weights[0].k, padded);
    if (status != Status::ok) return status;
    job.x = p.workspace;
    job.x_stride = padded;
  }
  if (plan.splits > 1) {
    job.sums = reinterpret_cast<float*>(static_cast<uint8_t*>(p.workspace) + copy_bytes(p, sizes));
  }
  const int64_t group = p.weights[0].group;
  const bool int4 = p.weights[0].dtype == DType::int4;
  const Scaling scaling = group == 0 ? Scaling::one : int4 && group > 32 ? Scaling::units : Scaling::halves;
  job.group_shift = (group > 32 ? 1 : 0) + (group > 64 ? 1 : 0) - (scaling == Scaling::units ? 1 : 0);
  const Status status = int4 ? linear_int4(plan, scaling, p.dtype, job, stream)
                             : linear_int8(plan, scaling, p.dtype, job, stream);
  if (status != Status::ok || plan.splits == 1) return status;
  const dim3 grid(static_cast<unsigned>(divided_up(sizes.columns, kThreads)), rows);
  return p.dtype == DType::bfloat16
             ? launch(add_splits_kernel<bfloat16>, grid, dim3(kThreads), 0, stream, job, plan.splits)
             : launch(add_splits_kernel<float16>, grid, dim3(kThreads), 0, stream, job, plan.splits);
}

// Products of training: both operands are rounded and laid out as tiles, then multiplied, each step by all threads.
#include "qvl/product.h"

#include "linear_launch.h"
#include "product_kernels.h"
#include "qvl/isa.h"

namespace qvl {

QVL_IF_AVX512BF16(namespace avx512bf16 { extern const ProductKernels product_kernels; })
QVL_IF_AMX(namespace amx { extern const ProductKernels product_kernels; })

namespace {

// Tiles of rows and panels of columns in a range: small enough that all threads end together.
constexpr int64_t kRangeTiles = 16, kRangePanels = 16;

const ProductKernels* body() {
  QVL_IF_AMX(if (isa() == Isa::amx) return &amx::product_kernels;)
  QVL_IF_AVX512BF16(if (isa() >= Isa::avx512bf16) return &avx512bf16::product_kernels;)
  return nullptr;
}

int64_t tiled_bytes(int64_t outer, int64_t k) { return divide_up(outer, 16) * divide_up(k, 32) * 1024; }

void round_all(const ProductKernels& kernels, const Operand& operand) {
  const int64_t slabs = operand.k_first ? divide_up(operand.k, 32) : divide_up(operand.outer, 16);
  parallel(slabs, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernels.round(operand, i);
  });
}

}  // namespace

bool has_product() { return body() != nullptr; }

Status product(const ProductParams& p) {
  const ProductKernels* kernels = body();
  if (!kernels) return Status::unsupported;
  if (p.m == 0 || p.n == 0) return Status::ok;
  uint8_t* a = scratch_of<uint8_t>(0, tiled_bytes(p.m, p.k));
  uint8_t* b = scratch_of<uint8_t>(1, tiled_bytes(p.n, p.k));
  if (!a || !b) return Status::no_memory;
  round_all(*kernels, Operand{p.a, p.a_turned, false, p.m, p.k, a});
  round_all(*kernels, Operand{p.b, !p.b_turned, true, p.n, p.k, b});
  each_range(divide_up(p.n, 16), kRangePanels, 2, divide_up(p.m, 16), kRangeTiles,
             [&](int64_t begin, int64_t end, int64_t first, int64_t last) {
               kernels->run(p, a, b, begin, end, first, last);
             });
  return Status::ok;
}

}  // namespace qvl

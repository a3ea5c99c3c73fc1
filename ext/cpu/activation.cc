// Shares the elements of a gate out to the threads; the arithmetic is in activation_kernels.cc.
#include "qvl/activation.h"

#include "activation_kernels.h"
#include "levels.h"
#include "qvl/threads.h"

namespace qvl {

QVL_THREE_LEVELS(ActivationKernels, activation_kernels)

// Elements of a row that are handed out together, a multiple of every vector's width.
constexpr int64_t kPiece = 4096;

template <class Params>
static Status each_piece(const Params& p, void (*body)(const Params&, int64_t, int64_t, int64_t)) {
  const int64_t pieces = (p.width + kPiece - 1) / kPiece;
  parallel(p.rows * pieces, 4, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t begin = i % pieces * kPiece, end = begin + kPiece;
      body(p, i / pieces, begin, end < p.width ? end : p.width);
    }
  });
  return Status::ok;
}

Status swiglu(const ActivationParams& p) { return each_piece(p, chosen_activation_kernels().swiglu); }

Status quick_gelu(const ActivationParams& p) { return each_piece(p, chosen_activation_kernels().quick_gelu); }

Status swiglu_grad(const ActivationGradParams& p) { return each_piece(p, chosen_activation_kernels().swiglu_grad); }

Status quick_gelu_grad(const ActivationGradParams& p) {
  return each_piece(p, chosen_activation_kernels().quick_gelu_grad);
}

}  // namespace qvl

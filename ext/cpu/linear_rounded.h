// Activations as bfloat16, for the bodies that multiply in it.
#pragma once

#include "linear_blocks.h"

namespace qvl {
namespace QVL_LEVEL {

#if defined(__AVX512BF16__)

// Tiles of 16 rows (or the only one) of 32 numbers.
static void prepare_bf16(const LinearParams& p, const Tiles& t, int64_t tile) {
  const int64_t k = p.weights[0].k;
  uint16_t* data = reinterpret_cast<uint16_t*>(t.data + tile * t.tile_bytes);
  for (int64_t r = 0; r < t.height; ++r) {
    const int64_t row = tile * t.height + r;
    const float* x = p.x + row * p.x_stride;
    for (int64_t begin = 0; begin < t.k_padded; begin += 32) {
      uint16_t* to = data + (begin / 32 * t.height + r) * 32;
      const int64_t n = row >= t.rows || k <= begin ? 0 : (k - begin < 32 ? k - begin : 32);
      const uint32_t mask = n >= 32 ? 0xffffffffu : (1u << n) - 1;
      const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), x + begin);
      const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), x + begin + 16);
      const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
      memcpy(to, &both, 64);
    }
  }
}

#endif

}  // namespace QVL_LEVEL
}  // namespace qvl

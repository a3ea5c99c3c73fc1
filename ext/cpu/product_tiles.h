// What the bodies of products share: operands rounded to bfloat16 in tiles.
//
// A tile of A is 16 rows of 32 numbers, one of B 16 pairs of 16 columns; a pair of bfloat16 is one number of 32 bits, and
// turned over as such the one is the other.
#pragma once

#include "pairs.h"
#include "product_kernels.h"
#include "transpose.h"

namespace qvl {
namespace QVL_LEVEL {

QVL_INLINE __mmask16 first_of(int64_t n) {
  return static_cast<__mmask16>(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1);
}

// Up to 16 rows of up to 32 numbers that lie side by side: 16 lines of 32 bfloat16.
static void round_rows(const float* from, int64_t stride, int64_t rows, int64_t numbers, uint8_t* to) {
  const __mmask16 low = first_of(numbers), high = first_of(numbers - 16);
  for (int64_t r = 0; r < 16; ++r) {
    __m512i line = _mm512_setzero_si512();
    if (r < rows) {
      const float* x = from + r * stride;
      line = (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(high, x + 16), _mm512_maskz_loadu_ps(low, x));
    }
    _mm512_storeu_si512(to + r * 64, line);
  }
}

// Up to 32 rows of up to 16 numbers: 16 lines, each of two rows in pairs.
static void round_pairs(const float* from, int64_t stride, int64_t rows, int64_t numbers, uint8_t* to) {
  const __mmask16 mask = first_of(numbers);
  for (int64_t r = 0; r < 32; r += 2) {
    const __m512 even = _mm512_maskz_loadu_ps(r < rows ? mask : 0, from + r * stride);
    const __m512 odd = _mm512_maskz_loadu_ps(r + 1 < rows ? mask : 0, from + (r + 1) * stride);
    store_pairs(even, odd, reinterpret_cast<uint16_t*>(to + r * 32));
  }
}

static void round(const Operand& o, int64_t slab) {
  const int64_t outers = (o.outer + 15) / 16, chunks = (o.k + 31) / 32;
  alignas(64) uint8_t turned[1024];
  const bool turns = o.k_first != o.of_b;
  for (int64_t i = 0; i < (o.k_first ? outers : chunks); ++i) {
    const int64_t outer = o.k_first ? i : slab, chunk = o.k_first ? slab : i;
    const int64_t outer_left = o.outer - outer * 16, k_left = o.k - chunk * 32;
    uint8_t* to = o.to + (outer * chunks + chunk) * 1024;
    uint8_t* first = turns ? turned : to;
    if (o.k_first) {
      round_pairs(o.from + chunk * 32 * o.outer + outer * 16, o.outer, k_left, outer_left, first);
    } else {
      round_rows(o.from + outer * 16 * o.k + chunk * 32, o.k, outer_left, k_left, first);
    }
    if (turns) transpose(reinterpret_cast<const float*>(turned), 16, reinterpret_cast<float*>(to), 16);
  }
}

}  // namespace QVL_LEVEL
}  // namespace qvl

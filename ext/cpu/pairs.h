// Pairs of bfloat16, which is what its units multiply: two numbers that are next to each other in k.
#pragma once

#include "simd.h"

namespace qvl {
namespace QVL_LEVEL {

// Two vectors of 16 outputs (or columns) as the pairs of a tile's row, [16][2] bfloat16.
QVL_INLINE void store_pairs(__m512 even, __m512 odd, uint16_t* to) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even)));
}

}  // namespace QVL_LEVEL
}  // namespace qvl

// levels: avx512bf16
// Products of training where there is no tile unit, on the dot products of pairs. Zen 4 and 5 do twice the multiplications
// in them that they do in float32.
#include "product_tiles.h"

namespace qvl {
namespace QVL_LEVEL {

// The sums of 8 x 3 vectors leave room in the 32 registers for the vectors of B and a pair of A.
constexpr int kRows = 8, kPanels = 3;

// Rows [half * 8, half * 8 + 8) of a tile; those behind the last of A are zeros and are not stored.
template <int panels>
static void block(const ProductParams& p, const uint8_t* a, const uint8_t* b, int64_t bytes, int64_t tile, int64_t half,
                  int64_t panel) {
  __m512 sums[kRows][panels];
#pragma GCC unroll 4
  for (int i = 0; i < panels; ++i) {
    const __mmask16 mask = first_of(p.n - (panel + i) * 16);
    const __m512 start = p.bias ? _mm512_maskz_loadu_ps(mask, p.bias + (panel + i) * 16) : _mm512_setzero_ps();
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sums[r][i] = start;
  }
  a += tile * bytes + half * kRows * 64;
  b += panel * bytes;
  for (int64_t at = 0; at < bytes; at += 1024) {
    for (int64_t pair = 0; pair < 16; ++pair) {
      __m512bh columns[panels];
#pragma GCC unroll 4
      for (int i = 0; i < panels; ++i) columns[i] = (__m512bh)_mm512_loadu_si512(b + i * bytes + at + pair * 64);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        int32_t numbers;
        memcpy(&numbers, a + at + r * 64 + pair * 4, 4);
        const __m512bh row = (__m512bh)_mm512_set1_epi32(numbers);
#pragma GCC unroll 4
        for (int i = 0; i < panels; ++i) sums[r][i] = _mm512_dpbf16_ps(sums[r][i], row, columns[i]);
      }
    }
  }
  const int64_t first = tile * 16 + half * kRows;
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    if (first + r >= p.m) return;
    float* to = p.out + (first + r) * p.n + panel * 16;
#pragma GCC unroll 4
    for (int i = 0; i < panels; ++i) _mm512_mask_storeu_ps(to + i * 16, first_of(p.n - (panel + i) * 16), sums[r][i]);
  }
}

template <int panels>
static void rows_of(const ProductParams& p, const uint8_t* a, const uint8_t* b, int64_t panel, int64_t first,
                    int64_t last) {
  const int64_t bytes = (p.k + 31) / 32 * 1024;
  for (int64_t tile = first; tile < last; ++tile) {
    for (int64_t half = 0; half < 2 && tile * 16 + half * kRows < p.m; ++half) {
      block<panels>(p, a, b, bytes, tile, half, panel);
    }
  }
}

static void run(const ProductParams& p, const uint8_t* a, const uint8_t* b, int64_t begin, int64_t end, int64_t first,
                int64_t last) {
  int64_t panel = begin;
  for (; panel + kPanels <= end; panel += kPanels) rows_of<kPanels>(p, a, b, panel, first, last);
  if (end - panel == 2) rows_of<2>(p, a, b, panel, first, last);
  if (end - panel == 1) rows_of<1>(p, a, b, panel, first, last);
}

extern const ProductKernels product_kernels;
const ProductKernels product_kernels{round, run};

}  // namespace QVL_LEVEL
}  // namespace qvl

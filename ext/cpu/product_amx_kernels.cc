// levels: amx
// Products of training on the tile unit. A tile of A is 16 rows of 32 numbers, one of B 16 pairs of 16 columns; a pair of
// bfloat16 is one number of 32 bits, and turned over as such the one is the other.
#include "product_kernels.h"

#include "linear_amx_weights.h"
#include "tiles_amx.h"
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

// Where the sums of a tile wait that is not whole in the result, and the bias of one.
struct alignas(64) Edge {
  float sums[256];
  float bias[16];
};

QVL_INLINE bool whole(const ProductParams& p, int64_t tile, int64_t panel) {
  return p.m - tile * 16 >= 16 && p.n - panel * 16 >= 16;
}

QVL_INLINE const float* bias_of(const ProductParams& p, int64_t panel, Edge& edge) {
  const float* bias = p.bias + panel * 16;
  if (p.n - panel * 16 >= 16) return bias;
  _mm512_store_ps(edge.bias, _mm512_maskz_loadu_ps(first_of(p.n - panel * 16), bias));
  return edge.bias;
}

static void store_edge(const ProductParams& p, int64_t tile, int64_t panel, const Edge& edge) {
  const int64_t rows = p.m - tile * 16;
  for (int64_t r = 0; r < (rows < 16 ? rows : 16); ++r) {
    float* to = p.out + (tile * 16 + r) * p.n + panel * 16;
    _mm512_mask_storeu_ps(to, first_of(p.n - panel * 16), _mm512_load_ps(edge.sums + r * 16));
  }
}

// The compiler wants the number of a tile as a digit. With a distance of 0 all rows of a tile begin as the bias.
#define QVL_BEGIN(number, panel)                       \
  if (!p.bias) {                                       \
    _tile_zero(number);                                \
  } else {                                             \
    _tile_loadd(number, bias_of(p, panel, edge), 0);   \
  }
#define QVL_STORE(number, tile, panel)                                        \
  if (whole(p, tile, panel)) {                                                \
    _tile_stored(number, p.out + (tile) * 16 * p.n + (panel) * 16, p.n * 4);  \
  } else {                                                                    \
    _tile_stored(number, edge.sums, 64);                                      \
    store_edge(p, tile, panel, edge);                                         \
  }

template <int tiles, int panels>
static void block(const ProductParams& p, const uint8_t* a, const uint8_t* b, int64_t bytes, int64_t tile,
                  int64_t panel) {
  Edge edge;
  QVL_BEGIN(0, panel)
  if (panels > 1) QVL_BEGIN(1, panel + 1)
  if (tiles > 1) QVL_BEGIN(2, panel)
  if (tiles > 1 && panels > 1) QVL_BEGIN(3, panel + 1)
  a += tile * bytes;
  b += panel * bytes;
  for (int64_t at = 0; at < bytes; at += 1024) {
    _tile_loadd(4, a + at, 64);
    _tile_loadd(6, b + at, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (panels > 1) {
      _tile_loadd(7, b + bytes + at, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (tiles > 1) {
      _tile_loadd(5, a + bytes + at, 64);
      _tile_dpbf16ps(2, 5, 6);
      if (panels > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  QVL_STORE(0, tile, panel)
  if (panels > 1) QVL_STORE(1, tile, panel + 1)
  if (tiles > 1) QVL_STORE(2, tile + 1, panel)
  if (tiles > 1 && panels > 1) QVL_STORE(3, tile + 1, panel + 1)
}

static void run(const ProductParams& p, const uint8_t* a, const uint8_t* b, int64_t begin, int64_t end, int64_t first,
                int64_t last) {
  const TileConfig config;
  _tile_loadconfig(&config);
  const int64_t bytes = (p.k + 31) / 32 * 1024;
  for (int64_t panel = begin; panel < end; panel += 2) {
    for (int64_t tile = first; tile < last; tile += 2) {
      const bool two_tiles = tile + 1 < last, two_panels = panel + 1 < end;
      const auto body = two_tiles ? (two_panels ? block<2, 2> : block<2, 1>) : (two_panels ? block<1, 2> : block<1, 1>);
      body(p, a, b, bytes, tile, panel);
    }
  }
  _tile_release();
}
#undef QVL_BEGIN
#undef QVL_STORE

extern const ProductKernels product_kernels;
const ProductKernels product_kernels{round, run};

}  // namespace QVL_LEVEL
}  // namespace qvl

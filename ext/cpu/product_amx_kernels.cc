// levels: amx
// Products of training on the tile unit.
#include "product_tiles.h"
#include "tiles_amx.h"

namespace qvl {
namespace QVL_LEVEL {

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
  written();
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
  written();
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

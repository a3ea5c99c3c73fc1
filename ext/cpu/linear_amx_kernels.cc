// levels: amx
// Linear layers for many rows on the tile unit: bfloat16 products, float32 sums, whatever the weights are stored in.
// int8 weights are bfloat16 numbers as they are, int4 ones are widened with their scale; that costs little beside the
// products of a hundred rows, and the activations keep more than they would as int8.
#include "linear_blocks.h"

namespace qvl {
namespace QVL_LEVEL {

// Inputs of a block: two tiles of activations, two panels and their sums fit the first-level cache. The weights of
// all panels of a range, 128 KiB, and the sums of its rows fit the second; activations are read from the third, once
// for each range.
constexpr int64_t kStep = 256;
constexpr int64_t kTogether = 16;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

static void prepare(const LinearParams& p, const Tiles& t, int64_t tile) {
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

// Two vectors of 16 outputs as the pairs of a tile's row, [16][2] bfloat16.
QVL_INLINE void store_pairs(__m512 even, __m512 odd, uint16_t* to) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(odd, even)));
}

// Four inputs of 16 outputs, [16][4] bytes, to two rows of a tile; `minus_zero` is -zero * scale.
template <bool is_signed, bool scaled>
QVL_INLINE void widen_four(__m512i bytes, __m512 scale, __m512 minus_zero, uint16_t* to) {
  __m512 inputs[4];
  for (int j = 0; j < 4; ++j) {
    const __m512i up = _mm512_slli_epi32(bytes, 24 - 8 * j);
    inputs[j] = _mm512_cvtepi32_ps(is_signed ? _mm512_srai_epi32(up, 24) : _mm512_srli_epi32(up, 24));
    if (scaled) inputs[j] = _mm512_fmadd_ps(inputs[j], scale, minus_zero);
  }
  store_pairs(inputs[0], inputs[1], to);
  store_pairs(inputs[2], inputs[3], to + 32);
}

static void widen_panel(const LinearWeight& w, const Tiles& t, int64_t panel, int64_t first, int64_t last,
                        uint16_t* to) {
  if (!w.group) {
    const uint8_t* data = static_cast<const uint8_t*>(w.data) + panel * t.k_padded * 16;
    const __m512 none = _mm512_setzero_ps();
    for (int64_t k = first; k < last; k += 4, to += 64) {
      widen_four<true, false>(_mm512_loadu_si512(data + k * 16), none, none, to);
    }
    return;
  }
  const bool four_bits = w.dtype == DType::int4;
  const uint8_t* data = static_cast<const uint8_t*>(w.data) + panel * t.k_padded * (four_bits ? 8 : 16);
  for (int64_t begin = first; begin < last; begin += w.group) {
    const int64_t place = (panel * t.groups + begin / w.group) * kPanel, end = begin + w.group;
    const __m512 scale = load_half16(static_cast<const uint16_t*>(w.scales) + place).v;
    const __m512 zero = w.zeros ? load_byte16(w.zeros + place).v : _mm512_set1_ps(four_bits ? 8.0f : 0.0f);
    const __m512 minus_zero = _mm512_fnmadd_ps(zero, scale, _mm512_setzero_ps());
    for (int64_t k = begin; k < end; k += four_bits ? 8 : 4) {
      if (four_bits) {
        const W4 w4 = load_w4(data + k * 8);
        widen_four<false, true>(w4.low, scale, minus_zero, to);
        widen_four<false, true>(w4.high, scale, minus_zero, to + 64);
        to += 128;
      } else {
        widen_four<true, true>(_mm512_loadu_si512(data + k * 16), scale, minus_zero, to);
        to += 64;
      }
    }
  }
}

// Sums of `tiles` by `panels` tiles over some chunks of 32 inputs, kept in memory between blocks.
template <int tiles, int panels>
static void block(const uint8_t* a, int64_t tile_bytes, const uint8_t* b, int64_t panel_bytes, int64_t chunks,
                  bool begins, float* kept, int64_t kept_stride) {
#define QVL_C(i, j) (kept + (i) * kept_stride + (j) * 256)
  if (begins) {
    _tile_zero(0);
    if (panels > 1) _tile_zero(1);
    if (tiles > 1) _tile_zero(2);
    if (tiles > 1 && panels > 1) _tile_zero(3);
  } else {
    _tile_loadd(0, QVL_C(0, 0), 64);
    if (panels > 1) _tile_loadd(1, QVL_C(0, 1), 64);
    if (tiles > 1) _tile_loadd(2, QVL_C(1, 0), 64);
    if (tiles > 1 && panels > 1) _tile_loadd(3, QVL_C(1, 1), 64);
  }
  for (int64_t c = 0; c < chunks; ++c) {
    _tile_loadd(4, a + c * 1024, 64);
    _tile_loadd(6, b + c * 1024, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (panels > 1) {
      _tile_loadd(7, b + panel_bytes + c * 1024, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (tiles > 1) {
      _tile_loadd(5, a + tile_bytes + c * 1024, 64);
      _tile_dpbf16ps(2, 5, 6);
      if (panels > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, QVL_C(0, 0), 64);
  if (panels > 1) _tile_stored(1, QVL_C(0, 1), 64);
  if (tiles > 1) _tile_stored(2, QVL_C(1, 0), 64);
  if (tiles > 1 && panels > 1) _tile_stored(3, QVL_C(1, 1), 64);
#undef QVL_C
}

static void finish_rows(const LinearParams& p, const Tiles& t, const Panels& q, int64_t first, int64_t last,
                        const float* kept, int64_t kept_stride) {
  const LinearWeight& w = *q.weight;
  const bool scaled = w.dtype == DType::int8 && !w.group;
  for (int64_t tile = first; tile < last; ++tile, kept += kept_stride) {
    for (int64_t r = 0; r < 16 && tile * 16 + r < t.rows; ++r) {
      for (int64_t i = 0; i < q.count; ++i) {
        F16 value = load16(kept + i * 256 + r * 16);
        if (scaled) value = mul16(value, load16(static_cast<const float*>(w.scales) + (q.first + i) * kPanel));
        finish(p, q, q.first + i, tile * 16 + r, value);
      }
    }
  }
}

// Asks for a share of the weights of the inputs from k on, so that memory works while the tile unit does.
static void fetch_weights(const Panels& q, const Tiles& t, int64_t k, int64_t share, int64_t shares) {
  const DType dtype = q.weight->dtype;
  const int64_t input_bytes = dtype == DType::bfloat16 ? 32 : dtype == DType::int8 ? 16 : 8;
  const int64_t count = k + kStep < t.k_padded ? kStep : t.k_padded - k, lines = count * input_bytes / 64;
  const char* data = static_cast<const char*>(q.weight->data) + k * input_bytes;
  for (int64_t i = 0; i < q.count; ++i) {
    const char* panel = data + (q.first + i) * t.k_padded * input_bytes;
    for (int64_t line = lines * share / shares; line < lines * (share + 1) / shares; ++line) {
      _mm_prefetch(panel + line * 64, _MM_HINT_T1);
    }
  }
}

// The same for the outputs of a tile, which are about to be written.
static void fetch_outputs(const LinearParams& p, const Tiles& t, const Panels& q, int64_t tile) {
  for (int64_t row = tile * 16; row < tile * 16 + 16 && row < t.rows; ++row) {
    const float* out = p.out + row * p.out_stride + q.column + q.first * kPanel;
    for (int64_t i = 0; i < q.count; ++i) __builtin_prefetch(out + i * kPanel, 1, 2);
  }
}

static void one_range(const LinearParams& p, const Tiles& t, const Panels& q, int64_t first, int64_t last) {
  const bool ready = q.weight->dtype == DType::bfloat16;
  const int64_t kept_stride = q.count * 256;
  float* kept = scratch_of<float>(8, (last - first) * kept_stride);
  uint16_t* widened = ready ? nullptr : scratch_of<uint16_t>(9, kTogether * kStep * kPanel);
  for (int64_t k = 0; k < t.k_padded; k += kStep) {
    const int64_t stop = k + kStep < t.k_padded ? k + kStep : t.k_padded, chunks = (stop - k) / 32;
    const uint8_t* b = reinterpret_cast<const uint8_t*>(widened);
    int64_t panel_bytes = chunks * 1024;
    if (ready) {
      panel_bytes = t.k_padded * 32;
      b = static_cast<const uint8_t*>(q.weight->data) + q.first * panel_bytes + k * 32;
    } else {
      for (int64_t i = 0; i < q.count; ++i) {
        widen_panel(*q.weight, t, q.first + i, k, stop, widened + i * chunks * 512);
      }
    }
    for (int64_t tile = first; tile < last; tile += 2) {
      const int64_t end = tile + 2 < last ? tile + 2 : last;
      const uint8_t* a = t.data + tile * t.tile_bytes + k * 32;
      float* sums = kept + (tile - first) * kept_stride;
      if (stop < t.k_padded) {
        fetch_weights(q, t, stop, (tile - first) / 2, (last - first + 1) / 2);
      } else {
        for (int64_t each = tile; each < end; ++each) fetch_outputs(p, t, q, each);
      }
      for (int64_t i = 0; i < q.count; i += 2) {
        const bool two_tiles = tile + 1 < last, two_panels = i + 1 < q.count;
        const auto body = two_tiles ? (two_panels ? block<2, 2> : block<2, 1>) : (two_panels ? block<1, 2> : block<1, 1>);
        body(a, t.tile_bytes, b + i * panel_bytes, panel_bytes, chunks, k == 0, sums + i * 256, kept_stride);
      }
      if (stop == t.k_padded) finish_rows(p, t, q, tile, end, sums, kept_stride);
    }
  }
}

static void run(const LinearParams& p, const Tiles& t, const Panels& q, int64_t first, int64_t last) {
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.bytes[i] = 64;
    config.rows[i] = 16;
  }
  _tile_loadconfig(&config);
  one_range(p, t, q, first, last);
  _tile_release();
}

extern const LinearKernels linear_tiles;
const LinearKernels linear_tiles{2, kTogether, 32, prepare, run};

}  // namespace QVL_LEVEL
}  // namespace qvl

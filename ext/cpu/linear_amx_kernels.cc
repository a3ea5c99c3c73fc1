// levels: amx
// Linear layers for many rows on the tile unit: bfloat16 products, float32 sums, whatever the weights are stored in.
// int8 weights are bfloat16 numbers as they are, int4 ones are widened with their scale; that costs little beside the
// products of a hundred rows, and the activations keep more than they would as int8.
//
// A pair of panels, 512 inputs of it (32 KiB), stays in the first-level cache while the activations of all rows of a
// range pass by in pairs of tiles, from the second-level cache and without taking the pair's place. The sums of four
// tiles stay in registers for those 512 inputs and wait in the second-level cache for the next ones. Measured, with
// everything in those caches, that is four fifths of what the unit can do; sums that are stored and loaded after 256 inputs,
// or activations that push the weights out, cost a fifth to a quarter of it.
#include "lanes.h"
#include "linear_amx_weights.h"
#include "tiles_amx.h"

namespace qvl {
namespace QVL_LEVEL {

constexpr int64_t kStep = 512;
// Of a range: its activations of a step take 16 KiB a tile, its sums 1 KiB a tile and panel, together 1.25 MiB of a
// second-level cache that is 2 MiB wherever there is a tile unit.
constexpr int64_t kMostTiles = 32, kMostPanels = 24;
// Results beyond this would push everything else out of the second-level cache on their way to memory.
constexpr int64_t kLargeResult = 4 << 20;

// Sums of tiles x panels tiles, 16 x 16 each in the order of `sums`, over `chunks` times 32 inputs.
template <int tiles, int panels>
static void block(const uint8_t* a, int64_t tile_bytes, const uint8_t* const (&b)[2], int64_t chunks, const float* from,
                  float* to, Ahead& ahead) {
  if (!from) {
    _tile_zero(0);
    if (panels > 1) _tile_zero(1);
    if (tiles > 1) _tile_zero(2);
    if (tiles > 1 && panels > 1) _tile_zero(3);
  } else {
    _tile_loadd(0, from, 64);
    if (panels > 1) _tile_loadd(1, from + 256, 64);
    if (tiles > 1) _tile_loadd(2, from + 512, 64);
    if (tiles > 1 && panels > 1) _tile_loadd(3, from + 768, 64);
  }
  for (int64_t c = 0; c < chunks; ++c) {
    ahead.some(ahead.each);
    _tile_stream_loadd(4, a + c * 1024, 64);
    _tile_loadd(6, b[0] + c * 1024, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (panels > 1) {
      _tile_loadd(7, b[1] + c * 1024, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (tiles > 1) {
      _tile_stream_loadd(5, a + tile_bytes + c * 1024, 64);
      _tile_dpbf16ps(2, 5, 6);
      if (panels > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, to, 64);
  if (panels > 1) _tile_stored(1, to + 256, 64);
  if (tiles > 1) _tile_stored(2, to + 512, 64);
  if (tiles > 1 && panels > 1) _tile_stored(3, to + 768, 64);
}

// All rows of tiles [first, last) with `pairs` pairs, pair_at(i) each; ends(pair, tile, tiles, sums) takes their sums.
template <class PairAt, class Ends>
static void each_block(const Tiles& t, int64_t first, int64_t last, int64_t pairs, const PairAt& pair_at,
                       const Ends& ends) {
  const int64_t row_of_sums = pairs * 1024;
  float* kept = scratch_of<float>(8, (last - first + 1) / 2 * row_of_sums);
  uint16_t* widened = scratch_of<uint16_t>(9, 2 * kStep * kPanel);
  alignas(64) float done[1024];
  for (int64_t k = 0; k < t.k_padded; k += kStep) {
    const int64_t stop = k + kStep < t.k_padded ? k + kStep : t.k_padded, chunks = (stop - k) / 32;
    const bool is_last = stop == t.k_padded;
    for (int64_t i = 0; i < pairs; ++i) {
      const Pair pair = pair_at(i);
      const uint8_t* b[2] = {};
      for (int64_t j = 0; j < pair.count; ++j) {
        const LinearWeight& w = *pair.weights[j];
        if (w.dtype == DType::bfloat16) {
          b[j] = static_cast<const uint8_t*>(w.data) + pair.panels[j] * t.k_padded * 32 + k * 32;
        } else {
          widen_panel(w, pair.panels[j], k, stop, widened + j * kStep * kPanel);
          b[j] = reinterpret_cast<const uint8_t*>(widened + j * kStep * kPanel);
        }
      }
      Ahead ahead{};
      const int64_t turns = (last - first + 1) / 2 * chunks;
      if (i + 1 < pairs) {
        ahead = ahead_of(pair_at(i + 1), t, k, stop, turns);
      } else if (!is_last) {
        ahead = ahead_of(pair_at(0), t, stop, stop + kStep < t.k_padded ? stop + kStep : t.k_padded, turns);
      }
      for (int64_t tile = first; tile < last; tile += 2) {
        const int64_t tiles = tile + 1 < last ? 2 : 1;
        const auto body = tiles == 2 ? (pair.count == 2 ? block<2, 2> : block<2, 1>)
                                     : (pair.count == 2 ? block<1, 2> : block<1, 1>);
        float* sums = kept + (tile - first) / 2 * row_of_sums + i * 1024;
        const uint8_t* a = t.data + tile * t.tile_bytes + k * 32;
        written();
        body(a, t.tile_bytes, b, chunks, k ? sums : nullptr, is_last ? done : sums, ahead);
        if (is_last) ends(pair, tile, tiles, done);
      }
    }
  }
}

// The scales of int8 weights that were widened without them.
QVL_INLINE F16 scales_of(const LinearWeight& w, int64_t panel) {
  if (w.dtype != DType::int8 || w.group) return broadcast16(1.0f);
  return load16(static_cast<const float*>(w.scales) + panel * kPanel);
}

static void run(const LinearParams& p, const Tiles& t, const Panels& q, int64_t first, int64_t last) {
  const TileConfig config;
  written();
  _tile_loadconfig(&config);
  const LinearWeight& w = *q.weight;
  const auto pair_at = [&](int64_t i) {
    const int64_t panel = q.first + 2 * i;
    return Pair{{&w, &w}, {panel, panel + 1}, 2 * i + 1 < q.count ? 2 : 1};
  };
  // Past the caches, whole lines at a time. A residual has just been read, so its lines are there.
  const uint64_t lines = reinterpret_cast<uintptr_t>(p.out) | static_cast<uint64_t>(4 * (p.out_stride | q.column));
  const bool streamed = p.rows * p.out_stride * 4 > kLargeResult && lines % 64 == 0 && !p.residual;
  const auto ends = [&](const Pair& pair, int64_t tile, int64_t tiles, const float* sums) {
    const F16 scales[2] = {scales_of(w, pair.panels[0]), scales_of(w, pair.panels[pair.count - 1])};
    for (int64_t r = 0; r < tiles * 16 && tile * 16 + r < t.rows; ++r) {
      for (int64_t i = 0; i < pair.count; ++i) {
        const int64_t output = pair.panels[i] * kPanel, row = tile * 16 + r;
        const F16 value = mul16(load16(sums + r / 16 * 512 + i * 256 + r % 16 * 16), scales[i]);
        if (streamed && output + kPanel <= w.n) {
          const F16 whole = w.bias ? add16(value, load16(w.bias + output)) : value;
          _mm512_stream_ps(p.out + row * p.out_stride + q.column + output, whole.v);
        } else {
          finish(p, q, pair.panels[i], row, value);
        }
      }
    }
  };
  each_block(t, first, last, (q.count + 1) / 2, pair_at, ends);
  _mm_sfence();  // what was streamed is there for the thread that waits for this one
  _tile_release();
}

// Numbers of a tile's row: what the gate makes of them, as bfloat16.
QVL_INLINE __m256i gated_row(const MlpParams& p, const float* sums, const F16 (&scales)[2], const F16 (&biases)[2]) {
  const vf value = fma16(load16(sums), scales[0], biases[0]).v;
  if (p.gate == Gate::quick_gelu) return (__m256i)_mm512_cvtneps_pbh(gated(value, 1.702f));
  const vf let_through = fma16(load16(sums + 256), scales[1], biases[1]).v;
  return (__m256i)_mm512_cvtneps_pbh(mul(gated(value, 1.0f), let_through));
}

// Outputs that do not exist come out as 0: their weights and their bias are.
static F16 bias_of(const LinearWeight& w, int64_t panel) {
  const int64_t left = w.n - panel * kPanel;
  if (!w.bias || left <= 0) return zero16();
  const uint32_t mask = left >= kPanel ? 0xffffu : (1u << left) - 1;
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), w.bias + panel * kPanel)};
}

static void run_gated(const MlpParams& p, const Tiles& in, const Tiles& out, int64_t begin, int64_t end, int64_t first,
                      int64_t last) {
  const TileConfig config;
  written();
  _tile_loadconfig(&config);
  const bool two = p.gate == Gate::swiglu;
  const int64_t panels = (p.inner[0].n + kPanel - 1) / kPanel;
  const auto pair_at = [&](int64_t i) {
    const int64_t at = begin + i;
    if (two) return Pair{{&p.inner[0], &p.inner[1]}, {at, at}, 2};
    return Pair{{&p.inner[0], &p.inner[0]}, {2 * at, 2 * at + 1}, 2 * at + 1 < panels ? 2 : 1};
  };
  const auto ends = [&](const Pair& pair, int64_t tile, int64_t tiles, const float* sums) {
    F16 scales[2] = {zero16(), zero16()}, biases[2] = {zero16(), zero16()};
    for (int64_t i = 0; i < pair.count; ++i) {
      scales[i] = scales_of(*pair.weights[i], pair.panels[i]);
      biases[i] = bias_of(*pair.weights[i], pair.panels[i]);
    }
    // A panel of results is half a line of 32 inputs of the next layer.
    for (int64_t i = 0; i < (two ? 1 : pair.count); ++i) {
      const F16 own_scales[2] = {scales[i], scales[1]}, own_biases[2] = {biases[i], biases[1]};
      for (int64_t r = 0; r < tiles * 16; ++r) {
        uint8_t* to = out.data + (tile + r / 16) * out.tile_bytes + (pair.panels[i] / 2 * 16 + r % 16) * 64;
        const __m256i row = gated_row(p, sums + r / 16 * 512 + i * 256 + r % 16 * 16, own_scales, own_biases);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + pair.panels[i] % 2 * 32), row);
      }
    }
  };
  each_block(in, first, last, end - begin, pair_at, ends);
  _tile_release();
}

extern const LinearKernels linear_tiles;
const LinearKernels linear_tiles{2, kMostPanels, kMostTiles, prepare_bf16, run, run_gated};

}  // namespace QVL_LEVEL
}  // namespace qvl

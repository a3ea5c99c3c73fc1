// levels: amx
// Linear layers for many rows on the tile unit: bfloat16 products, float32 sums, whatever the weights are stored in.
// int8 weights are bfloat16 numbers as they are, int4 ones are widened with their scale; that costs little beside the
// products of a hundred rows, and the activations keep more than they would as int8.
//
// A pair of panels, 512 inputs of it (32 KiB), stays in the first-level cache while the activations of all rows of a
// range pass by in pairs of tiles, from the second-level cache and without taking the pair's place. The sums of four
// tiles stay in registers for those 512 inputs and wait in the second-level cache for the next ones. Measured, with two
// threads and everything in those caches, that is four fifths of what the unit can do; sums that are stored and loaded
// after 256 inputs, or activations that push the weights out, cost a quarter of it.
#include "lanes.h"
#include "linear_amx_weights.h"

namespace qvl {
namespace QVL_LEVEL {

constexpr int64_t kStep = 512;
// Of a range: its activations of a step take 16 KiB a tile, its sums 1 KiB a tile and panel, together about 1.2 MiB of a
// second-level cache that is 2 MiB wherever there is a tile unit.
constexpr int64_t kMostTiles = 24, kMostPanels = 32;
// Results beyond this would push everything else out of the second-level cache on their way to memory.
constexpr int64_t kLargeResult = 4 << 20;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
  TileConfig() {
    for (int i = 0; i < 8; ++i) {
      bytes[i] = 64;
      rows[i] = 16;
    }
  }
};

// One or two panels that are multiplied together; with a gate, panel i of the gate and panel i of what it lets through.
struct Pair {
  const LinearWeight* weights[2];
  int64_t panels[2];
  int64_t count;
};

// The weights that are needed next, asked for a few lines at a time while the unit works.
struct Ahead {
  const char* at[2];
  int64_t lines[2];
  int64_t each;  // lines at a time
  inline void some(int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const int j = lines[0] > 0 ? 0 : 1;
      if (lines[j] <= 0) return;
      _mm_prefetch(at[j], _MM_HINT_T1);
      at[j] += 64;
      --lines[j];
    }
  }
};

static Ahead ahead_of(const Pair& pair, const Tiles& t, int64_t first, int64_t last, int64_t turns) {
  Ahead ahead{};
  int64_t all = 0;
  for (int64_t j = 0; j < pair.count; ++j) {
    const LinearWeight& w = *pair.weights[j];
    const int64_t input_bytes = w.dtype == DType::bfloat16 ? 32 : w.dtype == DType::int8 ? 16 : 8;
    ahead.at[j] = static_cast<const char*>(w.data) + (pair.panels[j] * t.k_padded + first) * input_bytes;
    all += ahead.lines[j] = (last - first) * input_bytes / 64;
  }
  ahead.each = (all + turns - 1) / turns;
  return ahead;
}

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
        body(t.data + tile * t.tile_bytes + k * 32, t.tile_bytes, b, chunks, k ? sums : nullptr, is_last ? done : sums, ahead);
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

extern const LinearKernels linear_tiles;
const LinearKernels linear_tiles{2, kMostPanels, kMostTiles, prepare_tile, run};

}  // namespace QVL_LEVEL
}  // namespace qvl

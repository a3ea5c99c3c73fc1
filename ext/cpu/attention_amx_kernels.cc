// levels: amx
// Attention of many queries on the tile unit: operands rounded to bfloat16, sums and softmax in float32. What the
// blocks of attention_blocks.h do, with 32 rows at a time.
#include "attention_kernels.h"
#include "attention_parts.h"
#include "tiles_amx.h"
#include "transpose.h"

namespace qvl {
namespace QVL_LEVEL {

constexpr int64_t kTile = 1024;  // bytes of one operand: 16 rows of 32 bfloat16
constexpr int64_t kRows = 32;
// More than elsewhere: the unit is so quick that what each block costs beside its products counts.
constexpr int64_t kTileKeys = 256;
constexpr int64_t kScoreStride = kTileKeys + 16, kWeightStride = kTileKeys + 32;  // odd numbers of cache lines

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

struct Operands {
  int64_t steps;  // of 32 along the inner dimension
  const char* a;  // rows; 64 bytes a step
  int64_t a_stride;
  const char* b;  // tiles
  int64_t b_step, b_column;
  float* c;
  int64_t c_stride;
  bool add;
};

// 32 rows and 16 or 32 columns of C = A B or C += A B. Strides in bytes.
template <bool kTwo>
static inline void multiply_tiles(const Operands& o) {
  written();
  float* below = o.c + 16 * (o.c_stride / 4);
  if (o.add) {
    _tile_loadd(0, o.c, o.c_stride);
    _tile_loadd(1, below, o.c_stride);
    if (kTwo) _tile_loadd(2, o.c + 16, o.c_stride);
    if (kTwo) _tile_loadd(3, below + 16, o.c_stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if (kTwo) _tile_zero(2);
    if (kTwo) _tile_zero(3);
  }
  for (int64_t s = 0; s < o.steps; ++s) {
    _tile_loadd(4, o.a + s * 64, o.a_stride);
    _tile_loadd(5, o.a + s * 64 + 16 * o.a_stride, o.a_stride);
    _tile_loadd(6, o.b + s * o.b_step, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 5, 6);
    if (kTwo) {
      _tile_loadd(7, o.b + s * o.b_step + o.b_column, 64);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, o.c, o.c_stride);
  _tile_stored(1, below, o.c_stride);
  if (kTwo) _tile_stored(2, o.c + 16, o.c_stride);
  if (kTwo) _tile_stored(3, below + 16, o.c_stride);
}

static inline void multiply_all(Operands o, int64_t columns) {
  int64_t column = 0;
  for (; column + 2 <= columns; column += 2, o.b += 2 * o.b_column, o.c += 32) multiply_tiles<true>(o);
  if (column < columns) multiply_tiles<false>(o);
}

QVL_INLINE __m256i rounded(vf a) { return (__m256i)_mm512_cvtneps_pbh(a); }

// dim floats as bfloat16, 0 up to `padded`.
static inline void round_row(const float* from, int64_t dim, int64_t padded, uint16_t* to) {
  for (int64_t i = 0; i < padded; i += 16) {
    const vf part = i + 16 <= dim ? load(from + i) : i < dim ? load_some(from + i, static_cast<int>(dim - i)) : zero();
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), rounded(part));
  }
}

// Keys as tiles [key / 16][step], each [16 pairs of dim][16 keys][2]; values as tiles [key / 32][dim / 16], each
// [16 pairs of keys][16 of dim][2]. From n up to a multiple of 32 there are zeros.
template <typename T>
static void pack_tiles(const AttentionParams& p, const AttentionSequence& s, int64_t kv_head, int64_t start, int64_t n,
                       char* keys, char* values) {
  const int64_t half = p.dim / 2, inner = round_up(p.dim, 32), outer = round_up(p.dim, 16);
  alignas(64) float row[2 * kMostAttentionDim];
  alignas(64) uint16_t rows[16 * kMostAttentionDim];
  const T* k = static_cast<const T*>(s.k) + start * p.k_stride + kv_head * p.dim;
  const T* v = static_cast<const T*>(s.v) + start * p.v_stride + kv_head * p.dim;
  const auto scale = [&](const float* scales, int64_t j) {
    return scales ? scales[(start + j) * p.kv_heads + kv_head] : 1.0f;
  };
  for (int64_t j = 0; j < round_up(n, 32); ++j) {
    if (j < n) {
      const int64_t angles = (start + j) * half;
      unpack_key(k + j * p.k_stride, scale(s.k_scale, j), s.cos ? s.cos + angles : nullptr, s.sin + angles, row, p.dim);
    } else {
      clear(row, p.dim);
    }
    round_row(row, p.dim, inner, rows + j % 16 * inner);
    if (j % 16 == 15) {
      for (int64_t step = 0; step < inner / 32; ++step, keys += kTile) {
        transpose(reinterpret_cast<const float*>(rows) + step * 16, inner / 2, reinterpret_cast<float*>(keys), 16);
      }
    }
  }
  clear(row, 2 * kMostAttentionDim);
  for (int64_t j = 0; j < round_up(n, 32); j += 2) {
    if (j + 2 > n) clear(row, 2 * kMostAttentionDim);
    if (j < n) widen(v + j * p.v_stride, scale(s.v_scale, j), row, p.dim);
    if (j + 1 < n) widen(v + (j + 1) * p.v_stride, scale(s.v_scale, j + 1), row + kMostAttentionDim, p.dim);
    char* to = values + j / 32 * (outer / 16) * kTile + j % 32 / 2 * 64;
    for (int64_t d = 0; d < outer; d += 16, to += kTile) {
      // The lower half of each lane is the even key.
      const __m512i even = _mm512_cvtepu16_epi32(rounded(load(row + d)));
      const __m512i odd = _mm512_cvtepu16_epi32(rounded(load(row + kMostAttentionDim + d)));
      _mm512_storeu_si512(to, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
    }
  }
}

// 2**x to four digits, for x up to 0: weights are rounded to bfloat16, which keeps two and a half. 0 below -126.
QVL_INLINE vf coarse_exp2(vf x) {
  const vf n = nearest(x), f = sub(x, n);
  vf power = fma(f, broadcast(0.05516969f), broadcast(0.24260623f));
  power = fma(f, power, broadcast(0.69326088f));
  power = fma(f, power, broadcast(0.99992839f));
  const __m512i exponent = _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23);
  // A NaN is not below: it stays one.
  const __mmask16 counts = _mm512_cmp_ps_mask(x, broadcast(-126.0f), _CMP_NLT_UQ);
  return _mm512_castsi512_ps(_mm512_maskz_add_epi32(counts, _mm512_castps_si512(power), exponent));
}

// `soften` with the weights as bfloat16, written to `weights`, [rows][kWeightStride].
template <typename Seen>
static inline void soften_rounded(float* scores, int64_t rows, int64_t columns, const Softmax& state, Seen seen,
                                  uint16_t* weights) {
  soften_state(scores, kScoreStride, rows, columns, state, seen);
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = scores + r * kScoreStride;
    const vf top = broadcast(state.highest[r] == kNothing ? 0.0f : state.highest[r]);
    vf total = zero();
    for (int64_t c = 0; c < columns; c += kLanes) {
      const vf weight = coarse_exp2(sub(load(row + c), top));
      total = add(total, weight);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + r * kWeightStride + c), rounded(weight));
    }
    state.total[r] = state.total[r] * state.carry[r] + sum(total);
  }
}

// Memory of a task.
struct Workspace {
  float *queries, *scores, *sums, *state;
  uint16_t *rounded, *weights;
  char *keys, *values;

  bool reserve(const AttentionParams& p, int64_t some, int64_t inner, int64_t outer) {
    const int64_t floats[] = {some * p.dim,   kRows * kScoreStride,      some * outer,         3 * some,
                              some * inner / 2, kRows * kWeightStride / 2, kTileKeys * inner / 2, kTileKeys * outer / 2};
    int64_t total = 0;
    for (int64_t each : floats) total += round_up(each, 16);
    float* at = scratch_of<float>(8, total);
    if (!at) return false;
    float** const parts[] = {&queries,
                             &scores,
                             &sums,
                             &state,
                             reinterpret_cast<float**>(&rounded),
                             reinterpret_cast<float**>(&weights),
                             reinterpret_cast<float**>(&keys),
                             reinterpret_cast<float**>(&values)};
    for (int i = 0; i < 8; ++i) *parts[i] = at, at += round_up(floats[i], 16);
    return true;
  }
};

// Sums over earlier blocks times what the new highest score makes of them.
static inline void carry_sums(float* sums, int64_t rows, int64_t width, const float* carry) {
  for (int64_t r = 0; r < rows; ++r) {
    if (carry[r] == 1.0f) continue;
    for (int64_t i = 0; i < width; i += kLanes) {
      store(sums + r * width + i, mul(load(sums + r * width + i), broadcast(carry[r])));
    }
  }
}

template <typename T>
static bool attend_tiles(const AttentionParams& p, const AttentionSequence& s, int64_t kv_head, int64_t first,
                         int64_t last) {
  const int64_t group = p.heads / p.kv_heads, rows = (last - first) * group, some = round_up(rows, kRows);
  const int64_t inner = round_up(p.dim, 32), outer = round_up(p.dim, 16), steps = inner / 32;
  const int64_t seen_by_last = keys_seen(p, s, last - 1, 0);
  Workspace w;
  if (!w.reserve(p, some, inner, outer)) return false;
  const Softmax softmax{w.state, w.state + some, w.state + 2 * some};
  pack_queries(p, s, kv_head, first, last, w.queries);
  clear(w.queries + rows * p.dim, (some - rows) * p.dim);
  for (int64_t r = 0; r < some; ++r) round_row(w.queries + r * p.dim, p.dim, inner, w.rounded + r * inner);
  memset(w.weights, 0, sizeof(uint16_t) * kRows * kWeightStride);
  softmax.reset(rows);
  clear(w.sums, some * outer);
  const TileShapes shapes;
  written();
  _tile_loadconfig(&shapes);
  for (int64_t start = 0; start < seen_by_last; start += kTileKeys) {
    const int64_t n = lesser(kTileKeys, seen_by_last - start), columns = round_up(n, 32);
    pack_tiles<T>(p, s, kv_head, start, n, w.keys, w.values);
    for (int64_t row = 0; row < rows; row += kRows) {
      const int64_t count = lesser(kRows, rows - row);
      if (keys_seen(p, s, first + (row + count - 1) / group, start) <= 0) continue;
      const Softmax part{softmax.highest + row, softmax.total + row, softmax.carry + row};
      const char* queries = reinterpret_cast<const char*>(w.rounded + row * inner);
      multiply_all({steps, queries, 2 * inner, w.keys, kTile, steps * kTile, w.scores, 4 * kScoreStride, false},
                   columns / 16);
      const auto seen = [&](int64_t r) { return lesser(n, keys_seen(p, s, first + (row + r) / group, start)); };
      soften_rounded(w.scores, count, columns, part, seen, w.weights);
      float* sums = w.sums + row * outer;
      carry_sums(sums, count, outer, part.carry);
      multiply_all({columns / 32, reinterpret_cast<const char*>(w.weights), 2 * kWeightStride, w.values,
                    outer / 16 * kTile, kTile, sums, 4 * outer, true},
                   outer / 16);
    }
  }
  _tile_release();
  for (int64_t row = 0; row < rows; ++row) {
    float* out = s.out + (first + row / group) * p.out_stride + (kv_head * group + row % group) * p.dim;
    widen(w.sums + row * outer, 1.0f / softmax.total[row], out, p.dim);
  }
  return true;
}

static bool tiles(const AttentionParams& p, const AttentionSequence& s, int64_t kv_head, int64_t first, int64_t last) {
  if (p.storage == DType::float32) return attend_tiles<float>(p, s, kv_head, first, last);
  if (p.storage == DType::bfloat16) return attend_tiles<bf16>(p, s, kv_head, first, last);
  return attend_tiles<int8_t>(p, s, kv_head, first, last);
}

extern const AttentionTiles attention_tiles;
const AttentionTiles attention_tiles = {tiles};

}  // namespace QVL_LEVEL
}  // namespace qvl

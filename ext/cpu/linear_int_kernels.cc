// levels: portable avx2 avxvnni avx512 avx512vnni
// Linear layers with int8 and int4 weights: activations are quantised to int8, row by row and group by group, products
// are summed in int32 within a group, and groups in float32. All sums of a group fit 24 bits, so float32 holds them
// exactly and every level gives the same numbers but for the rounding of a fused multiply-add.
#include "linear_blocks.h"

namespace qvl {
namespace QVL_LEVEL {

static void quantise_group(const float* x, int64_t count, int8_t* out, int64_t out_step, float* scale, float* sum) {
  // Compared as integers, NaN counts as larger than infinity.
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    memcpy(&bits, x + i, 4);
    bits &= 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  float top;
  memcpy(&top, &largest, 4);
  // What is not a number spoils its outputs instead of being taken for one.
  const bool finite = largest < 0x7f800000u;
  const float inverse = finite && top > 1e-30f ? 127.0f / top : 0.0f;
  *scale = finite ? (top > 1e-30f ? top / 127.0f : 0.0f) : __builtin_nanf("");
  int32_t total = 0;
  for (int64_t begin = 0; begin < count; begin += 64) {
    const int64_t n = count - begin < 64 ? count - begin : 64;
    int8_t* to = out + begin / 64 * out_step;
    for (int64_t i = 0; i < n; ++i) {
      // Adding 1.5 * 2**23 rounds to the nearest integer, ties to even, and leaves it in the low bits.
      const float shifted = x[begin + i] * inverse + 12582912.0f;
      int32_t bits;
      memcpy(&bits, &shifted, 4);
      const int32_t q = finite ? bits - 0x4b400000 : 0;
      to[i] = static_cast<int8_t>(q);
      total += q;
    }
    memset(to + n, 0, static_cast<size_t>(64 - n));
  }
  *sum = static_cast<float>(total);
}

static void prepare(const LinearParams& p, const Tiles& t, int64_t tile) {
  const int64_t k = p.weights[0].k;
  int8_t* data = reinterpret_cast<int8_t*>(t.data + tile * t.tile_bytes);
  for (int64_t r = 0; r < t.height && tile * t.height + r < t.rows; ++r) {
    const float* x = p.x + (tile * t.height + r) * p.x_stride;
    for (int64_t g = 0; g < t.groups; ++g) {
      const int64_t begin = g * t.group, place = (tile * t.groups + g) * t.height + r;
      const int64_t stop = begin + t.group < t.k_padded ? begin + t.group : t.k_padded;
      const int64_t count = k < stop ? (k > begin ? k - begin : 0) : stop - begin;
      int8_t* to = data + (begin / 64 * t.height + r) * 64 + begin % 64;
      if (t.group < 64) {  // half a chunk: nothing may be cleared beyond it
        int8_t half[64];
        quantise_group(x + begin, count, half, 64, t.scales + place, t.sums + place);
        if (count == 0) memset(half, 0, sizeof half);
        memcpy(to, half, static_cast<size_t>(t.group));
        continue;
      }
      quantise_group(x + begin, count, to, t.height * 64, t.scales + place, t.sums + place);
      for (int64_t at = (count + 63) / 64 * 64; at < stop - begin; at += 64) memset(to + at / 64 * t.height * 64, 0, 64);
    }
  }
}

#if defined(__AVX512F__)
constexpr int kBlockRows = 6, kBlockPanels = 2, kLone = 4;
#elif defined(__AVXVNNI__)
constexpr int kBlockRows = 6, kBlockPanels = 1, kLone = 2;
#elif defined(__AVX2__)
constexpr int kBlockRows = 4, kBlockPanels = 1, kLone = 2;
#else
constexpr int kBlockRows = 2, kBlockPanels = 1, kLone = 1;
#endif

template <bool four>
struct IntBody {
  static constexpr int kRows = kBlockRows, kPanels = kBlockPanels, kLonePanels = kLone;
  static constexpr int64_t kStep = (four ? 2048 : 1024) / kBlockPanels;
  static int64_t granularity(const Tiles& t) { return t.group; }

  QVL_INLINE F16 scale(const LinearWeight& w, int64_t panel) {
    if (w.group) return broadcast16(1.0f);
    return load16(static_cast<const float*>(w.scales) + panel * kPanel);
  }

  template <int rows, int panels>
  QVL_INLINE void dots(const int8_t* x, const uint8_t* w, int64_t panel_bytes, I16 (&acc)[rows][panels]) {
    if constexpr (four) {
      for (int s = 0; s < 4; ++s) {
        W4 weights[panels];
        for (int i = 0; i < panels; ++i) weights[i] = load_w4(w + i * panel_bytes + 64 * s);
        for (int r = 0; r < rows; ++r) {
          for (int i = 0; i < panels; ++i) acc[r][i] = dot4(acc[r][i], weights[i], x + 64 * r + 8 * s);
        }
      }
    } else {
      for (int s = 0; s < 8; ++s) {
        W8 weights[panels];
        for (int i = 0; i < panels; ++i) weights[i] = load_w8(w + i * panel_bytes + 64 * s);
        for (int r = 0; r < rows; ++r) {
          for (int i = 0; i < panels; ++i) acc[r][i] = dot8(acc[r][i], weights[i], x + 64 * r + 4 * s);
        }
      }
    }
  }

  template <int rows, int panels>
  QVL_INLINE void add(const Tiles& t, int64_t tile, int64_t row, const LinearWeight& weight, int64_t panel,
                      int64_t first, int64_t last, F16 (&sums)[rows][panels]) {
    constexpr int64_t input_bytes = four ? 8 : 16;  // of one input in a panel
    const int64_t panel_bytes = t.k_padded * input_bytes;
    const uint8_t* w = static_cast<const uint8_t*>(weight.data) + panel * panel_bytes;
    const int8_t* x = reinterpret_cast<const int8_t*>(t.data + tile * t.tile_bytes) + 64 * row;
    for (int64_t begin = first; begin < last; begin += t.group) {
      const int64_t g = begin / t.group, end = begin + t.group < last ? begin + t.group : last;
      I16 acc[rows][panels];
      for (int r = 0; r < rows; ++r) {
        for (int i = 0; i < panels; ++i) acc[r][i] = izero16();
      }
      for (int64_t k = begin; k < end; k += 32) {
        dots<rows, panels>(x + (k >> 6) * t.height * 64 + (k & 63), w + k * input_bytes, panel_bytes, acc);
      }
      const float* x_scales = t.scales + (tile * t.groups + g) * t.height + row;
      const float* x_sums = t.sums + (tile * t.groups + g) * t.height + row;
      for (int i = 0; i < panels; ++i) {
        const int64_t place = ((panel + i) * t.groups + g) * kPanel;
        F16 zero = broadcast16(four ? 8.0f : kOffset8), w_scale;
        if (four && weight.zeros) zero = load_byte16(weight.zeros + place);
        if (weight.group) w_scale = load_half16(static_cast<const uint16_t*>(weight.scales) + place);
        for (int r = 0; r < rows; ++r) {
          F16 value = to_float16(acc[r][i]);
          if (four || kOffset8 != 0.0f) value = minus_product16(zero, broadcast16(x_sums[r]), value);
          const F16 scale = broadcast16(x_scales[r]);
          sums[r][i] = fma16(value, weight.group ? mul16(scale, w_scale) : scale, sums[r][i]);
        }
      }
    }
  }
};

static void run(const LinearParams& p, const Tiles& t, const Panels& q, int64_t first, int64_t last) {
  if (q.weight->dtype == DType::int4) {
    run_body<IntBody<true>>(p, t, q, first, last);
  } else {
    run_body<IntBody<false>>(p, t, q, first, last);
  }
}

extern const LinearKernels linear_int;
const LinearKernels linear_int{1, 4, 16, prepare, run, nullptr};

}  // namespace QVL_LEVEL
}  // namespace qvl

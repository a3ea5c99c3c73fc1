// levels: portable avx2 avx512
// Quantise matrices and lay them out in panels of 16 outputs. src/qvl/ops/packing.py does the same in NumPy.
#include "linear_kernels.h"
#include "qvl/threads.h"
#include "simd.h"

namespace qvl {
namespace QVL_LEVEL {

// 16 rows as float32 [16][k_padded], zero where there is nothing.
static void gather(const PackParams& p, int64_t panel, float* rows) {
  const LinearWeight& w = *p.weight;
  memset(rows, 0, static_cast<size_t>(kPanel * w.k_padded) * sizeof(float));
  const int64_t count = w.n - panel * kPanel < kPanel ? w.n - panel * kPanel : kPanel;
  const float* floats = static_cast<const float*>(p.source);
  const bf16* halves = static_cast<const bf16*>(p.source);
  const bool is_float = p.source_dtype == DType::float32;
  constexpr int64_t strip = 256;  // inputs at a time, so that neither side of a transposition leaves the cache
  for (int64_t begin = 0; begin < w.k; begin += strip) {
    const int64_t end = begin + strip < w.k ? begin + strip : w.k;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t start = (panel * kPanel + i) * p.n_stride;
      float* to = rows + i * w.k_padded;
      if (is_float) {
        for (int64_t k = begin; k < end; ++k) to[k] = floats[start + k * p.k_stride];
      } else {
        for (int64_t k = begin; k < end; ++k) to[k] = widen(halves[start + k * p.k_stride]);
      }
    }
  }
}

static bool finite(const float* x, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    memcpy(&bits, x + i, 4);
    bits &= 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  return largest < 0x7f800000u;
}

// To the nearest integer, ties to even, for numbers below 2**22.
QVL_INLINE vf nearest(vf x) {
  const vf magic = broadcast(12582912.0f);
  return sub(add(x, magic), magic);
}

QVL_INLINE vf coded(vf x, vf inverse, vf zero_point, vf low, vf high) {
  return min(max(add(nearest(mul(x, inverse)), zero_point), low), high);
}

static void write_codes(const float* x, int64_t count, float inverse, float zero, float low, float high, float* codes) {
  for (int64_t i = 0; i < count; i += kLanes) {
    store(codes + i, coded(load(x + i), broadcast(inverse), broadcast(zero), broadcast(low), broadcast(high)));
  }
}

static float magnitude(const float* x, int64_t count) {
  vf top = zero();
  for (int64_t i = 0; i < count; i += kLanes) top = max(top, abs(load(x + i)));
  return largest(top);
}

// The scale of a symmetric group, codes -8 to 7: of some ways to place the largest value, the one whose codes,
// with the scale that fits them best, leave the smallest squared error.
static float symmetric_scale(const float* x, int64_t count) {
  const float top = magnitude(x, count);
  if (top < 1e-30f) return 0.0f;
  float largest_value = top;
  for (int64_t i = 0; i < count; ++i) {
    if (x[i] == -top) largest_value = -top;
  }
  float best_scale = -largest_value / 8.0f, best = -1.0f;
  for (int step = -4; step <= 4; ++step) {
    const vf inverse = broadcast(-(8.0f + 0.25f * static_cast<float>(step)) / largest_value);
    vf products = zero(), squares = zero();
    for (int64_t i = 0; i < count; i += kLanes) {
      const vf v = load(x + i), q = coded(v, inverse, zero(), broadcast(-8.0f), broadcast(7.0f));
      products = fma(q, v, products);
      squares = fma(q, q, squares);
    }
    const float product = sum(products), square = sum(squares);
    if (square > 0.0f && product * product > best * square) {
      best = product * product / square;
      best_scale = product / square;
    }
  }
  return best_scale;
}

// The scale and zero point of an asymmetric group, codes 0 to 15: of some ranges, the one with the smallest error.
static float asymmetric_scale(const float* x, int64_t count, float* zero_point) {
  vf lows = zero(), highs = zero();
  for (int64_t i = 0; i < count; i += kLanes) {
    lows = min(lows, load(x + i));
    highs = max(highs, load(x + i));
  }
  const float low = -largest(sub(zero(), lows)), high = largest(highs);
  *zero_point = 8.0f;
  if (high - low < 1e-30f) return 0.0f;
  float best_scale = 0.0f, best = -1.0f;
  for (int step = 0; step < 6; ++step) {
    const float share = 1.0f - 0.05f * static_cast<float>(step);
    const float scale = half_to_float(float_to_half(share * (high - low) / 15.0f));
    if (scale == 0.0f) continue;
    const float inverse = 1.0f / scale;
    float zero_here = __builtin_rintf(-share * low * inverse);
    zero_here = zero_here < 0.0f ? 0.0f : zero_here > 15.0f ? 15.0f : zero_here;
    vf errors = zero();
    for (int64_t i = 0; i < count; i += kLanes) {
      const vf v = load(x + i), z = broadcast(zero_here);
      const vf q = coded(v, broadcast(inverse), z, zero(), broadcast(15.0f));
      const vf error = sub(v, mul(sub(q, z), broadcast(scale)));
      errors = fma(error, error, errors);
    }
    const float error = sum(errors);
    if (best < 0.0f || error < best) {
      best = error;
      best_scale = scale;
      *zero_point = zero_here;
    }
  }
  return best_scale;
}

static void pack_bf16(const LinearWeight& w, int64_t panel, const float* rows) {
  bf16* data = static_cast<bf16*>(const_cast<void*>(w.data)) + panel * w.k_padded * kPanel;
  for (int64_t k = 0; k < w.k_padded; k += 2) {
    for (int64_t i = 0; i < kPanel; ++i) {
      data[k * kPanel + 2 * i] = narrow(rows[i * w.k_padded + k]);
      data[k * kPanel + 2 * i + 1] = narrow(rows[i * w.k_padded + k + 1]);
    }
  }
}

// Codes of one output, in place of its numbers, and their scales.
static void quantise_row(const PackParams& p, int64_t panel, int64_t lane, float* row) {
  const LinearWeight& w = *p.weight;
  const int64_t group = w.group ? w.group : w.k_padded, groups = w.k_padded / group;
  for (int64_t g = 0; g < groups; ++g) {
    float* x = row + g * group;
    const int64_t place = (panel * groups + g) * kPanel + lane;
    float zero_point = 8.0f, scale;
    if (!finite(x, group)) {
      scale = __builtin_nanf("");
    } else if (w.dtype == DType::int8) {
      scale = magnitude(x, group) / 127.0f;
    } else {
      scale = w.zeros ? asymmetric_scale(x, group, &zero_point) : symmetric_scale(x, group);
    }
    if (w.group) {
      const uint16_t half = float_to_half(scale);
      static_cast<uint16_t*>(const_cast<void*>(w.scales))[place] = half;
      scale = half_to_float(half);
    } else {
      static_cast<float*>(const_cast<void*>(w.scales))[place] = scale;
    }
    if (w.zeros) const_cast<uint8_t*>(w.zeros)[place] = static_cast<uint8_t>(zero_point);
    const bool usable = scale == scale && (scale > 1e-30f || scale < -1e-30f);
    if (w.dtype == DType::int8) {
      if (usable) write_codes(x, group, 1.0f / scale, 0.0f, -127.0f, 127.0f, x);
      if (!usable) memset(x, 0, static_cast<size_t>(group) * sizeof(float));
    } else if (usable) {
      write_codes(x, group, 1.0f / scale, zero_point, 0.0f, 15.0f, x);
    } else {
      for (int64_t i = 0; i < group; ++i) x[i] = zero_point;
    }
  }
}

static void write_int8(const LinearWeight& w, int64_t panel, const float* rows) {
  int8_t* data = static_cast<int8_t*>(const_cast<void*>(w.data)) + panel * w.k_padded * kPanel;
  for (int64_t k = 0; k < w.k_padded; k += 4) {
    for (int64_t i = 0; i < kPanel; ++i) {
      for (int64_t j = 0; j < 4; ++j) *data++ = static_cast<int8_t>(rows[i * w.k_padded + k + j]);
    }
  }
}

static void write_int4(const LinearWeight& w, int64_t panel, const float* rows) {
  uint8_t* data = static_cast<uint8_t*>(const_cast<void*>(w.data)) + panel * w.k_padded * kPanel / 2;
  for (int64_t k = 0; k < w.k_padded; k += 8) {
    for (int64_t i = 0; i < kPanel; ++i) {
      const float* codes = rows + i * w.k_padded + k;
      for (int64_t j = 0; j < 4; ++j) {
        *data++ = static_cast<uint8_t>(static_cast<int>(codes[j]) | static_cast<int>(codes[j + 4]) << 4);
      }
    }
  }
}

static void pack_panels(const PackParams& p, int64_t begin, int64_t end) {
  const LinearWeight& w = *p.weight;
  float* rows = scratch_of<float>(8, kPanel * w.k_padded);
  for (int64_t panel = begin; panel < end; ++panel) {
    gather(p, panel, rows);
    if (w.dtype == DType::bfloat16) {
      pack_bf16(w, panel, rows);
      continue;
    }
    for (int64_t i = 0; i < kPanel; ++i) quantise_row(p, panel, i, rows + i * w.k_padded);
    if (w.dtype == DType::int8) {
      write_int8(w, panel, rows);
    } else {
      write_int4(w, panel, rows);
    }
  }
}

extern const PackKernels pack_kernels;
const PackKernels pack_kernels{pack_panels};

}  // namespace QVL_LEVEL
}  // namespace qvl

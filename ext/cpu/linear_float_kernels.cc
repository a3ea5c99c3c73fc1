// levels: portable avx2 avx512 avx512bf16
// Linear layers with bfloat16 weights, and float32 matrices as they are for few rows. Weights are widened on the way
// into the registers and multiplied in float32; `linear_bf16` multiplies in bfloat16, where the CPU can.
#include "linear_rounded.h"

namespace qvl {
namespace QVL_LEVEL {

static void prepare_float(const LinearParams& p, const Tiles& t, int64_t tile) {
  const int64_t k = p.weights[0].k;
  float* data = reinterpret_cast<float*>(t.data + tile * t.tile_bytes);
  for (int64_t r = 0; r < t.height && tile * t.height + r < t.rows; ++r) {
    const float* x = p.x + (tile * t.height + r) * p.x_stride;
    for (int64_t begin = 0; begin < t.k_padded; begin += 16) {
      float* to = data + (begin / 16 * t.height + r) * 16;
      const int64_t n = k - begin < 16 ? (k > begin ? k - begin : 0) : 16;
      if (n == 16) {
        store16(to, load16(x + begin));
      } else {
        for (int64_t i = 0; i < 16; ++i) to[i] = i < n ? x[begin + i] : 0.0f;
      }
    }
  }
}

#if defined(__AVX512F__)
constexpr int kBlockRows = 8, kBlockPanels = 2, kLone = 4;
#elif defined(__AVX2__)
constexpr int kBlockRows = 4, kBlockPanels = 1, kLone = 2;
#else
constexpr int kBlockRows = 2, kBlockPanels = 1, kLone = 1;
#endif

struct FloatBody {
  static constexpr int kRows = kBlockRows, kPanels = kBlockPanels, kLonePanels = kLone;
  static constexpr int64_t kStep = 512 / kBlockPanels;
  static int64_t granularity(const Tiles&) { return 32; }
  QVL_INLINE F16 scale(const LinearWeight&, int64_t) { return broadcast16(1.0f); }

  template <int rows, int panels>
  QVL_INLINE void add(const Tiles& t, int64_t tile, int64_t row, const LinearWeight& weight, int64_t panel,
                      int64_t first, int64_t last, F16 (&sums)[rows][panels]) {
    const int64_t panel_size = t.k_padded * kPanel;
    const bf16* w = static_cast<const bf16*>(weight.data) + panel * panel_size;
    const float* x = reinterpret_cast<const float*>(t.data + tile * t.tile_bytes) + 16 * row;
    for (int64_t k = first; k < last; k += 16) {
      const float* chunk = x + k * t.height;
      for (int s = 0; s < 16; s += 2) {
        F16 even[panels], odd[panels];
        for (int i = 0; i < panels; ++i) load_pairs16(w + i * panel_size + (k + s) * kPanel, even[i], odd[i]);
        for (int r = 0; r < rows; ++r) {
          const F16 a = broadcast16(chunk[16 * r + s]), b = broadcast16(chunk[16 * r + s + 1]);
          for (int i = 0; i < panels; ++i) sums[r][i] = fma16(odd[i], b, fma16(even[i], a, sums[r][i]));
        }
      }
    }
  }
};

extern const LinearKernels linear_float;
const LinearKernels linear_float{4, 4, 16, prepare_float, run_body<FloatBody>, nullptr};

#if defined(__AVX512BF16__)

struct Bf16Body {
  static constexpr int kRows = 8, kPanels = 2, kLonePanels = 4;
  static constexpr int64_t kStep = 256;
  static int64_t granularity(const Tiles&) { return 32; }
  QVL_INLINE F16 scale(const LinearWeight&, int64_t) { return broadcast16(1.0f); }

  template <int rows, int panels>
  QVL_INLINE void add(const Tiles& t, int64_t tile, int64_t row, const LinearWeight& weight, int64_t panel,
                      int64_t first, int64_t last, F16 (&sums)[rows][panels]) {
    const int64_t panel_size = t.k_padded * kPanel;
    const bf16* w = static_cast<const bf16*>(weight.data) + panel * panel_size;
    const int8_t* x = reinterpret_cast<const int8_t*>(t.data + tile * t.tile_bytes) + 64 * row;
    for (int64_t k = first; k < last; k += 32) {
      const int8_t* chunk = x + k * 2 * t.height;
      for (int s = 0; s < 16; ++s) {
        __m512i pairs[panels];
        for (int i = 0; i < panels; ++i) pairs[i] = _mm512_loadu_si512(w + i * panel_size + (k + 2 * s) * kPanel);
        for (int r = 0; r < rows; ++r) {
          const __m512i a = four(chunk + 64 * r + 4 * s);
          for (int i = 0; i < panels; ++i) {
            sums[r][i].v = _mm512_dpbf16_ps(sums[r][i].v, (__m512bh)pairs[i], (__m512bh)a);
          }
        }
      }
    }
  }
};

extern const LinearKernels linear_bf16;
const LinearKernels linear_bf16{2, 4, 16, prepare_bf16, run_body<Bf16Body>, nullptr};

#endif

// --- float32 matrices as they are ---------------------------------------------------------------------------------

// Eight rows of [k, n] at a time are read in step, each from start to end, and added to the outputs in the cache.
static void in_major(const DenseParams& p, int64_t begin, int64_t end) {
  for (int64_t m = 0; m < p.rows; ++m) {
    float* out = p.out + m * p.out_stride;
    const float* residual = p.residual ? p.residual + m * p.out_stride : nullptr;
    for (int64_t i = begin; i < end; ++i) out[i] = (p.bias ? p.bias[i] : 0.0f) + (residual ? residual[i] : 0.0f);
  }
  constexpr int together = 8;
  for (int64_t k = 0; k < p.k; k += together) {
    const int64_t left = p.k - k < together ? p.k - k : together;
    for (int64_t m = 0; m < p.rows; ++m) {
      const float* x = p.x + m * p.x_stride + k;
      float* out = p.out + m * p.out_stride;
      const float* w = p.w + k * p.n;
      int64_t i = begin;
      if (left == together) {
        vf factors[together];
        for (int j = 0; j < together; ++j) factors[j] = broadcast(x[j]);
        for (; i + kLanes <= end; i += kLanes) {
          vf sum = load(out + i);
          for (int j = 0; j < together; ++j) sum = fma(load(w + j * p.n + i), factors[j], sum);
          store(out + i, sum);
        }
      }
      for (; i < end; ++i) {
        float sum = out[i];
        for (int64_t j = 0; j < left; ++j) sum += x[j] * w[j * p.n + i];
        out[i] = sum;
      }
    }
  }
}

// Rows of [n, k], four at a time: as many streams from memory, and x is read once for all.
template <int together>
static void dots(const DenseParams& p, int64_t first) {
  const float* w = p.w + first * p.k;
  for (int64_t m = 0; m < p.rows; ++m) {
    const float* x = p.x + m * p.x_stride;
    vf sums[together][2];
    for (int i = 0; i < together; ++i) sums[i][0] = sums[i][1] = zero();
    int64_t k = 0;
    for (; k + 2 * kLanes <= p.k; k += 2 * kLanes) {
      const vf a = load(x + k), b = load(x + k + kLanes);
      for (int i = 0; i < together; ++i) {
        sums[i][0] = fma(load(w + i * p.k + k), a, sums[i][0]);
        sums[i][1] = fma(load(w + i * p.k + k + kLanes), b, sums[i][1]);
      }
    }
    for (int i = 0; i < together; ++i) {
      float total = sum(add(sums[i][0], sums[i][1]));
      for (int64_t j = k; j < p.k; ++j) total += w[i * p.k + j] * x[j];
      if (p.bias) total += p.bias[first + i];
      if (p.residual) total += p.residual[m * p.out_stride + first + i];
      p.out[m * p.out_stride + first + i] = total;
    }
  }
}

static void out_major(const DenseParams& p, int64_t begin, int64_t end) {
  int64_t i = begin;
  for (; i + 4 <= end; i += 4) dots<4>(p, i);
  for (; i < end; ++i) dots<1>(p, i);
}

extern const DenseKernels linear_dense_kernels;
const DenseKernels linear_dense_kernels{in_major, out_major};

}  // namespace QVL_LEVEL
}  // namespace qvl

// Weights as the tile unit takes them: panels of 16 outputs as [inputs / 2][16][2] bfloat16 numbers. int8 and int4 ones are
// widened on the way.
#pragma once

#include "linear_rounded.h"
#include "pairs.h"

namespace qvl {
namespace QVL_LEVEL {

// The bytes of bfloat16(0) to bfloat16(127), all of them exact.
struct Magnitudes {
  alignas(64) uint8_t low[128], high[128];
  Magnitudes() {
    for (int i = 0; i < 128; ++i) {
      const float value = static_cast<float>(i);
      uint32_t bits;
      memcpy(&bits, &value, 4);
      low[i] = static_cast<uint8_t>(bits >> 16);
      high[i] = static_cast<uint8_t>(bits >> 24);
    }
  }
};

// int8 weights as they are, one scale an output. Looked up by magnitude: four shuffles for 64 weights, where converting
// by way of float32 takes five times the time.
static void widen_bytes(const int8_t* from, int64_t count, uint16_t* to) {
  static const Magnitudes table;
  const __m512i low0 = _mm512_load_si512(table.low), low1 = _mm512_load_si512(table.low + 64);
  const __m512i high0 = _mm512_load_si512(table.high), high1 = _mm512_load_si512(table.high + 64);
  const __m512i sign = _mm512_set1_epi8(-128), of_128 = _mm512_set1_epi8(0x43);
  // Bytes 4 i and 4 i + 1 of the low bytes, each followed by its high byte, for output i; 4 i + 2 and 4 i + 3.
  const __m512i step = _mm512_set_epi32(60, 56, 52, 48, 44, 40, 36, 32, 28, 24, 20, 16, 12, 8, 4, 0);
  const __m512i every = _mm512_mullo_epi32(step, _mm512_set1_epi32(0x01010101));
  const __m512i first = _mm512_add_epi32(every, _mm512_set1_epi32(0x41014000));
  const __m512i second = _mm512_add_epi32(every, _mm512_set1_epi32(0x43034202));
  for (int64_t i = 0; i < count; i += 64, to += 64) {
    const __m512i q = _mm512_loadu_si512(from + i), magnitude = _mm512_abs_epi8(q);
    const __m512i low = _mm512_permutex2var_epi8(low0, magnitude, low1);
    __m512i high = _mm512_permutex2var_epi8(high0, magnitude, high1);
    // -128, which our own packing does not make, has the low byte of 0.
    high = _mm512_mask_mov_epi8(high, _mm512_movepi8_mask(magnitude), of_128);
    high = _mm512_ternarylogic_epi32(high, q, sign, 0xf8);  // high | (q & sign)
    _mm512_storeu_si512(to, _mm512_permutex2var_epi8(low, first, high));
    _mm512_storeu_si512(to + 32, _mm512_permutex2var_epi8(low, second, high));
  }
}

// A group of int4 weights. The numbers 0 to 15 come from a table whose index is the low four bits of a lane.
static void widen_nibbles(const uint8_t* from, int64_t count, __m512 scale, __m512 minus_zero, uint16_t* to) {
  const __m512 numbers = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const auto number = [&](__m512i codes) {
    return _mm512_fmadd_ps(_mm512_permutexvar_ps(codes, numbers), scale, minus_zero);
  };
  for (int64_t i = 0; i < count; i += 8, to += 128) {
    const __m512i both = _mm512_loadu_si512(from + i * 8);
    store_pairs(number(both), number(_mm512_srli_epi32(both, 8)), to);
    store_pairs(number(_mm512_srli_epi32(both, 16)), number(_mm512_srli_epi32(both, 24)), to + 32);
    store_pairs(number(_mm512_srli_epi32(both, 4)), number(_mm512_srli_epi32(both, 12)), to + 64);
    store_pairs(number(_mm512_srli_epi32(both, 20)), number(_mm512_srli_epi32(both, 28)), to + 96);
  }
}

// A group of int8 weights with a scale of its own.
static void widen_scaled(const uint8_t* from, int64_t count, __m512 scale, __m512 minus_zero, uint16_t* to) {
  for (int64_t i = 0; i < count; i += 4, to += 64) {
    const __m512i bytes = _mm512_loadu_si512(from + i * 16);
    __m512 inputs[4];
    for (int j = 0; j < 4; ++j) {
      const __m512i whole = _mm512_srai_epi32(_mm512_slli_epi32(bytes, 24 - 8 * j), 24);
      inputs[j] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), scale, minus_zero);
    }
    store_pairs(inputs[0], inputs[1], to);
    store_pairs(inputs[2], inputs[3], to + 32);
  }
}

// Inputs [first, last) of a panel of int8 or int4 weights, first at the start of a group. int8 weights with one scale an
// output are left without it.
static void widen_panel(const LinearWeight& w, int64_t panel, int64_t first, int64_t last, uint16_t* to) {
  const bool four_bits = w.dtype == DType::int4;
  const int64_t input_bytes = four_bits ? 8 : 16;
  const uint8_t* data = static_cast<const uint8_t*>(w.data) + panel * w.k_padded * input_bytes;
  if (!w.group) return widen_bytes(reinterpret_cast<const int8_t*>(data) + first * 16, (last - first) * 16, to);
  for (int64_t k = first; k < last; k += w.group, to += w.group * 16) {
    const int64_t place = (panel * (w.k_padded / w.group) + k / w.group) * kPanel;
    const __m512 scale = load_half16(static_cast<const uint16_t*>(w.scales) + place).v;
    const __m512 zero = w.zeros ? load_byte16(w.zeros + place).v : _mm512_set1_ps(four_bits ? 8.0f : 0.0f);
    const __m512 minus_zero = _mm512_fnmadd_ps(zero, scale, _mm512_setzero_ps());
    (four_bits ? widen_nibbles : widen_scaled)(data + k * input_bytes, w.group, scale, minus_zero, to);
  }
}

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
  void some(int64_t count) {
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

}  // namespace QVL_LEVEL
}  // namespace qvl

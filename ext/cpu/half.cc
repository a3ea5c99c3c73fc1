// float16 in plain arithmetic, for the few numbers that are not read by the vector.
#include <string.h>

#include "qvl/common.h"

namespace qvl {

float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, rest = h & 0x7fff;
  uint32_t bits;
  if (rest < 0x400) {  // zero or subnormal: a multiple of 2**-24
    const float value = static_cast<float>(rest) * 5.9604644775390625e-8f;
    memcpy(&bits, &value, 4);
  } else {
    bits = rest < 0x7c00 ? (rest << 13) + 0x38000000u : (rest << 13) | 0x7f800000u;
  }
  bits |= sign;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

uint16_t float_to_half(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00);
  if (bits >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to more than 65504
  if (bits < 0x38800000u) {  // subnormal or zero: adding 0.5 leaves multiples of 2**-24 in the low bits
    float magnitude;
    memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    memcpy(&bits, &magnitude, 4);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000u));
  }
  return static_cast<uint16_t>(sign | ((bits - 0x38000000u + 0xfffu + (bits >> 13 & 1)) >> 13));
}

}  // namespace qvl

// What every op shares: element types, levels of CPU features, the outcome of a launch.
//
// Conventions. An op has one parameter struct and one launch function, `Status name(const NameParams&)`. Structs hold
// plain pointers, sizes as int64_t and strides in elements; the caller owns all memory and has checked all sizes.
// A launch function picks the body for the CPU's level, spreads the work over the pool of threads.h and returns when
// it is done. Bodies live in files compiled once for each level, in `namespace qvl::QVL_LEVEL`; see isa.h.
#pragma once

#include <stdint.h>

namespace qvl {

enum class DType : int32_t { float32 = 0, bfloat16 = 1, float16 = 2, int8 = 3, int4 = 4 };

enum class Status : int32_t {
  ok = 0,
  unsupported = 1,  // this combination has no body
  no_memory = 2,    // scratch memory could not be had
  failed = 3,       // the device refused a launch; ops on a GPU only
};

// Half-open bits of a bfloat16, as a number of its own so that pointers to it are not taken for integers.
struct bf16 {
  uint16_t bits;
};

float half_to_float(uint16_t bits);
// Rounded to the nearest, ties to even.
uint16_t float_to_half(float value);

}  // namespace qvl

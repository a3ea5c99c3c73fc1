// Finding the bodies of an op that has them at the three levels of plain float32 arithmetic.
#pragma once

#include "qvl/isa.h"

// QVL_THREE_LEVELS(AttentionKernels, attention_kernels) declares those of portable, avx2 and avx512, and a function
// `const AttentionKernels& chosen_attention_kernels()` that gives the ones for the level in use.
#define QVL_THREE_LEVELS(Table, name)                                  \
  namespace portable {                                                 \
  extern const Table name;                                             \
  }                                                                    \
  QVL_IF_AVX2(namespace avx2 { extern const Table name; })             \
  QVL_IF_AVX512(namespace avx512 { extern const Table name; })         \
  static const Table& chosen_##name() {                                \
    static const Choice<Table> choices[] = {                           \
        {Isa::portable, &portable::name},                              \
        QVL_IF_AVX2({Isa::avx2, &avx2::name}, )                        \
        QVL_IF_AVX512({Isa::avx512, &avx512::name}, )                  \
    };                                                                 \
    return choose(choices);                                            \
  }

// Levels of CPU features. Each file with kernels is compiled once for every level named in its first line,
//   // levels: portable avx2 avx512 amx
// with QVL_LEVEL set to the name, so one library runs everywhere and uses what is there.
//
// Such a file includes only C headers, intrinsics and headers of ours, and keeps every function in
// `namespace qvl::QVL_LEVEL` or static: an inline function of the standard library compiled for AVX-512 could be the
// one copy the linker keeps for all.
#pragma once

#include <stdint.h>

namespace qvl {

// In rising order. avxvnni is AVX2 with the 256-bit dot products of Alder Lake and later.
enum class Isa : int32_t { portable = 0, avx2, avxvnni, avx512, avx512vnni, avx512bf16, amx };
constexpr int32_t kLevels = 7;

const char* isa_name(Isa level);
// Whether this CPU (and the operating system, for AMX) has a level.
bool isa_supported(Isa level);
// The level in use: the highest that is supported, unless `set_isa` asked for another.
Isa isa();
// False, with nothing changed, when the CPU does not have the level. For tests and measurements.
bool set_isa(Isa level);

// One body of an op and the level it needs.
template <class Table>
struct Choice {
  Isa level;
  const Table* table;
};

// The best body at or below the level in use; the first, for `portable`, always fits.
template <class Table, int n>
const Table& choose(const Choice<Table> (&choices)[n]) {
  const Table* best = choices[0].table;
  const Isa now = isa();
  for (const auto& choice : choices) {
    if (choice.level <= now && isa_supported(choice.level)) best = choice.table;
  }
  return *best;
}

}  // namespace qvl

// QVL_IF_AVX512(text) is the text where the build has that level, and nothing where it has not (ARM, old compilers).
#ifdef QVL_HAS_AVX2
#define QVL_IF_AVX2(...) __VA_ARGS__
#else
#define QVL_IF_AVX2(...)
#endif
#ifdef QVL_HAS_AVXVNNI
#define QVL_IF_AVXVNNI(...) __VA_ARGS__
#else
#define QVL_IF_AVXVNNI(...)
#endif
#ifdef QVL_HAS_AVX512
#define QVL_IF_AVX512(...) __VA_ARGS__
#else
#define QVL_IF_AVX512(...)
#endif
#ifdef QVL_HAS_AVX512VNNI
#define QVL_IF_AVX512VNNI(...) __VA_ARGS__
#else
#define QVL_IF_AVX512VNNI(...)
#endif
#ifdef QVL_HAS_AVX512BF16
#define QVL_IF_AVX512BF16(...) __VA_ARGS__
#else
#define QVL_IF_AVX512BF16(...)
#endif
#ifdef QVL_HAS_AMX
#define QVL_IF_AMX(...) __VA_ARGS__
#else
#define QVL_IF_AMX(...)
#endif

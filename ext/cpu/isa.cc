// Which level of features this CPU has, and which one is in use.
#include "qvl/isa.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace qvl {
namespace {

#if defined(__x86_64__)
constexpr uint64_t kYmm = 0x6, kZmm = 0xe6, kTiles = 0x60000;

uint64_t enabled_state() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

// Linux hands out the tile registers on request only, once for a process.
bool tiles_permitted() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

uint32_t detect() {
  uint32_t found = 1u << static_cast<int>(Isa::portable);
  const auto add = [&](Isa level) { found |= 1u << static_cast<int>(level); };
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
  const bool osxsave = c >> 27 & 1, fma = c >> 12 & 1, f16c = c >> 29 & 1;
  const uint64_t state = osxsave ? enabled_state() : 0;
  uint32_t b7 = 0, c7 = 0, d7 = 0, a71 = 0;
  if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return found;
  const uint32_t leaves = a;
  if (leaves >= 1) __get_cpuid_count(7, 1, &a71, &b, &c, &d);
  if (!((state & kYmm) == kYmm && fma && f16c && (b7 >> 5 & 1))) return found;
  add(Isa::avx2);
  if (a71 >> 4 & 1) add(Isa::avxvnni);
  const bool avx512 = (b7 >> 16 & 1) && (b7 >> 30 & 1) && (b7 >> 31 & 1) && (b7 >> 17 & 1) && (b7 >> 28 & 1);
  if (!avx512 || (state & kZmm) != kZmm) return found;
  add(Isa::avx512);
  if (!(c7 >> 11 & 1)) return found;
  add(Isa::avx512vnni);
  if (!(a71 >> 5 & 1)) return found;
  add(Isa::avx512bf16);
  // Every CPU with tiles has VBMI, which makes numbers for them from bytes.
  const bool amx = (c7 >> 1 & 1) && (d7 >> 24 & 1) && (d7 >> 25 & 1) && (d7 >> 22 & 1);
  if (amx && (state & kTiles) == kTiles && tiles_permitted()) add(Isa::amx);
  return found;
}
#else
uint32_t detect() { return 1; }
#endif

// What the build left out counts as not there.
uint32_t built() {
  uint32_t levels = 1;
  QVL_IF_AVX2(levels |= 1u << static_cast<int>(Isa::avx2);)
  QVL_IF_AVXVNNI(levels |= 1u << static_cast<int>(Isa::avxvnni);)
  QVL_IF_AVX512(levels |= 1u << static_cast<int>(Isa::avx512);)
  QVL_IF_AVX512VNNI(levels |= 1u << static_cast<int>(Isa::avx512vnni);)
  QVL_IF_AVX512BF16(levels |= 1u << static_cast<int>(Isa::avx512bf16);)
  QVL_IF_AMX(levels |= 1u << static_cast<int>(Isa::amx);)
  return levels;
}

uint32_t supported() {
  static const uint32_t levels = detect() & built();
  return levels;
}

Isa highest() {
  Isa best = Isa::portable;
  for (int32_t i = 0; i < kLevels; ++i) {
    if (supported() >> i & 1) best = static_cast<Isa>(i);
  }
  return best;
}

std::atomic<int32_t> chosen{-1};

}  // namespace

const char* isa_name(Isa level) {
  static const char* const names[kLevels] = {"portable",   "avx2",       "avxvnni", "avx512",
                                             "avx512vnni", "avx512bf16", "amx"};
  return names[static_cast<int32_t>(level)];
}

bool isa_supported(Isa level) { return supported() >> static_cast<int32_t>(level) & 1; }

Isa isa() {
  int32_t level = chosen.load(std::memory_order_relaxed);
  if (level < 0) {
    level = static_cast<int32_t>(highest());
    chosen.store(level, std::memory_order_relaxed);
  }
  return static_cast<Isa>(level);
}

bool set_isa(Isa level) {
  if (!isa_supported(level)) return false;
  chosen.store(static_cast<int32_t>(level), std::memory_order_relaxed);
  return true;
}

}  // namespace qvl

// What all bodies for the tile unit tell it: eight tiles of 16 rows of 64 bytes.
#pragma once

#include "simd.h"

namespace qvl {
namespace QVL_LEVEL {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
  TileConfig() {
    for (int i = 0; i < 8; ++i) {
      bytes[i] = 64;
      rows[i] = 16;
    }
  }
};

// The compiler is not told that loading a tile, or the shapes, reads memory: what was written before has to be there.
QVL_INLINE void written() { __asm__ volatile("" ::: "memory"); }

}  // namespace QVL_LEVEL
}  // namespace qvl

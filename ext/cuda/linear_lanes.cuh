// How a warp's lanes share the weights of the linear layer, and what they make of them for the tensor cores.
//
// 16 bytes of a panel are 4 outputs of 4 inputs (int8) or 8 (int4). Lane l, with g = l / 4 and t = l % 4, is to have rows g
// and g + 8 of A and four of the 16 inputs, the t-th. Any 16 outputs may be those rows and any 16 inputs those columns, so
// that a lane keeps what it loads, and every load of a warp is 512 bytes in whole lines:
//   two panels   g / 4 is the panel and g % 4 which four of its outputs; t is which of four neighbouring runs of inputs.
//                The first product takes two of the four outputs, a second one, of the same x, the other two.
//   one panel    for up to 4 rows: g / 4 is which half of eight runs of inputs. Both halves have to meet their own x in one
//                product: column 2 r + h of B is half h of row r. What a half makes with the other's x is not used.
// Bytes come apart quickest two apart, the first and the third in one register; so the two in the middle change places
// before that, and x can stay as it is.
#pragma once

#include "linear_job.cuh"
#include "mma.cuh"

namespace qvl::cuda {

template <class T_, bool int4, Scaling scaling, int tiles>
struct LinearKind {
  using T = T_;
  static constexpr bool kInt4 = int4, kOnePanel = tiles == 0;
  static constexpr Scaling kScaling = scaling;
  static constexpr int kTiles = kOnePanel ? 1 : tiles;      // of 8 columns of B
  static constexpr int kPanels = kOnePanel ? 1 : 2;         // of a warp
  static constexpr int kLoads = (int4 ? 1 : 2) * kPanels;   // of 16 bytes, of a unit
  static constexpr int kRuns = int4 ? 2 : 1;                // of four inputs, of a loaded word
  static constexpr int kInputs = kUnit / kLoads;            // of a load of the warp
  static constexpr int kUnitBytes = kUnit * (int4 ? 8 : 16);  // of a panel
  // Scales that a lane has of a unit. With one panel and int4 a unit is one load, and each half has its own group.
  static constexpr int kSets = scaling == Scaling::one ? 0 : scaling == Scaling::units || kLoads == 1 ? 1 : 2;
  // Units under way while one is multiplied: as many as there is room for in registers.
  static constexpr int kDepth = kLoads == 1 ? 5 : kLoads == 2 && tiles <= 1 && kSets < 2 ? 3 : 2;
  static constexpr int kWarps = resident_warps(tiles);
};

struct Lane {
  int g = lane_index() / 4, t = lane_index() % 4;
  int part = g / 4, four = g % 4;
};

// A lane's share of a unit as it comes from memory. Four scales stay as they came until they are wanted: taking them apart
// would be waiting for them.
template <class K>
struct Unit {
  uint4 words[K::kLoads];
  Pack<uint32_t, 2> scales[K::kSets > 0 ? K::kSets : 1];
  uint32_t zeros[K::kSets > 0 ? K::kSets : 1];
};

// Where it comes from.
template <class K>
struct Source {
  const uint8_t* data;
  const float16* scales;
  const uint8_t* zeros;
  int group_shift;

  __device__ Source(const LinearJob& job, const Lane& lane, int tile) {
    int panel = tile * K::kPanels + (K::kOnePanel ? 0 : lane.part);
    if (panel >= job.panels) panel = job.panels - 1;  // read twice, stored once
    const LinearSide& side = job.sides[side_of(job, panel)];
    const int64_t local = panel - side.first_panel;
    data = side.data + local * job.stored_units * K::kUnitBytes + (K::kOnePanel ? lane.part * 256 : 0) + lane.t * 64 +
           lane.four * 16;
    const int64_t group = local * job.groups + (K::kScaling == Scaling::halves && K::kLoads == 1 ? lane.part : 0);
    scales = static_cast<const float16*>(side.scales) + group * kPanel + lane.four * 4;
    zeros = side.zeros == nullptr ? nullptr : side.zeros + group * kPanel + lane.four * 4;
    group_shift = job.group_shift;
  }

  __device__ void fetch(int unit, Unit<K>& to) const {
#pragma unroll
    for (int i = 0; i < K::kLoads; ++i) {
      to.words[i] = load_once(data + static_cast<int64_t>(unit) * K::kUnitBytes + i * (512 / K::kPanels));
    }
#pragma unroll
    for (int set = 0; set < K::kSets; ++set) {
      const int64_t group = (K::kScaling == Scaling::halves ? 2 * unit + set : unit) >> group_shift;
      to.scales[set] = load<uint32_t, 2>(reinterpret_cast<const uint32_t*>(scales + group * kPanel));
      if constexpr (K::kInt4) {
        to.zeros[set] = 0x08080808u;
        if (zeros != nullptr) to.zeros[set] = *reinterpret_cast<const uint32_t*>(zeros + group * kPanel);
      }
    }
  }
};

// Adds a number of up to 7 bits to a power of two whose last place is 1: a widening of integers that takes no conversion.
template <class T>
constexpr uint32_t kMagic = std::is_same_v<T, bfloat16> ? 0x43004300u : 0x64006400u;
constexpr uint32_t kMinus = 0x80008000u;

// The low or high halves of four bytes, `minus` being what is to be added to the codes: two of -(magic + zero point).
template <class T>
__device__ inline void widen4(uint32_t word, int run, uint32_t minus, uint32_t& first, uint32_t& second) {
  first = add_two<T>(masked_or(word >> 4 * run, 0x000f000fu, kMagic<T>), minus);
  second = add_two<T>(masked_or(word >> (4 * run + 8), 0x000f000fu, kMagic<T>), minus);
}

// A, for the two products of a load: [run][product]. Rows g are outputs 0 and 2 of the lane's four, rows g + 8 are 1 and 3.
template <class K>
using Weights = uint32_t[K::kRuns][2][4];

// Those of load i.
template <class K>
__device__ inline void widen(const Unit<K>& unit, int i, Weights<K>& a) {
  using T = typename K::T;
  const uint32_t words[4] = {unit.words[i].x, unit.words[i].y, unit.words[i].z, unit.words[i].w};
#pragma unroll
  for (int o = 0; o < 4; ++o) {
    const uint32_t word = __byte_perm(words[o], 0, 0x3120);
    if constexpr (K::kInt4) {
      const uint32_t zero = __byte_perm(unit.zeros[i * K::kSets / K::kLoads], 0, 0x4040u | 0x0101u * o);
#pragma unroll
      for (int run = 0; run < K::kRuns; ++run) {
        auto& to = a[run][o / 2];
        widen4<T>(word, run, zero | kMagic<T> | kMinus, to[o % 2], to[2 + o % 2]);
      }
    } else {
      auto& to = a[0][o / 2];
      to[o % 2] = widened_codes<T>(word);
      to[2 + o % 2] = widened_codes<T>(word >> 8);
    }
  }
}

template <class K>
__device__ inline void widen_scales(const Unit<K>& unit, int set, float (&to)[4]) {
  Pack<float16, 4> scales;
  memcpy(&scales, &unit.scales[set], sizeof(scales));
  widened(scales, to);
}

// B: a lane's column is a row of x, and with one panel a half of it. Columns without a row repeat the last one, which keeps
// within x; nobody looks at what comes of it.
template <class K>
struct Inputs {
  using T = typename K::T;
  using Run = Pack<uint32_t, 2 * K::kRuns>;  // what a lane has of a load's inputs
  const T* from;
  int row, last, stride;  // the launch sees to it that all of x is within the reach of an int

  __device__ Inputs(const LinearJob& job, const Lane& lane) {
    from = static_cast<const T*>(job.x) + (K::kOnePanel ? lane.g % 2 * (K::kInputs / 2) : 0) + lane.t * 4 * K::kRuns;
    row = K::kOnePanel ? lane.g / 2 : lane.g;
    last = job.rows - 1;
    stride = static_cast<int>(job.x_stride);
  }

  // For `count` loads of a unit, from `first` on.
  template <int count>
  __device__ void read(int unit, int first, int tile, Run (&to)[count]) const {
    const int at = row + 8 * tile < last ? row + 8 * tile : last;
    const T* x = from + (at * stride + unit * kUnit);
#pragma unroll
    for (int i = 0; i < count; ++i) {
      to[i] = load<uint32_t, 2 * K::kRuns>(reinterpret_cast<const uint32_t*>(x + (first + i) * K::kInputs));
    }
  }
};

}  // namespace qvl::cuda

// Launch functions of the linear layer: which body, and how the work is cut into ranges for the threads.
#include "qvl/linear.h"

#include <string.h>

#include "linear_launch.h"
#include "qvl/isa.h"

namespace qvl {

#define QVL_TABLES(level, ...) \
  namespace level {            \
  __VA_ARGS__                  \
  }
QVL_TABLES(portable, extern const LinearKernels linear_int, linear_float; extern const DenseKernels linear_dense_kernels;
           extern const PackKernels pack_kernels;)
QVL_IF_AVX2(QVL_TABLES(avx2, extern const LinearKernels linear_int, linear_float;
                       extern const DenseKernels linear_dense_kernels; extern const PackKernels pack_kernels;))
QVL_IF_AVXVNNI(QVL_TABLES(avxvnni, extern const LinearKernels linear_int;))
QVL_IF_AVX512(QVL_TABLES(avx512, extern const LinearKernels linear_int, linear_float;
                         extern const DenseKernels linear_dense_kernels; extern const PackKernels pack_kernels;))
QVL_IF_AVX512VNNI(QVL_TABLES(avx512vnni, extern const LinearKernels linear_int;))
QVL_IF_AVX512BF16(QVL_TABLES(avx512bf16, extern const LinearKernels linear_float, linear_bf16;
                             extern const DenseKernels linear_dense_kernels;))
QVL_IF_AMX(QVL_TABLES(amx, extern const LinearKernels linear_tiles;))

namespace {

// From here on widening int8 and int4 weights for the tile unit costs less than it saves. It does from 32 on; but a change
// of arithmetic changes answers a little, and the short questions of a conversation stay below this one.
constexpr int64_t kWidenRows = 48;

const Choice<LinearKernels> int_bodies[] = {
    {Isa::portable, &portable::linear_int},
    QVL_IF_AVX2({Isa::avx2, &avx2::linear_int}, )
    QVL_IF_AVXVNNI({Isa::avxvnni, &avxvnni::linear_int}, )
    QVL_IF_AVX512({Isa::avx512, &avx512::linear_int}, )
    QVL_IF_AVX512VNNI({Isa::avx512vnni, &avx512vnni::linear_int}, )
};
const Choice<LinearKernels> int_bodies_many[] = {
    {Isa::portable, &portable::linear_int},
    QVL_IF_AVX2({Isa::avx2, &avx2::linear_int}, )
    QVL_IF_AVXVNNI({Isa::avxvnni, &avxvnni::linear_int}, )
    QVL_IF_AVX512({Isa::avx512, &avx512::linear_int}, )
    QVL_IF_AVX512VNNI({Isa::avx512vnni, &avx512vnni::linear_int}, )
    QVL_IF_AMX({Isa::amx, &amx::linear_tiles}, )
};
const Choice<LinearKernels> float_bodies[] = {
    {Isa::portable, &portable::linear_float},
    QVL_IF_AVX2({Isa::avx2, &avx2::linear_float}, )
    QVL_IF_AVX512({Isa::avx512, &avx512::linear_float}, )
};
const Choice<LinearKernels> float_bodies_many[] = {
    {Isa::portable, &portable::linear_float},
    QVL_IF_AVX2({Isa::avx2, &avx2::linear_float}, )
    QVL_IF_AVX512({Isa::avx512, &avx512::linear_float}, )
    QVL_IF_AVX512BF16({Isa::avx512bf16, &avx512bf16::linear_bf16}, )
    QVL_IF_AMX({Isa::amx, &amx::linear_tiles}, )
};
const Choice<DenseKernels> dense_bodies[] = {
    {Isa::portable, &portable::linear_dense_kernels},
    QVL_IF_AVX2({Isa::avx2, &avx2::linear_dense_kernels}, )
    QVL_IF_AVX512({Isa::avx512, &avx512::linear_dense_kernels}, )
};
const Choice<PackKernels> pack_bodies[] = {
    {Isa::portable, &portable::pack_kernels},
    QVL_IF_AVX2({Isa::avx2, &avx2::pack_kernels}, )
    QVL_IF_AVX512({Isa::avx512, &avx512::pack_kernels}, )
};

// Ranges of panels such that each thread gets several and none is too small to be worth handing out.
int64_t grain_of(int64_t panels, int64_t panel_bytes) {
  const int64_t enough = divide_up(64 * 1024, panel_bytes), fair = divide_up(panels, 4 * threads());
  const int64_t grain = enough < fair ? enough : fair;
  return divide_up(grain, 4) * 4;
}

// Calls f(panels of one weight) for the panels [begin, end), counted over all weights.
template <class F>
void for_panels(const LinearParams& p, int64_t begin, int64_t end, const F& f) {
  int64_t column = 0, first = 0;
  for (int64_t i = 0; i < p.count; ++i) {
    const int64_t count = divide_up(p.weights[i].n, kPanel);
    const int64_t from = begin > first ? begin : first, to = end < first + count ? end : first + count;
    if (from < to) f(Panels{&p.weights[i], from - first, to - from, column});
    first += count;
    column += p.weights[i].n;
  }
}

int64_t panel_bytes_of(const LinearWeight& w) {
  const int64_t values = w.k_padded * kPanel;
  return w.dtype == DType::bfloat16 ? 2 * values : w.dtype == DType::int8 ? values : values / 2;
}

// One output's weights as float32 [k]. The kind is asked once a row and the scale once a group.
void unpack_bfloat16(const LinearWeight& w, int64_t panel, int64_t lane, float* out) {
  const uint16_t* data = static_cast<const uint16_t*>(w.data) + panel * w.k_padded * kPanel + 2 * lane;
  for (int64_t k = 0; k < w.k; ++k) {
    const uint32_t bits = static_cast<uint32_t>(data[k / 2 * 32 + k % 2]) << 16;
    memcpy(out + k, &bits, 4);
  }
}

void unpack_int8(const LinearWeight& w, int64_t panel, int64_t lane, int64_t first, int64_t last, float scale,
                 float* out) {
  const int8_t* data = static_cast<const int8_t*>(w.data) + panel * w.k_padded * kPanel + 4 * lane;
  for (int64_t k = first; k < last; ++k) out[k] = static_cast<float>(data[k / 4 * 64 + k % 4]) * scale;
}

void unpack_int4(const LinearWeight& w, int64_t panel, int64_t lane, int64_t first, int64_t last, float scale, int zero,
                 float* out) {
  const uint8_t* data = static_cast<const uint8_t*>(w.data) + panel * w.k_padded * kPanel / 2 + 4 * lane;
  for (int64_t k = first; k < last; ++k) {
    const int both = data[k / 8 * 64 + k % 4], code = k % 8 < 4 ? both & 15 : both >> 4;
    out[k] = static_cast<float>(code - zero) * scale;
  }
}

void unpack_row(const LinearWeight& w, int64_t row, float* out) {
  const int64_t panel = row / kPanel, lane = row % kPanel;
  if (w.dtype == DType::bfloat16) return unpack_bfloat16(w, panel, lane, out);
  if (!w.group) {
    return unpack_int8(w, panel, lane, 0, w.k, static_cast<const float*>(w.scales)[row], out);
  }
  for (int64_t first = 0; first < w.k; first += w.group) {
    const int64_t last = first + w.group < w.k ? first + w.group : w.k;
    const int64_t place = (panel * (w.k_padded / w.group) + first / w.group) * kPanel + lane;
    const float scale = half_to_float(static_cast<const uint16_t*>(w.scales)[place]);
    if (w.dtype == DType::int8) {
      unpack_int8(w, panel, lane, first, last, scale, out);
    } else {
      unpack_int4(w, panel, lane, first, last, scale, w.zeros ? w.zeros[place] : 8, out);
    }
  }
}

}  // namespace

int64_t padded_inputs(DType dtype, int64_t k, int64_t group) {
  if (dtype == DType::bfloat16) return divide_up(k, 32) * 32;
  const int64_t unit = group > 64 ? group : 64;
  return divide_up(k, unit) * unit;
}

const LinearKernels& linear_body(DType dtype, int64_t rows) {
  if (dtype == DType::bfloat16) return rows < kManyRows ? choose(float_bodies) : choose(float_bodies_many);
  return rows < kWidenRows ? choose(int_bodies) : choose(int_bodies_many);
}

Tiles new_tiles(const LinearWeight& w, int64_t rows, const LinearKernels& body, int slot) {
  Tiles t{};
  t.rows = rows;
  t.height = rows == 1 ? 1 : 16;
  t.k_padded = w.k_padded;
  t.group = w.group ? w.group : kActivationGroup;
  t.groups = divide_up(t.k_padded, t.group);
  t.tile_bytes = t.k_padded * body.activation_bytes * t.height;
  const int64_t tiles = divide_up(rows, t.height), places = tiles * t.groups * t.height;
  t.scales = scratch_of<float>(slot + 1, 2 * places);
  t.sums = t.scales + places;
  t.data = t.scales ? scratch_of<uint8_t>(slot, tiles * t.tile_bytes) : nullptr;
  return t;
}

void prepare_tiles(const LinearParams& p, const LinearKernels& body, const Tiles& t) {
  parallel(divide_up(t.rows, t.height), 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) body.prepare(p, t, tile);
  });
}

void multiply(const LinearParams& p, const LinearKernels& body, const Tiles& t) {
  const int64_t tiles = divide_up(p.rows, t.height);
  int64_t panels = 0;
  for (int64_t i = 0; i < p.count; ++i) panels += divide_up(p.weights[i].n, kPanel);
  if (p.rows < kManyRows) {
    parallel(panels, grain_of(panels, panel_bytes_of(p.weights[0])), [&](int64_t begin, int64_t end) {
      for_panels(p, begin, end, [&](const Panels& part) { body.run(p, t, part, 0, tiles); });
    });
    return;
  }
  each_range(panels, body.most_panels, 2, tiles, body.most_tiles,
             [&](int64_t begin, int64_t end, int64_t first, int64_t last) {
               for_panels(p, begin, end, [&](const Panels& part) { body.run(p, t, part, first, last); });
             });
}

Status linear(const LinearParams& p) {
  if (p.rows <= 0 || p.count <= 0) return Status::ok;
  const LinearKernels& body = linear_body(p.weights[0].dtype, p.rows);
  const Tiles t = new_tiles(p.weights[0], p.rows, body, 0);
  if (!t.data) return Status::no_memory;
  prepare_tiles(p, body, t);
  multiply(p, body, t);
  return Status::ok;
}

Status linear_dense(const DenseParams& p) {
  if (p.rows <= 0) return Status::ok;
  const DenseKernels& body = choose(dense_bodies);
  if (p.in_major) {
    // One wide range for each thread: a range is read with gaps as wide as the others.
    const int64_t grain = divide_up(divide_up(p.n, threads()), 64) * 64;
    parallel(p.n, grain, [&](int64_t begin, int64_t end) { body.in_major(p, begin, end); });
  } else {
    const int64_t fair = divide_up(p.n, 4 * threads()), enough = divide_up(64 * 1024, 4 * p.k);
    parallel(p.n, fair < enough ? fair : enough, [&](int64_t begin, int64_t end) { body.out_major(p, begin, end); });
  }
  return Status::ok;
}

Status pack(const PackParams& p) {
  const PackKernels& body = choose(pack_bodies);
  parallel(divide_up(p.weight->n, kPanel), 4, [&](int64_t begin, int64_t end) { body.pack(p, begin, end); });
  return Status::ok;
}

Status unpack(const LinearWeight& w, const int64_t* rows, int64_t count, float* out) {
  parallel(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) unpack_row(w, rows ? rows[i] : i, out + i * w.k);
  });
  return Status::ok;
}

}  // namespace qvl

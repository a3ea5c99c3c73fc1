// Launch function of the MLP: in one piece on the tile unit, elsewhere as the ops it is made of.
#include "qvl/mlp.h"

#include <string.h>

#include "linear_launch.h"
#include "qvl/activation.h"

namespace qvl {
namespace {

// Rows at a time: so many share one reading of the weights, and what lies between the layers takes memory for no more.
constexpr int64_t kTileRows = 1024, kRows = 512;

// Slots of scratch memory; `linear` has 0 and 1.
constexpr int kInputs = 2, kMiddle = 4, kWide = 6, kGated = 7;

int64_t inner_count(const MlpParams& p) { return p.gate == Gate::swiglu ? 2 : 1; }

LinearParams first_layer(const MlpParams& p) {
  LinearParams first{};
  first.x = p.x;
  first.rows = p.rows;
  first.x_stride = p.x_stride;
  first.weights = p.inner;
  first.count = inner_count(p);
  return first;
}

LinearParams second_layer(const MlpParams& p) {
  LinearParams second{};
  second.rows = p.rows;
  second.weights = p.down;
  second.count = 1;
  second.residual = p.residual;
  second.out = p.out;
  second.out_stride = p.out_stride;
  return second;
}

// Inputs of the second layer that no output of the first stands for.
void clear_rest(const Tiles& t, int64_t tiles, int64_t outputs) {
  const int64_t chunk = outputs / 32, chunk_bytes = t.height * 64;
  for (int64_t tile = 0; tile < tiles && chunk * 32 < t.k_padded; ++tile) {
    memset(t.data + tile * t.tile_bytes + chunk * chunk_bytes, 0,
           static_cast<size_t>(t.tile_bytes - chunk * chunk_bytes));
  }
}

Status in_tiles(const MlpParams& p, const LinearKernels& body) {
  const Tiles in = new_tiles(p.inner[0], p.rows, body, kInputs), middle = new_tiles(*p.down, p.rows, body, kMiddle);
  if (!in.data || !middle.data) return Status::no_memory;
  prepare_tiles(first_layer(p), body, in);
  const int64_t tiles = divide_up(p.rows, in.height), panels = divide_up(p.inner[0].n, kPanel);
  // A gate's panel goes with one of the other weight, else two panels go together.
  const int64_t pairs = p.gate == Gate::swiglu ? panels : divide_up(panels, 2);
  clear_rest(middle, tiles, panels * kPanel);
  each_range(pairs, body.most_panels / 2, 1, tiles, body.most_tiles,
             [&](int64_t begin, int64_t end, int64_t first, int64_t last) {
               body.gated(p, in, middle, begin, end, first, last);
             });
  multiply(second_layer(p), body, middle);
  return Status::ok;
}

Status in_steps(const MlpParams& p) {
  const int64_t width = p.inner[0].n, wide = inner_count(p) * width;
  ActivationParams gate{};
  gate.x = scratch_of<float>(kWide, p.rows * wide);
  gate.out = scratch_of<float>(kGated, p.rows * width);
  if (!gate.x || !gate.out) return Status::no_memory;
  LinearParams first = first_layer(p);
  first.out = const_cast<float*>(gate.x);
  first.out_stride = gate.x_stride = gate.up_stride = wide;
  gate.up = gate.x + width;
  gate.rows = p.rows;
  gate.width = width;
  LinearParams second = second_layer(p);
  second.x = gate.out;
  second.x_stride = width;
  Status status = linear(first);
  if (status == Status::ok) status = p.gate == Gate::swiglu ? swiglu(gate) : quick_gelu(gate);
  return status == Status::ok ? linear(second) : status;
}

}  // namespace

Status mlp(const MlpParams& given) {
  const LinearKernels& body = linear_body(given.inner[0].dtype, given.rows);
  const bool tiles = body.gated && linear_body(given.down->dtype, given.rows).gated;
  // Turns of whole tiles, as many in one as in another or one more, so that none has so few rows that another body would
  // take them.
  const int64_t all = divide_up(given.rows, 16), turns = divide_up(given.rows, tiles ? kTileRows : kRows);
  for (int64_t turn = 0; turn < turns; ++turn) {
    const int64_t row = all * turn / turns * 16, end = all * (turn + 1) / turns * 16;
    MlpParams p = given;
    p.rows = (end < given.rows ? end : given.rows) - row;
    p.x += row * p.x_stride;
    p.out += row * p.out_stride;
    if (p.residual) p.residual += row * p.out_stride;
    const Status status = tiles ? in_tiles(p, body) : in_steps(p);
    if (status != Status::ok) return status;
  }
  return Status::ok;
}

}  // namespace qvl

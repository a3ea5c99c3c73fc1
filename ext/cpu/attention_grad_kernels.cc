// levels: portable avx2 avx512
// The arithmetic of attention's gradients for one level. A block of keys is packed once; then a tile of rows at a time
// makes scores, weights and what flows back while they lie in the first caches.
#include "attention_grad_kernels.h"

#include "attention_parts.h"
#include "transpose.h"

namespace qvl {
namespace QVL_LEVEL {

constexpr int64_t kTileRows = 30;  // a multiple of the 5 and 6 rows of the products
constexpr float kLn2 = 0.693147180559945309f;

// Operands of one block of keys and one tile of rows, where `stride` floats lie from row to row of packed ones.
struct Room {
  int64_t padded, stride;
  float *keys, *keys_turned, *values_turned;  // [kBlockKeys][stride], [dim][kKeyStride] twice
  float *to_keys, *to_values, *to_queries;    // [kBlockKeys][padded] twice, [kTileRows][padded]
  float *queries, *grads;                     // [kTileRows][stride]
  float *weights, *slopes;                    // [kTileRows][kKeyStride]
  float *highest, *inverse, *along;           // [kTileRows]; along: of each row, grad times out
  float* ones;                                // [kBlockKeys]
};

static bool take_room(int64_t dim, Room& room) {
  const int64_t padded = round_up(dim, 16), stride = row_stride(dim);
  const int64_t sizes[] = {kBlockKeys * stride, dim * kKeyStride,    dim * kKeyStride,       kBlockKeys * padded,
                           kBlockKeys * padded, kTileRows * padded,  kTileRows * stride,     kTileRows * stride,
                           kTileRows * kKeyStride, kTileRows * kKeyStride, round_up(kTileRows, 16),
                           round_up(kTileRows, 16), round_up(kTileRows, 16), kBlockKeys};
  int64_t all = 0;
  for (const int64_t size : sizes) all += size;
  float* at = scratch_of<float>(8, all);
  if (!at) return false;
  float** const places[] = {&room.keys,    &room.keys_turned, &room.values_turned, &room.to_keys, &room.to_values,
                            &room.to_queries, &room.queries,  &room.grads,         &room.weights, &room.slopes,
                            &room.highest, &room.inverse,     &room.along,         &room.ones};
  for (int i = 0; i < 14; ++i) *places[i] = at, at += sizes[i];
  room.padded = round_up(dim, kLanes), room.stride = stride;
  for (int64_t i = 0; i < kBlockKeys; ++i) room.ones[i] = 1.0f;
  return true;
}

// kLanes rows as columns: [kLanes][stride] to [dim] rows of kKeyStride.
static inline void turn_over(const float* rows, int64_t stride, int64_t dim, float* to) {
  int64_t d = 0;
  for (; d + kLanes <= dim; d += kLanes) transpose(rows + d, stride, to + d * kKeyStride, kKeyStride);
  for (; d < dim; ++d)
    for (int64_t i = 0; i < kLanes; ++i) to[d * kKeyStride + i] = rows[i * stride + d];
}

// Half-split rotation by the angles turned round, times `scale`. `to` may be `from`.
static inline void rotate_back(const float* from, const float* cos, const float* sin, float scale, float* to,
                               int64_t dim) {
  const int64_t half = dim / 2;
  each_vector(half, [&](int64_t i, int n) {
    const vf c = mul(load_up_to(cos + i, n), broadcast(scale)), s = mul(load_up_to(sin + i, n), broadcast(scale));
    const vf first = load_up_to(from + i, n), second = load_up_to(from + half + i, n);
    store_up_to(to + i, fma(second, s, mul(first, c)), n);
    store_up_to(to + half + i, sub(mul(second, c), mul(first, s)), n);
  });
}

// Keys start .. start + n of one head, and its values: as rows, and as columns.
static void pack_block(const AttentionGradParams& p, const AttentionGradSequence& s, int64_t kv_head, int64_t start,
                       int64_t n, const Room& room) {
  alignas(64) float values[kLanes * kMostAttentionDim];
  const int64_t half = p.dim / 2, padded = room.padded;
  for (int64_t j = 0; j < n; j += kLanes) {
    for (int64_t i = j; i < j + kLanes; ++i) {
      float *key = room.keys + i * room.stride, *value = values + (i - j) * padded;
      clear(key, padded);
      clear(value, padded);
      if (i >= n) continue;
      const float* k = s.k + (start + i) * p.k_stride + kv_head * p.dim;
      const int64_t angles = (start + i) * half;
      s.cos ? rotate(k, s.cos + angles, s.sin + angles, 1.0f, key, p.dim) : widen(k, 1.0f, key, p.dim);
      widen(s.v + (start + i) * p.v_stride + kv_head * p.dim, 1.0f, value, p.dim);
    }
    turn_over(room.keys + j * room.stride, room.stride, p.dim, room.keys_turned + j);
    turn_over(values, padded, p.dim, room.values_turned + j);
  }
}

// `count` rows from `row` on: queries scaled as for the softmax, and what flows back into their results.
static void pack_rows(const AttentionGradParams& p, const AttentionGradSequence& s, int64_t kv_head, int64_t row,
                      int64_t count, const Room& room) {
  const int64_t group = p.heads / p.kv_heads, half = p.dim / 2, past = s.keys - s.queries;
  const float scale = p.scale * kLog2E;
  for (int64_t r = 0; r < count; ++r) {
    const int64_t query = (row + r) / group, head = kv_head * group + (row + r) % group;
    const float* q = s.q + query * p.q_stride + head * p.dim;
    const int64_t at = (query * p.heads + head) * p.dim, angles = (past + query) * half;
    float *to = room.queries + r * room.stride, *grad = room.grads + r * room.stride;
    clear(to, room.padded);
    clear(grad, room.padded);
    s.cos ? rotate(q, s.cos + angles, s.sin + angles, scale, to, p.dim) : widen(q, scale, to, p.dim);
    vf along = zero();
    each_vector(p.dim, [&](int64_t i, int n) {
      const vf g = load_up_to(s.grad + at + i, n);
      along = fma(g, load_up_to(s.out + at + i, n), along);
      store_up_to(grad + i, g, n);
    });
    room.along[r] = sum(along);
    room.highest[r] = s.softmax[2 * (query * p.heads + head)];
    room.inverse[r] = s.softmax[2 * (query * p.heads + head) + 1];
  }
}

// Scores to weights, and what flows back into weights to what flows back into scores. `seen(row)`: the columns that
// count; the rest, up to a whole vector, become 0. whole: the block has all keys there are. Then what the slopes of a
// row are measured from is summed up here, so that they add up to 0 but for the last rounding: gradients such as that of
// a bias of the keys are what is left of such sums.
template <typename Seen>
static inline void go_back(const Room& room, int64_t rows, int64_t columns, bool whole, Seen seen) {
  for (int64_t r = 0; r < rows; ++r) {
    float *weights = room.weights + r * kKeyStride, *slopes = room.slopes + r * kKeyStride;
    const vf highest = broadcast(room.highest[r]), inverse = broadcast(room.inverse[r]);
    const int64_t count = seen(r);
    vf total = zero();
    for (int64_t c = 0; c < columns; c += kLanes) {
      if (c >= count) {
        store(weights + c, zero());
        store(slopes + c, zero());
        continue;
      }
      vf weight = mul(exp2(sub(load(weights + c), highest)), inverse), slope = load(slopes + c);
      if (count - c < kLanes) {
        const int n = static_cast<int>(count - c);
        weight = masked(weight, n), slope = masked(slope, n);
      }
      store(weights + c, weight);
      store(slopes + c, slope);
      total = fma(weight, slope, total);
    }
    const vf along = broadcast(whole ? sum(total) : room.along[r]);
    for (int64_t c = 0; c < columns && c < count; c += kLanes)
      store(slopes + c, mul(load(weights + c), sub(load(slopes + c), along)));
  }
}

// What one tile of rows gives to one block of keys, and the other way round.
static void tile_back(const Room& room, int64_t rows, int64_t seen) {
  const int64_t columns = round_up(seen, kLanes);
  // The columns of weights and slopes are the keys' rows.
  multiply<float>({rows, room.weights, 1, room.grads, room.stride, room.to_values, room.padded, room.ones, kKeyStride},
                  seen, room.padded);
  multiply<float>({rows, room.slopes, 1, room.queries, room.stride, room.to_keys, room.padded, room.ones, kKeyStride},
                  seen, room.padded);
  multiply<float>({columns, room.slopes, kKeyStride, room.keys, room.stride, room.to_queries, room.padded, nullptr},
                  rows, room.padded);
}

static void give_keys(const AttentionGradParams& p, const AttentionGradSequence& s, int64_t kv_head, int64_t start,
                      int64_t n, const Room& room) {
  const int64_t half = p.dim / 2;
  for (int64_t i = 0; i < n; ++i) {
    const float* from = room.to_keys + i * room.padded;
    float* to = s.grad_k + (start + i) * p.k_stride + kv_head * p.dim;
    const int64_t angles = (start + i) * half;
    // The queries came scaled for powers of two.
    s.cos ? rotate_back(from, s.cos + angles, s.sin + angles, kLn2, to, p.dim) : widen(from, kLn2, to, p.dim);
    widen(room.to_values + i * room.padded, 1.0f, s.grad_v + (start + i) * p.v_stride + kv_head * p.dim, p.dim);
  }
}

static bool keys_back(const AttentionGradParams& p, const AttentionGradSequence& s, int64_t kv_head, int64_t first,
                      int64_t last, const QueryShare& to_q) {
  const int64_t group = p.heads / p.kv_heads, rows = s.queries * group;
  Room room;
  if (!take_room(p.dim, room)) return false;
  for (int64_t start = first; start < last; start += kBlockKeys) {
    const int64_t n = lesser(kBlockKeys, last - start);
    const auto seen = [&](int64_t row) { return lesser(n, keys_seen(p, s, row / group, start)); };
    pack_block(p, s, kv_head, start, n, room);
    clear(room.to_keys, kBlockKeys * room.padded);
    clear(room.to_values, kBlockKeys * room.padded);
    for (int64_t row = 0; row < rows; row += kTileRows) {
      const int64_t count = lesser(kTileRows, rows - row), most = seen(row + count - 1);
      if (most <= 0) continue;
      const int64_t columns = round_up(most, kLanes);
      pack_rows(p, s, kv_head, row, count, room);
      multiply<float>({p.dim, room.queries, room.stride, room.keys_turned, kKeyStride, room.weights, kKeyStride,
                       nullptr}, count, columns);
      multiply<float>({p.dim, room.grads, room.stride, room.values_turned, kKeyStride, room.slopes, kKeyStride,
                       nullptr}, count, columns);
      go_back(room, count, columns, s.keys <= kBlockKeys, [&](int64_t r) { return seen(row + r); });
      tile_back(room, count, most);
      for (int64_t r = 0; r < count; ++r) {
        if (seen(row + r) <= 0) continue;
        const float* from = room.to_queries + r * room.padded;
        float* to = to_q.first + (row + r) / group * to_q.stride + (kv_head * group + (row + r) % group) * p.dim;
        each_vector(p.dim, [&](int64_t i, int some) {
          const vf share = load_up_to(from + i, some);
          store_up_to(to + i, start == first ? share : add(load_up_to(to + i, some), share), some);
        });
      }
    }
    give_keys(p, s, kv_head, start, n, room);
  }
  return true;
}

static void queries_back(const AttentionGradParams& p, const AttentionGradSequence& s, int64_t first, int64_t last,
                         const float* others, int64_t count, int64_t step) {
  const int64_t half = p.dim / 2, past = s.keys - s.queries, size = s.queries * p.heads * p.dim;
  for (int64_t query = first; query < last; ++query) {
    const float *cos = s.cos ? s.cos + (past + query) * half : nullptr, *sin = s.sin + (past + query) * half;
    for (int64_t head = 0; head < p.heads; ++head) {
      float* to = s.grad_q + query * p.q_stride + head * p.dim;
      for (int64_t i = 0; i < count && keys_seen(p, s, query, (i + 1) * step) > 0; ++i) {
        const float* from = others + i * size + (query * p.heads + head) * p.dim;
        each_vector(p.dim, [&](int64_t d, int n) {
          store_up_to(to + d, add(load_up_to(to + d, n), load_up_to(from + d, n)), n);
        });
      }
      cos ? rotate_back(to, cos, sin, p.scale, to, p.dim) : widen(to, p.scale, to, p.dim);
    }
  }
}

extern const AttentionGradKernels attention_grad_kernels;
const AttentionGradKernels attention_grad_kernels = {keys_back, queries_back};

}  // namespace QVL_LEVEL
}  // namespace qvl

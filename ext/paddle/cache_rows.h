// The keys and values of sequences as Python hands them over, checked.
#pragma once

#include "pybind11/stl.h"
#include "rows.h"

namespace qvl {

// (keys, values, key_scales or None, value_scales or None, rows before the new ones, new rows): keys and values
// [capacity, kv_heads, dim] in float32, bfloat16 or int8, scales float32 [capacity, kv_heads].
using CacheTuple = std::tuple<paddle::Tensor, paddle::Tensor, Optional, Optional, int64_t, int64_t>;

struct CacheRows {
  void* k;
  void* v;
  float* k_scale;
  float* v_scale;
  int64_t start;  // rows before the new ones
  int64_t tokens;
};

inline DType storage_of(const paddle::Tensor& keys, const char* op) {
  if (keys.dtype() == phi::DataType::FLOAT32) return DType::float32;
  if (keys.dtype() == phi::DataType::BFLOAT16) return DType::bfloat16;
  require(keys.dtype() == phi::DataType::INT8, op, "keys", "must be float32, bfloat16 or int8, not ",
          phi::DataTypeToString(keys.dtype()));
  return DType::int8;
}

inline int64_t bytes_of_storage(DType storage) {
  return storage == DType::float32 ? 4 : storage == DType::bfloat16 ? 2 : 1;
}

// All caches of a call, which agree in storage. `rows`: what the new rows must add up to.
inline std::vector<CacheRows> checked_caches(const std::vector<CacheTuple>& caches, int64_t rows, int64_t kv_heads,
                                             int64_t dim, DType* storage, const char* op) {
  require(!caches.empty(), op, "caches", "must be one at least");
  *storage = storage_of(std::get<0>(caches[0]), op);
  std::vector<CacheRows> checked;
  for (const auto& [keys, values, key_scales, value_scales, start, tokens] : caches) {
    const int64_t capacity = keys.shape().empty() ? 0 : keys.shape()[0];
    const auto one = [&](const paddle::Tensor& x, const char* argument) {
      require_cpu(x, std::get<0>(caches[0]).dtype(), op, argument);
      require_shape(x, {capacity, kv_heads, dim}, op, argument);
      require_contiguous(x, op, argument);
      return const_cast<void*>(x.data());
    };
    const auto scales = [&](const Optional& x, const char* argument) {
      require(bool(x) == (*storage == DType::int8), op, argument, "are for int8 keys and values, and needed there");
      return const_cast<float*>(floats(x, {capacity, kv_heads}, op, argument));
    };
    require(start >= 0 && tokens >= 0 && start + tokens <= capacity, op, "caches", "has room for ", capacity,
            " tokens, not for ", tokens, " behind ", start);
    checked.push_back({one(keys, "keys"), one(values, "values"), scales(key_scales, "key_scales"),
                       scales(value_scales, "value_scales"), start, tokens});
    rows -= tokens;
  }
  require(rows == 0, op, "caches", "must take as many new rows as q has; ", rows, " are left over");
  return checked;
}

}  // namespace qvl

// cp.async as late as it may be: what is copied lies in shared memory only once the thread has waited for it, and until
// then there is garbage in its place.
#pragma once

#include <stdint.h>
#include <string.h>

#include <deque>

#include "cuda.h"

namespace emulated {

struct Copy {
  unsigned char* to;
  const void* from;
  size_t bytes, real;  // of which the rest are zero
};
struct Copies {
  std::deque<Copy> waiting;
  std::deque<size_t> groups;  // copies in each, the one not yet committed last
  uint64_t block = 0;
};

inline Copies& copies_of_thread() {
  static Copies of_thread[1024];
  Copies& mine = of_thread[threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)];
  if (mine.block != blocks_begun || mine.groups.empty()) {
    mine.waiting.clear();
    mine.groups.assign(1, 0);
    mine.block = blocks_begun;
  }
  return mine;
}

inline void copy_later(void* to, const void* from, size_t bytes, bool real) {
  require_aligned(to, bytes);
  require_aligned(from, bytes);
  memset(to, 0xff, bytes);
  Copies& mine = copies_of_thread();
  mine.waiting.push_back({static_cast<unsigned char*>(to), from, bytes, real ? bytes : 0});
  ++mine.groups.back();
}

inline void commit_copies() { copies_of_thread().groups.push_back(0); }

inline void wait_for_copies(size_t groups) {
  Copies& mine = copies_of_thread();
  for (; mine.groups.size() > groups + 1; mine.groups.pop_front()) {
    for (size_t i = 0; i < mine.groups.front(); ++i) {
      const Copy& copy = mine.waiting.front();
      memcpy(copy.to, copy.from, copy.real);
      memset(copy.to + copy.real, 0, copy.bytes - copy.real);
      mine.waiting.pop_front();
    }
  }
}

}  // namespace emulated

// One pool of threads for all ops. A worker that has nothing to do spins for some microseconds, since the next op of a
// token follows at once, and then sleeps, since the framework's own threads need the cores too.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace qvl {

using Body = void (*)(void* context, int64_t begin, int64_t end);

// Threads that share the work, the caller's included.
int threads();
void set_threads(int count);

// Calls body(context, begin, end) for ranges of `grain` items (the last may be shorter) that cover 0..count, on all
// threads, and returns when every range is done. Ranges are handed out one by one in rising order. Called from within
// a body it runs in the calling thread. Bodies must not throw.
void run_parallel(int64_t count, int64_t grain, Body body, void* context);

// The same for a lambda of (begin, end).
template <class F>
static inline void parallel(int64_t count, int64_t grain, const F& f) {
  run_parallel(
      count, grain, [](void* context, int64_t begin, int64_t end) { (*static_cast<const F*>(context))(begin, end); },
      const_cast<F*>(&f));
}

// Scratch memory, aligned to 64 bytes, that belongs to the calling thread and slot and keeps its place until the same
// slot is asked for again with more bytes. Contents are not kept then. nullptr when there is no memory.
// Slots 0 to 7 are for launch functions (shared by all threads of a call), 8 to 15 for bodies.
constexpr int kSlots = 16;
void* scratch(int slot, size_t bytes);
template <class T>
static inline T* scratch_of(int slot, int64_t count) {
  return static_cast<T*>(scratch(slot, static_cast<size_t>(count) * sizeof(T)));
}

}  // namespace qvl

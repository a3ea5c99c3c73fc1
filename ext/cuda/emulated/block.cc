// Runs the threads of a block in turns on one thread of the CPU, each on a stack of its own, and notices what a GPU would
// do without a word or hang at: barriers that not all threads come to, collectives without all lanes, accesses beside the
// memory there is. Order is fixed, so results are the same every time; QVL_EMULATED_ORDER=reverse turns it round,
// which changes the result of kernels that lack a barrier.
#include <signal.h>

#include <mutex>

#include "complaint.h"
#include "cuda.h"
#include "memory.h"
#include "stacks.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulated {
namespace {

constexpr int kMostThreads = Stacks::kNumber, kLanes = 32;

enum class State : uint8_t { fresh, ready, at_lanes, at_block, ended };

struct Thread {
  Place place;
  uint3 index;
  State state;
  uint8_t turn;  // which of the two sets of slots its next exchange uses
  int stack;
  Site site;
};

struct Warp {
  int arrived;
  Slot slots[2][kLanes];  // two: the slowest lane may still read one while the quickest fills the other
};

Thread threads[kMostThreads];
Warp warps[kMostThreads / kLanes];
Place scheduler;
int count = 0;
Body kernel;
const void* kernel_context;

Stacks stacks;
DynamicShared dynamic;

void enter() {
  kernel(kernel_context);
  Thread& mine = threads[current];
  mine.state = State::ended;
  stacks.give_back(mine.stack);  // nothing runs on it before the next change
  change(mine.place, scheduler);
}

// Lets a thread go on until it waits or ends.
void resume(int i) {
  Thread& thread = threads[i];
  current = i;
  threadIdx = thread.index;
  if (thread.state == State::fresh) {
    thread.stack = stacks.take();
    prepare(thread.place, stacks.top(thread.stack), enter);
  }
  thread.state = State::ready;
  change(scheduler, thread.place);
}

void wait(State state, Site site) {
  Thread& mine = threads[current];
  mine.state = state;
  mine.site = site;
  change(mine.place, scheduler);
}

// How a thread stands, in words.
void describe(const Thread& thread, char* to, size_t room) {
  if (thread.state == State::ended) {
    snprintf(to, room, "has ended");
  } else {
    snprintf(to, room, "waits in %s (%s:%d)", thread.site.what, base(thread.site.file), thread.site.line);
  }
}

void complain_of_two(const char* rule, int a, int b) {
  char first[256], second[256];
  describe(threads[a], first, sizeof(first));
  describe(threads[b], second, sizeof(second));
  current = -1;
  complain("%s: thread %d %s, thread %d %s", rule, a, first, b, second);
}

// Runs the lanes of a warp until all have ended or wait for the block.
void run_warp(int warp, bool reverse) {
  const int begin = warp * kLanes, lanes = count - begin < kLanes ? count - begin : kLanes;
  for (bool going = true; going;) {
    going = false;
    for (int i = 0; i < lanes; ++i) {
      const int at = begin + (reverse ? lanes - 1 - i : i);
      if (threads[at].state > State::ready) continue;
      resume(at);
      if (complaint.made) return;
      going = true;
    }
  }
  for (int i = 0; i < lanes; ++i) {
    if (threads[begin + i].state != State::at_lanes) continue;
    for (int other = 0; other < lanes; ++other) {
      if (threads[begin + other].state != State::at_lanes) {
        complain_of_two("not all lanes of a warp come to a collective", begin + i, begin + other);
        return;
      }
    }
    return complain("a collective of a warp that has %d threads", lanes);
  }
}

void run_block(bool reverse) {
  const int of_warps = (count + kLanes - 1) / kLanes;
  for (;;) {
    for (int i = 0; i < of_warps; ++i) {
      run_warp(reverse ? of_warps - 1 - i : i, reverse);
      if (complaint.made) return;
    }
    for (int i = 1; i < count; ++i) {
      const bool differ = threads[i].state != threads[0].state ||
                          (threads[i].state == State::at_block && !same(threads[i].site, threads[0].site));
      if (differ) return complain_of_two("not all threads of a block come to a barrier", 0, i);
    }
    if (threads[0].state == State::ended) return;
    for (int i = 0; i < count; ++i) threads[i].state = State::ready;
  }
}

void start_block(uint3 index, const Range& fixed) {
  blockIdx = index;
  ++blocks_begun;
  dynamic.poison();
  if (fixed.size) memset(fixed.begin, kPoison, fixed.size);
  stacks.free_all();
  int i = 0;
  for (unsigned z = 0; z < blockDim.z; ++z) {
    for (unsigned y = 0; y < blockDim.y; ++y) {
      for (unsigned x = 0; x < blockDim.x; ++x) {
        Thread& thread = threads[i++];
        thread.index = {x, y, z};
        thread.state = State::fresh;
        thread.turn = 0;
      }
    }
  }
  for (Warp& warp : warps) warp.arrived = 0;
}

// While it lives, an access to memory that the process does not have ends the launch and not the process.
class Faults {
 public:
  Faults() {
    struct sigaction mine {};
    mine.sa_sigaction = on_fault;
    mine.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
    stack_t own{};
    own.ss_sp = stack_;
    own.ss_size = sizeof(stack_);
    sigaltstack(&own, &stack_before_);
    sigaction(SIGSEGV, &mine, &before_[0]);
    sigaction(SIGBUS, &mine, &before_[1]);
  }
  ~Faults() {
    sigaction(SIGSEGV, &before_[0], nullptr);
    sigaction(SIGBUS, &before_[1], nullptr);
    sigaltstack(&stack_before_, nullptr);
  }

 private:
  static void on_fault(int signal, siginfo_t* info, void*) {
    if (current < 0) {  // not a kernel's
      ::signal(signal, SIG_DFL);
      return;
    }
    if (stacks.holds(info->si_addr)) {
      complain("more than %zu bytes of local variables", kStack);
    } else if (dynamic.is_edge(info->si_addr)) {
      complain("an access outside of the %zu bytes of dynamic shared memory", dynamic.size());
    } else {
      complain("an access to %p, which lies in no buffer", info->si_addr);
    }
    change(threads[current].place, scheduler);
  }

  static inline unsigned char stack_[64 * 1024];
  struct sigaction before_[2];
  stack_t stack_before_;
};

bool allowed(dim3 grid, dim3 block, size_t shared) {
  const uint64_t size = static_cast<uint64_t>(block.x) * block.y * block.z;
  if (size == 0 || size > kMostThreads || block.z > 64) {
    complain("a block of %u x %u x %u threads", block.x, block.y, block.z);
  } else if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    complain("a grid of %u x %u x %u blocks", grid.x, grid.y, grid.z);
  } else if (shared > kMostShared) {
    complain("%zu bytes of shared memory, of which there are %zu", shared, kMostShared);
  } else {
    return true;
  }
  return false;
}

}  // namespace

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  say(format, arguments);
  va_end(arguments);
  if (current < 0) {
    fprintf(stderr, "%s\n", complaint.text);
    abort();
  }
  change(threads[current].place, scheduler);  // never to come back
  abort();
}

const char* error() { return complaint.text; }

unsigned char* shared_memory() { return dynamic.begin(); }

const Slot* exchange(const void* mine, size_t bytes, unsigned mask, Site site) {
  if (mask != 0xffffffffu) fail("%s (%s:%d) with some lanes only", site.what, base(site.file), site.line);
  Thread& thread = threads[current];
  const int first = current / kLanes * kLanes, turn = thread.turn;
  Warp& warp = warps[current / kLanes];
  if (bytes) memcpy(warp.slots[turn][current - first].bytes, mine, bytes);
  thread.turn ^= 1;
  thread.site = site;
  if (++warp.arrived < kLanes) {
    wait(State::at_lanes, site);
    return warp.slots[turn];
  }
  for (int i = first; i < first + kLanes; ++i) {
    if (!same(threads[i].site, site)) {
      thread.state = State::at_lanes;
      complain_of_two("lanes of a warp come to different collectives", i, first + (current - first));
      change(threads[first].place, scheduler);
    }
  }
  warp.arrived = 0;
  for (int i = first; i < first + kLanes; ++i) threads[i].state = State::ready;
  return warp.slots[turn];
}

void wait_for_block(Site site) { wait(State::at_block, site); }

bool run_blocks(dim3 grid, dim3 block, size_t shared, Body body, const void* context) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> hold(one_at_a_time);
  complaint.made = false;
  current = -1;
  blockIdx = {0, 0, 0};
  if (!allowed(grid, block, shared)) return false;
  const char* order = getenv("QVL_EMULATED_ORDER");
  const bool reverse = order && strcmp(order, "reverse") == 0;
  gridDim = grid;
  blockDim = block;
  count = static_cast<int>(block.x * block.y * block.z);
  kernel = body;
  kernel_context = context;
  dynamic.resize(shared);
  const Range fixed = static_shared(reinterpret_cast<const void*>(&run_blocks));
  const Faults faults;
  const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t at = reverse ? blocks - 1 - i : i;
    const auto x = static_cast<unsigned>(at % grid.x), y = static_cast<unsigned>(at / grid.x % grid.y);
    start_block({x, y, static_cast<unsigned>(at / grid.x / grid.y)}, fixed);
    run_block(reverse);
    current = -1;
    if (complaint.made) return false;
    if (!dynamic.intact()) {
      complain("written outside of the %zu bytes of dynamic shared memory", shared);
      return false;
    }
  }
  return true;
}

}  // namespace emulated

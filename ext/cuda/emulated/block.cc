// Runs the threads of a block in turns on one thread of the CPU, each on a stack of its own, and notices what a GPU would
// do without a word or hang at: barriers that not all threads come to, collectives without all lanes, writes behind the
// end of shared memory. Order is fixed, so results are the same every time; QVL_EMULATED_ORDER=reverse turns it round,
// which changes the result of kernels that lack a barrier.
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>

#include <mutex>
#include <type_traits>

#include "cuda.h"

#ifdef __linux__
#include <link.h>
#endif
#ifndef __x86_64__
#include <ucontext.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulated {
namespace {

constexpr int kMostThreads = 1024, kLanes = 32;
constexpr size_t kMostShared = 227 * 1024;
constexpr size_t kStack = 128 * 1024, kPage = 4096;
constexpr size_t kGuard = 1024;  // bytes before and behind dynamic shared memory that nobody may write to
constexpr unsigned char kPoison = 0xff;  // not a number in every float type

// ---- Going from one stack to another ----

#ifdef __x86_64__
using Place = void*;
extern "C" void qvl_emulated_switch(Place* left, Place taken);
asm(R"(
.text
.p2align 4
.globl qvl_emulated_switch
.hidden qvl_emulated_switch
.type qvl_emulated_switch, @function
qvl_emulated_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size qvl_emulated_switch, .-qvl_emulated_switch
)");
void change(Place& left, Place& taken) { qvl_emulated_switch(&left, taken); }
void prepare(Place& place, unsigned char* top, void (*entry)()) {
  auto** stack = reinterpret_cast<void**>(top) - 8;
  memset(stack, 0, 64);
  stack[6] = reinterpret_cast<void*>(entry);
  place = stack;
}
#else
using Place = ucontext_t;
void change(Place& left, Place& taken) { swapcontext(&left, &taken); }
void prepare(Place& place, unsigned char* top, void (*entry)()) {
  getcontext(&place);
  place.uc_stack.ss_sp = top - kStack / 2;
  place.uc_stack.ss_size = kStack / 2;
  place.uc_link = nullptr;
  makecontext(&place, entry, 0);
}
#endif

// ---- The block that runs ----

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
int current = -1, count = 0;
Body kernel;
const void* kernel_context;
bool failed;
char message[1024];

unsigned char* stacks;
int free_stacks[kMostThreads], free_count;

unsigned char shared_area[kGuard + kMostShared + kGuard + 16] __attribute__((aligned(128)));
size_t shared_size;

void make_stacks() {
  if (stacks) return;
  const size_t size = kMostThreads * kStack;
  void* made = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (made == MAP_FAILED) {
    fprintf(stderr, "no memory for the stacks of a block\n");
    abort();
  }
  stacks = static_cast<unsigned char*>(made);
  for (int i = 0; i < kMostThreads; ++i) mprotect(stacks + i * kStack, kPage, PROT_NONE);
}

void enter() {
  kernel(kernel_context);
  Thread& mine = threads[current];
  mine.state = State::ended;
  free_stacks[free_count++] = mine.stack;  // nothing runs on it before the next change
  change(mine.place, scheduler);
}

// Lets a thread go on until it waits or ends.
void resume(int i) {
  Thread& thread = threads[i];
  current = i;
  threadIdx = thread.index;
  if (thread.state == State::fresh) {
    thread.stack = free_stacks[--free_count];
    // Tops at different places of a page, lest all stacks fall into the same few sets of the cache.
    prepare(thread.place, stacks + (thread.stack + 1) * kStack - static_cast<size_t>(thread.stack % 31) * 128, enter);
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

bool same(const Site& a, const Site& b) {
  return a.line == b.line && (a.what == b.what || strcmp(a.what, b.what) == 0) &&
         (a.file == b.file || strcmp(a.file, b.file) == 0);
}

const char* base(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

void say(const char* format, va_list arguments) {
  const int at = snprintf(message, sizeof(message), "block (%u, %u, %u)", blockIdx.x, blockIdx.y, blockIdx.z);
  const int more = current < 0 ? 0
                               : snprintf(message + at, sizeof(message) - at, ", thread (%u, %u, %u)", threadIdx.x,
                                          threadIdx.y, threadIdx.z);
  snprintf(message + at + more, sizeof(message) - at - more, ": ");
  const size_t used = strlen(message);
  vsnprintf(message + used, sizeof(message) - used, format, arguments);
  failed = true;
}

__attribute__((format(printf, 1, 2))) void complain(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  say(format, arguments);
  va_end(arguments);
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
      if (failed) return;
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
      if (failed) return;
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

// ---- Memory that a block finds ----

struct Range {
  unsigned char* begin;
  size_t size;
};

// Of this library's thread-local variables those without an initial value: the __shared__ ones of all kernels.
Range static_shared() {
#ifdef __linux__
  static thread_local volatile int anchor = 1;  // so that there are some; it has an initial value
  anchor = anchor + 1;
  Range range{nullptr, 0};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* to) {
        const auto here = reinterpret_cast<uintptr_t>(&run_blocks);
        bool ours = false;
        const ElfW(Phdr)* local = nullptr;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const ElfW(Phdr)& part = info->dlpi_phdr[i];
          const uintptr_t begin = info->dlpi_addr + part.p_vaddr;
          if (part.p_type == PT_LOAD && here >= begin && here < begin + part.p_memsz) ours = true;
          if (part.p_type == PT_TLS) local = &part;
        }
        if (!ours || !local || !info->dlpi_tls_data) return 0;
        auto* first = static_cast<unsigned char*>(info->dlpi_tls_data);
        *static_cast<Range*>(to) = {first + local->p_filesz, local->p_memsz - local->p_filesz};
        return 1;
      },
      &range);
  return range;
#else
  return {nullptr, 0};
#endif
}

unsigned char* shared_end() { return shared_area + kGuard + shared_size; }

void guard_shared(size_t size) {
  shared_size = size;
  memset(shared_area, kPoison, kGuard);
  memset(shared_end(), kPoison, kGuard);
}

bool untouched(const unsigned char* from) {
  for (size_t i = 0; i < kGuard; ++i) {
    if (from[i] != kPoison) return false;
  }
  return true;
}

void start_block(uint3 index, const Range& fixed) {
  blockIdx = index;
  ++blocks_begun;
  memset(shared_area + kGuard, kPoison, shared_size);
  if (fixed.size) memset(fixed.begin, kPoison, fixed.size);
  for (int i = 0; i < kMostThreads; ++i) free_stacks[i] = kMostThreads - 1 - i;
  free_count = kMostThreads;
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

// ---- Memory that is no buffer's ----

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
    auto* at = static_cast<unsigned char*>(info->si_addr);
    if (at >= stacks && at < stacks + kMostThreads * kStack) {
      complain("more than %zu bytes of local variables", kStack);
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
    fprintf(stderr, "%s\n", message);
    abort();
  }
  change(threads[current].place, scheduler);  // never to come back
  abort();
}

const char* error() { return message; }

unsigned char* shared_memory() { return shared_area + kGuard; }

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
  failed = false;
  current = -1;
  blockIdx = {0, 0, 0};
  if (!allowed(grid, block, shared)) return false;
  make_stacks();
  const char* order = getenv("QVL_EMULATED_ORDER");
  const bool reverse = order && strcmp(order, "reverse") == 0;
  gridDim = grid;
  blockDim = block;
  count = static_cast<int>(block.x * block.y * block.z);
  kernel = body;
  kernel_context = context;
  guard_shared(shared);
  const Range fixed = static_shared();
  const Faults faults;
  const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t at = reverse ? blocks - 1 - i : i;
    const auto x = static_cast<unsigned>(at % grid.x), y = static_cast<unsigned>(at / grid.x % grid.y);
    start_block({x, y, static_cast<unsigned>(at / grid.x / grid.y)}, fixed);
    run_block(reverse);
    current = -1;
    if (failed) return false;
    if (!untouched(shared_area) || !untouched(shared_end())) {
      complain("written outside of the %zu bytes of dynamic shared memory", shared);
      return false;
    }
  }
  return true;
}

}  // namespace emulated

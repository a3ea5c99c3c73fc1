// A stack for each thread of a block, and going from one to another.
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__x86_64__) && !defined(QVL_UCONTEXT)
#define QVL_OWN_SWITCH
#else
#include <ucontext.h>
#endif

namespace emulated {

constexpr size_t kPage = 4096;
constexpr size_t kStack = 128 * 1024;  // of which the lowest page is out of bounds

#ifdef QVL_OWN_SWITCH
// swapcontext would ask the kernel for the signal mask every time.
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
inline void change(Place& left, Place& taken) { qvl_emulated_switch(&left, taken); }
inline void prepare(Place& place, unsigned char* top, void (*entry)()) {
  auto** stack = reinterpret_cast<void**>(top) - 8;
  memset(stack, 0, 64);
  stack[6] = reinterpret_cast<void*>(entry);
  place = stack;
}
#else
using Place = ucontext_t;
inline void change(Place& left, Place& taken) { swapcontext(&left, &taken); }
inline void prepare(Place& place, unsigned char* top, void (*entry)()) {
  getcontext(&place);
  place.uc_stack.ss_sp = top - kStack / 2;
  place.uc_stack.ss_size = kStack / 2;
  place.uc_link = nullptr;
  makecontext(&place, entry, 0);
}
#endif

// A stack that a thread has left is taken next, while the cache still has it.
class Stacks {
 public:
  static constexpr int kNumber = 1024;

  void free_all() {
    if (!memory_) make();
    for (int i = 0; i < kNumber; ++i) free_[i] = kNumber - 1 - i;
    count_ = kNumber;
  }
  int take() { return free_[--count_]; }
  void give_back(int stack) { free_[count_++] = stack; }
  // Tops are at different places of a page, lest all stacks fall into the same few sets of the cache.
  unsigned char* top(int stack) const { return memory_ + (stack + 1) * kStack - static_cast<size_t>(stack % 31) * 128; }
  bool holds(const void* address) const {
    const auto* at = static_cast<const unsigned char*>(address);
    return at >= memory_ && at < memory_ + kNumber * kStack;
  }

 private:
  void make() {
    void* made =
        mmap(nullptr, kNumber * kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (made == MAP_FAILED) {
      fprintf(stderr, "no memory for the stacks of a block\n");
      abort();
    }
    memory_ = static_cast<unsigned char*>(made);
    for (int i = 0; i < kNumber; ++i) mprotect(memory_ + i * kStack, kPage, PROT_NONE);
  }

  unsigned char* memory_ = nullptr;
  int free_[kNumber], count_ = 0;
};

}  // namespace emulated

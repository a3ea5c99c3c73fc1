// Shared memory as a block finds it: full of garbage, and with an end.
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#ifdef __linux__
#include <link.h>
#endif

#include "stacks.h"

namespace emulated {

constexpr size_t kMostShared = 227 * 1024;
constexpr unsigned char kPoison = 0xff;  // not a number in every float type

// Dynamic shared memory. It ends where the memory of the process ends, but for what makes it a multiple of 16 bytes; what
// lies before it nobody may write to.
class DynamicShared {
 public:
  void resize(size_t size) {
    if (!memory_) make();
    size_ = size;
    begin_ = memory_ + kPage + kArea - (size + 15) / 16 * 16;
    memset(memory_ + kPage, kPoison, kArea);
  }
  void poison() { memset(begin_, kPoison, size_); }
  bool intact() const {
    // Not all of what lies before, which would take longer than most blocks.
    const size_t before = begin_ - memory_ - kPage;
    return all_poison(begin_ - (before < kPage ? before : kPage), begin_) && all_poison(begin_ + size_, memory_ + kPage + kArea);
  }
  bool is_edge(const void* address) const {
    const auto* at = static_cast<const unsigned char*>(address);
    return memory_ && at >= memory_ && at < memory_ + kArea + 2 * kPage;
  }
  unsigned char* begin() const { return begin_; }
  size_t size() const { return size_; }

 private:
  static constexpr size_t kArea = 232 * 1024;  // whole pages, more than kMostShared

  static bool all_poison(const unsigned char* from, const unsigned char* to) {
    return from == to || (*from == kPoison && memcmp(from, from + 1, to - from - 1) == 0);
  }
  void make() {
    void* made = mmap(nullptr, kArea + 2 * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED) {
      fprintf(stderr, "no memory for the shared memory of a block\n");
      abort();
    }
    memory_ = static_cast<unsigned char*>(made);
    mprotect(memory_, kPage, PROT_NONE);
    mprotect(memory_ + kPage + kArea, kPage, PROT_NONE);
  }

  unsigned char *memory_ = nullptr, *begin_ = nullptr;
  size_t size_ = 0;
};

struct Range {
  unsigned char* begin;
  size_t size;
};

// Of this library's thread-local variables those without an initial value: the __shared__ ones of all kernels.
// `in_library` is any address of its code.
inline Range static_shared(const void* in_library) {
#ifdef __linux__
  static thread_local volatile int anchor = 1;  // so that there are some; it has an initial value
  anchor = anchor + 1;
  struct Search {
    uintptr_t here;
    Range found;
  } search{reinterpret_cast<uintptr_t>(in_library), {nullptr, 0}};
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* to) {
        auto& search = *static_cast<Search*>(to);
        bool ours = false;
        const ElfW(Phdr)* local = nullptr;
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const ElfW(Phdr)& part = info->dlpi_phdr[i];
          const uintptr_t begin = info->dlpi_addr + part.p_vaddr;
          if (part.p_type == PT_LOAD && search.here >= begin && search.here < begin + part.p_memsz) ours = true;
          if (part.p_type == PT_TLS) local = &part;
        }
        if (!ours || !local || !info->dlpi_tls_data) return 0;
        auto* first = static_cast<unsigned char*>(info->dlpi_tls_data);
        search.found = {first + local->p_filesz, local->p_memsz - local->p_filesz};
        return 1;
      },
      &search);
  return search.found;
#else
  (void)in_library;
  return {nullptr, 0};
#endif
}

}  // namespace emulated

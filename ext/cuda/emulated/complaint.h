// What is said of a launch that went wrong.
#pragma once

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "cuda.h"

namespace emulated {

// Number of the thread that runs, or -1 between threads.
inline int current = -1;

struct Complaint {
  bool made = false;  // of this launch
  char text[1024] = "";
};
inline Complaint complaint;

// Keeps a message that begins with the block, and the thread where there is one.
inline void say(const char* format, va_list arguments) {
  char* to = complaint.text;
  const auto room = [&] { return complaint.text + sizeof(complaint.text) - to; };
  to += snprintf(to, room(), "block (%u, %u, %u)", blockIdx.x, blockIdx.y, blockIdx.z);
  if (current >= 0) to += snprintf(to, room(), ", thread (%u, %u, %u)", threadIdx.x, threadIdx.y, threadIdx.z);
  to += snprintf(to, room(), ": ");
  vsnprintf(to, room(), format, arguments);
  complaint.made = true;
}

inline __attribute__((format(printf, 1, 2))) void complain(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  say(format, arguments);
  va_end(arguments);
}

inline bool same(const Site& a, const Site& b) {
  return a.line == b.line && (a.what == b.what || strcmp(a.what, b.what) == 0) &&
         (a.file == b.file || strcmp(a.file, b.file) == 0);
}

inline const char* base(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash ? slash + 1 : path;
}

}  // namespace emulated

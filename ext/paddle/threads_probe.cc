// A job for the pool that a test can watch.
#include <atomic>
#include <thread>

#include "module.h"
#include "qvl/threads.h"

namespace qvl {

// How often each of `count` items was visited, when handed out `grain` at a time.
static std::vector<int> visits(int64_t count, int64_t grain) {
  std::vector<std::atomic<int>> counts(static_cast<size_t>(count));
  parallel(count, grain, [&](int64_t begin, int64_t end) {
    // A job within a job runs in place.
    parallel(end - begin, 3, [&](int64_t first, int64_t last) {
      for (int64_t i = begin + first; i < begin + last; ++i) counts[static_cast<size_t>(i)].fetch_add(1);
    });
  });
  return std::vector<int>(counts.begin(), counts.end());
}

void bind_threads_probe(py::module_& m) { m.def("visits", &visits, py::arg("count"), py::arg("grain")); }

}  // namespace qvl

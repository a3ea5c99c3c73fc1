// The Python module: what the library is and runs on, and the functions that each op adds in a file of its own.
#include <string>

#include "module.h"
#include "qvl/isa.h"
#include "qvl/threads.h"

namespace {

std::vector<std::string> levels() {
  std::vector<std::string> names;
  for (int32_t i = 0; i < qvl::kLevels; ++i) {
    if (qvl::isa_supported(static_cast<qvl::Isa>(i))) names.push_back(qvl::isa_name(static_cast<qvl::Isa>(i)));
  }
  return names;
}

void choose_level(const std::string& name) {
  for (int32_t i = 0; i < qvl::kLevels; ++i) {
    if (name == qvl::isa_name(static_cast<qvl::Isa>(i)) && qvl::set_isa(static_cast<qvl::Isa>(i))) return;
  }
  std::string known;
  for (const auto& each : levels()) known += (known.empty() ? "" : ", ") + each;
  throw std::invalid_argument("this CPU runs " + known + ", not " + name);
}

}  // namespace

PYBIND11_MODULE(_native, m) {
  m.attr("ABI") = QVL_ABI;
  m.def("levels", &levels, "The levels of CPU features that this CPU has, in rising order.");
  m.def("level", [] { return std::string(qvl::isa_name(qvl::isa())); }, "The level in use.");
  m.def("set_level", &choose_level, "Use another level. ValueError when the CPU does not have it.");
  m.def("threads", &qvl::threads, "Threads that share the work of an op.");
  m.def("set_threads", &qvl::set_threads, "Set the number of threads; not while an op runs.");
#define QVL_BIND(name) qvl::bind_##name(m);
  QVL_OPS_BOUND(QVL_BIND)
}

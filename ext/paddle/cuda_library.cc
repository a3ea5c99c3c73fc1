// Opening the library of kernels for GPUs; each op adds its method in a file of its own.
#include "cuda_library.h"

#include <dlfcn.h>

namespace qvl::cuda {
namespace {

void* found(void* library, const std::string& name, const std::string& path) {
  void* symbol = dlsym(library, name.c_str());
  if (symbol == nullptr) throw std::runtime_error(path + " has no " + name);
  return symbol;
}

}  // namespace

Library::Library(const std::string& path) : path(path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* said = dlerror();
    throw std::runtime_error(said == nullptr ? path + " cannot be opened" : said);
  }
  const auto abi = reinterpret_cast<decltype(&qvl_cuda_abi)>(found(library, "qvl_cuda_abi", path));
  if (abi() != QVL_CUDA_ABI) {
    throw std::runtime_error(path + " has interface " + std::to_string(abi()) + ", " + std::to_string(QVL_CUDA_ABI) +
                             " is needed");
  }
  emulated = reinterpret_cast<decltype(&qvl_cuda_emulated)>(found(library, "qvl_cuda_emulated", path))() != 0;
  architectures =
      reinterpret_cast<decltype(&qvl_cuda_architectures)>(found(library, "qvl_cuda_architectures", path))();
#define QVL_RESOLVE(name) this->name = reinterpret_cast<decltype(this->name)>(found(library, "qvl_cuda_" #name, path));
  QVL_CUDA_FUNCTIONS(QVL_RESOLVE)
#undef QVL_RESOLVE
}

}  // namespace qvl::cuda

namespace qvl {

void bind_cuda_library(py::module_& m) {
  m.attr("CUDA_ABI") = QVL_CUDA_ABI;
  cuda::Bound library(m, "CudaLibrary", "Ops on a GPU. Each takes the stream as its last argument and returns at once.");
  library.def(py::init<const std::string&>(), py::arg("path"))
      .def_readonly("path", &cuda::Library::path)
      .def_readonly("architectures", &cuda::Library::architectures)
      .def_readonly("emulated", &cuda::Library::emulated);
  cuda::bind_norm(library);
  cuda::bind_activation(library);
  cuda::bind_attention(library);
  cuda::bind_linear(m, library);
  cuda::bind_sampling(library);
}

}  // namespace qvl

#include <bsfa/backends.hpp>
#include <bsfa/limits.hpp>
#include <cstring>

#include "binding.hpp"
#include "source_tree.hpp"

namespace bsfa::python {
namespace {

const char* error_class(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
      return "InvalidArgumentError";
    case ErrorCode::kUnsupported:
      return "UnsupportedError";
    case ErrorCode::kFormat:
      return "FormatError";
    case ErrorCode::kIo:
      return "FileError";
    case ErrorCode::kOk:
    case ErrorCode::kRuntime:
      break;
  }
  return "DeviceError";
}

// The classes live in Python, where one can derive from Error and a built-in exception at once.
void translate(const std::exception_ptr& pointer, void*) {
  try {
    std::rethrow_exception(pointer);
  } catch (const Error& error) {
    const nb::object type = nb::module_::import_("bsfa.errors").attr(error_class(error.code()));
    PyErr_SetString(type.ptr(), error.what());
  }
}

}  // namespace
}  // namespace bsfa::python

NB_MODULE(_core, module) {
  using namespace bsfa::python;
  module.doc() = "Binding of the bsfa library. Tensors cross by DLPack.";
  if (std::strcmp(bsfa::version(), BSFA_PYTHON_VERSION) != 0) {
    throw nb::import_error((std::string("libbsfa is version ") + bsfa::version() +
                            "; this package was built for " BSFA_PYTHON_VERSION)
                               .c_str());
  }
  nb::register_exception_translator(translate);
  module.def("version", &bsfa::version, "Of the library, such as 0.1.0.");
  module.def(
      "source_tree",
      [] {
        const bsfa::SourceTree tree = bsfa::source_tree();
        return std::make_tuple(tree.commit, tree.changed);
      },
      "What this package was built from: the commit (\"\": no clone of the repository), and whether "
      "files of it had been changed.");

  nb::class_<bsfa::BackendInfo>(module, "BackendInfo", "One backend of this build.")
      .def_ro("name", &bsfa::BackendInfo::name, "Accepted by `backend`.")
      .def_prop_ro("device",
                   [](const bsfa::BackendInfo& info) {
                     return info.device == bsfa::DeviceType::kCpu ? "cpu" : "cuda";
                   })
      .def_ro("available", &bsfa::BackendInfo::available, "On this machine.")
      .def_ro("description", &bsfa::BackendInfo::description);
  module.def("backends", &bsfa::backends,
             "Every backend in this build, the preferred one of each device first.");
  bind_attention(module);
  bind_thresholds(module);
  bind_calibration(module);
  bind_files(module);
  bind_text(module);
  module.attr("MAX_TOKENS") = bsfa::kMaxTokens;
  module.attr("MAX_WORKERS") = bsfa::kMaxWorkers;
}

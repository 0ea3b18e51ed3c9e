#include "engine/module.hpp"

#include <ggml-backend.h>

#include <bsfa/error.hpp>
#include <bsfa/text.hpp>
#include <cstdlib>
#include <filesystem>

namespace bsfa::cli {
namespace {

namespace fs = std::filesystem;
constexpr const char* kFile = "libggml-bsfa.so";

std::string find_module() {
  if (const char* named = std::getenv("BSFA_GGML_MODULE")) return named;
  const fs::path here = fs::read_symlink("/proc/self/exe").parent_path();
  // Beside the program; where `cmake --install` puts it; where the build leaves it.
  for (const fs::path& folder :
       {here, here / "../lib", here / "../lib64", here / "../../integrations/ggml"}) {
    if (fs::exists(folder / kFile)) return fs::weakly_canonical(folder / kFile);
  }
  throw Error(ErrorCode::kIo, std::string("cannot find ") + kFile + " beside " +
                                  path_text(here.string()) +
                                  " or in ../lib; set BSFA_GGML_MODULE to its path");
}

}  // namespace

Module& Module::instance() {
  static Module module;
  return module;
}

Module::Module() : path_(find_module()) {
  ggml_backend_reg_t reg = ggml_backend_load(path_.c_str());
  if (reg == nullptr) {
    throw Error(ErrorCode::kRuntime,
                "cannot load " + quote(path_, kLongestPath) + " (the reason is above)");
  }
  using Get = const bsfa_ggml_api* (*)();
  const auto get =
      reinterpret_cast<Get>(ggml_backend_reg_get_proc_address(reg, BSFA_GGML_API_NAME));
  if (get != nullptr) api_ = get();
  if (api_ == nullptr || api_->version != BSFA_GGML_API_VERSION) {
    throw Error(ErrorCode::kRuntime, quote(path_, kLongestPath) + " has interface version " +
                                         std::to_string(api_ == nullptr ? 0 : api_->version) +
                                         "; this program needs " +
                                         std::to_string(BSFA_GGML_API_VERSION));
  }
}

void Module::configure(const bsfa_ggml_config& config) {
  char message[1024];
  if (api_->configure(&config, message, sizeof message) != 0) {
    throw Error(ErrorCode::kInvalidArgument, message);
  }
}

std::vector<bsfa_ggml_layer_stats> Module::layer_stats() const {
  std::vector<bsfa_ggml_layer_stats> entries(api_->layer_stats(nullptr, 0));
  api_->layer_stats(entries.data(), entries.size());
  return entries;
}

std::vector<bsfa_ggml_decline> Module::declined() const {
  std::vector<bsfa_ggml_decline> entries(api_->declined(nullptr, 0));
  api_->declined(entries.data(), entries.size());
  return entries;
}

}  // namespace bsfa::cli

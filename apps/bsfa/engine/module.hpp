#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bsfa_ggml.h"

namespace bsfa::cli {

// The loadable ggml backend, loaded into this process as any llama.cpp program would load it.
class Module {
 public:
  // Loads it once: from BSFA_GGML_MODULE if that is set, else from where the build and the
  // installation put it, relative to this program. Throws Error.
  static Module& instance();

  // Throws Error with the module's message.
  void configure(const bsfa_ggml_config& config);
  void reset_stats() { api_->reset_stats(); }
  double attention_seconds() const { return api_->attention_seconds(); }
  std::vector<bsfa_ggml_layer_stats> layer_stats() const;
  std::vector<bsfa_ggml_decline> declined() const;
  std::string last_error() const { return api_->last_error(); }
  const std::string& path() const { return path_; }

 private:
  Module();

  const bsfa_ggml_api* api_ = nullptr;
  std::string path_;
};

}  // namespace bsfa::cli

#pragma once

#include <bsfa/thresholds.hpp>
#include <cstdint>
#include <memory>
#include <string>

#include "bsfa_ggml.h"

namespace bsfa::ggml {

// A configuration as the attention code uses it; immutable once published.
struct Settings {
  bsfa_ggml_mode mode = BSFA_GGML_DENSE;
  bsfa_ggml_compute compute = BSFA_GGML_BF16;
  std::int64_t budget = 0;
  std::shared_ptr<const ThresholdTable> thresholds;  // THRESHOLD
  std::string backend;                               // of AttentionParams; empty: the best
  int num_threads = 0;                               // 0: as many as llama.cpp uses
  bool print_stats = false;                          // when a context is freed
  bool allow_other_model = false;                    // THRESHOLD: no warning of other weights
  bsfa_ggml_block_max_callback block_max = nullptr;  // CALIBRATE
  void* user = nullptr;
};

// From the environment (README.md beside this file lists the variables); throws Error.
Settings settings_from_environment();

// Throws Error. Keeps from `base` what only the environment sets.
Settings settings_from_config(const bsfa_ggml_config& config, const Settings& base);

// The settings in force. Published as a whole, so that a reader never sees half of a change.
std::shared_ptr<const Settings> current_settings();
void publish_settings(Settings settings);

}  // namespace bsfa::ggml

#include "settings.hpp"

#include <bsfa/backends.hpp>
#include <bsfa/error.hpp>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>

namespace bsfa::ggml {
namespace {

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorCode::kInvalidArgument, message);
}

std::int64_t environment_integer(const char* name, std::int64_t least) {
  const std::string text = environment(name);
  if (text.empty()) return 0;
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least) {
    refuse(std::string(name) + " is '" + text + "'; accepted: an integer, at least " +
           std::to_string(least));
  }
  return value;
}

// What holds however the settings came.
void finish(Settings& settings, const std::string& thresholds) {
  if (!settings.backend.empty()) {
    std::string names;
    bool known = false;
    for (const BackendInfo& info : backends()) {
      if (info.device != DeviceType::kCpu || !info.available) continue;
      known = known || info.name == settings.backend;
      names += (names.empty() ? "" : ", ") + info.name;
    }
    if (!known) refuse("backend is '" + settings.backend + "'; accepted here: " + names);
  }
  if (settings.mode == BSFA_GGML_THRESHOLD) {
    if (thresholds.empty()) refuse("mode threshold needs a threshold file (BSFA_THRESHOLDS)");
    auto table = std::make_shared<const ThresholdTable>(ThresholdTable::load(thresholds));
    if (settings.budget == 0) {
      if (!table->metadata().recommended_budget) {
        refuse("'" + thresholds + "' recommends no budget: name one (BSFA_BUDGET)");
      }
      settings.budget = *table->metadata().recommended_budget;
    }
    (void)table->view(settings.budget, 0);  // refuses a budget that the file lacks
    settings.thresholds = std::move(table);
  } else if (!thresholds.empty()) {
    refuse("a threshold file is given, but the mode is not threshold: it would be ignored");
  }
  if (settings.budget < 0)
    refuse("budget is " + std::to_string(settings.budget) + "; accepted: 0 or more");
  if (settings.mode == BSFA_GGML_CALIBRATE && settings.block_max == nullptr) {
    refuse("mode calibrate needs a callback for the block maxima");
  }
}

std::mutex settings_mutex;
std::shared_ptr<const Settings> settings_in_force = std::make_shared<const Settings>();

}  // namespace

Settings settings_from_environment() {
  Settings settings;
  const std::string thresholds = environment("BSFA_THRESHOLDS");
  const std::string mode = environment("BSFA_MODE");
  static constexpr std::pair<const char*, bsfa_ggml_mode> kModes[] = {
      {"off", BSFA_GGML_OFF},
      {"host", BSFA_GGML_HOST},
      {"dense", BSFA_GGML_DENSE},
      {"threshold", BSFA_GGML_THRESHOLD},
      {"sliding_window", BSFA_GGML_SLIDING_WINDOW},
  };
  settings.mode = thresholds.empty() ? BSFA_GGML_DENSE : BSFA_GGML_THRESHOLD;
  bool known = mode.empty();
  for (const auto& [name, value] : kModes) {
    if (mode != name) continue;
    settings.mode = value;
    known = true;
  }
  if (!known) {
    refuse("BSFA_MODE is '" + mode + "'; accepted: off, host, dense, threshold, sliding_window");
  }
  const std::string compute = environment("BSFA_COMPUTE");
  if (compute == "exact") {
    settings.compute = BSFA_GGML_EXACT;
  } else if (!compute.empty() && compute != "bf16") {
    refuse("BSFA_COMPUTE is '" + compute + "'; accepted: bf16, exact");
  }
  settings.budget = environment_integer("BSFA_BUDGET", 0);
  settings.num_threads = static_cast<int>(environment_integer("BSFA_NUM_THREADS", 1));
  settings.print_stats = environment_integer("BSFA_STATS", 0) != 0;
  settings.backend = environment("BSFA_BACKEND");
  finish(settings, thresholds);
  return settings;
}

Settings settings_from_config(const bsfa_ggml_config& config, const Settings& base) {
  Settings settings;
  settings.num_threads = base.num_threads;
  settings.print_stats = base.print_stats;
  if (config.mode < BSFA_GGML_OFF || config.mode > BSFA_GGML_CALIBRATE) {
    refuse("mode is " + std::to_string(config.mode) + "; accepted: 0 to 5");
  }
  if (config.compute != BSFA_GGML_BF16 && config.compute != BSFA_GGML_EXACT) {
    refuse("compute is " + std::to_string(config.compute) + "; accepted: bf16 (0), exact (1)");
  }
  settings.mode = static_cast<bsfa_ggml_mode>(config.mode);
  settings.compute = static_cast<bsfa_ggml_compute>(config.compute);
  settings.budget = config.budget;
  settings.backend = config.backend == nullptr ? base.backend : config.backend;
  settings.block_max = config.block_max;
  settings.user = config.user;
  finish(settings, config.thresholds == nullptr ? "" : config.thresholds);
  return settings;
}

std::shared_ptr<const Settings> current_settings() {
  const std::lock_guard lock(settings_mutex);
  return settings_in_force;
}

void publish_settings(Settings settings) {
  auto next = std::make_shared<const Settings>(std::move(settings));
  const std::lock_guard lock(settings_mutex);
  settings_in_force = std::move(next);
}

}  // namespace bsfa::ggml

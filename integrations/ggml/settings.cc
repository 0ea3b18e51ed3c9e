#include "settings.hpp"

#include <bsfa/attention.hpp>
#include <bsfa/backends.hpp>
#include <bsfa/error.hpp>
#include <bsfa/limits.hpp>
#include <bsfa/text.hpp>
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

// 0 where it is not set.
std::int64_t environment_integer(const char* name, std::int64_t least, std::int64_t most) {
  const std::string text = environment(name);
  if (text.empty()) return 0;
  std::int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least || value > most) {
    refuse(std::string(name) + " is " + quote(text) + "; accepted: an integer, " +
           std::to_string(least) + " to " + std::to_string(most));
  }
  return value;
}

// What no call can be served with, whatever its shape, such as a BSFA_CPU_ISA that is not one.
// Found out now, it is reported as what it is, and not as a shape that nobody serves.
void check_that_calls_can_be_served(const Settings& settings) {
  alignas(16) static constexpr float kNothing[8] = {};
  AttentionParams params;
  params.q = params.k = params.v = contiguous<const void*>(kNothing, DType::kFloat32, 1, 1, 1, 8);
  params.out = contiguous<void*>(const_cast<float*>(kNothing), DType::kFloat32, 1, 1, 1, 8);
  params.backend = settings.backend;
  const AttentionPlan plan = plan_attention(params);  // writes nothing
  if (!plan.status.ok()) throw Error(plan.status);
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
    if (!known) refuse("backend is " + quote(settings.backend) + "; accepted here: " + names);
  }
  if (settings.mode == BSFA_GGML_THRESHOLD) {
    if (thresholds.empty()) refuse("mode threshold needs a threshold file (BSFA_THRESHOLDS)");
    auto table = std::make_shared<const ThresholdTable>(ThresholdTable::load(thresholds));
    if (settings.budget == 0) {
      if (!table->metadata().recommended_budget) {
        refuse(quote(thresholds, kLongestPath) + " recommends no budget: name one (BSFA_BUDGET)");
      }
      settings.budget = *table->metadata().recommended_budget;
    }
    (void)table->view(settings.budget, 0);  // refuses a budget that the file lacks
    settings.thresholds = std::move(table);
  } else if (!thresholds.empty()) {
    refuse("a threshold file is given, but the mode is not threshold: it would be ignored");
  }
  if (settings.budget < 0 || settings.budget > kMaxTokens) {
    refuse("budget is " + std::to_string(settings.budget) + "; accepted: 0 to " +
           std::to_string(kMaxTokens));
  }
  if (settings.mode == BSFA_GGML_CALIBRATE && settings.block_max == nullptr) {
    refuse("mode calibrate needs a callback for the block maxima");
  }
  if (settings.mode != BSFA_GGML_OFF && settings.mode != BSFA_GGML_HOST) {
    check_that_calls_can_be_served(settings);
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
    refuse("BSFA_MODE is " + quote(mode) +
           "; accepted: off, host, dense, threshold, sliding_window");
  }
  const std::string compute = environment("BSFA_COMPUTE");
  if (compute == "exact") {
    settings.compute = BSFA_GGML_EXACT;
  } else if (!compute.empty() && compute != "bf16") {
    refuse("BSFA_COMPUTE is " + quote(compute) + "; accepted: bf16, exact");
  }
  settings.budget = environment_integer("BSFA_BUDGET", 0, kMaxTokens);
  settings.num_threads = static_cast<int>(environment_integer("BSFA_NUM_THREADS", 1, kMaxWorkers));
  settings.print_stats = environment_integer("BSFA_STATS", 0, 1) != 0;
  settings.allow_other_model = environment_integer("BSFA_ALLOW_OTHER_MODEL", 0, 1) != 0;
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
  settings.allow_other_model = config.allow_other_model != 0;
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

#include "stats.hpp"

#include <cstdio>

namespace bsfa::ggml {

const char* decline_reason(Decline reason) {
  switch (reason) {
    case Decline::kOff:
      return "mode off";
    case Decline::kFewQueries:
      return "fewer than 32 queries (decode)";
    case Decline::kNoMask:
      return "no mask (not causal)";
    case Decline::kMaskLayout:
      return "mask is not fp16, or differs by head";
    case Decline::kAlibi:
      return "ALiBi";
    case Decline::kSinks:
      return "attention sinks";
    case Decline::kQueryType:
      return "queries are not fp32";
    case Decline::kCacheType:
      return "keys or values are not fp16 (quantised cache)";
    case Decline::kTensorLayout:
      return "tensor layout";
    case Decline::kUnknownLayer:
      return "no layer number (no key cache)";
    case Decline::kThresholds:
      return "thresholds of another model";
    case Decline::kUnsupported:
      return "shape that no bsfa backend serves";
    case Decline::kMaskContent:
      return "mask is not plain causal or windowed (several sequences, holes)";
    case Decline::kNone:
    case Decline::kCount:
      break;
  }
  return "";
}

Stats& Stats::instance() {
  static Stats stats;
  return stats;
}

void Stats::reset() {
  const std::lock_guard lock(mutex_);
  layers_.clear();
  for (std::int64_t& count : declined_) count = 0;
  host_seconds_ = 0;
  error_.clear();
}

void Stats::add_decline(Decline reason) {
  const std::lock_guard lock(mutex_);
  ++declined_[static_cast<int>(reason)];
}

void Stats::add_call(int layer, std::int64_t kept_blocks, std::int64_t visible_blocks,
                     double seconds) {
  const std::lock_guard lock(mutex_);
  bsfa_ggml_layer_stats& entry = layers_[layer];
  entry.layer = layer;
  entry.calls += 1;
  entry.kept_blocks += kept_blocks;
  entry.visible_blocks += visible_blocks;
  entry.seconds += seconds;
}

void Stats::add_host_seconds(double seconds) {
  const std::lock_guard lock(mutex_);
  host_seconds_ += seconds;
}

void Stats::set_error(const std::string& message) {
  const std::lock_guard lock(mutex_);
  error_ = message;
}

std::vector<bsfa_ggml_layer_stats> Stats::layers() const {
  const std::lock_guard lock(mutex_);
  std::vector<bsfa_ggml_layer_stats> result;
  for (const auto& [layer, entry] : layers_) result.push_back(entry);
  return result;
}

std::vector<bsfa_ggml_decline> Stats::declined() const {
  const std::lock_guard lock(mutex_);
  std::vector<bsfa_ggml_decline> result;
  for (int i = 0; i < static_cast<int>(Decline::kCount); ++i) {
    const auto reason = static_cast<Decline>(i);
    if (declined_[i] == 0) continue;
    result.push_back({decline_reason(reason), reason == Decline::kMaskContent, declined_[i]});
  }
  return result;
}

double Stats::seconds() const {
  const std::lock_guard lock(mutex_);
  double total = host_seconds_;
  for (const auto& [layer, entry] : layers_) total += entry.seconds;
  return total;
}

const char* Stats::last_error() const {
  const std::lock_guard lock(mutex_);
  return error_.c_str();
}

std::string Stats::text() const {
  std::int64_t calls = 0, kept = 0, visible = 0;
  for (const bsfa_ggml_layer_stats& entry : layers()) {
    calls += entry.calls;
    kept += entry.kept_blocks;
    visible += entry.visible_blocks;
  }
  char line[256];
  std::snprintf(line, sizeof line, "bsfa: %lld attention calls, %.3f s, density %.3f\n",
                static_cast<long long>(calls), seconds(),
                visible > 0 ? static_cast<double>(kept) / static_cast<double>(visible) : 1.0);
  std::string result = line;
  for (const bsfa_ggml_decline& entry : declined()) {
    std::snprintf(line, sizeof line, "bsfa: left to llama.cpp: %s: %lld %s\n", entry.reason,
                  static_cast<long long>(entry.count), entry.at_run_time ? "calls" : "times asked");
    result += line;
  }
  return result;
}

}  // namespace bsfa::ggml

#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "bsfa_ggml.h"

namespace bsfa::ggml {

// Why attention is left to llama.cpp. Every reason but the last is seen when a graph is divided.
enum class Decline : int {
  kNone,
  kOff,
  kFewQueries,
  kNoMask,
  kMaskLayout,
  kAlibi,
  kSinks,
  kQueryType,
  kCacheType,
  kTensorLayout,
  kUnknownLayer,
  kThresholds,
  kUnsupported,
  kMaskContent,
  kCount,
};

const char* decline_reason(Decline reason);

// Counts of the whole process; every context adds to them.
class Stats {
 public:
  static Stats& instance();

  void reset();
  void add_decline(Decline reason);
  void add_call(int layer, std::int64_t kept_blocks, std::int64_t visible_blocks, double seconds);
  void add_host_seconds(double seconds);
  void set_error(const std::string& message);

  std::vector<bsfa_ggml_layer_stats> layers() const;
  std::vector<bsfa_ggml_decline> declined() const;
  double seconds() const;
  const char* last_error() const;
  std::string text() const;  // for people: a few lines

 private:
  mutable std::mutex mutex_;
  std::map<int, bsfa_ggml_layer_stats> layers_;
  std::int64_t declined_[static_cast<int>(Decline::kCount)] = {};
  double host_seconds_ = 0;
  std::string error_;
};

}  // namespace bsfa::ggml

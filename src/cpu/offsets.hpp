#pragma once

#include <cstddef>

namespace bsfa::cpu {

// Hands out places of a workspace one after the other.
class Offsets {
 public:
  std::size_t take(std::size_t bytes) {
    const std::size_t at = end_;
    end_ = (end_ + bytes + kAlignment - 1) / kAlignment * kAlignment;
    return at;
  }
  std::size_t end() const { return end_; }

 private:
  static constexpr std::size_t kAlignment = 256;
  std::size_t end_ = 0;
};

}  // namespace bsfa::cpu

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace bsfa {

// SHA-256 (FIPS 180-4), piece by piece. Of files and of what identifies a model: everybody has a
// program to check it with. Not for secrets.
class Sha256 {
 public:
  Sha256();

  void update(const void* data, std::size_t size);
  void update(std::string_view text) { update(text.data(), text.size()); }

  // The digest of everything so far, 64 hexadecimal digits. The object is used up.
  std::string finish();

 private:
  void compress(const unsigned char* block);

  std::array<std::uint32_t, 8> state_;
  std::array<unsigned char, 64> pending_{};
  std::uint64_t total_ = 0;  // bytes
};

}  // namespace bsfa

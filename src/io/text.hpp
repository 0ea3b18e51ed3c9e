#pragma once

#include <string>
#include <string_view>

#include "core/status.hpp"

// Messages about files.

namespace bsfa {

template <typename... Parts>
Status format_error(const Parts&... parts) {
  return {ErrorCode::kFormat, text(parts...)};
}

template <typename... Parts>
Status io_error(const Parts&... parts) {
  return {ErrorCode::kIo, text(parts...)};
}

// Something out of a file, fit for a message: short, on one line, between quotes.
inline std::string quote(std::string_view found) {
  constexpr std::size_t kLongest = 64;
  std::string result(found.substr(0, kLongest));
  for (char& c : result) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  }
  if (found.size() > kLongest) {
    // Not in the middle of a UTF-8 character.
    while (!result.empty() && (static_cast<unsigned char>(result.back()) & 0xc0) == 0x80) {
      result.pop_back();
    }
    if (!result.empty() && (static_cast<unsigned char>(result.back()) & 0x80) != 0) {
      result.pop_back();
    }
    result += "...";
  }
  result.insert(result.begin(), '\'');
  result.push_back('\'');
  return result;
}

}  // namespace bsfa

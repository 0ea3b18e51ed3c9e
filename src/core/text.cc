#include "bsfa/text.hpp"

#include <cstdint>

#include "bsfa/error.hpp"

namespace bsfa {
namespace {

// One character of UTF-8, or one byte that is not part of any (length 1, valid false).
struct Character {
  std::uint32_t code = 0;
  std::size_t length = 1;
  bool valid = false;
};

Character character_at(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t n) { return static_cast<unsigned char>(text[at + n]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return {first, 1, true};
  std::size_t length = 0;
  std::uint32_t code = 0;
  std::uint32_t least = 0;  // smaller codes have a shorter form; the longer one is not UTF-8
  if (first >= 0xc2 && first < 0xe0) {
    length = 2, code = first & 0x1fu, least = 0x80;
  } else if (first >= 0xe0 && first < 0xf0) {
    length = 3, code = first & 0x0fu, least = 0x800;
  } else if (first >= 0xf0 && first < 0xf5) {
    length = 4, code = first & 0x07u, least = 0x10000;
  } else {
    return {first, 1, false};
  }
  if (at + length > text.size()) return {first, 1, false};
  for (std::size_t n = 1; n < length; ++n) {
    if ((byte(n) & 0xc0) != 0x80) return {first, 1, false};
    code = (code << 6) | (byte(n) & 0x3fu);
  }
  const bool surrogate = code >= 0xd800 && code < 0xe000;
  if (code < least || code > 0x10ffff || surrogate) return {first, 1, false};
  return {code, length, true};
}

// What a terminal acts upon instead of showing it, and what would hide or reorder its neighbours:
// the C0 and C1 controls, line and paragraph separators, direction marks, the byte order mark. (The
// joiners U+200C and U+200D stay: scripts and emoji are written with them.)
bool is_control(std::uint32_t code) {
  return code < 0x20 || (code >= 0x7f && code < 0xa0) || code == 0x061c || code == 0x200b ||
         code == 0x200e || code == 0x200f || (code >= 0x2028 && code <= 0x202e) ||
         (code >= 0x2060 && code <= 0x206f) || code == 0xfeff || code == 0xfffe || code == 0xffff;
}

void append_hex(std::uint32_t value, int digits, std::string* to) {
  constexpr const char* kDigits = "0123456789abcdef";
  for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) *to += kDigits[(value >> shift) & 15];
}

void append_escape(const Character& c, std::string* to) {
  if (c.valid && c.code == '\n') {
    *to += "\\n";
  } else if (c.valid && c.code == '\r') {
    *to += "\\r";
  } else if (c.valid && c.code == '\t') {
    *to += "\\t";
  } else if (c.valid && c.code > 0xff) {
    *to += "\\u";
    append_hex(c.code, 4, to);
  } else {
    *to += "\\x";
    append_hex(c.code, 2, to);
  }
}

}  // namespace

std::string printable(std::string_view foreign, std::size_t longest) {
  constexpr std::string_view kCut = "...";
  std::string result;
  std::size_t room_for_cut = 0;  // the length of `result` to fall back to, so that "..." fits
  for (std::size_t at = 0; at < foreign.size();) {
    const Character c = character_at(foreign, at);
    if (c.valid && !is_control(c.code)) {
      result += foreign.substr(at, c.length);
    } else {
      append_escape(c, &result);
    }
    at += c.length;
    if (result.size() > longest) {
      result.resize(room_for_cut);
      if (longest >= kCut.size()) result += kCut;
      return result;
    }
    if (result.size() + kCut.size() <= longest) room_for_cut = result.size();
  }
  return result;
}

std::string quote(std::string_view foreign, std::size_t longest) {
  std::string result = printable(foreign, longest);
  result.insert(result.begin(), '\'');
  result += '\'';
  return result;
}

bool is_text(std::string_view bytes) {
  for (std::size_t at = 0; at < bytes.size();) {
    const Character c = character_at(bytes, at);
    if (!c.valid || c.code == 0) return false;
    at += c.length;
  }
  return true;
}

std::string path_text(std::string_view path) { return printable(path, kLongestPath); }

std::size_t valid_utf8_bytes(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const Character c = character_at(text, at);
    if (!c.valid) break;
    at += c.length;
  }
  return at;
}

Error::Error(ErrorCode code, const std::string& message)
    : std::runtime_error(printable(message)), code_(code) {}

}  // namespace bsfa

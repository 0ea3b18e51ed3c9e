#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "bsfa/export.hpp"

// Text that came from elsewhere (a file, an argument, the environment, a model), fit for a message,
// a terminal or a log: whatever its bytes are, the result is valid UTF-8 on one line, holds nothing
// that a terminal acts upon, and is short. Every message of the library that carries such text
// passes it through here, and so do the command line and the llama.cpp module.

namespace bsfa {

constexpr std::size_t kLongestQuote = 64;      // bytes of a quoted word, unless said otherwise
constexpr std::size_t kLongestPath = 1024;     // of a file name
constexpr std::size_t kLongestMessage = 4096;  // of a whole message: what Error::what() can hold

// `foreign` with every byte that is not UTF-8 written as \xNN, and every character that moves the
// cursor, starts an escape sequence or turns the direction of writing as \n, \r, \t, \xNN or
// \uNNNN. At most `longest` bytes; what was cut off is replaced by "..." (within `longest`). Text
// that passed through once comes out unchanged.
BSFA_API std::string printable(std::string_view foreign, std::size_t longest = kLongestMessage);

// The same between single quotes, which count beside `longest`.
BSFA_API std::string quote(std::string_view foreign, std::size_t longest = kLongestQuote);

// Whether bytes are text that is taken whole wherever it goes: UTF-8 without NUL, at which C stops.
BSFA_API bool is_text(std::string_view bytes);

// The name of a file, as messages begin with it or hold it.
BSFA_API std::string path_text(std::string_view path);

// How many bytes at the beginning are UTF-8: all of them, or those before the first that is not.
BSFA_API std::size_t valid_utf8_bytes(std::string_view text);

}  // namespace bsfa

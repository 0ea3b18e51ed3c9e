#include "bsfa/text.hpp"

#include <gtest/gtest.h>

#include <random>
#include <string>

#include "bsfa/error.hpp"

namespace bsfa {
namespace {

TEST(Printable, LeavesTextInAnyLanguageAsItIs) {
  const std::string text = "Grimms Märchen, 格林童話, 🙂 'x' \\ /usr/share";
  EXPECT_EQ(printable(text), text);
  EXPECT_EQ(quote("Märchen"), "'Märchen'");
  EXPECT_EQ(printable(""), "");
}

TEST(Printable, EscapesWhatATerminalActsUpon) {
  EXPECT_EQ(printable("a\x1b[31mred\x07\n\r\t\x7f"), "a\\x1b[31mred\\x07\\n\\r\\t\\x7f");
  EXPECT_EQ(printable(std::string("a\0b", 3)), "a\\x00b");
  EXPECT_EQ(printable("\xc2\x9b"
                      "31m"),
            "\\x9b31m");                                            // the C1 form of ESC [
  EXPECT_EQ(printable("x\xe2\x80\xaegpj.exe"), "x\\u202egpj.exe");  // right-to-left override
  EXPECT_EQ(printable("\xe2\x80\xa8"), "\\u2028");                  // line separator
  EXPECT_EQ(printable("\xef\xbb\xbf{"), "\\ufeff{");                // byte order mark
}

TEST(Printable, WritesBytesThatAreNotUtf8AsNumbers) {
  EXPECT_EQ(printable("\xff\xfe"), "\\xff\\xfe");
  EXPECT_EQ(printable("\xc3"), "\\xc3");                             // half a character
  EXPECT_EQ(printable("\xe2\x82z"), "\\xe2\\x82z");                  // two thirds of one
  EXPECT_EQ(printable("\xc0\x80"), "\\xc0\\x80");                    // NUL in a form too long
  EXPECT_EQ(printable("\xe0\x80\xaf"), "\\xe0\\x80\\xaf");           // likewise
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");           // a surrogate
  EXPECT_EQ(printable("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");  // beyond U+10FFFF
  EXPECT_EQ(printable("\x80"), "\\x80");
}

TEST(Printable, CutsWithinTheBoundAndNotWithinACharacter) {
  EXPECT_EQ(printable("0123456789", 10), "0123456789");
  EXPECT_EQ(printable("0123456789a", 10), "0123456...");
  EXPECT_EQ(printable("äöüäöü", 8), "äö...");
  EXPECT_EQ(printable("\x1b\x1b\x1b", 8), "\\x1b...");
  EXPECT_EQ(printable("abc", 2), "");
  EXPECT_EQ(quote(std::string(99'000'000, 'x')),
            "'" + std::string(kLongestQuote - 3, 'x') + "...'");
  EXPECT_EQ(path_text(std::string(5000, 'p')).size(), kLongestPath);
}

TEST(Printable, TextIsUtf8WithoutNul) {
  for (const std::string text : {"", "a\nb", "Märchen", "格林", "\x1b[31m"})
    EXPECT_TRUE(is_text(text));
  for (const std::string& bytes : {std::string("a\0b", 3), std::string("a\xff"),
                                   std::string("\xc3"), std::string("\xc0\x80")}) {
    EXPECT_FALSE(is_text(bytes)) << quote(bytes);
  }
}

// Decodes by the definition of UTF-8: by code points, written again.
bool is_plain_utf8(const std::string& text) {
  for (std::size_t at = 0; at < text.size();) {
    const auto first = static_cast<unsigned char>(text[at]);
    const std::size_t length = first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
    if (first < 0x20 || first == 0x7f || (first >= 0x80 && first < 0xc2) || first > 0xf4) {
      return false;
    }
    if (at + length > text.size()) return false;
    for (std::size_t n = 1; n < length; ++n) {
      if ((static_cast<unsigned char>(text[at + n]) & 0xc0) != 0x80) return false;
    }
    at += length;
  }
  return true;
}

TEST(Printable, AnyBytesGiveShortUtf8OnOneLineAndStay) {
  std::mt19937 random(17);
  for (int round = 0; round < 20000; ++round) {
    std::string bytes(random() % 40, '\0');
    // Mostly lead and continuation bytes, where decoders go wrong.
    for (char& byte : bytes) {
      byte = static_cast<char>(random() % 3 != 0 ? 0x80 + random() % 0x80 : random() % 0x80);
    }
    const std::size_t longest = random() % 64;
    const std::string once = printable(bytes, longest);
    ASSERT_LE(once.size(), longest);
    ASSERT_TRUE(is_plain_utf8(once)) << once;
    ASSERT_EQ(printable(once, longest), once);
  }
}

TEST(Printable, EveryErrorIsFitForATerminal) {
  const Error error(ErrorCode::kFormat, "a\x1b[2J\xff" + std::string(1 << 20, 'x'));
  EXPECT_EQ(std::string(error.what()).substr(0, 12), "a\\x1b[2J\\xff");
  EXPECT_EQ(std::string(error.what()).size(), kLongestMessage);
}

}  // namespace
}  // namespace bsfa

// The fingerprint of a GGUF file made by hand.

#include <gtest/gtest.h>

#include <bsfa/error.hpp>
#include <bsfa/fingerprint.hpp>
#include <numeric>

#include "file_bytes.hpp"
#include "gguf_header.hpp"

namespace bsfa::gguf {
namespace {

using test::error_of;
using test::little_endian;

std::string word(std::uint32_t value) { return little_endian(value).substr(0, 4); }
std::string text(const std::string& value) { return little_endian(value.size()) + value; }

std::string bytes(std::size_t count) {
  std::string result(count, '\0');
  std::iota(result.begin(), result.end(), '\1');
  return result;
}

struct File {
  std::string name = "general.name";
  std::string first_tensor = "a.weight";
  std::uint32_t type = 0;
  std::string data = bytes(320);  // 64 of "b", then 256 of "a.weight"
  std::uint64_t first_offset = 64;

  std::string content() const {
    std::string header = "GGUF" + word(3) + little_endian(2) + little_endian(1) + text(name) +
                         word(8) + text("some name");
    header += text(first_tensor) + word(2) + little_endian(8) + little_endian(8) + word(type) +
              little_endian(first_offset);
    header += text("b") + word(1) + little_endian(5) + word(0) + little_endian(0);
    header.resize((header.size() + 31) / 32 * 32);
    return header + data;
  }
};

class Fingerprint : public testing::Test {
 protected:
  std::string of(const std::string& content) {
    test::write_bytes(path_, content);
    return gguf_fingerprint(path_);
  }
  test::TemporaryDirectory directory_;
  const std::string path_ = directory_ / "m.gguf";
};

TEST_F(Fingerprint, IsItsDefinition) {
  const File file;
  std::string a = "0:", b = "0:";
  for (std::size_t n = 0; n < 8; ++n) {
    a += file.data.substr(64 + n * ((256 - 32) / 7), 32);
    b += file.data.substr(n * ((64 - 32) / 7), 32);
  }
  EXPECT_EQ(of(file.content()),
            weight_fingerprint("gguf", {{"a.weight", {8, 8}, a}, {"b", {5}, b}}));
}

TEST_F(Fingerprint, SeesTheWeightsAlone) {
  const std::string original = of(File().content());
  File other;
  other.name = "general.other.";  // another header, another place of the data
  EXPECT_EQ(of(other.content()), original);
  other = File();
  other.first_tensor = "c.weight";
  EXPECT_NE(of(other.content()), original);
  other = File();
  other.type = 1;
  EXPECT_NE(of(other.content()), original);
  // Of these tensors every byte is in a sample.
  for (std::size_t at = 0; at < other.data.size(); ++at) {
    if (at >= 60 && at < 64) continue;  // of "b", after its last sample
    other = File();
    other.data[at] = static_cast<char>(other.data[at] ^ 4);
    EXPECT_NE(of(other.content()), original) << at;
  }
}

TEST_F(Fingerprint, DamagedFilesAreRefused) {
  const std::string good = File().content();
  for (std::size_t size = 0; size < good.size(); ++size) {
    test::write_bytes(path_, good.substr(0, size));
    const Status status = error_of([&] { gguf_fingerprint(path_); });
    // Where the last tensor ends the file does not say; what is missing there makes another print.
    if (size < good.size() - 256) {
      EXPECT_EQ(status.code, ErrorCode::kFormat) << size << " of " << good.size();
    }
  }
  File file;
  file.first_offset = 1000;
  EXPECT_THROW(of(file.content()), Error);
  EXPECT_EQ(error_of([&] { gguf_fingerprint(directory_ / "none"); }).code, ErrorCode::kIo);
}

}  // namespace
}  // namespace bsfa::gguf

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <bsfa/error.hpp>
#include <bsfa/text.hpp>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "file_bytes.hpp"
#include "gguf_header.hpp"

// Damaged GGUF headers, the same ones in every run: a shape that can be used, or a refusal that can
// be printed. The address sanitizer's build runs this too.

namespace bsfa::test {
namespace {

std::string word(std::uint32_t value) { return little_endian(value).substr(0, 4); }
std::string text(const std::string& value) { return little_endian(value.size()) + value; }

// A header with every type of field.
std::string gguf() {
  std::string fields;
  int count = 0;
  const auto add = [&](const std::string& key, std::uint32_t type, const std::string& value) {
    fields += text(key) + word(type) + value;
    ++count;
  };
  add("general.architecture", 8, text("x"));
  add("general.name", 8, text("a model"));
  for (const std::uint32_t type : {0u, 1u, 7u}) add("byte" + std::to_string(type), type, "\x01");
  for (const std::uint32_t type : {2u, 3u}) add("two" + std::to_string(type), type, "\x01\x02");
  for (const std::uint32_t type : {4u, 5u, 6u}) add("four" + std::to_string(type), type, word(7));
  for (const std::uint32_t type : {10u, 11u, 12u}) {
    add("eight" + std::to_string(type), type, little_endian(9));
  }
  add("tokens", 9, word(8) + little_endian(3) + text("a") + text("") + text("bc"));
  add("x.attention.head_count", 9, word(4) + little_endian(2) + word(8) + word(8));
  add("x.block_count", 4, word(2));
  add("x.embedding_length", 4, word(512));
  add("x.context_length", 10, little_endian(4096));
  add("x.attention.scale", 6, word(0x3e000000));
  return "GGUF" + word(3) + little_endian(5) + little_endian(static_cast<std::uint64_t>(count)) +
         fields;
}

struct Outcome {
  bool accepted = false;
  std::string complaint;
};

// A file in memory: a disk would take most of the time.
class MemoryFile {
 public:
  MemoryFile() : file_(memfd_create("model.gguf", MFD_CLOEXEC)) {}
  ~MemoryFile() { close(file_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const { return "/proc/self/fd/" + std::to_string(file_); }
  bool write(const std::string& bytes) {
    return ftruncate(file_, 0) == 0 &&
           pwrite(file_, bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size());
  }

 private:
  int file_;
};

Outcome read(MemoryFile& file, const std::string& bytes) {
  Outcome outcome;
  if (!file.write(bytes)) outcome.complaint = "the file cannot be made";
  const std::string path = file.path();
  try {
    const gguf::GgufShape shape = gguf::read_gguf_shape(path);
    outcome.accepted = true;
    if (shape.num_layers < 1 || shape.num_heads_q < 1 || shape.head_dim < 1 ||
        shape.context_length < 0 || !(std::isfinite(shape.softmax_scale)) ||
        shape.softmax_scale <= 0) {
      outcome.complaint = "a shape that cannot be";
    }
  } catch (const Error& error) {
    const std::string message = error.what();
    if (error.code() != ErrorCode::kFormat) outcome.complaint = "refused, but not as a format";
    if (message.rfind(path + ": ", 0) != 0 || message.size() > path.size() + 300) {
      outcome.complaint = "a message that does not begin with the file, or is long: " + message;
    }
    if (!is_text(message) || printable(message) != message) outcome.complaint = "not printable";
  } catch (const std::exception& error) {
    outcome.complaint = std::string("another exception: ") + error.what();
  }
  return outcome;
}

TEST(GgufMutation, TenThousandDamagedHeaders) {
  MemoryFile file;
  const std::string original = gguf();
  ASSERT_TRUE(read(file, original).accepted);
  const std::vector<std::string> pieces{little_endian(0),
                                        little_endian(1),
                                        little_endian(0x7fffffffffffffff),
                                        little_endian(0x8000000000000000),
                                        little_endian(0xffffffffffffffff),
                                        little_endian(0x100000000),
                                        word(0x7fc00000),  // NaN
                                        word(0x7f800000),  // infinity
                                        word(9),
                                        word(8),
                                        word(13),
                                        text("x.block_count"),
                                        text("general.architecture"),
                                        std::string("\x1b]0;x\x07"),
                                        std::string("\xc2\x9b\xff"),
                                        std::string(5000, 'A')};
  std::mt19937 random(20251208);
  const auto below = [&](std::size_t bound) { return static_cast<std::size_t>(random() % bound); };
  int accepted = 0, refused = 0;
  for (int n = 0; n < 10'000; ++n) {
    std::string bytes = original;
    for (std::size_t round = 1 + below(3); round > 0; --round) {
      const std::size_t at = below(bytes.size());
      const std::string& piece = pieces[below(pieces.size())];
      switch (below(6)) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
          break;
        case 2:
          bytes.replace(at, std::min(piece.size(), bytes.size() - at), piece);
          break;
        case 3:
          bytes.insert(at, piece);
          break;
        case 4:
          bytes.erase(at, 1 + below(16));
          break;
        default:
          if (below(4) == 0) bytes.resize(at + 1);
          break;
      }
      if (bytes.empty()) bytes.assign(1, 'G');
    }
    const Outcome outcome = read(file, bytes);
    ASSERT_EQ(outcome.complaint, "") << "input " << n;
    ++(outcome.accepted ? accepted : refused);
  }
  // Both answers have to occur, or the damage is too great or too small to tell anything.
  EXPECT_GT(accepted, 1000);
  EXPECT_GT(refused, 1000);
}

TEST(GgufMutation, EveryTruncation) {
  MemoryFile file;
  const std::string original = gguf();
  for (std::size_t size = 0; size < original.size(); ++size) {
    const Outcome outcome = read(file, original.substr(0, size));
    EXPECT_EQ(outcome.complaint, "") << size << " bytes";
    EXPECT_FALSE(outcome.accepted) << size << " bytes";
  }
}

}  // namespace
}  // namespace bsfa::test

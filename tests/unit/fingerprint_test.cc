#include "bsfa/fingerprint.hpp"

#include <gtest/gtest.h>

#include "bsfa/error.hpp"
#include "core/sha256.hpp"

namespace bsfa {
namespace {

std::string sha256(const std::string& text, std::size_t piece = 1 << 20) {
  Sha256 hash;
  for (std::size_t at = 0; at < text.size(); at += piece) {
    hash.update(std::string_view(text).substr(at, piece));
  }
  return hash.finish();
}

// The examples of FIPS 180-4.
TEST(Sha256, KnownVectors) {
  EXPECT_EQ(sha256(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  const std::string two_blocks = "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq";
  EXPECT_EQ(sha256(two_blocks), "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  for (const std::size_t piece : {1, 63, 64, 65, 1000, 1 << 20}) {
    EXPECT_EQ(sha256(std::string(1'000'000, 'a'), piece),
              "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0")
        << piece;
  }
}

// Lengths around the end of a block, against each other byte by byte.
TEST(Sha256, PiecesDoNotMatter) {
  for (std::size_t length = 0; length < 200; ++length) {
    const std::string text(length, 'x');
    EXPECT_EQ(sha256(text, 1), sha256(text)) << length;
  }
}

const std::vector<WeightSample> kTensors{{"b.weight", {2, 3}, "abc"}, {"a", {}, ""}};

TEST(Fingerprint, IsItsDefinition) {
  // sha256("1 a 0 0\n" "8 b.weight 2 2 3 3\n" "abc"), by another program
  EXPECT_EQ(weight_fingerprint("torch", kTensors), "torch:3b3336316c1e08d8557b25e5abbae50c");
  EXPECT_EQ(weight_fingerprint("torch", {kTensors[1], kTensors[0]}),
            weight_fingerprint("torch", kTensors));
}

TEST(Fingerprint, SeesNamesShapesAndBytes) {
  const std::string original = weight_fingerprint("gguf", kTensors);
  std::vector<WeightSample> other = kTensors;
  other[0].name = "b.weighs";
  EXPECT_NE(weight_fingerprint("gguf", other), original);
  other = kTensors;
  other[0].shape = {3, 2};
  EXPECT_NE(weight_fingerprint("gguf", other), original);
  other = kTensors;
  other[0].bytes = "abd";
  EXPECT_NE(weight_fingerprint("gguf", other), original);
  other.pop_back();
  EXPECT_NE(weight_fingerprint("gguf", other), original);
}

TEST(Fingerprint, BadArgumentsAreRefused) {
  for (const char* source : {"", "GGUF", "a:b", "seventeen-letters", "a b"}) {
    EXPECT_THROW(weight_fingerprint(source, kTensors), Error) << source;
  }
  EXPECT_THROW(weight_fingerprint("torch", {}), Error);
}

}  // namespace
}  // namespace bsfa

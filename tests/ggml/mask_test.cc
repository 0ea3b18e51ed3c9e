// The reading of llama.cpp's masks: what is plain causal or windowed is understood, everything else
// is refused.

#include "mask.hpp"

#include <gtest/gtest.h>

#include <vector>

namespace bsfa::ggml {
namespace {

constexpr std::uint16_t kHidden = 0xFC00;

struct Mask {
  Mask(std::int64_t rows, std::int64_t keys)
      : num_rows(rows), num_keys(keys), values(static_cast<std::size_t>(rows * keys), kHidden) {}

  void show(std::int64_t row, std::int64_t first, std::int64_t last) {
    for (std::int64_t key = first; key <= last; ++key) at(row, key) = 0;
  }
  std::uint16_t& at(std::int64_t row, std::int64_t key) {
    return values[static_cast<std::size_t>(row * num_keys + key)];
  }
  MaskView view() const { return {values.data(), num_rows, num_keys, num_keys}; }

  std::int64_t num_rows;
  std::int64_t num_keys;
  std::vector<std::uint16_t> values;
};

Mask causal(std::int64_t rows, std::int64_t keys, std::int64_t first_key, std::int64_t q_offset) {
  Mask mask(rows, keys);
  for (std::int64_t row = 0; row < rows; ++row)
    mask.show(row, first_key, first_key + q_offset + row);
  return mask;
}

std::optional<CausalMask> read(const Mask& mask) {
  ThreadPool pool(2);
  return read_mask(mask.view(), pool);
}

TEST(Mask, FirstChunk) {
  const auto mask = read(causal(96, 256, 0, 0));
  ASSERT_TRUE(mask);
  EXPECT_EQ(mask->first_key, 0);
  EXPECT_EQ(mask->q_offset, 0);
  EXPECT_EQ(mask->seqlen_k, 96);
  EXPECT_FALSE(mask->window);
}

TEST(Mask, LaterChunkWithPaddedKeys) {
  const auto mask = read(causal(40, 768, 0, 512));
  ASSERT_TRUE(mask);
  EXPECT_EQ(mask->q_offset, 512);
  EXPECT_EQ(mask->seqlen_k, 552);
}

TEST(Mask, SequenceThatBeginsLaterInTheCache) {
  const auto mask = read(causal(64, 512, 100, 32));
  ASSERT_TRUE(mask);
  EXPECT_EQ(mask->first_key, 100);
  EXPECT_EQ(mask->q_offset, 32);
  EXPECT_EQ(mask->seqlen_k, 96);
}

TEST(Mask, Window) {
  constexpr std::int64_t kWindow = 48;
  for (const std::int64_t q_offset : {0, 10, 47, 48, 200}) {
    Mask mask(64, 512);
    for (std::int64_t row = 0; row < 64; ++row) {
      const std::int64_t p = q_offset + row;
      mask.show(row, std::max<std::int64_t>(0, p - kWindow + 1), p);
    }
    const auto meaning = read(mask);
    ASSERT_TRUE(meaning) << q_offset;
    EXPECT_EQ(meaning->first_key, 0);
    EXPECT_EQ(meaning->q_offset, q_offset);
    ASSERT_TRUE(meaning->window);
    EXPECT_EQ(*meaning->window, kWindow);
  }
}

TEST(Mask, AnySingleWrongEntryIsRefused) {
  const Mask good = causal(33, 128, 0, 20);
  ASSERT_TRUE(read(good));
  for (std::int64_t row = 0; row < good.num_rows; ++row) {
    for (std::int64_t key = 0; key < good.num_keys; ++key) {
      Mask bad = good;
      bad.at(row, key) ^= kHidden;  // visible <-> hidden
      // Without its first key, the last row makes it a mask with a window that only it feels.
      if (row == good.num_rows - 1 && key == 0) continue;
      ASSERT_FALSE(read(bad)) << "row " << row << " key " << key;
    }
  }
}

TEST(Mask, OtherValuesAreRefused) {
  for (const std::uint16_t value : {0x3C00, 0x8000, 0x7E00, 0x0001, 0xFBFF}) {
    Mask mask = causal(32, 64, 0, 0);
    mask.at(20, 5) = value;  // where a key was visible
    EXPECT_FALSE(read(mask)) << value;
    mask = causal(32, 64, 0, 0);
    mask.at(5, 20) = value;  // where it was not
    EXPECT_FALSE(read(mask)) << value;
  }
}

TEST(Mask, TwoSequencesInOneBatchAreRefused) {
  Mask mask(64, 256);
  for (std::int64_t row = 0; row < 32; ++row) mask.show(row, 0, row);
  for (std::int64_t row = 32; row < 64; ++row) mask.show(row, 32, row);
  EXPECT_FALSE(read(mask));
}

TEST(Mask, EmptyRowsAreRefused) {
  EXPECT_FALSE(read(Mask(32, 64)));
  Mask mask = causal(32, 64, 0, 0);
  for (std::int64_t key = 0; key < 64; ++key) mask.at(31, key) = kHidden;
  EXPECT_FALSE(read(mask));
}

TEST(Mask, BidirectionalIsRefused) {
  Mask mask(32, 32);
  for (std::int64_t row = 0; row < 32; ++row) mask.show(row, 0, 31);
  EXPECT_FALSE(read(mask));
}

TEST(Mask, EndsShowAnotherChunk) {
  const auto first = read(causal(64, 512, 0, 128));
  ASSERT_TRUE(first);
  EXPECT_TRUE(mask_ends_match(causal(64, 512, 0, 128).view(), *first));
  EXPECT_FALSE(mask_ends_match(causal(64, 512, 0, 192).view(), *first));
  EXPECT_FALSE(mask_ends_match(causal(64, 512, 1, 127).view(), *first));
  EXPECT_FALSE(mask_ends_match(causal(64, 128, 0, 0).view(), *first));
}

}  // namespace
}  // namespace bsfa::ggml

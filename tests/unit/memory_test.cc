#include "core/memory.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include "bsfa/limits.hpp"

namespace bsfa {
namespace {

alignas(64) char memory[1 << 16];

Memory view(std::int64_t offset, std::int64_t element, std::vector<std::int64_t> shape,
            std::vector<std::int64_t> stride) {
  Memory result{"view", memory + offset, element, static_cast<int>(shape.size()), {}, {}};
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    result.shape[axis] = shape[axis];
    result.stride[axis] = stride[axis];
    if (shape[axis] == 0) result.data = nullptr;
  }
  return result;
}

// Every byte of every element, one after the other.
std::vector<std::int64_t> bytes_of(const Memory& view) {
  std::vector<std::int64_t> result;
  if (view.data == nullptr) return result;
  std::int64_t index[4] = {};
  for (;;) {
    std::int64_t at = static_cast<const char*>(view.data) - memory;
    for (int axis = 0; axis < view.rank; ++axis) {
      at += index[axis] * view.stride[axis] * view.element_bytes;
    }
    for (std::int64_t byte = 0; byte < view.element_bytes; ++byte) result.push_back(at + byte);
    int axis = view.rank - 1;
    while (axis >= 0 && ++index[axis] == view.shape[axis]) index[axis--] = 0;
    if (axis < 0) return result;
  }
}

// A slice of a dense tensor with its axes in any order, some of them left out.
Memory random_slice(std::mt19937& random) {
  const auto pick = [&](int most) { return static_cast<std::int64_t>(random() % most); };
  std::int64_t stride = 1 + pick(3);
  std::vector<std::int64_t> shape(4), strides(4);
  int order[4] = {0, 1, 2, 3};
  std::shuffle(order, order + 4, random);
  for (const int axis : order) {
    shape[axis] = 1 + pick(4);
    strides[axis] = stride;
    stride *= shape[axis] + pick(3);
  }
  const std::int64_t element = std::int64_t{1} << pick(4);
  return view(pick(200) * element, element, shape, strides);
}

TEST(Memory, SlicesShareWhatTheirBytesShare) {
  std::mt19937 random(5);
  int shared = 0;
  constexpr int kRounds = 4000;
  for (int round = 0; round < kRounds; ++round) {
    const Memory a = random_slice(random);
    const Memory b = random_slice(random);
    const std::vector<std::int64_t> in_a = bytes_of(a);
    const std::set<std::int64_t> bytes(in_a.begin(), in_a.end());
    EXPECT_EQ(bytes.size(), in_a.size());  // slices do not overlap themselves
    EXPECT_TRUE(check_no_self_overlap(a).ok());
    bool expected = false;
    for (const std::int64_t byte : bytes_of(b)) expected = expected || bytes.count(byte) > 0;
    ASSERT_EQ(share_memory(a, b), expected) << shape_text(a.shape, 4) << shape_text(a.stride, 4)
                                            << shape_text(b.shape, 4) << shape_text(b.stride, 4);
    ASSERT_EQ(share_memory(b, a), expected);
    shared += expected ? 1 : 0;
  }
  EXPECT_GT(shared, kRounds / 10);
  EXPECT_LT(shared, kRounds * 9 / 10);
}

TEST(Memory, HeadsOfOneBufferAreApart) {
  // [batch, seqlen, q | k | v | out, heads, dim] cut along its third axis.
  const auto part = [](std::int64_t n) {
    return view(n * 24 * 2, 2, {2, 5, 3, 8}, {5 * 96, 96, 8, 1});
  };
  for (int a = 0; a < 4; ++a) {
    for (int b = 0; b < 4; ++b) EXPECT_EQ(share_memory(part(a), part(b)), a == b);
  }
}

TEST(Memory, ViewsThatOverlapThemselvesAreSeen) {
  EXPECT_TRUE(check_no_self_overlap(view(0, 4, {2, 3}, {1, 2})).ok());
  EXPECT_TRUE(check_no_self_overlap(view(0, 4, {1, 3}, {0, 1})).ok());
  EXPECT_TRUE(check_no_self_overlap(view(0, 4, {0, 3}, {0, 0})).ok());
  EXPECT_EQ(check_no_self_overlap(view(0, 4, {2, 3}, {0, 1})).message,
            "view has shape [2, 3] and strides [0, 1]: its elements overlap on axis 0; expected a "
            "stride there of at least 1");
  EXPECT_EQ(check_no_self_overlap(view(0, 4, {2, 3}, {2, 1})).message,
            "view has shape [2, 3] and strides [2, 1]: its elements overlap on axis 0; expected a "
            "stride there of at least 3");
}

TEST(Memory, ExtentsAndStridesThatWrapAroundAreRefused) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  EXPECT_TRUE(check_view(view(0, 8, {kMaxElements, 1}, {0, 1})).ok());
  EXPECT_FALSE(check_view(view(0, 8, {kMaxElements + 1, 1}, {0, 1})).ok());
  EXPECT_FALSE(check_view(view(0, 8, {std::int64_t{1} << 32, std::int64_t{1} << 32}, {0, 0})).ok());
  EXPECT_FALSE(check_view(view(0, 8, {std::int64_t{1} << 62, 4}, {0, 0})).ok());
  EXPECT_FALSE(check_view(view(0, 8, {0, std::int64_t{1} << 62}, {0, 0})).ok());
  EXPECT_FALSE(check_view(view(0, 8, {2, 2}, {kMost, 1})).ok());
  EXPECT_FALSE(check_view(view(0, 8, {1, 2}, {kMost / 2, 1})).ok());
  EXPECT_FALSE(check_view(view(0, 8, {3, 3}, {kMost / 8, kMost / 8})).ok());
  EXPECT_FALSE(check_view(view(0, 8, {-1, 2}, {2, 1})).ok());
  EXPECT_FALSE(check_view(view(0, 8, {1, 2}, {2, -1})).ok());
  EXPECT_TRUE(check_view(view(8, 8, {1, 2}, {2, 1})).ok());
  EXPECT_EQ(check_view(view(4, 8, {1, 2}, {2, 1})).message,
            "view is not aligned to its element size (8 bytes)");
}

}  // namespace
}  // namespace bsfa

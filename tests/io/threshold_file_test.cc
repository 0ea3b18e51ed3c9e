#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "bsfa/thresholds.hpp"
#include "file_bytes.hpp"

namespace bsfa::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(ThresholdFile, ReadsBytesMadeByHand) {
  const TemporaryDirectory directory;
  const std::string path = directory / "t.safetensors";
  write_bytes(path, good_file());
  const ThresholdTable table = ThresholdTable::load(path);
  EXPECT_EQ(table.metadata().budgets, (std::vector<std::int64_t>{2, 4}));
  EXPECT_EQ(table.metadata().block, (BlockShape{128, 64}));
  EXPECT_EQ(table.metadata().softmax_scale, 0.125f);
  EXPECT_EQ(table.metadata().max_seqlen, 200);
  EXPECT_EQ(table.metadata().model, "tiny");
  EXPECT_EQ(table.metadata().num_samples, 3);
  EXPECT_EQ(table.metadata().producer, "by hand");
  EXPECT_FALSE(table.metadata().recommended_budget.has_value());
  EXPECT_EQ(table.num_layers(), 1);
  EXPECT_EQ(table.num_heads_q(), 2);
  EXPECT_EQ(table.num_q_blocks(), 2);
  EXPECT_EQ(table.values(), good_values());
}

TEST(ThresholdFile, OtherWritersMayOrderPadAndSpaceAsTheyLike) {
  const TemporaryDirectory directory;
  const std::string path = directory / "t.safetensors";
  // Tensor first, fields of it in another order, spaces, padding, an unknown metadata field.
  write_bytes(path, container(R"({"thresholds": {"data_offsets": [0, 32], "shape": [2, 1, 2, 2], )"
                              R"("dtype": "F32"}, "__metadata__": {"mine": "x", )" +
                                  good_metadata() + "}}    ",
                              raw(good_values())));
  EXPECT_EQ(ThresholdTable::load(path).values(), good_values());
}

TEST(ThresholdFile, WritesTheFormatOfTheMethodPage) {
  const TemporaryDirectory directory;
  const std::string path = directory / "t.safetensors";
  ThresholdMetadata metadata{{2, 4},
                             {128, 64},
                             0.1f,
                             200,
                             "M \"q\" \\ \u00e9",
                             3,
                             "p",
                             4,
                             "torch:0123456789abcdef0123456789abcdef"};
  ThresholdTable(metadata, 1, 2, 2, good_values()).save(path);
  const std::string bytes = read_bytes(path);
  ASSERT_GT(bytes.size(), 8u);
  std::uint64_t length = 0;
  for (int n = 7; n >= 0; --n) length = length << 8 | static_cast<unsigned char>(bytes[n]);
  EXPECT_EQ(length % 8, 0u) << "the data is not aligned";
  ASSERT_EQ(bytes.size(), 8 + length + 32);
  std::string json = bytes.substr(8, length);
  json.erase(json.find_last_not_of(' ') + 1);
  EXPECT_EQ(
      json,
      R"({"__metadata__":{"budgets":"[2,4]",)"
      // by another program
      R"("checksum":"sha256:926a7d9944f0e457f464874fa41e494ea875bce6f53b0ef1a3f18598614ddba5",)"
      R"("fingerprint":"torch:0123456789abcdef0123456789abcdef",)"
      R"("format":"bsfa-thresholds","kv_block":"64",)"
      R"("max_seqlen":"200","model":"M \"q\" \\ é","num_samples":"3","producer":"p",)"
      R"("q_block":"128","recommended_budget":"4","softmax_scale":"0.1","version":"1"},)"
      R"("thresholds":{"dtype":"F32","shape":[2,1,2,2],"data_offsets":[0,32]}})");
  EXPECT_EQ(bytes.substr(8 + length), raw(good_values()));
}

TEST(ThresholdFile, AFlippedBitIsRefused) {
  const TemporaryDirectory directory;
  const std::string path = directory / "t.safetensors", again = directory / "again";
  const ThresholdMetadata metadata{{2, 4},    {128, 64}, 0.125f,
                                   200,       "tiny",    3,
                                   "by hand", 4,         "gguf:0123456789abcdef0123456789abcdef"};
  ThresholdTable(metadata, 1, 2, 2, good_values()).save(path);
  const std::string good = read_bytes(path);
  int by_checksum = 0;
  for (std::size_t bit = 0; bit < good.size() * 8; ++bit) {
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << bit % 8));
    write_bytes(path, bad);
    const Status status = error_of([&] { ThresholdTable::load(path).save(again); });
    // The one thing that may go unseen is that there is a checksum.
    const bool unseen = status.ok() && bad.find("\"checksum\"") == std::string::npos;
    EXPECT_TRUE(status.code == ErrorCode::kFormat || unseen)
        << "bit " << bit << " " << bad.substr(bit / 8 - 20, 40) << status.message;
    if (unseen) {
      EXPECT_EQ(read_bytes(again), good) << "bit " << bit;
    }
    if (status.message.find("it is damaged") != std::string::npos) ++by_checksum;
  }
  EXPECT_GE(by_checksum, 32 * 8 - 8 * 8) << "damaged data was refused for other reasons";
}

TEST(ThresholdFile, FieldsOfOthersAreNotUnderTheChecksum) {
  const TemporaryDirectory directory;
  const std::string path = directory / "t.safetensors";
  ThresholdTable({{2, 4}, {128, 64}, 0.125f, 200, "tiny", 3, "p", {}}, 1, 2, 2, good_values())
      .save(path);
  const std::string bytes = read_bytes(path);
  std::string json = bytes.substr(8, bytes.size() - 8 - 32);
  json = replaced(json, R"("version":"1")", R"("version":"1","notes":"mine")");
  write_bytes(path, container(json, raw(good_values())));
  EXPECT_EQ(ThresholdTable::load(path).values(), good_values());
  write_bytes(path, container(replaced(json, R"("num_samples":"3")", R"("num_samples":"4")"),
                              raw(good_values())));
  EXPECT_EQ(error_of([&] { ThresholdTable::load(path); }).code, ErrorCode::kFormat);
}

TEST(ThresholdFile, EveryBitComesBack) {
  const TemporaryDirectory directory;
  const std::string path = directory / "t.safetensors";
  const float scale = 1.0f / std::sqrt(80.0f);
  ThresholdMetadata metadata{{1, 2, 3}, {64, 128}, scale, 129, "m", 0, "p", std::nullopt};
  const float denormal = std::numeric_limits<float>::denorm_min();
  const std::vector<float> values{-kInf, kInf, -0.0f, 0.1f, 1e-38f, denormal, 3e38f, 1,  -1e-20f,
                                  5,     6,    7,     8,    9,      -3.4e38f, 10,    11, 12};
  ThresholdTable(metadata, 2, 1, 3, values).save(path);
  const ThresholdTable table = ThresholdTable::load(path);
  EXPECT_EQ(raw(table.values()), raw(values));
  EXPECT_EQ(table.metadata().softmax_scale, scale);
  EXPECT_EQ(table.metadata().block, (BlockShape{64, 128}));
  EXPECT_EQ(table.metadata().num_samples, 0);
  EXPECT_FALSE(table.metadata().recommended_budget.has_value());
}

TEST(ThresholdFile, AModelNameThatIsNoTextIsRefusedByName) {
  const TemporaryDirectory directory;
  ThresholdMetadata metadata{{2}, {128, 64}, 0.1f, 1, "bad \xff name", 3, "p", std::nullopt};
  const Status status =
      error_of([&] { ThresholdTable(metadata, 1, 1, 1, {0}).save(directory / "t"); });
  EXPECT_EQ(status.code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(status.message, "model is 'bad \\xff name'; accepted: UTF-8 text without NUL");
  EXPECT_EQ(directory.num_entries(), 0u);
}

}  // namespace
}  // namespace bsfa::test

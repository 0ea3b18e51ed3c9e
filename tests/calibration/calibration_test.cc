#include "bsfa/calibration.hpp"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <random>

#include "bsfa/backends.hpp"
#include "file_bytes.hpp"

namespace bsfa::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

ThresholdMetadata metadata() { return {{2, 4}, {128, 64}, 0.125f, 0, "tiny", 0, "", {}}; }

// Thresholds of one sample: [2 budgets, layers, heads, blocks].
struct Sample {
  std::int64_t tokens;
  std::vector<float> values;
};

StridedView<const float, 3> view_of(const float* data, std::int64_t budgets, std::int64_t heads,
                                    std::int64_t blocks) {
  StridedView<const float, 3> view{data, {budgets, heads, blocks}, {}};
  set_contiguous(view.shape, view.stride);
  return view;
}

std::int64_t blocks_of(std::int64_t tokens) { return (tokens + 127) / 128; }

// Adds rows [begin, end) of one layer of a sample.
void add_rows(Calibration& calibration, const Sample& sample, std::int64_t layer,
              std::int64_t begin, std::int64_t end) {
  const std::int64_t layers = calibration.num_layers(), heads = calibration.num_heads_q();
  const std::int64_t blocks = blocks_of(sample.tokens);
  StridedView<const float, 3> view{sample.values.data() + layer * heads * blocks + begin / 128,
                                   {2, heads, blocks_of(end) - begin / 128},
                                   {layers * heads * blocks, blocks, 1}};
  calibration.add(layer, begin, end - begin, view);
}

void add_sample(Calibration& calibration, const Sample& sample, const std::string& name) {
  calibration.begin_sample(name, sample.tokens);
  for (std::int64_t layer = 0; layer < calibration.num_layers(); ++layer) {
    add_rows(calibration, sample, layer, 0, sample.tokens);
  }
  calibration.end_sample();
}

std::vector<Sample> random_samples(int count, std::int64_t layers, std::int64_t heads,
                                   unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<Sample> samples;
  for (int n = 0; n < count; ++n) {
    Sample sample{static_cast<std::int64_t>(1 + random() % 1000), {}};
    sample.values.resize(static_cast<std::size_t>(2 * layers * heads * blocks_of(sample.tokens)));
    for (float& value : sample.values) value = random() % 3 == 0 ? -kInf : normal(random);
    samples.push_back(std::move(sample));
  }
  return samples;
}

// The definition: over the samples that reach the block the mean of the finite values, -inf only if
// all are.
float slow_mean(const std::vector<Sample>& samples, std::int64_t row, std::int64_t block) {
  double sum = 0;
  int finite = 0;
  for (const Sample& sample : samples) {
    if (block >= blocks_of(sample.tokens)) continue;
    const float value =
        sample.values[static_cast<std::size_t>(row * blocks_of(sample.tokens) + block)];
    if (!std::isfinite(value)) continue;
    sum += value;
    ++finite;
  }
  return finite > 0 ? static_cast<float>(sum / finite) : -kInf;
}

void expect_refused(const std::function<void()>& call, const std::vector<std::string>& parts) {
  const Status status = error_of(call);
  EXPECT_EQ(status.code, ErrorCode::kInvalidArgument);
  for (const std::string& part : parts) {
    EXPECT_NE(status.message.find(part), std::string::npos)
        << "'" << part << "' is not in: " << status.message;
  }
}

TEST(Calibration, TheMeanOverTheSamplesThatReachABlock) {
  for (unsigned seed = 0; seed < 20; ++seed) {
    const std::vector<Sample> samples = random_samples(1 + static_cast<int>(seed % 7), 3, 2, seed);
    Calibration calibration(metadata(), 3, 2);
    std::int64_t longest = 0;
    for (const Sample& sample : samples) {
      add_sample(calibration, sample, "s");
      longest = std::max(longest, sample.tokens);
    }
    const ThresholdTable table = calibration.finish();
    EXPECT_EQ(table.metadata().max_seqlen, longest);
    EXPECT_EQ(table.metadata().num_samples, static_cast<std::int64_t>(samples.size()));
    EXPECT_EQ(table.metadata().producer, std::string("bsfa ") + version());
    ASSERT_EQ(table.num_q_blocks(), blocks_of(longest));
    for (std::int64_t row = 0; row < 2 * 3 * 2; ++row) {
      for (std::int64_t block = 0; block < table.num_q_blocks(); ++block) {
        EXPECT_EQ(table.values()[static_cast<std::size_t>(row * table.num_q_blocks() + block)],
                  slow_mean(samples, row, block));
      }
    }
  }
}

TEST(Calibration, ChunksInAnyOrderGiveTheSame) {
  const std::vector<Sample> samples{random_samples(1, 2, 2, 3)[0]};
  Sample sample = samples[0];
  sample.tokens = 700;  // six blocks
  std::mt19937 random(4);
  sample.values.resize(2 * 2 * 2 * 6);
  for (float& value : sample.values) value = static_cast<float>(random() % 100);
  Calibration whole(metadata(), 2, 2);
  add_sample(whole, sample, "s");
  Calibration chunked(metadata(), 2, 2);
  chunked.begin_sample("s", 700);
  add_rows(chunked, sample, 1, 512, 700);
  add_rows(chunked, sample, 0, 0, 128);
  add_rows(chunked, sample, 1, 0, 512);
  add_rows(chunked, sample, 0, 128, 640);
  add_rows(chunked, sample, 0, 640, 700);
  chunked.end_sample();
  EXPECT_EQ(chunked.finish().values(), whole.finish().values());
}

TEST(Calibration, MergingIsTheSameAsOneRun) {
  const std::vector<Sample> samples = random_samples(9, 2, 3, 8);
  Calibration all(metadata(), 2, 3);
  std::vector<Calibration> parts(3, Calibration(metadata(), 2, 3));
  for (std::size_t n = 0; n < samples.size(); ++n) {
    add_sample(all, samples[n], "s");
    add_sample(parts[n % 3], samples[n], "s");
  }
  const ThresholdTable expected = all.finish();
  for (const std::vector<int>& order : {std::vector<int>{0, 1, 2}, {2, 0, 1}, {1, 2, 0}}) {
    Calibration merged(metadata(), 2, 3);
    for (const int n : order) merged.merge(parts[static_cast<std::size_t>(n)]);
    const ThresholdTable table = merged.finish();
    EXPECT_EQ(table.values(), expected.values());
    EXPECT_EQ(table.metadata().max_seqlen, expected.metadata().max_seqlen);
    EXPECT_EQ(table.metadata().num_samples, 9);
  }
}

TEST(Calibration, ASampleIsNotMergedTwice) {
  Calibration calibration(metadata(), 1, 1);
  add_sample(calibration, {200, {1, 2, 3, -kInf}}, "s");
  expect_refused([&] { calibration.merge(calibration); }, {"1 sample in common"});
  Calibration other(metadata(), 1, 1);
  add_sample(other, {200, {5, 6, 7, 8}}, "s");
  add_sample(other, {200, {1, 2, 3, -kInf}}, "by another name");
  expect_refused([&] { calibration.merge(other); }, {"1 sample in common"});
  EXPECT_EQ(calibration.num_samples(), 1);
  EXPECT_EQ(calibration.finish().values(), (std::vector<float>{1, 2, 3, -kInf}));
  // In one run the same text may come twice: its author wanted that.
  add_sample(calibration, {200, {1, 2, 3, -kInf}}, "s");
  EXPECT_EQ(calibration.num_samples(), 2);
}

TEST(Calibration, ASampleThatIsNotFiniteIsNamedAndLeavesNoTrace) {
  for (const float bad : {std::nanf(""), kInf}) {
    Calibration calibration(metadata(), 2, 2);
    const Sample good{100, {1, 2, 3, 4, 5, 6, 7, 8}};
    add_sample(calibration, good, "good");
    Sample spoiled = good;
    spoiled.values[3] = bad;  // budget 0, layer 1, head 1
    spoiled.tokens = 100;
    calibration.begin_sample("book.txt", spoiled.tokens);
    add_rows(calibration, spoiled, 0, 0, 100);
    expect_refused([&] { add_rows(calibration, spoiled, 1, 0, 100); },
                   {"sample 'book.txt'", "layer 1", "head 1", "query block 0", "NaN or infinite"});
    expect_refused([&] { calibration.end_sample(); }, {"no sample under way"});
    expect_refused([&] { add_rows(calibration, good, 1, 0, 100); }, {"no sample under way"});
    EXPECT_EQ(calibration.num_samples(), 1);
    EXPECT_EQ(calibration.finish().values(), good.values);
    add_sample(calibration, good, "again");
    EXPECT_EQ(calibration.num_samples(), 2);
  }
}

TEST(Calibration, ASplitQueryBlockIsRefused) {
  const std::vector<float> values(64);
  const auto refused = [&](std::int64_t begin, std::int64_t end) {
    Calibration calibration(metadata(), 1, 1);
    calibration.begin_sample("s", 500);
    const auto view = view_of(values.data(), 2, 1, (end - begin + 127) / 128);
    expect_refused([&] { calibration.add(0, begin, end - begin, view); },
                   {"sample 's'", "split a query block", "multiple of 128"});
  };
  refused(0, 100);
  refused(64, 256);
  refused(128, 300);
  refused(450, 500);
}

TEST(Calibration, AnIncompleteSampleIsRefused) {
  const std::vector<float> values(64);
  Calibration calibration(metadata(), 2, 1);
  calibration.begin_sample("s", 300);
  calibration.add(0, 0, 300, view_of(values.data(), 2, 1, 3));
  calibration.add(1, 0, 256, view_of(values.data(), 2, 1, 2));
  expect_refused([&] { calibration.end_sample(); },
                 {"sample 's'", "layer 1 has no query block 2", "300 tokens"});
  EXPECT_EQ(calibration.num_samples(), 0);
}

TEST(Calibration, WrongAddsAreRefused) {
  const std::vector<float> values(64);
  const auto refused = [&](std::int64_t layer, std::int64_t begin, std::int64_t rows,
                           const StridedView<const float, 3>& view, const std::string& part) {
    Calibration calibration(metadata(), 2, 1);
    calibration.begin_sample("s", 300);
    calibration.add(0, 0, 128, view_of(values.data(), 2, 1, 1));
    expect_refused([&] { calibration.add(layer, begin, rows, view); }, {"sample 's'", part});
  };
  const auto good = view_of(values.data(), 2, 1, 1);
  refused(2, 0, 128, good, "layer is 2");
  refused(-1, 0, 128, good, "layer is -1");
  refused(0, 0, 128, good, "query block 0 was added before");
  refused(0, 256, 128, good, "the sample has 300 tokens");
  refused(0, -128, 128, good, "the sample has 300 tokens");
  refused(0, 128, 0, good, "the sample has 300 tokens");
  refused(1, 0, 128, view_of(values.data(), 3, 1, 1), "expected [2 budgets, 1 heads, 1 query");
  refused(1, 0, 128, view_of(values.data(), 2, 2, 1), "expected [2 budgets, 1 heads, 1 query");
  refused(1, 0, 128, view_of(values.data(), 2, 1, 2), "expected [2 budgets, 1 heads, 1 query");
  refused(1, 0, 128, view_of(nullptr, 2, 1, 1), "data is null");
}

TEST(Calibration, TheOrderOfCallsIsKept) {
  const std::vector<float> values(64);
  Calibration calibration(metadata(), 1, 1);
  expect_refused([&] { calibration.finish(); }, {"no sample"});
  expect_refused([&] { calibration.save("/nonexistent/x"); }, {"no sample and cannot be saved"});
  expect_refused([&] { calibration.begin_sample("s", 0); }, {"sample 's' has 0 tokens"});
  calibration.begin_sample("s", 100);
  expect_refused([&] { calibration.begin_sample("t", 100); }, {"'t'", "'s' is under way"});
  expect_refused([&] { calibration.finish(); }, {"'s' is under way"});
  expect_refused([&] { calibration.save("/nonexistent/x"); }, {"'s' is under way"});
  expect_refused([&] { calibration.merge(Calibration(metadata(), 1, 1)); }, {"under way"});
  calibration.drop_sample();
  calibration.begin_sample("t", 100);
  calibration.add(0, 0, 100, view_of(values.data(), 2, 1, 1));
  calibration.end_sample();
  EXPECT_EQ(calibration.num_samples(), 1);
}

TEST(Calibration, OnlyWhatFitsTogetherIsMerged) {
  const auto refused = [](const std::function<void(ThresholdMetadata&)>& change,
                          std::int64_t layers, std::int64_t heads, const std::string& part) {
    ThresholdMetadata other = metadata();
    change(other);
    Calibration calibration(metadata(), 2, 2);
    expect_refused([&] { calibration.merge(Calibration(other, layers, heads)); }, {part});
  };
  const auto same = [](ThresholdMetadata&) {};
  refused([](auto& m) { m.model = "big"; }, 2, 2, "model is 'big' in one and 'tiny'");
  refused([](auto& m) { m.budgets = {2, 8}; }, 2, 2, "budgets is 2, 8 in one and 2, 4");
  refused([](auto& m) { m.block.q = 64; }, 2, 2, "q_block is 64");
  refused([](auto& m) { m.block.kv = 128; }, 2, 2, "kv_block is 128");
  refused([](auto& m) { m.softmax_scale = 0.1f; }, 2, 2, "softmax_scale is 0.1");
  refused(same, 3, 2, "layers is 3 in one and 2");
  refused(same, 2, 4, "query heads is 4 in one and 2");
  Calibration calibration(metadata(), 2, 2);
  ThresholdMetadata renamed = metadata();
  renamed.model = "big";
  renamed.recommended_budget = 4;
  Calibration other(renamed, 2, 2);
  other.set_model("tiny");
  calibration.merge(other);
  EXPECT_EQ(calibration.metadata().recommended_budget, 4);
}

TEST(Calibration, SizesThatWrapAroundAreRefused) {
  Calibration calibration(metadata(), std::int64_t{1} << 16, std::int64_t{1} << 16);
  expect_refused([&] { calibration.begin_sample("s", 1 << 29); }, {"sample 's'", "memory"});
  expect_refused([&] { calibration.begin_sample("s", (1 << 29) + 1); },
                 {"sample 's' has 536870913 tokens; accepted: 1 to 536870912"});
  expect_refused([&] { Calibration(metadata(), std::int64_t{1} << 40, 1); },
                 {"num_layers and num_heads_q are 1099511627776 and 1; accepted: 1 to 65536"});
}

TEST(Calibration, TheConstructorRefusesWhatNoFileMayHold) {
  ThresholdMetadata cut = metadata();
  cut.model = std::string("model\0of another name", 21);
  expect_refused([&] { Calibration(cut, 1, 1); },
                 {"model is 'model\\x00of another name'; accepted: UTF-8 text without NUL"});
  ThresholdMetadata bad = metadata();
  bad.softmax_scale = 0;
  expect_refused([&] { Calibration(bad, 1, 1); }, {"softmax_scale is 0"});
  expect_refused([&] { Calibration(metadata(), 0, 1); },
                 {"num_layers and num_heads_q are 0 and 1"});
}

}  // namespace
}  // namespace bsfa::test

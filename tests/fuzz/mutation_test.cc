#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "file_bytes.hpp"
#include "read_anything.hpp"

// Damaged threshold files, the same ones in every run. The address sanitizer's build runs this too.

namespace bsfa::test {
namespace {

std::string calibration_file() {
  const std::string header =
      R"({"__metadata__":{"format":"bsfa-calibration","version":"1","budgets":"[2,4]",)"
      R"("q_block":"128","kv_block":"64","softmax_scale":"0.125","max_seqlen":"200",)"
      R"("model":"tiny","num_samples":"2","producer":"p","recommended_budget":"4",)"
      // No checksum, which would refuse nearly all damage before the rest is looked at.
      R"("fingerprint":"gguf:0123456789abcdef0123456789abcdef",)"
      R"("samples":"[\"0123456789abcdef\",\"0123456789abcdee\"]"},)"
      R"("sums":{"dtype":"F64","shape":[2,1,1,2],"data_offsets":[0,32]},)"
      R"("finite":{"dtype":"I64","shape":[2,1,1,2],"data_offsets":[32,64]},)"
      R"("reached":{"dtype":"I64","shape":[2],"data_offsets":[64,80]}})";
  return container(header, raw(std::vector<double>{3, 2, 0, 4}) +
                               raw(std::vector<std::int64_t>{2, 1, 0, 1, 2, 1}));
}

// What headers are made of, and what breaks readers.
const std::vector<std::string>& fragments() {
  static const std::vector<std::string> list{"\"",
                                             "{",
                                             "}",
                                             "[",
                                             "]",
                                             ":",
                                             ",",
                                             "\\",
                                             "\\u0000",
                                             "\\ud800",
                                             "-1",
                                             "0",
                                             "1e309",
                                             "4294967296",
                                             "9223372036854775807",
                                             "9223372036854775808",
                                             "18446744073709551615",
                                             "18446744073709551616",
                                             "null",
                                             "true",
                                             "nan",
                                             "-inf",
                                             "F32",
                                             "F64",
                                             "I64",
                                             "BF16",
                                             "\xff\xfe",
                                             "\xc3",
                                             " ",
                                             "thresholds",
                                             "__metadata__",
                                             "data_offsets",
                                             "shape",
                                             "dtype",
                                             "budgets",
                                             "[[",
                                             "{\"\":",
                                             "128",
                                             "64",
                                             std::string(1, '\0'),
                                             std::string(8, '\xff'),
                                             std::string(300, '['),
                                             std::string(300, 'A')};
  return list;
}

class Mutator {
 public:
  explicit Mutator(unsigned seed) : random_(seed) {}

  std::size_t below(std::size_t bound) { return bound == 0 ? 0 : random_() % bound; }

  void mutate(std::string* bytes) {
    const std::size_t at = below(bytes->size() + 1);
    const std::size_t length = std::min(below(24), bytes->size() - at);
    switch (below(9)) {
      case 0:
        if (at < bytes->size()) (*bytes)[at] = static_cast<char>(random_());
        break;
      case 1:
        if (at < bytes->size()) (*bytes)[at] = static_cast<char>((*bytes)[at] ^ (1 << below(8)));
        break;
      case 2:
        bytes->erase(at, length);
        break;
      case 3:
        bytes->insert(at, fragments()[below(fragments().size())]);
        break;
      case 4:
        bytes->replace(at, length, fragments()[below(fragments().size())]);
        break;
      case 5:
        bytes->insert(at, bytes->substr(below(bytes->size() + 1), below(64)));
        break;
      case 6:
        bytes->resize(at);
        break;
      case 7:
        // A digit for a digit: stays JSON, changes numbers.
        for (std::size_t n = at; n < bytes->size(); ++n) {
          if ((*bytes)[n] >= '0' && (*bytes)[n] <= '9') {
            (*bytes)[n] = static_cast<char>('0' + below(10));
            break;
          }
        }
        break;
      default:
        for (std::size_t n = 0; n < 8 && n < bytes->size(); ++n) {
          (*bytes)[n] = static_cast<char>(below(4) == 0 ? random_() : 0);
        }
        break;
    }
  }

  // Makes the length fit the header again, so that the damage reaches what lies behind it.
  static void repair_length(std::string* bytes) {
    const std::size_t end = bytes->rfind("}}");
    if (bytes->size() < 8 || end == std::string::npos || end + 2 < 8) return;
    bytes->replace(0, 8, little_endian(end + 2 - 8));
  }

 private:
  std::mt19937 random_;
};

TEST(Mutation, AHundredThousandDamagedFiles) {
  const std::vector<std::string> originals{good_file(), calibration_file()};
  ASSERT_TRUE(read_anything(originals[0].data(), originals[0].size()).table);
  ASSERT_TRUE(read_anything(originals[1].data(), originals[1].size()).calibration);
  Mutator mutator(20251207);
  int accepted = 0, refused = 0;
  for (int n = 0; n < 100'000; ++n) {
    std::string bytes = originals[static_cast<std::size_t>(n % 2)];
    const std::size_t rounds = 1 + mutator.below(4);
    for (std::size_t round = 0; round < rounds; ++round) mutator.mutate(&bytes);
    if (n % 3 != 0) Mutator::repair_length(&bytes);
    // An exact allocation, so that the address sanitizer sees a read one byte too far.
    const std::vector<char> exact(bytes.begin(), bytes.end());
    const ReadOutcome outcome = read_anything(exact.data(), exact.size());
    ASSERT_EQ(outcome.complaint, "") << "input " << n;
    ++(outcome.table || outcome.calibration ? accepted : refused);
  }
  // Both answers have to occur, or the damage is too great or too small to tell anything.
  EXPECT_GT(accepted, 1000);
  EXPECT_GT(refused, 50'000);
}

// Files as they are saved: whatever is damaged, what is accepted is what was saved.
TEST(Mutation, WithAChecksumDamageIsRefused) {
  const TemporaryDirectory directory;
  const std::string path = directory / "file";
  const ThresholdMetadata metadata{
      {2, 4}, {128, 64}, 0.125f, 200, "tiny", 3, "p", 4, "gguf:0123456789abcdef0123456789abcdef"};
  ThresholdTable(metadata, 1, 2, 2, good_values()).save(path);
  const std::string table = read_bytes(path);
  write_bytes(path, calibration_file());
  Calibration::load(path).save(path);
  const std::string calibration = read_bytes(path);
  Mutator mutator(20261201);
  for (int n = 0; n < 20'000; ++n) {
    std::string bytes = n % 2 == 0 ? table : calibration;
    mutator.mutate(&bytes);
    if (n % 3 != 0) Mutator::repair_length(&bytes);
    if (bytes.find("\"checksum\"") == std::string::npos) continue;
    const ReadOutcome outcome = read_anything(bytes.data(), bytes.size());
    ASSERT_EQ(outcome.complaint, "") << "input " << n;
    if (!outcome.table && !outcome.calibration) continue;
    write_bytes(path, bytes);
    if (outcome.table) {
      ThresholdTable::load(path).save(path);
    } else {
      Calibration::load(path).save(path);
    }
    ASSERT_EQ(read_bytes(path), n % 2 == 0 ? table : calibration) << "input " << n;
  }
}

TEST(Mutation, EveryTruncation) {
  for (const std::string& original : {good_file(), calibration_file()}) {
    for (std::size_t size = 0; size < original.size(); ++size) {
      const std::vector<char> exact(original.begin(), original.begin() + static_cast<long>(size));
      const ReadOutcome outcome = read_anything(exact.data(), exact.size());
      EXPECT_EQ(outcome.complaint, "") << size << " bytes";
      EXPECT_FALSE(outcome.table || outcome.calibration) << size << " bytes";
    }
  }
}

}  // namespace
}  // namespace bsfa::test

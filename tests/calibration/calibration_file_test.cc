#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "bsfa/calibration.hpp"
#include "file_bytes.hpp"

namespace bsfa::test {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

const std::string kFingerprint = "gguf:0123456789abcdef0123456789abcdef";

Calibration small_calibration(float first = 1.5f, const std::string& fingerprint = "") {
  Calibration calibration({{2, 4}, {128, 64}, 0.125f, 0, "tiny", 0, "p", 4, fingerprint}, 1, 1);
  const std::vector<float> values{first, 2, -kInf, 4};
  for (const std::int64_t tokens : {200, 100}) {
    const std::int64_t blocks = (tokens + 127) / 128;
    calibration.begin_sample("s", tokens);
    calibration.add(0, 0, tokens, {values.data(), {2, 1, blocks}, {2, 2, 1}});
    calibration.end_sample();
  }
  return calibration;
}

// What small_calibration() writes, made by hand.
std::string header() {
  return R"({"__metadata__":{"format":"bsfa-calibration","version":"1","budgets":"[2,4]",)"
         R"("q_block":"128","kv_block":"64","softmax_scale":"0.125","max_seqlen":"200",)"
         R"("model":"tiny","num_samples":"2","producer":"p","recommended_budget":"4"},)"
         R"("sums":{"dtype":"F64","shape":[2,1,1,2],"data_offsets":[0,32]},)"
         R"("finite":{"dtype":"I64","shape":[2,1,1,2],"data_offsets":[32,64]},)"
         R"("reached":{"dtype":"I64","shape":[2],"data_offsets":[64,80]}})";
}

std::string data(const std::vector<double>& sums = {3, 2, 0, 4},
                 const std::vector<std::int64_t>& finite = {2, 1, 0, 1},
                 const std::vector<std::int64_t>& reached = {2, 1}) {
  return raw(sums) + raw(finite) + raw(reached);
}

TEST(CalibrationFile, ReadsBytesMadeByHandAndWritesTheSame) {
  const TemporaryDirectory directory;
  const std::string by_hand = directory / "a", saved = directory / "b";
  write_bytes(by_hand, container(header(), data()));
  const Calibration read = Calibration::load(by_hand);
  EXPECT_EQ(read.num_samples(), 2);
  EXPECT_EQ(read.metadata().max_seqlen, 200);
  EXPECT_EQ(read.metadata().recommended_budget, 4);
  const Calibration calibration = small_calibration();
  EXPECT_EQ(read.finish().values(), calibration.finish().values());
  EXPECT_EQ(read.finish().values(), (std::vector<float>{1.5f, 2, -kInf, 4}));
  read.save(saved);
  const std::string again = directory / "c";
  calibration.save(again);
  for (const std::string& path : {saved, again}) {
    EXPECT_EQ(read_bytes(path).substr(read_bytes(path).size() - 80), data());
  }
  // Of the samples of a file that lists none nothing more is known.
  EXPECT_NE(read_bytes(saved).find(R"("samples":"[]")"), std::string::npos);
}

TEST(CalibrationFile, TellsItsSamplesAndItsModel) {
  const TemporaryDirectory directory;
  const std::string path = directory / "part";
  small_calibration(1.5f, kFingerprint).save(path);
  EXPECT_EQ(Calibration::load(path).metadata().fingerprint, kFingerprint);
  // sha256 of "200\n" and the fp32 bytes of [1.5, 2, -inf, 4], 16 digits; likewise of 100 tokens
  EXPECT_NE(read_bytes(path).find(R"("samples":"[\"10483302afe750cc\",\"3f62932314762b87\"]")"),
            std::string::npos);
}

TEST(CalibrationFile, AFlippedBitIsRefused) {
  const TemporaryDirectory directory;
  const std::string path = directory / "part";
  small_calibration(1.5f, kFingerprint).save(path);
  const std::string good = read_bytes(path);
  for (std::size_t bit = 0; bit < good.size() * 8; ++bit) {
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << bit % 8));
    write_bytes(path, bad);
    const Status status = error_of([&] { Calibration::load(path).save(directory / "again"); });
    // The one thing that may go unseen is that there is a checksum.
    const bool unseen = status.ok() && bad.find("\"checksum\"") == std::string::npos;
    EXPECT_TRUE(status.code == ErrorCode::kFormat || unseen)
        << "bit " << bit << " " << bad.substr(bit / 8 - 20, 40) << status.message;
    if (unseen) {
      EXPECT_EQ(read_bytes(directory / "again"), good) << "bit " << bit;
    }
  }
}

TEST(CalibrationFile, GoesOnWhereItStopped) {
  const TemporaryDirectory directory;
  const std::string path = directory / "part";
  small_calibration().save(path);
  Calibration calibration = Calibration::load(path);
  calibration.merge(small_calibration(2.5f));
  EXPECT_EQ(calibration.num_samples(), 4);
  EXPECT_EQ(calibration.finish().values(), (std::vector<float>{2, 2, -kInf, 4}));
  EXPECT_EQ(error_of([&] { calibration.merge(Calibration::load(path)); }).code,
            ErrorCode::kInvalidArgument);
}

TEST(CalibrationFile, Refusals) {
  const TemporaryDirectory directory;
  const std::string path = directory / "bad";
  const auto refused = [&](const std::string& bytes, const std::vector<std::string>& parts) {
    write_bytes(path, bytes);
    const Status status = error_of([&] { Calibration::load(path); });
    EXPECT_EQ(status.code, ErrorCode::kFormat);
    EXPECT_EQ(status.message.rfind(path + ": ", 0), 0u) << status.message;
    for (const std::string& part : parts) {
      EXPECT_NE(status.message.find(part), std::string::npos)
          << "'" << part << "' is not in: " << status.message;
    }
  };
  const auto with = [&](const std::string& from, const std::string& to) {
    return container(replaced(header(), from, to), data());
  };
  refused(good_file(), {"'format' is 'bsfa-thresholds'", "'bsfa-calibration'"});
  refused(with(R"("num_samples":"2")", R"("num_samples":"0")"), {"num_samples is 0"});
  refused(with(R"("num_samples":"2")", R"("num_samples":"3")"), {"'reached' holds 2"});
  refused(with(R"("num_samples":"2")", R"("num_samples":"9223372036854775807")"), {"num_samples"});
  refused(with(R"("max_seqlen":"200")", R"("max_seqlen":"400")"), {"4 query blocks"});
  refused(with("F64", "F32"), {"'sums' has dtype 'F32'"});
  refused(with(R"("finite":{"dtype":"I64","shape":[2,1,1,2])",
               R"("finite":{"dtype":"I64","shape":[1,2,1,2])"),
          {"'finite' has shape [1, 2, 1, 2]"});
  refused(with(R"("shape":[2],)", R"("shape":[1,2],)"), {"'reached' has shape [1, 2]"});
  refused(with("\"reached\"", "\"arrived\""), {"tensor 'arrived'"});
  refused(container(header(), data({3, 2, 1, 4})), {"'sums' holds 1 over 0 samples"});
  refused(container(header(), data({3, 2, 0, std::nan("")})), {"'sums' holds nan"});
  refused(container(header(), data({3, 2, 0, 1e39})), {"beyond fp32"});
  refused(container(header(), data({3, 2, 0, 4}, {3, 1, 0, 1})), {"'finite' holds 3"});
  refused(container(header(), data({3, 2, 0, 4}, {2, 1, 0, -1})), {"'finite' holds -1"});
  refused(container(header(), data({3, 2, 0, 4}, {2, 1, 0, 1}, {2, 3})), {"'reached' holds 3"});
  refused(container(header(), data({3, 2, 0, 4}, {2, 1, 0, 1}, {2, 0})), {"'reached' holds 0"});
  refused(container(header(), data({3, 2, 0, 4}, {2, 1, 0, 1}, {1, 1})), {"num_samples"});
  const auto more = [&](const std::string& field) {
    return with(R"("version":"1")", R"("version":"1",)" + field);
  };
  refused(more(R"("samples":"[1]")"), {"'samples' is '[1]'", "16 hexadecimal digits"});
  refused(more(R"("samples":"[\"0123456789ABCDEF\"]")"), {"'samples'"});
  const std::string id = R"(\"0123456789abcdef\")";
  refused(more(R"("samples":"[)" + id + "," + id + "," + id + R"(]")"),
          {"'samples' lists 3 samples; num_samples is 2"});
  refused(more(R"("fingerprint":"gguf:12")"), {"fingerprint is 'gguf:12'"});
  refused(more(R"("checksum":"crc32:12345678")"), {"'checksum' is 'crc32:12345678'"});
  const Status missing = error_of([&] { Calibration::load(directory / "none"); });
  EXPECT_EQ(missing.code, ErrorCode::kIo);
}

}  // namespace
}  // namespace bsfa::test

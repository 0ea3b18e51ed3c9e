#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <limits>

#include "bsfa/thresholds.hpp"
#include "file_bytes.hpp"

// Every refusal of the reader: the message names the file, what is wrong, what was found and what
// was expected.

namespace bsfa::test {
namespace {

struct Refusal {
  const char* name;
  std::string bytes;
  std::vector<std::string> message_parts;
};

std::string with_header(const std::string& header) { return container(header, raw(good_values())); }

std::string with_field(const std::string& from, const std::string& to) {
  return with_header(replaced(good_header(), from, to));
}

std::string quoted(const std::string& name) { return std::string("\"").append(name).append("\""); }

std::vector<Refusal> refusals() {
  const std::string header = good_header();
  const std::string nan = raw(std::vector<float>{1, 2, 3, 4, 5, std::nanf(""), 7, 8});
  std::string twice = replaced(header, R"("dtype":"F32")", R"("dtype":"F32","dtype":"F32")");
  return {
      {"Empty", "", {"has 0 bytes"}},
      {"SevenBytes", "1234567", {"has 7 bytes"}},
      {"LengthBeyondTheLimit",
       little_endian(100'000'001) + "{}",
       {"header of 100000001 bytes", "at most 100000000"}},
      {"LengthBeyondTheFile",
       little_endian(1000) + "{}",
       {"header of 1000 bytes", "the file has 2", "truncated"}},
      {"LengthOfAllOnes", std::string(8, '\xff') + header, {"18446744073709551615", "at most"}},
      {"NotAnObject", with_header("[1]"), {"header starts with '[1]'", "JSON object"}},
      {"EmptyHeader", container("", ""), {"header starts with ''"}},
      {"NotJson", with_header("{\"a\": }"), {"not valid JSON at byte"}},
      {"ZeroByte", with_header(header + std::string("\0{", 2)), {"a NUL at"}},
      {"TrailingJson", with_header(header + "{}"), {"not valid JSON"}},
      {"NotUtf8", with_field("tiny", "ti\xff\xfe"), {"not valid JSON"}},
      {"TruncatedJson", with_header(header.substr(0, header.size() - 3)), {"not valid JSON"}},
      {"TruncatedData",
       container(header, raw(good_values()).substr(0, 20)),
       {"take 32 bytes", "has 20 bytes"}},
      {"TrailingData", good_file() + "x", {"take 32 bytes", "has 33 bytes"}},
      {"NoMetadata", with_header("{" + good_tensor() + "}"), {"field 'format' is missing"}},
      {"MetadataTwice",
       with_header(R"({"__metadata__":{},)" + header.substr(1)),
       {"'__metadata__' occurs twice"}},
      {"MetadataFieldTwice",
       with_field(R"("q_block":"128")", R"("q_block":"128","q_block":"64")"),
       {"metadata field 'q_block' occurs twice"}},
      {"MetadataNumber",
       with_field(R"("q_block":"128")", R"("q_block":128)"),
       {"metadata field 'q_block'", "the number 128", "expected a string"}},
      {"MetadataNested",
       with_field(R"("q_block":"128")", R"("q_block":{"a":"b"})"),
       {"metadata field 'q_block'", "an object", "expected a string"}},
      {"TensorTwice",
       with_header("{" + good_tensor() + "," + header.substr(1)),
       {"'thresholds' occurs twice"}},
      {"TensorFieldTwice", with_header(twice), {"'thresholds' has dtype twice"}},
      {"TensorFieldUnknown",
       with_field(R"("dtype":"F32")", R"("dtype":"F32","stride":[1])"),
       {"field 'stride'", "expected dtype, shape, data_offsets"}},
      {"TensorFieldMissing", with_field(R"("dtype":"F32",)", ""), {"has no field dtype"}},
      {"TensorIsANumber",
       with_header(R"({"__metadata__":{},"thresholds":3})"),
       {"key 'thresholds'", "the number 3", "expected an object"}},
      {"NegativeExtent", with_field("[2,1,2,2]", "[2,-1,2,2]"), {"shape", "a negative number"}},
      {"FractionalExtent", with_field("[2,1,2,2]", "[2,1.5,2,2]"), {"shape", "'1.5'"}},
      {"NestedExtent", with_field("[2,1,2,2]", "[2,[1],2,2]"), {"shape", "a list"}},
      {"HugeExtent",
       with_field("[2,1,2,2]", "[2,9223372036854775808,2,2]"),
       {"shape", "9223372036854775808"}},
      {"OverflowingShape",
       with_field("[2,1,2,2]", "[4294967296,4294967296,4294967296,4294967296]"),
       {"shape", "4294967296", "32 bytes"}},
      {"ExtentZero", with_field("[2,1,2,2]", "[2,0,2,2]"), {"shape [2, 0, 2, 2]"}},
      {"ThreeOffsets", with_field("[0,32]", "[0,32,32]"), {"data_offsets", "more than two"}},
      {"OneOffset", with_field("[0,32]", "[0]"), {"data_offsets", "1 numbers"}},
      {"OffsetsBackwards", with_field("[0,32]", "[32,0]"), {"data_offsets [32, 0]"}},
      {"OffsetsBeyond", with_field("[0,32]", "[0,64]"), {"take 64 bytes", "has 32"}},
      {"GapBefore", with_field("[0,32]", "[4,32]"), {"data_offsets [4, 32]", "start at 0"}},
      {"OverlappingTensors",
       with_header(R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[16,32]},)" +
                   header.substr(1)),
       {"'a' has data_offsets [16, 32]", "start at 32"}},
      {"GapBetweenTensors",
       container(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[36,40]},)" + header.substr(1),
                 std::string(40, '\0')),
       {"'a' has data_offsets [36, 40]", "start at 32"}},
      {"OtherDtype", with_field("F32", "F16"), {"dtype 'F16'", "expected F32"}},
      {"UnknownDtype", with_field("F32", "Q4_K"), {"dtype 'Q4_K'", "expected F32"}},
      {"ThreeAxes", with_field("[2,1,2,2]", "[2,2,2]"), {"shape [2, 2, 2]", "4 axes"}},
      {"ShapeSmallerThanTheData",
       with_field("[2,1,2,2]", "[2,1,2,1]"),
       {"shape [2, 1, 2, 1]", "32 bytes"}},
      {"OtherTensor", with_field("\"thresholds\"", "\"weights\""), {"'weights'", "thresholds"}},
      {"ExtraTensor",
       container(
           R"({"bias":{"dtype":"F32","shape":[1],"data_offsets":[32,36]},)" + header.substr(1),
           std::string(36, '\0')),
       {"tensor 'bias'", "expected thresholds"}},
      {"NoTensor", container("{\"__metadata__\":{" + good_metadata() + "}}", ""), {"no tensor"}},
      {"OtherFormat",
       with_field("bsfa-thresholds", "pt"),
       {"'format' is 'pt'", "expected 'bsfa-thresholds'"}},
      {"PartialCalibration",
       with_field("bsfa-thresholds", "bsfa-calibration"),
       {"'format' is 'bsfa-calibration'", "expected 'bsfa-thresholds'"}},
      {"OtherVersion",
       with_field(R"("version":"1")", R"("version":"2")"),
       {"'version' is '2'", "expected '1'"}},
      {"BudgetsNoList", with_field("[2, 4]", "2, 4"), {"'budgets' is '2, 4'", "JSON list"}},
      {"BudgetsNested", with_field("[2, 4]", "[[2, 4]]"), {"'budgets' is '[[2, 4]]'"}},
      {"BudgetsScalar", with_field("[2, 4]", "2"), {"'budgets' is '2'", "JSON list"}},
      {"BudgetsText", with_field("[2, 4]", "[2, \\\"4\\\"]"), {"'budgets'", "JSON list"}},
      {"BudgetsFractional", with_field("[2, 4]", "[2, 4.5]"), {"'budgets'", "JSON list"}},
      {"BudgetsEmpty", with_field("[2, 4]", "[]"), {"budgets is empty"}},
      {"BudgetsDescending", with_field("[2, 4]", "[4, 2]"), {"budgets has 2 after 4"}},
      {"BudgetsEqual", with_field("[2, 4]", "[4, 4]"), {"budgets has 4 after 4"}},
      {"BudgetZero", with_field("[2, 4]", "[0, 4]"), {"budgets holds 0"}},
      {"BudgetNegative", with_field("[2, 4]", "[-2, 4]"), {"budgets holds -2"}},
      {"BudgetsMoreThanTheShape",
       with_field("[2, 4]", "[2, 4, 8]"),
       {"shape [2, 1, 2, 2]", "3 budgets"}},
      {"QBlock", with_field("\"128\"", "\"96\""), {"q_block is 96", "64, 128"}},
      {"QBlockText", with_field("\"128\"", "\"128x\""), {"'q_block' is '128x'"}},
      {"QBlockSpace", with_field("\"128\"", "\" 128\""), {"'q_block' is ' 128'"}},
      {"QBlockBeyond64Bits",
       with_field("\"128\"", "\"18446744073709551744\""),
       {"'q_block' is '18446744073709551744'"}},
      {"KvBlock", with_field("\"64\"", "\"32\""), {"kv_block is 32", "64, 128"}},
      {"ScaleZero", with_field("0.125", "0"), {"softmax_scale is 0", "above 0"}},
      {"ScaleNegative", with_field("0.125", "-1"), {"softmax_scale is -1"}},
      {"ScaleNan", with_field("0.125", "nan"), {"softmax_scale is nan"}},
      {"ScaleInfinite", with_field("0.125", "inf"), {"softmax_scale is inf"}},
      {"ScaleBeyondFloat", with_field("0.125", "1e99"), {"'softmax_scale' is '1e99'"}},
      {"ScaleText", with_field("0.125", "an eighth"), {"'softmax_scale' is 'an eighth'"}},
      {"MaxSeqlenZero", with_field("\"200\"", "\"0\""), {"max_seqlen is 0"}},
      {"MaxSeqlenOfAnotherShape",
       with_field("\"200\"", "\"300\""),
       {"shape [2, 1, 2, 2]", "3 query blocks", "max_seqlen 300"}},
      {"MaxSeqlenLargest",
       with_field("\"200\"", "\"9223372036854775807\""),
       {"shape [2, 1, 2, 2]", "max_seqlen 9223372036854775807"}},
      {"NumSamplesNegative", with_field("\"3\"", "\"-3\""), {"num_samples is -3"}},
      {"RecommendedNotABudget",
       with_field(R"("q_block")", R"("recommended_budget":"3","q_block")"),
       {"recommended_budget is 3", "2, 4"}},
      {"RecommendedNotANumber",
       with_field(R"("q_block")", R"("recommended_budget":"four","q_block")"),
       {"'recommended_budget' is 'four'"}},
      {"Nan", container(header, nan), {"NaN at budget 4, layer 0, head 0, query block 1"}},
  };
}

void PrintTo(const Refusal& refusal, std::ostream* stream) { *stream << refusal.name; }

class ThresholdRefusal : public testing::TestWithParam<Refusal> {};

TEST_P(ThresholdRefusal, SaysWhatIsWrongAndWhere) {
  const TemporaryDirectory directory;
  const std::string path = directory / "bad.safetensors";
  write_bytes(path, GetParam().bytes);
  const Status status = error_of([&] { ThresholdTable::load(path); });
  EXPECT_EQ(status.code, ErrorCode::kFormat);
  EXPECT_EQ(status.message.rfind(path + ": ", 0), 0u) << status.message;
  for (const std::string& part : GetParam().message_parts) {
    EXPECT_NE(status.message.find(part), std::string::npos)
        << "'" << part << "' is not in: " << status.message;
  }
}

INSTANTIATE_TEST_SUITE_P(All, ThresholdRefusal, testing::ValuesIn(refusals()),
                         [](const auto& refusal) { return std::string(refusal.param.name); });

// Each field that the method page lists, taken away.
TEST(ThresholdRefusals, MissingFields) {
  const TemporaryDirectory directory;
  const std::string path = directory / "bad.safetensors";
  for (const char* field : {"format", "version", "budgets", "q_block", "kv_block", "softmax_scale",
                            "max_seqlen", "model", "num_samples", "producer"}) {
    write_bytes(path, with_field(quoted(field) + ":", "\"x\":"));
    const Status status = error_of([&] { ThresholdTable::load(path); });
    EXPECT_EQ(status.code, ErrorCode::kFormat);
    EXPECT_NE(status.message.find("metadata field '" + std::string(field) + "' is missing"),
              std::string::npos)
        << status.message;
  }
}

TEST(ThresholdRefusals, MessagesStayShortAndOnOneLine) {
  const TemporaryDirectory directory;
  const std::string path = directory / "bad.safetensors";
  write_bytes(path, with_field("bsfa-thresholds", std::string(1'000'000, 'x') + "\\n"));
  const Status status = error_of([&] { ThresholdTable::load(path); });
  EXPECT_EQ(status.code, ErrorCode::kFormat);
  EXPECT_LT(status.message.size(), 400u);
  write_bytes(path, with_field("bsfa-thresholds", "a\\nb"));
  EXPECT_EQ(error_of([&] { ThresholdTable::load(path); }).message.find('\n'), std::string::npos);
}

TEST(ThresholdRefusals, DeepNestingEndsAtOnce) {
  const TemporaryDirectory directory;
  const std::string path = directory / "bad.safetensors";
  write_bytes(path, with_header("{\"a\":" + std::string(10'000'000, '[')));
  EXPECT_EQ(error_of([&] { ThresholdTable::load(path); }).code, ErrorCode::kFormat);
  write_bytes(path, with_field("[2, 4]", std::string(10'000'000, '[')));
  EXPECT_EQ(error_of([&] { ThresholdTable::load(path); }).code, ErrorCode::kFormat);
}

TEST(ThresholdRefusals, WhatCannotBeRead) {
  const TemporaryDirectory directory;
  const auto load = [](const std::string& path) {
    return error_of([&] { ThresholdTable::load(path); });
  };
  const std::string missing = directory / "none";
  EXPECT_EQ(load(missing).code, ErrorCode::kIo);
  EXPECT_NE(load(missing).message.find(missing), std::string::npos);
  EXPECT_NE(load(missing).message.find("No such file"), std::string::npos);
  EXPECT_EQ(load(directory / "").code, ErrorCode::kIo);
  EXPECT_NE(load(directory / "").message.find("is a directory"), std::string::npos);
  const std::string pipe = directory / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(load(pipe).code, ErrorCode::kIo);  // and it does not wait for a writer
}

}  // namespace
}  // namespace bsfa::test

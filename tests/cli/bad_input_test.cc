// Bad input to the verbs that run a model, as far as it shows before a model is there: a message
// that names the argument, the documented exit code, nothing on stdout and nothing left behind.

#include <gtest/gtest.h>

#include <bsfa/thresholds.hpp>
#include <filesystem>
#include <fstream>

#include "run_program.hpp"

namespace bsfa::test {
namespace {

struct Case {
  const char* name;
  std::string arguments;  // TMP stands for a folder with the files below
  int exit_code;
  std::string message;  // part of what stderr must say
};

void PrintTo(const Case& bad, std::ostream* stream) { *stream << bad.name; }

class BadInput : public testing::TestWithParam<Case> {};

const char* const kRun = "run --model TMP/model.gguf --prompt-file TMP/text ";
const char* const kCalibrate = "calibrate --model TMP/model.gguf --data TMP/text ";

TEST_P(BadInput, IsRefused) {
  const TemporaryDirectory directory;
  std::ofstream(directory / "text") << "Once upon a time.";
  std::ofstream(directory / "model.gguf") << "GGUF, but only the beginning";
  std::ofstream(directory / "list.json") << R"([{"input": "no such field"}])";
  std::ofstream(directory / "lines.JSONL") << "{\"input_text\": \"a\"}\n{\"text\": \"b\"}\n";
  std::ofstream(directory / "deep.json") << std::string(100'000, '[');
  std::ofstream(directory / "digits.json") << "[" << std::string(5000, '7') << "]";
  std::ofstream(directory / "typed.json") << R"([{"input_text": 5}])";
  std::ofstream(directory / "table.csv") << "a,b";
  std::ofstream(directory / "zero.txt") << std::string("a\0b", 3);
  std::ofstream(directory / "object.json") << R"({"input_text": "not a list"})";
  std::ofstream(directory / "broken") << "not a threshold file";
  std::filesystem::create_directory(directory / "empty");
  std::ofstream(directory / "nul") << "Once upon" << '\0' << " a time.";
  std::ofstream(directory / "nul.json") << R"([{"input_text": "Once\u0000upon a time."}])";
  std::ofstream(directory / "\x1b]0;x\x07") << "a name that a terminal acts upon";
  std::filesystem::create_symlink(directory / "text", directory / "link");
  ThresholdTable({{4, 8}, {128, 64}, 0.125F, 256, "tiny", 1, "test", {}}, 2, 3, 2,
                 std::vector<float>(2 * 2 * 3 * 2, 0.0F))
      .save(directory / "thresholds");
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(directory / "")) {
    files += entry.exists() ? 1 : 0;
  }

  std::string arguments = GetParam().arguments;
  std::string folder = directory / "";
  while (folder.ends_with('/')) folder.pop_back();
  for (std::size_t at; (at = arguments.find("TMP")) != std::string::npos;) {
    arguments.replace(at, 3, folder);
  }
  std::string message = GetParam().message;
  if (const std::size_t at = message.find("TMP"); at != std::string::npos) {
    message.replace(at, 3, folder);
  }
  const ProgramRun run = run_program(arguments);
  EXPECT_EQ(run.exit_code, GetParam().exit_code) << run.err;
  EXPECT_NE(run.err.find(message), std::string::npos) << run.err;
  EXPECT_EQ(run.out, "");
  EXPECT_EQ(run.err.find('\x1b'), std::string::npos) << "an escape sequence on the terminal";
  EXPECT_LT(run.err.size(), 5000U);
  for (const auto& entry : std::filesystem::directory_iterator(directory / "")) {
    files -= entry.exists() ? 1 : 0;
  }
  EXPECT_EQ(files, 0U) << "a file was left behind";
}

const Case kCases[] = {
    {"NoVerb", "", 2, "subcommand"},
    {"UnknownVerb", "fly", 2, "fly"},
    {"UnknownOption", std::string(kRun) + "--thresholds TMP/thresholds --speed 9", 2, "--speed"},
    {"RunWithoutModel", "run --prompt-file TMP/text --thresholds TMP/thresholds", 2, "--model"},
    {"RunWithoutThresholds", kRun, 2, "--thresholds"},
    {"MissingModel", "run --model TMP/none.gguf --prompt-file TMP/text --thresholds TMP/thresholds",
     1, "none.gguf"},
    {"TruncatedModel", std::string(kRun) + "--thresholds TMP/thresholds", 2, "model.gguf"},
    {"MissingPrompt",
     "run --model TMP/model.gguf --prompt-file TMP/none --thresholds TMP/thresholds", 1, "none"},
    {"PromptIsAFolder",
     "run --model TMP/model.gguf --prompt-file TMP/empty --thresholds TMP/thresholds", 1, "empty"},
    {"MissingThresholds", std::string(kRun) + "--thresholds TMP/none", 1, "none"},
    {"BrokenThresholds", std::string(kRun) + "--thresholds TMP/broken", 2, "broken"},
    {"NeedleOutside", std::string(kRun) + "--thresholds TMP/thresholds --needle 1.5", 2,
     "--needle"},
    {"NegativeBudget", std::string(kRun) + "--thresholds TMP/thresholds --budget -4", 2,
     "--budget"},
    {"NoRuns", std::string(kRun) + "--thresholds TMP/thresholds --runs 0", 2, "--runs"},
    {"NoThreads", std::string(kRun) + "--thresholds TMP/thresholds --threads 0", 2, "--threads"},
    {"NeedleNan", std::string(kRun) + "--thresholds TMP/thresholds --needle nan", 2,
     "--needle: 'nan'; accepted: a number, 0 to 1"},
    {"NeedleInf", std::string(kRun) + "--thresholds TMP/thresholds --needle=-inf", 2, "--needle"},
    {"NeedleAndMore", std::string(kRun) + "--thresholds TMP/thresholds --needle 0.5x", 2,
     "--needle"},
    {"BudgetThatSaturates",
     std::string(kRun) + "--thresholds TMP/thresholds --budget 9223372036854775808", 2,
     "--budget: '9223372036854775808'; accepted: a whole number"},
    {"TokensThatWrap",
     std::string(kRun) + "--thresholds TMP/thresholds --prompt-tokens 300,18446744073709551617", 2,
     "--prompt-tokens: '18446744073709551617'; accepted"},
    {"RunsThatWrap", std::string(kRun) + "--thresholds TMP/thresholds --runs 4294967297", 2,
     "--runs"},
    {"AnswerThatWraps",
     std::string(kRun) + "--thresholds TMP/thresholds --answer-tokens 4294967297", 2,
     "--answer-tokens"},
    {"ThreadsThatWrap", std::string(kRun) + "--thresholds TMP/thresholds --threads 4294967297", 2,
     "--threads: '4294967297'; accepted: a whole number, 1 to 1024"},
    {"NotWhole", std::string(kRun) + "--thresholds TMP/thresholds --budget 4.5", 2, "--budget"},
    {"PromptWithNul",
     "run --model TMP/model.gguf --prompt-file TMP/nul --thresholds TMP/thresholds", 2,
     "holds a NUL at byte 9; expected text"},
    {"NeedlePromptWithNul",
     "bench needle --model TMP/model.gguf --prompt-file TMP/nul --thresholds TMP/thresholds", 2,
     "holds a NUL at byte 9"},
    {"LogitsPromptWithNul", "bench logits --model TMP/model.gguf --prompt-file TMP/nul", 2,
     "holds a NUL at byte 9"},
    {"DataWithNul", "calibrate --model TMP/model.gguf --data TMP/nul --out TMP/out", 2,
     "holds a NUL at byte 9"},
    {"JsonWithNul", "calibrate --model TMP/model.gguf --data TMP/nul.json --out TMP/out", 2,
     "nul.json[0]: holds a NUL in \"input_text\""},
    {"NameForATerminal", std::string(kRun) + "--thresholds \"$(printf 'TMP/\\033]0;x\\007')\"", 2,
     "\\x1b]0;x\\x07"},
    {"OptionForATerminal",
     std::string(kRun) + "--thresholds TMP/thresholds \"$(printf -- '--\\033[2J')\"", 2,
     "--\\x1b[2J"},
    {"VerbForATerminal", "\"$(printf 'fly\\033[2J')\"", 2, "no verb 'fly\\x1b[2J'"},
    {"LongName", std::string(kRun) + "--thresholds " + std::string(100000, 'x'), 1, "xxx..."},
    {"CalibrateIntoAFolder", std::string(kCalibrate) + "--out TMP/empty", 1,
     "--out: 'TMP/empty' is a directory; expected the name of a file"},
    {"CalibrateIntoADevice", std::string(kCalibrate) + "--out /dev/null", 1,
     "--out: '/dev/null' is not a regular file"},
    {"CalibrateIntoNothing", std::string(kCalibrate) + "--out ''", 1, "--out: ''"},
    {"CalibratePartialIntoAFolder", std::string(kCalibrate) + "--out TMP/out --partial TMP/empty",
     1, "--partial: 'TMP/empty' is a directory"},
    {"CalibrateIntoOneFileTwice",
     std::string(kCalibrate) + "--out TMP/out --partial TMP/empty/../out", 2,
     "--partial: 'TMP/empty/../out' is the file of --out"},
    {"CalibrateIntoItsData", std::string(kCalibrate) + "--out TMP/text", 2,
     "--out: 'TMP/text' is one of the inputs"},
    {"CalibrateIntoItsDataByALink", std::string(kCalibrate) + "--out TMP/link", 2,
     "--out: 'TMP/link' is one of the inputs"},
    {"CalibrateIntoItsModel", std::string(kCalibrate) + "--out TMP/o --partial TMP/model.gguf", 2,
     "--partial: 'TMP/model.gguf' is one of the inputs"},
    {"CalibrateBudgetThatSaturates",
     std::string(kCalibrate) + "--out TMP/out --budgets 4,9223372036854775808", 2,
     "--budgets: '9223372036854775808'; accepted: a whole number, 1 to 536870912"},
    {"CalibrateSamplesThatWrap",
     std::string(kCalibrate) + "--out TMP/out --samples 18446744073709551617", 2, "--samples"},
    {"CalibrateTokensThatWrap",
     std::string(kCalibrate) + "--out TMP/out --max-tokens 18446744073709551617", 2,
     "--max-tokens"},
    {"CalibrateWithoutOut", kCalibrate, 2, "--out"},
    {"CalibrateIntoNoFolder", std::string(kCalibrate) + "--out TMP/none/out", 1, "--out"},
    {"CalibratePartialIntoNoFolder",
     std::string(kCalibrate) + "--out TMP/out --partial TMP/none/part", 1, "--partial"},
    {"CalibrateBudgetTwice", std::string(kCalibrate) + "--out TMP/out --budgets 4,8,4", 2,
     "--budgets"},
    {"CalibrateBudgetZero", std::string(kCalibrate) + "--out TMP/out --budgets 0", 2, "--budgets"},
    {"CalibrateRecommendsAnother",
     std::string(kCalibrate) + "--out TMP/out --budgets 4,8 --recommend 6", 2, "--recommend"},
    {"CalibrateMissingData", "calibrate --model TMP/model.gguf --data TMP/none --out TMP/out", 1,
     "none"},
    {"CalibrateEmptyFolder", "calibrate --model TMP/model.gguf --data TMP/empty --out TMP/out", 2,
     "--data"},
    {"CalibrateJsonWithoutText",
     "calibrate --model TMP/model.gguf --data TMP/list.json --out TMP/out", 2, "input_text"},
    {"CalibrateJsonNoList", "calibrate --model TMP/model.gguf --data TMP/object.json --out TMP/out",
     2, "object.json"},
    {"CalibrateJsonLines", "calibrate --model TMP/model.gguf --data TMP/lines.JSONL --out TMP/out",
     2, "lines.JSONL:2: has no string"},
    {"CalibrateDeepJson", "calibrate --model TMP/model.gguf --data TMP/deep.json --out TMP/out", 2,
     "deep.json[0]"},
    {"CalibrateDigits", "calibrate --model TMP/model.gguf --data TMP/digits.json --out TMP/out", 2,
     "digits.json"},
    {"CalibrateWrongType", "calibrate --model TMP/model.gguf --data TMP/typed.json --out TMP/out",
     2, "typed.json[0]"},
    {"CalibrateUnknownSuffix",
     "calibrate --model TMP/model.gguf --data TMP/table.csv --out TMP/out", 2, "suffix '.csv'"},
    {"CalibrateZeroByte", "calibrate --model TMP/model.gguf --data TMP/zero.txt --out TMP/out", 2,
     "a NUL"},
    {"CalibrateTruncatedModel", std::string(kCalibrate) + "--out TMP/out", 2, "model.gguf"},
    {"BenchWithoutMeasurement", "bench", 2, "subcommand"},
    {"NeedleBenchUnknownBudget",
     "bench needle --model TMP/none --prompt-file TMP/text --thresholds TMP/thresholds "
     "--budget 0",
     2, "--budget"},
    {"LogitsWithoutTokens", "bench logits --model TMP/none --prompt-file TMP/text --tokens 0", 2,
     "--tokens"},
};

INSTANTIATE_TEST_SUITE_P(Cli, BadInput, testing::ValuesIn(kCases),
                         [](const auto& entry) { return std::string(entry.param.name); });

}  // namespace
}  // namespace bsfa::test

// Results that cannot be written: a full disk, a closed stdout. A failure, and said.

#include <gtest/gtest.h>

#include <filesystem>

#include "bsfa/calibration.hpp"
#include "run_program.hpp"
#include "support/sanitized.hpp"

namespace bsfa::test {
namespace {

// What goes to stderr, and the exit code, with stdout as the shell redirects it.
ProgramRun run_into(const std::string& redirection, const std::string& arguments) {
  const TemporaryDirectory directory;
  const std::string err = directory / "err";
  const std::string command = "'" BSFA_PROGRAM "' " + arguments + " " + redirection + " 2> " + err;
  const int status = std::system(command.c_str());
  ProgramRun run;
  if (WIFEXITED(status)) run.exit_code = WEXITSTATUS(status);
  run.err = read_bytes(err);
  return run;
}

class CliOutput : public ::testing::Test {
 protected:
  void SetUp() override {
    Calibration calibration({{2}, {128, 64}, 0.125f, 0, "tiny", 0, "test", {}}, 1, 1);
    const float value = 1;
    calibration.begin_sample("s", 100);
    calibration.add(0, 0, 100, {&value, {1, 1, 1}, {1, 1, 1}});
    calibration.end_sample();
    calibration.save(part_);
    calibration.finish().save(table_);
  }

  std::vector<std::string> commands() const {
    return {"--help",
            "--version",
            "info",
            "info --json",
            "thresholds show " + table_,
            "thresholds show --json " + part_,
            "thresholds check " + table_,
            "thresholds check --json " + table_,
            "thresholds merge " + part_ + " --out " + (directory_ / "merged"),
            "bench kernel --heads 1/1 --head-dim 8 --tokens 128 --density 0.5 --rounds 1",
            "bench kernel --heads 1/1 --head-dim 8 --tokens 128 --density 0.5 --rounds 1 --json"};
  }

  TemporaryDirectory directory_;
  const std::string part_ = directory_ / "part";
  const std::string table_ = directory_ / "table";
};

TEST_F(CliOutput, AFullDiskIsAFailure) {
  for (const std::string& command : commands()) {
    const ProgramRun run = run_into("> /dev/full", command);
    EXPECT_EQ(run.exit_code, 1) << command;
    EXPECT_NE(run.err.find("standard output cannot be written: "), std::string::npos)
        << command << ": " << run.err;
  }
}

TEST_F(CliOutput, AClosedStdoutIsAFailure) {
  for (const std::string& command : commands()) {
    const ProgramRun run = run_into(">&-", command);
    EXPECT_EQ(run.exit_code, 1) << command;
    EXPECT_NE(run.err.find("standard output is closed"), std::string::npos)
        << command << ": " << run.err;
  }
}

// Nothing is written into a file that happens to get the descriptor of a closed stream.
TEST_F(CliOutput, AClosedStderrIsNoFailure) {
  const std::string merged = directory_ / "merged";
  const std::string command =
      "'" BSFA_PROGRAM "' thresholds merge " + part_ + " --out " + merged + " > /dev/null 2>&-";
  EXPECT_EQ(std::system(command.c_str()), 0);
  EXPECT_EQ(read_bytes(merged), read_bytes(table_));
}

TEST_F(CliOutput, NamesInFilesAreNotPrintedAsTheyAre) {
  const std::string evil = directory_ / "evil";
  ThresholdTable({{2},
                  {128, 64},
                  0.125f,
                  100,
                  "a\x1b]0;x\x07\x7f",
                  1,
                  "b\xc2\x9b"
                  "31m",
                  {}},
                 1, 1, 1, {0.0f})
      .save(evil);
  for (const std::string command : {"show ", "check ", "show --json ", "check --json "}) {
    const ProgramRun run = run_program("thresholds " + command + evil);
    EXPECT_EQ(run.exit_code, 0) << run.err;
    for (const char control : {'\x1b', '\x07', '\x7f', '\x9b'}) {
      EXPECT_EQ(run.out.find(control), std::string::npos) << command;
    }
  }
  EXPECT_NE(run_program("thresholds show " + evil).out.find("a\\x1b]0;x\\x07\\x7f"),
            std::string::npos);
}

TEST_F(CliOutput, AnOutputThatIsNoFileIsRefused) {
  for (const std::string out : {"/dev/null", "/", "/no/such/folder/out", "''"}) {
    const ProgramRun run = run_program("thresholds merge " + part_ + " --out " + out);
    EXPECT_EQ(run.exit_code, 1) << out;
    EXPECT_EQ(run.err.rfind("bsfa: error: --out: ", 0), 0u) << run.err;
  }
}

TEST_F(CliOutput, AnOutputInTheCurrentFolderIsWritten) {
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(directory_ / "");
  const ProgramRun run = run_program("thresholds merge part --out merged");
  std::filesystem::current_path(before);
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_EQ(read_bytes(directory_ / "merged"), read_bytes(table_));
}

TEST_F(CliOutput, MemoryThatIsNotThereIsSaidToBeMissing) {
  if (testing::kSanitized) GTEST_SKIP() << "the sanitizer's allocator ends the process instead";
  const ProgramRun run = run_program(
      "bench kernel --heads 65536/65536 --head-dim 256 --tokens 1048576 --density 0.5 --rounds 1");
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_EQ(run.err, "bsfa: error: out of memory\n");
}

TEST_F(CliOutput, NumbersThatWrapAreRefused) {
  const std::pair<std::string, const char*> cases[] = {
      {"thresholds show --length 9223372036854775808 " + table_, "--length"},
      {"thresholds check --layers 4294967297 " + table_, "--layers"},
      {"thresholds check --heads 18446744073709551617 " + table_, "--heads"},
      {"thresholds check --softmax-scale nan " + table_, "--softmax-scale"},
      {"thresholds check --softmax-scale 1e99 " + table_, "--softmax-scale"},
      {"thresholds check --budget 9223372036854775808 " + table_, "--budget"},
      {"thresholds merge --recommend 9223372036854775808 --out x " + part_, "--recommend"},
      {"bench kernel --tokens 18446744073709551744", "--tokens"},
      {"bench kernel --head-dim 4294967304", "--head-dim"},
      {"bench kernel --heads 9223372036854775808/1", "--heads"},
      {"bench kernel --heads 4000000000/1", "--heads"},
      {"bench kernel --threads 4294967297", "--threads"},
      {"bench kernel --rounds 4294967297", "--rounds"},
      {"bench kernel --density nan", "--density"},
  };
  for (const auto& [command, option] : cases) {
    const ProgramRun run = run_program(command);
    EXPECT_EQ(run.exit_code, 2) << command;
    EXPECT_NE(run.err.find(option), std::string::npos) << command << ": " << run.err;
    EXPECT_NE(run.err.find("accepted"), std::string::npos) << command << ": " << run.err;
    EXPECT_EQ(run.out, "");
  }
  // Leading zeros do not make a number octal.
  EXPECT_EQ(run_program("thresholds check --layers 01 --heads 001 " + table_).exit_code, 0);
}

}  // namespace
}  // namespace bsfa::test

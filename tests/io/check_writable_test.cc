// A file that could not be written at the end of long work is refused before it, by its argument.

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <filesystem>
#include <string>

#include "bsfa/file.hpp"
#include "file_bytes.hpp"

namespace bsfa::test {
namespace {

std::string refusal(const std::string& path) {
  const Status status = error_of([&] { check_writable("--out", path); });
  EXPECT_TRUE(status.ok() || status.code == ErrorCode::kIo);
  return status.message;
}

TEST(CheckWritable, WhatCanBeWritten) {
  const TemporaryDirectory directory;
  EXPECT_EQ(refusal(directory / "new"), "");
  write_bytes(directory / "old", "x");
  EXPECT_EQ(refusal(directory / "old"), "");
  std::filesystem::create_symlink("new", directory / "link");
  EXPECT_EQ(refusal(directory / "link"), "");
  EXPECT_EQ(directory.num_entries(), 2u);  // nothing was made by looking
}

TEST(CheckWritable, WhatCannot) {
  const TemporaryDirectory directory;
  EXPECT_EQ(refusal(directory / "."),
            "--out: '" + (directory / ".") + "' is a directory; expected the name of a file");
  write_bytes(directory / "file", "x");
  for (const char* name : {"none/x", "file/x", "dangling"}) {
    if (std::string(name) == "dangling") {
      std::filesystem::create_symlink("none/x", directory / name);
    }
    const std::string message = refusal(directory / name);
    EXPECT_EQ(message.rfind("--out: '" + (directory / name) + "' ", 0), 0u) << message;
  }
  EXPECT_NE(refusal(directory / "none/x").find("there is no folder"), std::string::npos);
  std::filesystem::create_symlink("circle", directory / "circle");
  EXPECT_NE(refusal(directory / "circle"), "");
  ASSERT_EQ(mkfifo((directory / "pipe").c_str(), 0600), 0);
  EXPECT_NE(refusal(directory / "pipe").find("is not a regular file"), std::string::npos);
}

}  // namespace
}  // namespace bsfa::test

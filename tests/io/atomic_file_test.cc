#include "io/atomic_file.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>

#include "file_bytes.hpp"

namespace bsfa::test {
namespace {

// A disk that is full after `bytes`: this process may not make larger files.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    handler_ = std::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    set_ = ::setrlimit(RLIMIT_FSIZE, &limit) == 0;
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }
  bool set() const { return set_; }

 private:
  rlimit before_{};
  void (*handler_)(int) = nullptr;
  bool set_ = false;
};

TEST(AtomicFile, WritesAllPiecesAndLeavesNothingElse) {
  const TemporaryDirectory directory;
  const std::string path = directory / "file";
  ASSERT_TRUE(write_file_atomically(path, {"one", "", "two"}).ok());
  EXPECT_EQ(read_bytes(path), "onetwo");
  ASSERT_TRUE(write_file_atomically(path, {"three"}).ok());
  EXPECT_EQ(read_bytes(path), "three");
  EXPECT_EQ(directory.num_entries(), 1u);
}

TEST(AtomicFile, AFullDiskLeavesTheOldFileAndNoOther) {
  const TemporaryDirectory directory;
  const std::string path = directory / "file";
  write_bytes(path, "old");
  Status status;
  {
    const FileSizeLimit limit(4096);
    ASSERT_TRUE(limit.set());
    status = write_file_atomically(path, {std::string(10'000, 'x')});
  }
  EXPECT_EQ(status.code, ErrorCode::kIo);
  EXPECT_NE(status.message.find(path), std::string::npos) << status.message;
  EXPECT_NE(status.message.find("cannot be written"), std::string::npos) << status.message;
  EXPECT_EQ(read_bytes(path), "old");
  EXPECT_EQ(directory.num_entries(), 1u);
}

TEST(AtomicFile, AMissingDirectoryIsNamed) {
  const TemporaryDirectory directory;
  const Status status = write_file_atomically(directory / "none/file", {"x"});
  EXPECT_EQ(status.code, ErrorCode::kIo);
  EXPECT_NE(status.message.find("none/file"), std::string::npos);
  EXPECT_EQ(directory.num_entries(), 0u);
}

TEST(AtomicFile, OnlyFilesAreReplaced) {
  const TemporaryDirectory directory;
  const std::string pipe = directory / "pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(write_file_atomically(pipe, {"x"}).code, ErrorCode::kIo);
  EXPECT_EQ(write_file_atomically(directory / "", {"x"}).code, ErrorCode::kIo);
  EXPECT_EQ(directory.num_entries(), 1u);
}

TEST(AtomicFile, AReplacedFileKeepsItsMode) {
  const TemporaryDirectory directory;
  const std::string path = directory / "file";
  write_bytes(path, "old");
  ASSERT_EQ(::chmod(path.c_str(), 0640), 0);
  ASSERT_TRUE(write_file_atomically(path, {"new"}).ok());
  struct stat status {};
  ASSERT_EQ(::stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0640u);
}

}  // namespace
}  // namespace bsfa::test

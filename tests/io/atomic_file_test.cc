#include "io/atomic_file.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <atomic>
#include <csignal>
#include <thread>

#include "bsfa/file.hpp"
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

TEST(AtomicFile, ASymbolicLinkStaysAndItsTargetIsWritten) {
  namespace fs = std::filesystem;
  const TemporaryDirectory directory;
  fs::create_directory(directory / "inner");
  const std::string target = directory / "inner/target", link = directory / "link";
  write_bytes(target, "old");
  fs::create_symlink("inner/hop", link);
  fs::create_symlink("target", directory / "inner/hop");
  ASSERT_TRUE(write_file_atomically(link, {"new"}).ok());
  EXPECT_TRUE(fs::is_symlink(link));
  EXPECT_TRUE(fs::is_symlink(directory / "inner/hop"));
  EXPECT_FALSE(fs::is_symlink(target));
  EXPECT_EQ(read_bytes(target), "new");
  // A link to what is not there yet makes it, as any program's writing would.
  fs::remove(target);
  ASSERT_TRUE(write_file_atomically(link, {"again"}).ok());
  EXPECT_TRUE(fs::is_symlink(link));
  EXPECT_EQ(read_bytes(target), "again");
  fs::create_symlink(fs::path(target), directory / "absolute");
  ASSERT_TRUE(write_file_atomically(directory / "absolute", {"third"}).ok());
  EXPECT_EQ(read_bytes(target), "third");
}

TEST(AtomicFile, LinksThatGoInACircleAreRefused) {
  const TemporaryDirectory directory;
  std::filesystem::create_symlink("b", directory / "a");
  std::filesystem::create_symlink("a", directory / "b");
  const Status status = write_file_atomically(directory / "a", {"x"});
  EXPECT_EQ(status.code, ErrorCode::kIo);
  EXPECT_NE(status.message.find("40 symbolic links"), std::string::npos) << status.message;
  EXPECT_EQ(directory.num_entries(), 2u);
}

TEST(AtomicFile, ANameAsLongAsTheFileSystemAllows) {
  const TemporaryDirectory directory;
  for (const std::size_t length : {229, 230, 255}) {
    const std::string path = directory / std::string(length, 'n');
    ASSERT_TRUE(write_file_atomically(path, {"one"}).ok()) << length;
    ASSERT_TRUE(write_file_atomically(path, {"two"}).ok()) << length;
    EXPECT_EQ(read_bytes(path), "two");
  }
  EXPECT_EQ(directory.num_entries(), 3u);
  const Status status = write_file_atomically(directory / std::string(256, 'n'), {"x"});
  EXPECT_EQ(status.code, ErrorCode::kIo);
  EXPECT_EQ(directory.num_entries(), 3u);
}

TEST(AtomicFile, WhatAKilledWriterLeftIsRemovedAndALiveOnesIsNot) {
  const TemporaryDirectory directory;
  const std::string path = directory / "file";
  const std::string abandoned = path + ".tmp-12345-0", live = path + ".tmp-12345-1";
  const std::string others[] = {path + ".tmp-x-1", path + ".tmp-1", path + "2.tmp-1-1"};
  for (const std::string& other : others) write_bytes(other, "not ours");
  write_bytes(abandoned, "half");
  write_bytes(live, "half");
  const int held = ::open(live.c_str(), O_WRONLY);
  ASSERT_EQ(::flock(held, LOCK_EX), 0);
  ASSERT_TRUE(write_file_atomically(path, {"whole"}).ok());
  EXPECT_FALSE(std::filesystem::exists(abandoned));
  EXPECT_TRUE(std::filesystem::exists(live));
  for (const std::string& other : others) EXPECT_TRUE(std::filesystem::exists(other)) << other;
  ::close(held);
  ASSERT_TRUE(write_file_atomically(path, {"whole"}).ok());
  EXPECT_FALSE(std::filesystem::exists(live));
  EXPECT_EQ(directory.num_entries(), 1u + std::size(others));
}

TEST(AtomicFile, WhatAKillLeavesOfALongNameIsRemovedToo) {
  const TemporaryDirectory directory;
  const std::string path = directory / std::string(255, 'n');
  const pid_t child = ::fork();
  if (child == 0) {  // dies in the middle of its save, as a kill would have it
    std::signal(SIGXFSZ, SIG_DFL);
    const rlimit limit{4096, 4096};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const rlimit no_core{0, 0};
    ::setrlimit(RLIMIT_CORE, &no_core);
    (void)write_file_atomically(path, {std::string(10'000, 'x')});
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status)) << "the child was not killed";
  ASSERT_EQ(directory.num_entries(), 1u);
  ASSERT_FALSE(std::filesystem::exists(path));
  ASSERT_TRUE(write_file_atomically(path, {"whole"}).ok());
  EXPECT_EQ(directory.num_entries(), 1u);
  EXPECT_EQ(read_bytes(path), "whole");
}

TEST(AtomicFile, WritersOfOneFileDoNotDisturbEachOther) {
  const TemporaryDirectory directory;
  const std::string path = directory / "file";
  std::vector<std::thread> writers;
  std::atomic<int> failures{0};
  for (char letter = 'a'; letter < 'e'; ++letter) {
    writers.emplace_back([&, letter] {
      for (int n = 0; n < 50; ++n) {
        if (!write_file_atomically(path, {std::string(3000, letter)}).ok()) ++failures;
      }
    });
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(failures, 0);
  const std::string bytes = read_bytes(path);
  EXPECT_EQ(bytes, std::string(3000, bytes.at(0)));
  EXPECT_EQ(directory.num_entries(), 1u);
}

TEST(SameFile, LooksThroughLinks) {
  namespace fs = std::filesystem;
  const TemporaryDirectory directory;
  const std::string file = directory / "file", none = directory / "none";
  write_bytes(file, "x");
  write_bytes(directory / "other", "x");
  fs::create_symlink("file", directory / "soft");
  fs::create_hard_link(file, directory / "hard");
  fs::create_symlink("none", directory / "dangling");
  fs::create_directory(directory / "inner");
  for (const char* name : {"file", "soft", "hard", "inner/../file", "./soft"}) {
    EXPECT_TRUE(same_file(file, directory / name)) << name;
  }
  EXPECT_FALSE(same_file(file, directory / "other"));
  EXPECT_FALSE(same_file(file, none));
  // Files that are still to be written.
  EXPECT_TRUE(same_file(none, directory / "inner/../none"));
  EXPECT_TRUE(same_file(none, directory / "dangling"));
  EXPECT_FALSE(same_file(none, directory / "inner/none"));
  EXPECT_FALSE(same_file(none, directory / "none2"));
  EXPECT_FALSE(same_file(directory / "no/folder", directory / "no/folder"));
}

}  // namespace
}  // namespace bsfa::test

// Every system call of a save fails once: the file is as before or as wanted, and nothing else is
// left beside it.

#include <fcntl.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <functional>

#include "bsfa/calibration.hpp"
#include "bsfa/file.hpp"
#include "bsfa/thresholds.hpp"
#include "file_bytes.hpp"
#include "io/file_ops.hpp"

namespace bsfa::test {
namespace {

// The system's calls, but the one with the number `failing` fails.
class FaultyOps final : public FileOps {
 public:
  FaultyOps(int failing, int error) : failing_(failing), error_(error) {
    before_ = exchange_file_ops(this);
  }
  ~FaultyOps() override { exchange_file_ops(before_); }

  int open(const char* path, int flags, unsigned mode) override {
    return fails("open") ? -1 : FileOps::open(path, flags, mode);
  }
  int lock(int file, int operation) override {
    return fails("lock") ? -1 : FileOps::lock(file, operation);
  }
  ssize_t write(int file, const void* data, std::size_t size) override {
    // In small pieces, so that the first ones are on the disk when a later one fails.
    return fails("write") ? -1 : FileOps::write(file, data, std::min<std::size_t>(size, 64));
  }
  int change_mode(int file, unsigned mode) override {
    return fails("change_mode") ? -1 : FileOps::change_mode(file, mode);
  }
  int sync(int file) override { return fails("sync") ? -1 : FileOps::sync(file); }
  int rename(const char* from, const char* to) override {
    if (fails("rename")) return -1;
    renamed_ = true;
    return FileOps::rename(from, to);
  }

  bool failed() const { return !what_.empty(); }
  const std::string& what() const { return what_; }
  bool before_rename() const { return before_rename_; }

 private:
  bool fails(const char* what) {
    if (calls_++ != failing_) return false;
    what_ = what;
    before_rename_ = !renamed_;
    errno = error_;
    return true;
  }

  int failing_;
  int error_;
  int calls_ = 0;
  bool renamed_ = false;
  bool before_rename_ = false;
  std::string what_;
  FileOps* before_ = nullptr;
};

struct Saver {
  const char* name;
  std::function<void(const std::string& path)> save;
};

Calibration small_calibration() {
  Calibration calibration({{1}, {128, 64}, 0.125f, 0, "tiny", 0, "p", {}}, 1, 1);
  const std::vector<float> values{1.5f, 2};
  calibration.begin_sample("s", 200);
  calibration.add(0, 0, 200, {values.data(), {1, 1, 2}, {2, 2, 1}});
  calibration.end_sample();
  return calibration;
}

const Saver kSavers[] = {
    {"Table", [](const std::string& path) { small_calibration().finish().save(path); }},
    {"Partial", [](const std::string& path) { small_calibration().save(path); }},
    {"Bytes", [](const std::string& path) { write_file(path, std::string(1000, 'x')); }},
};

class Saving : public testing::TestWithParam<Saver> {};

TEST_P(Saving, EveryCallFailsOnce) {
  const TemporaryDirectory directory;
  const std::string path = directory / "file";
  const std::string wanted_path = directory / "wanted";
  GetParam().save(wanted_path);
  const std::string wanted = read_bytes(wanted_path);
  std::map<std::string, int> failures;
  for (const int error : {EIO, ENOSPC, ENOLCK}) {
    for (int call = 0;; ++call) {
      ASSERT_LT(call, 1000) << "the save does not end";
      write_bytes(path, "old");
      Status status;
      std::string what;
      bool before_rename = false;
      {
        const FaultyOps ops(call, error);
        status = error_of([&] { GetParam().save(path); });
        what = ops.what();
        before_rename = ops.before_rename();
      }
      ++failures[what];
      // Not to get a lock, or not to reach the disk with a name that is in place, loses nothing.
      const bool matters = before_rename && what != "lock";
      EXPECT_EQ(status.code, matters ? ErrorCode::kIo : ErrorCode::kOk) << what << status.message;
      EXPECT_EQ(read_bytes(path), matters ? "old" : wanted) << what << " of call " << call;
      EXPECT_EQ(directory.num_entries(), 2u) << what << " of call " << call;
      if (matters) {
        EXPECT_EQ(status.message.rfind(path + ": ", 0), 0u) << status.message;
        EXPECT_NE(status.message.find(std::strerror(error)), std::string::npos) << status.message;
      }
      if (what.empty()) break;
    }
  }
  // The premise: all of them were met, of the file and of its folder.
  EXPECT_EQ(failures["open"], 2 * 3);
  EXPECT_EQ(failures["lock"], 3);
  EXPECT_GT(failures["write"], 3 * 3);
  EXPECT_EQ(failures["change_mode"], 3);
  EXPECT_EQ(failures["sync"], 2 * 3);
  EXPECT_EQ(failures["rename"], 3);
}

TEST_P(Saving, AnInterruptedCallIsMadeAgain) {
  const TemporaryDirectory directory;
  const std::string path = directory / "file", wanted = directory / "wanted";
  GetParam().save(wanted);
  const FaultyOps ops(3, EINTR);
  GetParam().save(path);
  EXPECT_EQ(ops.what(), "write");
  EXPECT_EQ(read_bytes(path), read_bytes(wanted));
}

TEST_P(Saving, WithoutAFileBeforeNoneIsLeft) {
  const TemporaryDirectory directory;
  for (int call = 0;; ++call) {
    const FaultyOps ops(call, EIO);
    const Status status = error_of([&] { GetParam().save(directory / "file"); });
    if (status.ok()) {
      EXPECT_TRUE(ops.what().empty() || ops.what() == "lock" || !ops.before_rename());
      if (!ops.failed()) break;
      std::filesystem::remove(directory / "file");
    }
    EXPECT_EQ(directory.num_entries(), 0u) << ops.what();
  }
}

INSTANTIATE_TEST_SUITE_P(Io, Saving, testing::ValuesIn(kSavers),
                         [](const auto& entry) { return std::string(entry.param.name); });

}  // namespace
}  // namespace bsfa::test

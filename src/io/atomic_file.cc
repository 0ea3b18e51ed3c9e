#include "io/atomic_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "io/text.hpp"

namespace bsfa {
namespace {

// A file that is removed unless it was renamed into place.
class TemporaryFile {
 public:
  ~TemporaryFile() {
    if (file_ >= 0) ::close(file_);
    if (!path_.empty()) ::unlink(path_.c_str());
  }
  TemporaryFile() = default;
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  Status create(const std::string& target) {
    static std::atomic<unsigned> counter{0};
    // Not mkstemp: its mode is 0600, and the umask of a process can only be read by changing it.
    for (int attempt = 0; attempt < 100; ++attempt) {
      const std::string path = text(target, ".tmp-", ::getpid(), "-", counter.fetch_add(1));
      file_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
      if (file_ >= 0) {
        path_ = path;
        return {};
      }
      if (errno != EEXIST) break;
    }
    return failed(target, "no file can be made beside it");
  }

  Status write(const std::string& target, std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t done = ::write(file_, bytes.data(), bytes.size());
      if (done < 0 && errno == EINTR) continue;
      if (done < 0) return failed(target, "cannot be written");
      bytes.remove_prefix(static_cast<std::size_t>(done));
    }
    return {};
  }

  Status move_to(const std::string& target, const struct stat* replaced) {
    if (replaced != nullptr && ::fchmod(file_, replaced->st_mode & 07777) != 0) {
      return failed(target, "its mode cannot be kept");
    }
    if (::fsync(file_) != 0) return failed(target, "cannot be written");
    const int closed = ::close(file_);
    file_ = -1;
    if (closed != 0) return failed(target, "cannot be written");
    if (std::rename(path_.c_str(), target.c_str()) != 0)
      return failed(target, "cannot be replaced");
    path_.clear();
    return {};
  }

 private:
  static Status failed(const std::string& target, const char* what) {
    return io_error(target, ": ", what, ": ", std::strerror(errno));
  }

  int file_ = -1;
  std::string path_;
};

// So that the new name survives a power cut. The content is in place whatever comes of it.
void sync_directory_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  const std::string directory = slash == std::string::npos ? "." : path.substr(0, slash + 1);
  const int file = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (file < 0) return;
  (void)::fsync(file);
  ::close(file);
}

}  // namespace

Status write_file_atomically(const std::string& path, const std::vector<std::string_view>& pieces) {
  struct stat existing {};
  const bool exists = ::stat(path.c_str(), &existing) == 0;
  if (exists && !S_ISREG(existing.st_mode)) {
    // Renaming would replace a device or a pipe by a file.
    return io_error(path, ": is ", S_ISDIR(existing.st_mode) ? "a directory" : "not a regular file",
                    "; expected the name of a file");
  }
  TemporaryFile file;
  BSFA_RETURN_IF_ERROR(file.create(path));
  for (const std::string_view piece : pieces) BSFA_RETURN_IF_ERROR(file.write(path, piece));
  BSFA_RETURN_IF_ERROR(file.move_to(path, exists ? &existing : nullptr));
  sync_directory_of(path);
  return {};
}

}  // namespace bsfa

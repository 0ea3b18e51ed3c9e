#include "io/atomic_file.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstring>

#include "bsfa/file.hpp"
#include "core/sha256.hpp"
#include "io/file_ops.hpp"
#include "io/text.hpp"

// A temporary file is called <name>.tmp-<process>-<number>, and its writer holds a lock (flock) on
// it for as long as it is at work. A crash releases the lock: who finds such a file and gets the
// lock knows that nobody will finish it.

namespace bsfa {
namespace {

constexpr const char* kMark = ".tmp-";
constexpr std::size_t kLongestSuffix = 5 + 10 + 1 + 10;  // the mark and two numbers

Status failed(const std::string& target, const char* what) {
  return io_error(path_text(target), ": ", what, ": ", std::strerror(errno));
}

std::string directory_of(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? "./" : path.substr(0, slash + 1);
}

std::string name_of(const std::string& path) { return path.substr(path.rfind('/') + 1); }

bool same_inode(const struct stat& a, const struct stat& b) {
  return a.st_dev == b.st_dev && a.st_ino == b.st_ino;
}

// What a symbolic link leads to, whether it is there or not; any other path as it is.
Status follow_links(const std::string& path, std::string* target) {
  constexpr int kMostLinks = 40;  // as the kernel's own limit
  *target = path;
  for (int n = 0; n < kMostLinks; ++n) {
    struct stat status {};
    if (::lstat(target->c_str(), &status) != 0 || !S_ISLNK(status.st_mode)) return {};
    char buffer[PATH_MAX];
    const ssize_t length = ::readlink(target->c_str(), buffer, sizeof buffer);
    if (length < 0) return failed(path, "its symbolic link cannot be read");
    const std::string next(buffer, static_cast<std::size_t>(length));
    *target = !next.empty() && next[0] == '/' ? next : directory_of(*target) + next;
  }
  return io_error(path_text(path), ": leads through more than ", kMostLinks, " symbolic links");
}

// What the names of the temporary files of `target` begin with: its own name, or where that would
// make them too long, something short that is made of it.
std::string stem_of(const std::string& directory, const std::string& name) {
  const long limit = ::pathconf(directory.c_str(), _PC_NAME_MAX);
  const std::size_t longest = limit > 0 ? static_cast<std::size_t>(limit) : NAME_MAX;
  if (name.size() + kLongestSuffix <= longest &&
      directory.size() + name.size() + kLongestSuffix < PATH_MAX) {
    return name + kMark;
  }
  Sha256 hash;
  hash.update(name);
  return ".bsfa-" + hash.finish().substr(0, 16) + kMark;
}

// <digits>-<digits>
bool two_numbers(std::string_view text) {
  const auto digits = [](std::string_view part) {
    return !part.empty() &&
           std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
  };
  const std::size_t dash = text.find('-');
  return dash != std::string_view::npos && digits(text.substr(0, dash)) &&
         digits(text.substr(dash + 1));
}

// Removes the file if its lock can be had and it is still the one of that name.
void remove_if_abandoned(const std::string& path) {
  const int file = ::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (file < 0) return;
  struct stat held {};
  struct stat named {};
  if (::fstat(file, &held) == 0 && S_ISREG(held.st_mode) && ::flock(file, LOCK_EX | LOCK_NB) == 0 &&
      ::lstat(path.c_str(), &named) == 0 && same_inode(held, named)) {
    ::unlink(path.c_str());
  }
  ::close(file);
}

void remove_abandoned(const std::string& directory, const std::string& stem) {
  DIR* entries = ::opendir(directory.c_str());
  if (entries == nullptr) return;
  while (const dirent* entry = ::readdir(entries)) {
    const std::string_view name = entry->d_name;
    if (name.starts_with(stem) && two_numbers(name.substr(stem.size()))) {
      remove_if_abandoned(directory + entry->d_name);
    }
  }
  ::closedir(entries);
}

// A file that is removed unless it was renamed into place.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& target) : target_(target) {}
  ~TemporaryFile() {
    // The name goes before the lock does.
    if (!path_.empty()) ::unlink(path_.c_str());
    if (file_ >= 0) ::close(file_);
  }
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  Status create() {
    static std::atomic<unsigned> counter{0};
    const std::string directory = directory_of(target_);
    const std::string stem = stem_of(directory, name_of(target_));
    remove_abandoned(directory, stem);
    // Not mkstemp: its mode is 0600, and the umask of a process can only be read by changing it.
    for (int attempt = 0; attempt < 100; ++attempt) {
      const std::string path = text(directory, stem, ::getpid(), "-", counter.fetch_add(1));
      file_ = file_ops().open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
      if (file_ >= 0 && is_mine()) {
        path_ = path;
        return {};
      }
      if (file_ >= 0) {
        ::close(file_);
        file_ = -1;
      } else if (errno != EEXIST) {
        break;
      }
    }
    return failed(target_, "no file can be made beside it");
  }

  Status write(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t done = file_ops().write(file_, bytes.data(), bytes.size());
      if (done < 0 && errno == EINTR) continue;
      if (done == 0) errno = ENOSPC;
      if (done <= 0) return failed(target_, "cannot be written");
      bytes.remove_prefix(static_cast<std::size_t>(done));
    }
    return {};
  }

  // Closing comes last, since it ends the lock; what it could report of the data, fsync has.
  Status move_to_target(const struct stat* replaced) {
    if (replaced != nullptr && file_ops().change_mode(file_, replaced->st_mode & 07777) != 0) {
      return failed(target_, "its mode cannot be kept");
    }
    if (file_ops().sync(file_) != 0) return failed(target_, "cannot be written");
    if (file_ops().rename(path_.c_str(), target_.c_str()) != 0) {
      return failed(target_, "cannot be replaced");
    }
    path_.clear();
    return {};
  }

 private:
  // Between its making and its lock another process may have taken it for abandoned. A file system
  // without locks gives neither us nor the others one, so there nothing is removed.
  bool is_mine() const {
    if (file_ops().lock(file_, LOCK_EX | LOCK_NB) != 0) return errno != EWOULDBLOCK;
    struct stat status {};
    return ::fstat(file_, &status) == 0 && status.st_nlink > 0;
  }

  const std::string& target_;
  std::string path_;
  int file_ = -1;
};

// So that the new name survives a power cut. The content is in place whatever comes of it.
void sync_directory_of(const std::string& path) {
  const int file =
      file_ops().open(directory_of(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
  if (file < 0) return;
  (void)file_ops().sync(file);
  ::close(file);
}

}  // namespace

Status write_file_atomically(const std::string& path, const std::vector<std::string_view>& pieces) {
  std::string target;
  BSFA_RETURN_IF_ERROR(follow_links(path, &target));
  struct stat existing {};
  const bool exists = ::stat(target.c_str(), &existing) == 0;
  if (exists && !S_ISREG(existing.st_mode)) {
    // Renaming would replace a device or a pipe by a file.
    return io_error(path_text(path), ": is ",
                    S_ISDIR(existing.st_mode) ? "a directory" : "not a regular file",
                    "; expected the name of a file");
  }
  TemporaryFile file(target);
  BSFA_RETURN_IF_ERROR(file.create());
  for (const std::string_view piece : pieces) BSFA_RETURN_IF_ERROR(file.write(piece));
  BSFA_RETURN_IF_ERROR(file.move_to_target(exists ? &existing : nullptr));
  sync_directory_of(target);
  return {};
}

void write_file(const std::string& path, std::string_view bytes) {
  const Status status = write_file_atomically(path, {bytes});
  if (!status.ok()) throw Error(status);
}

bool same_file(const std::string& a, const std::string& b) {
  std::string targets[2];
  if (!follow_links(a, &targets[0]).ok() || !follow_links(b, &targets[1]).ok()) return false;
  struct stat found[2] = {};
  const bool there[2] = {::stat(targets[0].c_str(), &found[0]) == 0,
                         ::stat(targets[1].c_str(), &found[1]) == 0};
  if (there[0] != there[1]) return false;
  if (there[0]) return same_inode(found[0], found[1]);
  // Neither is there: the same name in the same folder.
  if (name_of(targets[0]) != name_of(targets[1])) return false;
  return ::stat(directory_of(targets[0]).c_str(), &found[0]) == 0 &&
         ::stat(directory_of(targets[1]).c_str(), &found[1]) == 0 && same_inode(found[0], found[1]);
}

}  // namespace bsfa

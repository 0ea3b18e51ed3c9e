#include "io/byte_source.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "io/text.hpp"

namespace bsfa {

BufferSource::BufferSource(std::string name, const void* data, std::size_t size)
    : ByteSource(std::move(name)), data_(static_cast<const unsigned char*>(data)) {
  size_ = size;
}

Status BufferSource::read(std::uint64_t offset, void* to, std::size_t count) const {
  if (count > 0) std::memcpy(to, data_ + offset, count);
  return {};
}

FileSource::~FileSource() {
  if (file_ >= 0) ::close(file_);
}

Status FileSource::open() {
  // O_NONBLOCK: opening a named pipe must not wait for a writer.
  file_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file_ < 0) return io_error(name_, ": cannot be opened: ", std::strerror(errno));
  struct stat status {};
  if (::fstat(file_, &status) != 0) {
    return io_error(name_, ": cannot be examined: ", std::strerror(errno));
  }
  if (!S_ISREG(status.st_mode)) {
    return io_error(name_, ": is ", S_ISDIR(status.st_mode) ? "a directory" : "not a regular file",
                    "; expected a file");
  }
  size_ = static_cast<std::uint64_t>(status.st_size);
  return {};
}

Status FileSource::read(std::uint64_t offset, void* to, std::size_t count) const {
  auto* next = static_cast<unsigned char*>(to);
  while (count > 0) {
    const ssize_t got = ::pread(file_, next, count, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return io_error(name_, ": cannot be read: ", std::strerror(errno));
    if (got == 0) return io_error(name_, ": became shorter while it was read");
    next += got;
    offset += static_cast<std::uint64_t>(got);
    count -= static_cast<std::size_t>(got);
  }
  return {};
}

}  // namespace bsfa

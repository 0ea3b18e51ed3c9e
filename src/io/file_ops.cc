#include "io/file_ops.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>

namespace bsfa {
namespace {

FileOps system_ops;
std::atomic<FileOps*> in_force{&system_ops};

}  // namespace

int FileOps::open(const char* path, int flags, unsigned mode) { return ::open(path, flags, mode); }
int FileOps::lock(int file, int operation) { return ::flock(file, operation); }
ssize_t FileOps::write(int file, const void* data, std::size_t size) {
  return ::write(file, data, size);
}
int FileOps::change_mode(int file, unsigned mode) { return ::fchmod(file, mode); }
int FileOps::sync(int file) { return ::fsync(file); }
int FileOps::rename(const char* from, const char* to) { return std::rename(from, to); }

FileOps& file_ops() { return *in_force.load(); }

FileOps* exchange_file_ops(FileOps* others) {
  return in_force.exchange(others != nullptr ? others : &system_ops);
}

}  // namespace bsfa

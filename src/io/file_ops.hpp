#pragma once

#include <sys/types.h>

#include <cstddef>

namespace bsfa {

// The system calls that a save makes, as they are documented: -1 and errno. One place, so that a
// test can let each of them fail in turn.
class FileOps {
 public:
  virtual ~FileOps() = default;
  virtual int open(const char* path, int flags, unsigned mode);
  virtual int lock(int file, int operation);
  virtual ssize_t write(int file, const void* data, std::size_t size);
  virtual int change_mode(int file, unsigned mode);
  virtual int sync(int file);
  virtual int rename(const char* from, const char* to);
};

// Those in force: the system's.
FileOps& file_ops();

// For tests, with no save under way: others from now on; null: the system's. Returns the ones
// before.
FileOps* exchange_file_ops(FileOps* others);

}  // namespace bsfa

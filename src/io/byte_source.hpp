#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "bsfa/error.hpp"
#include "bsfa/text.hpp"

namespace bsfa {

// Where a reader takes its bytes from: a file, or memory (tests, fuzzing).
class ByteSource {
 public:
  explicit ByteSource(std::string name) : name_(std::move(name)) {}
  virtual ~ByteSource() = default;
  ByteSource(const ByteSource&) = delete;
  ByteSource& operator=(const ByteSource&) = delete;

  const std::string& name() const { return name_; }  // for messages: the path, as path_text
  std::uint64_t size() const { return size_; }

  // All of [offset, offset + count), which the caller has checked to lie below size().
  virtual Status read(std::uint64_t offset, void* to, std::size_t count) const = 0;

 protected:
  std::string name_;
  std::uint64_t size_ = 0;
};

class BufferSource final : public ByteSource {
 public:
  BufferSource(std::string name, const void* data, std::size_t size);
  Status read(std::uint64_t offset, void* to, std::size_t count) const override;

 private:
  const unsigned char* data_;
};

class FileSource final : public ByteSource {
 public:
  explicit FileSource(const std::string& path) : ByteSource(path_text(path)), path_(path) {}
  ~FileSource() override;

  // Regular files only: a pipe has no size to check a header against.
  Status open();
  Status read(std::uint64_t offset, void* to, std::size_t count) const override;

 private:
  std::string path_;
  int file_ = -1;
};

}  // namespace bsfa

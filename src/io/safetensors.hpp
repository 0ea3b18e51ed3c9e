#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "bsfa/error.hpp"
#include "io/byte_source.hpp"

// The safetensors container, as far as this library uses it: F32, F64 and I64 tensors.
//
//   u64 little-endian: length of the header | header, JSON | data
//   header: {"__metadata__": {string: string...}, name: {"dtype", "shape", "data_offsets"}...}
//
// Offsets count from the start of the data; the tensors cover all of it without gap or overlap.

namespace bsfa {

constexpr std::uint64_t kMaxSafetensorsHeader = 100'000'000;  // bytes; the limit of the format

using StringMap = std::map<std::string, std::string>;

struct TensorEntry {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;  // bytes from the start of the data
  std::uint64_t end = 0;
};

struct SafetensorsHeader {
  StringMap metadata;
  std::vector<TensorEntry> tensors;
};

// The JSON alone: grammar, types, duplicate and unknown keys. Messages without the file's name.
Status parse_safetensors_header(std::string_view json, SafetensorsHeader* header);

// A file whose header has been read and found consistent with the file's size.
class SafetensorsReader {
 public:
  explicit SafetensorsReader(const ByteSource& source) : source_(source) {}

  Status open();
  const StringMap& metadata() const { return header_.metadata; }

  // Refuses tensors beside the named ones.
  Status expect_tensors(const std::vector<std::string>& names) const;
  // The tensor `name`, if it has this dtype and rank.
  Status find(const std::string& name, const char* dtype, std::size_t rank,
              const TensorEntry** tensor) const;
  // Its data; the caller provides end - begin bytes.
  Status read(const TensorEntry& tensor, void* to) const;
  // The data of all tensors as it lies in the file.
  std::uint64_t data_size() const { return source_.size() - data_begin_; }
  Status read_data(std::uint64_t offset, void* to, std::size_t count) const {
    return source_.read(data_begin_ + offset, to, count);
  }

 private:
  Status check_offsets() const;

  const ByteSource& source_;
  SafetensorsHeader header_;
  std::uint64_t data_begin_ = 0;
};

struct TensorToWrite {
  std::string name;
  const char* dtype;
  std::vector<std::int64_t> shape;
  std::string_view bytes;
};

// "[2, 3]"
std::string shape_text(const std::vector<std::int64_t>& shape);

// Writes the file as a whole or not at all.
Status write_safetensors(const std::string& path, const StringMap& metadata,
                         const std::vector<TensorToWrite>& tensors);

// What write_safetensors puts before the data.
Status safetensors_header_bytes(const StringMap& metadata,
                                const std::vector<TensorToWrite>& tensors, std::string* bytes);

// Bytes of an element; 0 for a dtype that is not one of F32, F64, I64.
std::uint64_t safetensors_dtype_size(std::string_view dtype);

}  // namespace bsfa

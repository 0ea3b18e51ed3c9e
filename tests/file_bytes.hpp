#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "bsfa/error.hpp"

// Files made by hand, byte by byte: what the reader is tested with must not come from the writer.

namespace bsfa::test {

inline std::string little_endian(std::uint64_t value) {
  std::string bytes;
  for (int n = 0; n < 8; ++n) bytes.push_back(static_cast<char>(value >> (8 * n) & 0xff));
  return bytes;
}

// Length, header and data of a safetensors file.
inline std::string container(const std::string& json, const std::string& data) {
  return little_endian(json.size()) + json + data;
}

template <typename T>
std::string raw(const std::vector<T>& values) {
  std::string bytes(values.size() * sizeof(T), '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

// 2 budgets, 1 layer, 2 heads, 2 query blocks.
inline std::string good_metadata() {
  return R"("format":"bsfa-thresholds","version":"1","budgets":"[2, 4]","q_block":"128",)"
         R"("kv_block":"64","softmax_scale":"0.125","max_seqlen":"200","model":"tiny",)"
         R"("num_samples":"3","producer":"by hand")";
}

inline std::string good_tensor() {
  return R"("thresholds":{"dtype":"F32","shape":[2,1,2,2],"data_offsets":[0,32]})";
}

inline std::string good_header() {
  return R"({"__metadata__":{)" + good_metadata() + "}," + good_tensor() + "}";
}

inline std::vector<float> good_values() { return {1, 2, 3, 4, 5, 6, 7, -0.5f}; }

inline std::string good_file() { return container(good_header(), raw(good_values())); }

// `text` with the first `from` replaced; fails loudly where a test's premise is gone.
inline std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  if (at == std::string::npos) throw std::runtime_error("no '" + from + "' to replace");
  return text.replace(at, from.size(), to);
}

// A directory that goes with the test.
class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string pattern = (std::filesystem::temp_directory_path() / "bsfa-test-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = pattern;
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;

  std::string operator/(const std::string& name) const { return (path_ / name).string(); }
  std::size_t num_entries() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(path_),
                                                  std::filesystem::directory_iterator()));
  }

 private:
  std::filesystem::path path_;
};

inline void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

inline std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// The error of a call, or "" with kOk if it raises none.
template <typename F>
Status error_of(F&& call) {
  try {
    call();
  } catch (const Error& error) {
    return {error.code(), error.what()};
  }
  return {};
}

}  // namespace bsfa::test

#include "gguf_header.hpp"

#include <algorithm>
#include <bsfa/error.hpp>
#include <bsfa/fingerprint.hpp>
#include <bsfa/text.hpp>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <optional>
#include <utility>
#include <vector>

// GGUF: magic, version, number of tensors and of fields; then fields: key, type, value. All
// little-endian; strings and lists start with a 64-bit length. Then the tensors: name, number of
// axes, extents, type, offset from the start of the data, which follows, aligned.

namespace bsfa::gguf {
namespace {

enum GgufType : std::uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kList = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

constexpr std::uint64_t kLongestKept = 4096;  // bytes of a string that are of interest

class GgufReader {
 public:
  explicit GgufReader(const std::string& path) : path_(path), file_(path, std::ios::binary) {
    std::error_code error;
    size_ = std::filesystem::file_size(path, error);
    if (!file_ || error) {
      throw Error(ErrorCode::kIo, path_text(path) + ": cannot be read: " +
                                      (error ? error.message() : std::strerror(errno)));
    }
  }

  void read_fields() {
    char magic[4];
    read(magic, sizeof(magic));
    if (std::memcmp(magic, "GGUF", sizeof(magic)) != 0) refuse("is not a GGUF file");
    const auto version = read_as<std::uint32_t>();
    if (version != 2 && version != 3) {
      refuse("has GGUF version " + std::to_string(version) + "; expected 2 or 3");
    }
    num_tensors_ = read_as<std::uint64_t>();
    const auto num_fields = read_as<std::uint64_t>();
    for (std::uint64_t n = 0; n < num_fields; ++n) {
      const std::string key = read_string();
      read_value(key, read_as<std::uint32_t>());
    }
  }

  struct Tensor {
    std::string name;
    std::vector<std::int64_t> shape;
    std::uint32_t type = 0;
    std::uint64_t offset = 0;  // from the start of the data
  };

  // After the fields.
  std::vector<Tensor> read_tensors() {
    std::vector<Tensor> tensors;
    for (std::uint64_t n = 0; n < num_tensors_; ++n) {
      Tensor& tensor = tensors.emplace_back();
      tensor.name = read_string();
      const auto axes = read_as<std::uint32_t>();
      if (axes > 8) refuse("has a tensor of " + std::to_string(axes) + " axes");
      for (std::uint32_t axis = 0; axis < axes; ++axis) {
        tensor.shape.push_back(read_as<std::int64_t>());
      }
      tensor.type = read_as<std::uint32_t>();
      tensor.offset = read_as<std::uint64_t>();
    }
    const double alignment = number("general.alignment").value_or(32);
    if (!(alignment >= 1 && alignment <= 1 << 20)) {
      refuse("has the field 'general.alignment' = " + std::to_string(alignment));
    }
    const auto step = static_cast<std::uint64_t>(alignment);
    data_begin_ = (position_ + step - 1) / step * step;
    return tensors;
  }

  std::uint64_t data_size() const { return size_ > data_begin_ ? size_ - data_begin_ : 0; }

  void append_data(std::uint64_t offset, std::uint64_t count, std::string* to) {
    file_.seekg(static_cast<std::streamoff>(data_begin_ + offset));
    const std::size_t before = to->size();
    to->resize(before + count);
    if (!file_.read(to->data() + before, static_cast<std::streamsize>(count))) {
      refuse("ends within its tensors (truncated)");
    }
  }

  std::optional<std::string> text(const std::string& key) const {
    const auto found = texts_.find(key);
    return found == texts_.end() ? std::nullopt : std::optional(found->second);
  }

  std::optional<double> number(const std::string& key) const {
    const auto found = numbers_.find(key);
    return found == numbers_.end() ? std::nullopt : std::optional(found->second);
  }

  std::int64_t required_count(const std::string& key) const {
    const std::optional<double> value = number(key);
    if (!value) refuse("has no field " + quote(key) + ", or one that differs from layer to layer");
    if (!(*value >= 1 && *value <= 1e9)) {
      refuse("has the field " + quote(key) + " = " + std::to_string(*value) +
             "; expected 1 or more");
    }
    return static_cast<std::int64_t>(*value);
  }

  [[noreturn]] void refuse(const std::string& what) const {
    throw Error(ErrorCode::kFormat, path_text(path_) + ": " + what);
  }

 private:
  void read(void* to, std::uint64_t count) {
    if (!file_.read(static_cast<char*>(to), static_cast<std::streamsize>(count))) {
      refuse("ends within its header (truncated)");
    }
    position_ += count;
  }

  template <typename T>
  T read_as() {
    T value;
    read(&value, sizeof(value));
    return value;
  }

  std::uint64_t read_length() {
    const auto length = read_as<std::uint64_t>();
    if (length > size_ - position_) refuse("ends within its header (truncated)");
    return length;
  }

  void skip(std::uint64_t count) {
    if (count > size_ - position_) refuse("ends within its header (truncated)");
    file_.seekg(static_cast<std::streamoff>(count), std::ios::cur);
    position_ += count;
  }

  std::string read_string() {
    const std::uint64_t length = read_length();
    const std::uint64_t kept = std::min(length, kLongestKept);
    std::string value(kept, '\0');
    read(value.data(), kept);
    skip(length - kept);
    return value;
  }

  // False for a type that is no number.
  bool read_number(std::uint32_t type, double* value) {
    switch (type) {
      case kUint8:
      case kBool:
        *value = read_as<std::uint8_t>();
        return true;
      case kInt8:
        *value = read_as<std::int8_t>();
        return true;
      case kUint16:
        *value = read_as<std::uint16_t>();
        return true;
      case kInt16:
        *value = read_as<std::int16_t>();
        return true;
      case kUint32:
        *value = read_as<std::uint32_t>();
        return true;
      case kInt32:
        *value = read_as<std::int32_t>();
        return true;
      case kFloat32:
        *value = static_cast<double>(read_as<float>());
        return true;
      case kUint64:
        *value = static_cast<double>(read_as<std::uint64_t>());
        return true;
      case kInt64:
        *value = static_cast<double>(read_as<std::int64_t>());
        return true;
      case kFloat64:
        *value = read_as<double>();
        return true;
      default:
        return false;
    }
  }

  void read_value(const std::string& key, std::uint32_t type) {
    double value = 0;
    if (type == kString) {
      texts_[key] = read_string();
    } else if (type == kList) {
      read_list(key);
    } else if (read_number(type, &value)) {
      numbers_[key] = value;
    } else {
      refuse("has a field of type " + std::to_string(type) + ", which GGUF does not have");
    }
  }

  // A list of one number over and over, such as the heads of each layer, counts as that number.
  void read_list(const std::string& key) {
    const auto type = read_as<std::uint32_t>();
    const std::uint64_t length = read_length();
    bool alike = length > 0;
    double first = 0;
    for (std::uint64_t n = 0; n < length; ++n) {
      double value = 0;
      if (type == kString) {
        skip(read_length());
        alike = false;
      } else if (!read_number(type, &value)) {
        refuse("has a list of type " + std::to_string(type) + ", which is not supported");
      }
      if (n == 0) first = value;
      alike = alike && value == first;
    }
    if (alike) numbers_[key] = first;
  }

  std::string path_;
  std::ifstream file_;
  std::uint64_t size_ = 0;
  std::uint64_t position_ = 0;
  std::uint64_t num_tensors_ = 0;
  std::uint64_t data_begin_ = 0;
  std::map<std::string, std::string> texts_;
  std::map<std::string, double> numbers_;
};

}  // namespace

GgufShape read_gguf_shape(const std::string& path) {
  GgufReader reader(path);
  reader.read_fields();
  const std::optional<std::string> architecture = reader.text("general.architecture");
  if (!architecture) reader.refuse("has no field 'general.architecture'");
  const auto key = [&](const char* name) { return *architecture + "." + name; };
  GgufShape shape;
  shape.name = reader.text("general.name").value_or(path);
  shape.num_layers = reader.required_count(key("block_count"));
  shape.num_heads_q = reader.required_count(key("attention.head_count"));
  shape.head_dim = reader.number(key("attention.key_length"))
                       ? reader.required_count(key("attention.key_length"))
                       : reader.required_count(key("embedding_length")) / shape.num_heads_q;
  if (shape.head_dim < 1) reader.refuse("has fewer embedding dimensions than heads");
  const double context = reader.number(key("context_length")).value_or(0);
  if (context >= 1 && context <= 1e12) shape.context_length = static_cast<std::int64_t>(context);
  const double scale = reader.number(key("attention.scale")).value_or(0);
  shape.softmax_scale =
      scale >= std::numeric_limits<float>::min() && scale <= std::numeric_limits<float>::max()
          ? static_cast<float>(scale)
          : 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  return shape;
}

std::string gguf_fingerprint(const std::string& path) {
  constexpr std::uint64_t kPieces = 8, kPieceBytes = 32;
  GgufReader reader(path);
  reader.read_fields();
  std::vector<GgufReader::Tensor> tensors = reader.read_tensors();
  if (tensors.empty()) return "";
  // A tensor's data ends where the next one's begins; the padding between them says nothing else.
  std::sort(tensors.begin(), tensors.end(),
            [](const auto& a, const auto& b) { return a.offset < b.offset; });
  std::vector<WeightSample> samples;
  for (std::size_t n = 0; n < tensors.size(); ++n) {
    const std::uint64_t begin = tensors[n].offset;
    const std::uint64_t end = n + 1 < tensors.size() ? tensors[n + 1].offset : reader.data_size();
    if (begin > end || end > reader.data_size())
      reader.refuse("ends within its tensors (truncated)");
    const std::uint64_t room = end - begin;
    const std::uint64_t piece = std::min(kPieceBytes, room);
    WeightSample& sample = samples.emplace_back();
    sample.name = tensors[n].name;
    sample.shape = tensors[n].shape;
    sample.bytes = std::to_string(tensors[n].type) + ":";
    for (std::uint64_t i = 0; i < kPieces; ++i) {
      reader.append_data(begin + (room - piece) / (kPieces - 1) * i, piece, &sample.bytes);
    }
  }
  return weight_fingerprint("gguf", std::move(samples));
}

}  // namespace bsfa::gguf

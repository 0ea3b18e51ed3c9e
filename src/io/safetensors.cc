#include "io/safetensors.hpp"

#include <algorithm>
#include <bit>

#include "io/atomic_file.hpp"
#include "io/text.hpp"

namespace bsfa {
namespace {

static_assert(std::endian::native == std::endian::little,
              "tensor data is copied as it lies in memory; the format is little-endian");

constexpr std::uint64_t kLengthBytes = 8;

// Bytes of a tensor of this shape, or false if that is no 63-bit number.
bool tensor_bytes(const TensorEntry& tensor, std::uint64_t* bytes) {
  *bytes = safetensors_dtype_size(tensor.dtype);
  for (const std::int64_t extent : tensor.shape) {
    if (__builtin_mul_overflow(*bytes, static_cast<std::uint64_t>(extent), bytes)) return false;
  }
  return *bytes <= static_cast<std::uint64_t>(INT64_MAX);
}

}  // namespace

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string result = "[";
  for (const std::int64_t extent : shape) {
    if (result.size() > 64) return result + ", ...]";
    result += (result.size() > 1 ? ", " : "") + std::to_string(extent);
  }
  return result + "]";
}

std::uint64_t safetensors_dtype_size(std::string_view dtype) {
  if (dtype == "F32") return 4;
  if (dtype == "F64" || dtype == "I64") return 8;
  return 0;
}

Status SafetensorsReader::open() {
  const std::string& name = source_.name();
  if (source_.size() < kLengthBytes) {
    return format_error(name, ": has ", source_.size(),
                        " bytes; a safetensors file starts with a length of ", kLengthBytes,
                        " bytes");
  }
  unsigned char length_bytes[kLengthBytes];
  BSFA_RETURN_IF_ERROR(source_.read(0, length_bytes, kLengthBytes));
  std::uint64_t length = 0;
  for (int n = 7; n >= 0; --n) length = length << 8 | length_bytes[n];
  if (length > kMaxSafetensorsHeader) {
    return format_error(name, ": its first 8 bytes give a header of ", length,
                        " bytes; a safetensors header has at most ", kMaxSafetensorsHeader);
  }
  if (length > source_.size() - kLengthBytes) {
    return format_error(name, ": its first 8 bytes give a header of ", length,
                        " bytes; the file has ", source_.size() - kLengthBytes,
                        " after them (truncated, or not a safetensors file)");
  }
  std::string json(length, '\0');
  BSFA_RETURN_IF_ERROR(source_.read(kLengthBytes, json.data(), json.size()));
  if (json.empty() || json[0] != '{') {
    return format_error(name, ": the header starts with ", quote(json.substr(0, 8)),
                        "; expected a JSON object");
  }
  if (const std::size_t at = json.find('\0'); at != std::string::npos) {
    // To the parser it would be the end.
    return format_error(name, ": the header holds a NUL at byte ", at, "; expected JSON");
  }
  if (Status status = parse_safetensors_header(json, &header_); !status.ok()) {
    return {status.code, name + ": " + status.message};
  }
  data_begin_ = kLengthBytes + length;
  return check_offsets();
}

Status SafetensorsReader::check_offsets() const {
  const std::string& name = source_.name();
  std::vector<const TensorEntry*> order;
  for (const TensorEntry& tensor : header_.tensors) order.push_back(&tensor);
  std::sort(order.begin(), order.end(), [](const TensorEntry* a, const TensorEntry* b) {
    return a->begin != b->begin ? a->begin < b->begin : a->end < b->end;
  });
  std::uint64_t next = 0;
  for (const TensorEntry* tensor : order) {
    if (tensor->begin != next || tensor->end < tensor->begin) {
      return format_error(name, ": tensor ", quote(tensor->name), " has data_offsets [",
                          tensor->begin, ", ", tensor->end, "]; expected it to start at ", next,
                          ", where the data before it ends");
    }
    next = tensor->end;
  }
  if (next != source_.size() - data_begin_) {
    return format_error(name, ": the tensors take ", next, " bytes; the file has ",
                        source_.size() - data_begin_, " bytes of data");
  }
  return {};
}

Status SafetensorsReader::expect_tensors(const std::vector<std::string>& names) const {
  for (const TensorEntry& tensor : header_.tensors) {
    if (std::find(names.begin(), names.end(), tensor.name) == names.end()) {
      std::string expected;
      for (const std::string& each : names) expected += (expected.empty() ? "" : ", ") + each;
      return format_error(source_.name(), ": has a tensor ", quote(tensor.name), "; expected ",
                          expected, " and no other");
    }
  }
  return {};
}

Status SafetensorsReader::find(const std::string& tensor_name, const char* dtype, std::size_t rank,
                               const TensorEntry** tensor) const {
  const std::string& name = source_.name();
  for (const TensorEntry& each : header_.tensors) {
    if (each.name != tensor_name) continue;
    if (each.dtype != dtype) {
      return format_error(name, ": tensor ", quote(tensor_name), " has dtype ", quote(each.dtype),
                          "; expected ", dtype);
    }
    if (each.shape.size() != rank) {
      return format_error(name, ": tensor ", quote(tensor_name), " has shape ",
                          shape_text(each.shape), "; expected ", rank, " axes");
    }
    std::uint64_t bytes = 0;
    if (!tensor_bytes(each, &bytes) || bytes != each.end - each.begin) {
      return format_error(name, ": tensor ", quote(tensor_name), " has shape ",
                          shape_text(each.shape), " and ", each.end - each.begin,
                          " bytes of data, which is not that many ", dtype, " elements");
    }
    *tensor = &each;
    return {};
  }
  return format_error(name, ": has no tensor ", quote(tensor_name));
}

Status SafetensorsReader::read(const TensorEntry& tensor, void* to) const {
  return source_.read(data_begin_ + tensor.begin, to, tensor.end - tensor.begin);
}

Status write_safetensors(const std::string& path, const StringMap& metadata,
                         const std::vector<TensorToWrite>& tensors) {
  std::string header;
  BSFA_RETURN_IF_ERROR(safetensors_header_bytes(metadata, tensors, &header));
  std::vector<std::string_view> pieces{header};
  for (const TensorToWrite& tensor : tensors) pieces.push_back(tensor.bytes);
  return write_file_atomically(path, pieces);
}

}  // namespace bsfa

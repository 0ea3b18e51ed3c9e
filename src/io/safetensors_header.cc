#include <nlohmann/json.hpp>
#include <set>

#include "io/safetensors.hpp"
#include "io/text.hpp"

// The header's JSON in both directions. Reading is event by event: the grammar is three levels
// deep, so nothing nested deeper, and nothing that it does not name, is ever stored.

namespace bsfa {
namespace {

class HeaderHandler final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderHandler(SafetensorsHeader* header) : header_(header) {}

  const std::string& message() const { return message_; }

  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("a boolean"); }
  bool number_integer(number_integer_t) override { return unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t& digits) override {
    return unexpected("the number " + quote(digits));
  }
  bool binary(binary_t&) override { return unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (state_ == State::kShape) {
      if (value > static_cast<number_unsigned_t>(INT64_MAX)) {
        return unexpected("the number " + std::to_string(value));
      }
      tensor_.shape.push_back(static_cast<std::int64_t>(value));
      return true;
    }
    if (state_ == State::kOffsets) {
      if (num_offsets_ == 2) return refuse(where() + " has more than two numbers");
      (num_offsets_ == 0 ? tensor_.begin : tensor_.end) = value;
      ++num_offsets_;
      return true;
    }
    return unexpected("the number " + std::to_string(value));
  }

  bool string(string_t& value) override {
    if (state_ == State::kMetadata) {
      header_->metadata[key_] = value;
      return true;
    }
    if (state_ == State::kTensor && field_ == "dtype") {
      tensor_.dtype = value;
      return true;
    }
    return unexpected("the string " + quote(value));
  }

  bool start_object(std::size_t) override {
    switch (state_) {
      case State::kStart:
        state_ = State::kTop;
        return true;
      case State::kTop:
        if (key_ == "__metadata__") {
          state_ = State::kMetadata;
        } else {
          state_ = State::kTensor;
          tensor_ = {};
          tensor_.name = key_;
          fields_.clear();
          num_offsets_ = 0;
        }
        return true;
      default:
        return unexpected("an object");
    }
  }

  bool key(string_t& value) override {
    if (state_ == State::kTensor) {
      field_ = value;
      if (value != "dtype" && value != "shape" && value != "data_offsets") {
        return refuse("tensor " + quote(tensor_.name) + " has a field " + quote(value) +
                      "; expected dtype, shape, data_offsets");
      }
      if (!fields_.insert(value).second) {
        return refuse("tensor " + quote(tensor_.name) + " has " + value + " twice");
      }
      return true;
    }
    key_ = value;
    const bool in_metadata = state_ == State::kMetadata;
    if (in_metadata ? header_->metadata.count(value) > 0 : !names_.insert(value).second) {
      return refuse(std::string(in_metadata ? "metadata field " : "the header's key ") +
                    quote(value) + " occurs twice");
    }
    return true;
  }

  bool end_object() override {
    if (state_ == State::kTensor) {
      for (const char* field : {"dtype", "shape", "data_offsets"}) {
        if (fields_.count(field) == 0) {
          return refuse("tensor " + quote(tensor_.name) + " has no field " + field);
        }
      }
      if (num_offsets_ != 2) {
        return refuse("data_offsets of tensor " + quote(tensor_.name) + " has " +
                      std::to_string(num_offsets_) + " numbers; expected two");
      }
      header_->tensors.push_back(std::move(tensor_));
      state_ = State::kTop;
    } else {
      state_ = state_ == State::kMetadata ? State::kTop : State::kEnd;
    }
    return true;
  }

  bool start_array(std::size_t) override {
    if (state_ == State::kTensor && field_ == "shape") {
      state_ = State::kShape;
    } else if (state_ == State::kTensor && field_ == "data_offsets") {
      state_ = State::kOffsets;
    } else {
      return unexpected("a list");
    }
    return true;
  }

  bool end_array() override {
    state_ = State::kTensor;
    return true;
  }

  bool parse_error(std::size_t position, const std::string& token,
                   const nlohmann::detail::exception&) override {
    return refuse("the header is not valid JSON at byte " + std::to_string(position) + ", after " +
                  quote(token));
  }

 private:
  enum class State { kStart, kTop, kMetadata, kTensor, kShape, kOffsets, kEnd };

  bool refuse(const std::string& message) {
    message_ = message;
    return false;
  }

  std::string where() const {
    switch (state_) {
      case State::kStart:
      case State::kEnd:
        return "the header";
      case State::kTop:
        return "the header's key " + quote(key_);
      case State::kMetadata:
        return "metadata field " + quote(key_);
      default:
        return field_ + " of tensor " + quote(tensor_.name);
    }
  }

  const char* expected() const {
    switch (state_) {
      case State::kStart:
      case State::kEnd:
      case State::kTop:
        return "an object";
      case State::kMetadata:
        return "a string";
      case State::kTensor:
        return field_ == "dtype" ? "a string" : "a list";
      default:
        return "an integer from 0";
    }
  }

  bool unexpected(const std::string& found) {
    return refuse(where() + " is or holds " + found + "; expected " + expected());
  }

  SafetensorsHeader* header_;
  State state_ = State::kStart;
  std::string key_;    // of the top level or of the metadata
  std::string field_;  // of a tensor
  std::set<std::string> names_;
  std::set<std::string> fields_;
  TensorEntry tensor_;
  int num_offsets_ = 0;
  std::string message_;
};

}  // namespace

Status parse_safetensors_header(std::string_view json, SafetensorsHeader* header) {
  *header = {};
  HeaderHandler handler(header);
  if (!nlohmann::json::sax_parse(json.begin(), json.end(), &handler)) {
    return format_error(handler.message());
  }
  return {};
}

Status safetensors_header_bytes(const StringMap& metadata,
                                const std::vector<TensorToWrite>& tensors, std::string* bytes) {
  nlohmann::ordered_json header;
  header["__metadata__"] = metadata;
  std::uint64_t offset = 0;
  for (const TensorToWrite& tensor : tensors) {
    const std::uint64_t end = offset + tensor.bytes.size();
    header[tensor.name] = {
        {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string json;
  try {
    json = header.dump();
  } catch (const nlohmann::json::type_error&) {
    for (const auto& [key, value] : metadata) {
      try {
        (void)nlohmann::json(value).dump();
      } catch (const nlohmann::json::type_error&) {
        return invalid_argument(key, " is not valid UTF-8; a threshold file holds UTF-8 text");
      }
    }
    return invalid_argument("a metadata key is not valid UTF-8");
  }
  // Padded so that the data is aligned for whoever maps the file.
  json.resize((json.size() + 7) / 8 * 8, ' ');
  if (json.size() > kMaxSafetensorsHeader) {
    return invalid_argument("the header would have ", json.size(), " bytes; the format allows ",
                            kMaxSafetensorsHeader);
  }
  bytes->clear();
  for (int n = 0; n < 8; ++n) bytes->push_back(static_cast<char>(json.size() >> (8 * n) & 0xff));
  *bytes += json;
  return {};
}

}  // namespace bsfa

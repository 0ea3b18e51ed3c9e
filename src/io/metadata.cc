#include "io/metadata.hpp"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "core/threshold_metadata.hpp"
#include "io/text.hpp"

namespace bsfa {
namespace {

constexpr const char* kVersion = "1";

// A flat JSON list of integers or of texts, event by event: anything else ends the parse.
template <typename Value>
class ListHandler final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit ListHandler(std::vector<Value>* values) : values_(values) {}
  bool null() override { return false; }
  bool boolean(bool) override { return false; }
  bool number_integer(number_integer_t value) override { return take(value); }
  bool number_unsigned(number_unsigned_t value) override {
    if (value > static_cast<number_unsigned_t>(INT64_MAX)) return false;
    return take(static_cast<number_integer_t>(value));
  }
  bool number_float(number_float_t, const string_t&) override { return false; }
  bool string(string_t& value) override { return take(value); }
  bool binary(binary_t&) override { return false; }
  bool start_object(std::size_t) override { return false; }
  bool key(string_t&) override { return false; }
  bool end_object() override { return false; }
  bool start_array(std::size_t) override { return !std::exchange(open_, true); }
  bool end_array() override { return true; }
  bool parse_error(std::size_t, const std::string&, const nlohmann::detail::exception&) override {
    return false;
  }

 private:
  template <typename Found>
  bool take(const Found& found) {
    if constexpr (std::is_same_v<Found, Value>) {
      values_->push_back(found);
      return open_;
    }
    return false;
  }

  std::vector<Value>* values_;
  bool open_ = false;
};

// One field after the other, until something is wrong.
class Fields {
 public:
  Fields(const std::string& file, const StringMap& strings) : file_(file), strings_(strings) {}

  const Status& status() const { return status_; }

  const std::string* find(const char* name, const char* expected) {
    if (!status_.ok()) return nullptr;
    const auto found = strings_.find(name);
    if (found == strings_.end()) {
      status_ =
          format_error(file_, ": metadata field '", name, "' is missing; expected ", expected);
      return nullptr;
    }
    return &found->second;
  }

  void refuse(const char* name, const std::string& found, const std::string& expected) {
    status_ = format_error(file_, ": metadata field '", name, "' is ", quote(found), "; expected ",
                           expected);
  }

  void read_exactly(const char* name, const char* value) {
    const std::string expected = quote(value);
    const std::string* found = find(name, expected.c_str());
    if (found != nullptr && *found != value) refuse(name, *found, expected);
  }

  void read_text(const char* name, std::string* value) {
    if (const std::string* found = find(name, "text")) *value = *found;
  }

  template <typename Number>
  void read_number(const char* name, const char* expected, Number* value) {
    const std::string* found = find(name, expected);
    if (found == nullptr) return;
    const char* end = found->data() + found->size();
    const auto [stop, error] = std::from_chars(found->data(), end, *value);
    if (error != std::errc() || stop != end) refuse(name, *found, expected);
  }

  void read_list(const char* name, std::vector<std::int64_t>* values) {
    const char* expected = "a JSON list of ascending integers, such as [32, 64]";
    const std::string* found = find(name, expected);
    if (found == nullptr) return;
    ListHandler<std::int64_t> handler(values);
    if (!nlohmann::json::sax_parse(*found, &handler)) refuse(name, *found, expected);
  }

 private:
  const std::string& file_;
  const StringMap& strings_;
  Status status_;
};

// The shortest digits that read back as the same number.
std::string number_text(float value) {
  char digits[64];
  const auto [end, error] = std::to_chars(digits, digits + sizeof(digits), value);
  return std::string(digits, end);
}

}  // namespace

StringMap metadata_to_strings(const char* format, const ThresholdMetadata& metadata) {
  StringMap strings{{"format", format},
                    {"version", kVersion},
                    {"budgets", nlohmann::json(metadata.budgets).dump()},
                    {"q_block", std::to_string(metadata.block.q)},
                    {"kv_block", std::to_string(metadata.block.kv)},
                    {"softmax_scale", number_text(metadata.softmax_scale)},
                    {"max_seqlen", std::to_string(metadata.max_seqlen)},
                    {"model", metadata.model},
                    {"num_samples", std::to_string(metadata.num_samples)},
                    {"producer", metadata.producer}};
  if (metadata.recommended_budget) {
    strings["recommended_budget"] = std::to_string(*metadata.recommended_budget);
  }
  if (!metadata.fingerprint.empty()) strings["fingerprint"] = metadata.fingerprint;
  return strings;
}

Status metadata_from_strings(const std::string& file, const char* format, const StringMap& strings,
                             ThresholdMetadata* metadata) {
  Fields fields(file, strings);
  fields.read_exactly("format", format);
  fields.read_exactly("version", kVersion);
  fields.read_list("budgets", &metadata->budgets);
  fields.read_number("q_block", "64 or 128", &metadata->block.q);
  fields.read_number("kv_block", "64 or 128", &metadata->block.kv);
  fields.read_number("softmax_scale", "a finite number above 0", &metadata->softmax_scale);
  fields.read_number("max_seqlen", "an integer from 1", &metadata->max_seqlen);
  fields.read_text("model", &metadata->model);
  fields.read_number("num_samples", "an integer from 0", &metadata->num_samples);
  fields.read_text("producer", &metadata->producer);
  if (strings.count("recommended_budget") > 0) {
    std::int64_t budget = 0;
    fields.read_number("recommended_budget", "one of the budgets", &budget);
    metadata->recommended_budget = budget;
  }
  if (strings.count("fingerprint") > 0) fields.read_text("fingerprint", &metadata->fingerprint);
  BSFA_RETURN_IF_ERROR(fields.status());
  if (const Status status = check_threshold_metadata(*metadata); !status.ok()) {
    return format_error(file, ": metadata field ", status.message);
  }
  return {};
}

void sample_ids_to_strings(const std::vector<std::string>& ids, StringMap* strings) {
  (*strings)["samples"] = nlohmann::json(ids).dump();
}

Status sample_ids_from_strings(const std::string& file, const StringMap& strings,
                               std::vector<std::string>* ids) {
  const auto found = strings.find("samples");
  if (found == strings.end()) return {};
  ListHandler<std::string> handler(ids);
  const auto is_id = [](const std::string& id) {
    return id.size() == 16 && id.find_first_not_of("0123456789abcdef") == std::string::npos;
  };
  if (!nlohmann::json::sax_parse(found->second, &handler) ||
      !std::all_of(ids->begin(), ids->end(), is_id)) {
    return format_error(file, ": metadata field 'samples' is ", quote(found->second),
                        "; expected a JSON list of texts of 16 hexadecimal digits");
  }
  return {};
}

}  // namespace bsfa

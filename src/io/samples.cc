#include "bsfa/samples.hpp"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "io/byte_source.hpp"
#include "io/text.hpp"

namespace bsfa {
namespace {

namespace fs = std::filesystem;

// One sample, or a flat list of them, event by event: nothing that is nested, and no field but
// "input_text", is kept, however deep and large it is.
class SampleHandler final : public nlohmann::json_sax<nlohmann::json> {
 public:
  // `list`: the text is a list of samples, not one.
  SampleHandler(bool list, std::vector<std::string>* texts) : list_(list), texts_(texts) {}

  const std::string& message() const { return message_; }
  // Of a list, the sample that the message is about; of what is wrong with the JSON itself, none.
  std::optional<std::size_t> index() const { return index_; }

  bool null() override { return scalar("null"); }
  bool boolean(bool) override { return scalar("a boolean"); }
  bool number_integer(number_integer_t) override { return scalar("a number"); }
  bool number_unsigned(number_unsigned_t) override { return scalar("a number"); }
  bool number_float(number_float_t, const string_t&) override { return scalar("a number"); }
  bool binary(binary_t&) override { return scalar("binary data"); }

  bool string(string_t& value) override {
    if (at_sample()) {
      text_.reset();
      return take(value);
    }
    if (!at_input_text()) return scalar("a string");
    if (text_) return refuse("has \"input_text\" twice");
    text_ = value;
    return true;
  }

  bool start_object(std::size_t) override {
    if (list_ && depth_ == 0) return refuse_top("an object");
    if (at_input_text()) return refuse("has an object as \"input_text\"; expected a string");
    if (at_sample()) text_.reset();
    ++depth_;
    return true;
  }

  bool key(string_t& value) override {
    if (depth_ == sample_depth() + 1) is_input_text_ = value == "input_text";
    return true;
  }

  bool end_object() override {
    --depth_;
    if (!at_sample()) return true;
    if (!text_) return refuse("has no string \"input_text\"");
    return take(*text_);
  }

  bool start_array(std::size_t) override {
    if (at_sample()) return refuse("is a list; expected a string, or an object");
    if (at_input_text()) return refuse("has a list as \"input_text\"; expected a string");
    ++depth_;
    return true;
  }

  bool end_array() override {
    --depth_;
    return true;
  }

  bool parse_error(std::size_t position, const std::string& token,
                   const nlohmann::detail::exception&) override {
    message_ = text("not JSON: at byte ", position, ", after ", quote(token));
    index_.reset();
    return false;
  }

 private:
  int sample_depth() const { return list_ ? 1 : 0; }
  bool at_sample() const { return depth_ == sample_depth(); }
  bool at_input_text() const { return depth_ == sample_depth() + 1 && is_input_text_; }

  bool take(const std::string& value) {
    if (value.find('\0') != std::string::npos) {
      return refuse("holds a NUL" + std::string(text_ ? " in \"input_text\"" : "") +
                    "; expected text");
    }
    texts_->push_back(value);
    return true;
  }

  bool scalar(const std::string& found) {
    if (list_ && depth_ == 0) return refuse_top(found);
    if (at_sample()) return refuse("is " + found + "; expected a string, or an object");
    if (at_input_text()) return refuse("has no string \"input_text\" but " + found);
    return true;
  }

  bool refuse_top(const std::string& found) {
    message_ = "holds " + found + "; expected a list of samples";
    return false;
  }

  bool refuse(const std::string& message) {
    message_ = message;
    if (list_) index_ = texts_->size();
    return false;
  }

  bool list_;
  std::vector<std::string>* texts_;
  int depth_ = 0;
  bool is_input_text_ = false;       // the key under way, in a sample's object
  std::optional<std::string> text_;  // of the object under way
  std::string message_;
  std::optional<std::size_t> index_;
};

std::string lower_suffix(const std::string& path) {
  std::string suffix = fs::path(path).extension().string();
  for (char& c : suffix) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return suffix;
}

enum class Kind { kText, kList, kLines };

Status kind_of(const std::string& path, Kind* kind) {
  const std::string suffix = lower_suffix(path);
  if (suffix == ".json") {
    *kind = Kind::kList;
  } else if (suffix == ".jsonl" || suffix == ".ndjson") {
    *kind = Kind::kLines;
  } else if (suffix.empty() || suffix == ".txt" || suffix == ".text" || suffix == ".md" ||
             suffix == ".rst") {
    *kind = Kind::kText;
  } else {
    return format_error(path_text(path), ": the suffix ", quote(suffix),
                        " is none that samples are read from; accepted: plain text (.txt, .text, "
                        ".md, .rst or none), .json, .jsonl, .ndjson");
  }
  return {};
}

Status read_all(const std::string& path, std::string* content) {
  FileSource source(path);
  BSFA_RETURN_IF_ERROR(source.open());
  content->resize(source.size());
  return source.read(0, content->data(), content->size());
}

Status check_text(const std::string& path, std::string_view content) {
  if (const std::size_t at = valid_utf8_bytes(content); at < content.size()) {
    return format_error(path_text(path), ": is not UTF-8 text (byte ", at, ")");
  }
  if (const std::size_t at = content.find('\0'); at != std::string_view::npos) {
    return format_error(path_text(path), ": holds a NUL at byte ", at, "; expected text");
  }
  return {};
}

// The samples of one piece of JSON, which messages call `name`.
Status read_json(const std::string& name, std::string_view json, bool list,
                 std::vector<TextSample>* samples) {
  std::vector<std::string> texts;
  SampleHandler handler(list, &texts);
  if (!nlohmann::json::sax_parse(json.begin(), json.end(), &handler)) {
    const std::string index = handler.index() ? text("[", *handler.index(), "]") : "";
    return format_error(path_text(name), index, ": ", handler.message());
  }
  for (std::size_t n = 0; n < texts.size(); ++n) {
    samples->push_back({list ? text(name, "[", n, "]") : name, std::move(texts[n])});
  }
  return {};
}

Status read_lines(const std::string& path, std::string_view content,
                  std::vector<TextSample>* samples) {
  for (std::size_t number = 1; !content.empty(); ++number) {
    const std::size_t end = std::min(content.find('\n'), content.size());
    const std::string_view line = content.substr(0, end);
    if (line.find_first_not_of(" \t\r") != std::string_view::npos) {
      BSFA_RETURN_IF_ERROR(read_json(text(path, ":", number), line, false, samples));
    }
    content.remove_prefix(std::min(end + 1, content.size()));
  }
  return {};
}

Status read_samples_of(const std::string& path, std::vector<TextSample>* samples) {
  Kind kind = Kind::kText;
  BSFA_RETURN_IF_ERROR(kind_of(path, &kind));
  std::string content;
  BSFA_RETURN_IF_ERROR(read_all(path, &content));
  BSFA_RETURN_IF_ERROR(check_text(path, content));
  std::string_view view = content;
  if (view.starts_with("\xef\xbb\xbf")) view.remove_prefix(3);  // a byte order mark
  if (kind == Kind::kText) {
    samples->push_back({path, std::string(view)});
    return {};
  }
  return kind == Kind::kList ? read_json(path, view, true, samples)
                             : read_lines(path, view, samples);
}

Status files_of(const std::string& path, std::vector<std::string>* files) {
  std::error_code error;
  if (!fs::is_directory(path, error)) {
    files->push_back(path);
    return {};
  }
  std::vector<std::string> inside;
  fs::directory_iterator entry(path, error);
  for (; !error && entry != fs::directory_iterator(); entry.increment(error)) {
    const bool hidden = entry->path().filename().string().starts_with(".");
    std::error_code unknown;
    if (!hidden && entry->is_regular_file(unknown)) inside.push_back(entry->path().string());
  }
  if (error) return io_error(path_text(path), ": cannot be read: ", error.message());
  std::sort(inside.begin(), inside.end());
  files->insert(files->end(), inside.begin(), inside.end());
  return {};
}

}  // namespace

std::vector<TextSample> read_samples(const std::vector<std::string>& paths) {
  std::vector<std::string> files;
  std::vector<TextSample> samples;
  for (const std::string& path : paths) {
    if (const Status status = files_of(path, &files); !status.ok()) throw Error(status);
  }
  for (const std::string& file : files) {
    if (const Status status = read_samples_of(file, &samples); !status.ok()) throw Error(status);
  }
  return samples;
}

}  // namespace bsfa

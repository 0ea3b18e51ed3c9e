#include "command.hpp"

#include <unistd.h>

#include <algorithm>
#include <bsfa/error.hpp>
#include <bsfa/text.hpp>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <sstream>
#include <utility>

#include "source_tree.hpp"

namespace bsfa::cli {

void add_json_flag(CLI::App& verb, bool& json) {
  verb.add_flag("--json", json, "Print one JSON object instead of text");
}

void print_json(const nlohmann::json& value) {
  // Model output may hold half a character; it is replaced, not refused. Nothing but ASCII is
  // written: JSON leaves some characters alone that a terminal acts upon.
  std::cout << value.dump(2, ' ', true, nlohmann::json::error_handler_t::replace) << "\n";
}

void add_commit(nlohmann::json& report) {
  const SourceTree tree = source_tree();
  report["commit"] = tree.commit;
  if (tree.changed) report["dirty"] = true;
}

void check_output() {
  errno = 0;
  std::cout.flush();
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0 && std::cout) return;
  throw Error(ErrorCode::kIo, std::string("standard output cannot be written: ") +
                                  (errno != 0 ? std::strerror(errno) : "a write failed"));
}

std::string read_text_file(const std::string& argument, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream stream;
  // A directory opens, but does not read.
  if (!file || (file.peek() != std::ifstream::traits_type::eof() && !(stream << file.rdbuf())) ||
      file.bad()) {
    throw Error(ErrorCode::kIo, argument + ": cannot read " + quote(path, kLongestPath) + ": " +
                                    std::strerror(errno));
  }
  std::string text = stream.str();
  if (const std::size_t at = text.find('\0'); at != std::string::npos) {
    throw Error(ErrorCode::kFormat, argument + ": " + quote(path, kLongestPath) +
                                        " holds a NUL at byte " + std::to_string(at) +
                                        "; expected text");
  }
  return text;
}

void check_output_path(const std::string& argument, const std::string& path) {
  namespace fs = std::filesystem;
  const auto refuse = [&](const std::string& why) {
    throw Error(ErrorCode::kIo, argument + ": " + quote(path, kLongestPath) + " " + why);
  };
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (fs::is_directory(status)) refuse("is a directory; expected the name of a file");
  if (fs::exists(status) && !fs::is_regular_file(status)) {
    refuse("is not a regular file; expected the name of a file");
  }
  if (error && status.type() != fs::file_type::not_found) refuse("cannot be: " + error.message());
  if (fs::path(path).filename().empty()) refuse("is no name of a file");
  // Where a link leads, the file is written beside its target.
  const fs::path absolute = fs::absolute(path, error);
  fs::path target = fs::weakly_canonical(absolute, error);
  if (error) target = absolute;
  const fs::path folder = target.parent_path();
  if (!fs::is_directory(folder, error)) {
    refuse("cannot be written: there is no folder " + quote(folder.string(), kLongestPath));
  }
  if (access(folder.c_str(), W_OK | X_OK) != 0) {
    refuse("cannot be written: folder " + quote(folder.string(), kLongestPath) + ": " +
           std::strerror(errno));
  }
}

CLI::Validator whole_number(std::int64_t least, std::int64_t most) {
  const std::string range = std::to_string(least) + " to " + std::to_string(most);
  return {[=](std::string& text) {
            std::int64_t value = 0;
            const char* const end = text.data() + text.size();
            const auto [stop, error] = std::from_chars(text.data(), end, value);
            if (error != std::errc() || stop != end || value < least || value > most) {
              return quote(text) + "; accepted: a whole number, " + range;
            }
            text = std::to_string(value);
            return std::string();
          },
          range};
}

CLI::Validator number_between(double least, double most) {
  std::ostringstream range;
  range << least << " to " << most;
  return {[=, range = range.str()](std::string& text) {
            double value = 0;
            const char* const end = text.data() + text.size();
            const auto [stop, error] = std::from_chars(text.data(), end, value);
            if (error != std::errc() || stop != end || !(value >= least && value <= most)) {
              return quote(text) + "; accepted: a number, " + range;
            }
            return std::string();
          },
          range.str()};
}

Progress::Progress(std::string title, std::int64_t total)
    : title_(std::move(title)), total_(total), terminal_(isatty(STDERR_FILENO) != 0) {
  draw();
}

Progress::~Progress() { finish(); }

void Progress::finish() {
  if (terminal_) std::fputs("\r\033[K", stderr);
  terminal_ = false;
}

void Progress::advance(std::int64_t steps) {
  done_ = std::min(total_, done_ + steps);
  draw();
}

void Progress::draw() {
  if (!terminal_ || total_ <= 0) return;
  constexpr int kWidth = 30;
  const int filled = static_cast<int>(kWidth * done_ / total_);
  const std::string bar = std::string(filled, '#') + std::string(kWidth - filled, '.');
  std::fprintf(stderr, "\r\033[K%s [%s] %lld/%lld", title_.c_str(), bar.c_str(),
               static_cast<long long>(done_), static_cast<long long>(total_));
  std::fflush(stderr);
}

}  // namespace bsfa::cli

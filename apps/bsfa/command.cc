#include "command.hpp"

#include <unistd.h>

#include <algorithm>
#include <bsfa/error.hpp>
#include <bsfa/text.hpp>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
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

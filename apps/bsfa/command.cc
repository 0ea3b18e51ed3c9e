#include "command.hpp"

#include <unistd.h>

#include <algorithm>
#include <bsfa/error.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>
#include <utility>

namespace bsfa::cli {

void add_json_flag(CLI::App& verb, bool& json) {
  verb.add_flag("--json", json, "Print one JSON object instead of text");
}

void print_json(const nlohmann::json& value) {
  // Model output may hold half a character; it is replaced, not refused.
  std::cout << value.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
}

std::string read_text_file(const std::string& argument, const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  // A directory opens, but does not read.
  if (!file || (file.peek() != std::ifstream::traits_type::eof() && !(text << file.rdbuf())) ||
      file.bad()) {
    throw Error(ErrorCode::kIo, argument + ": cannot read '" + path + "': " + std::strerror(errno));
  }
  return text.str();
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

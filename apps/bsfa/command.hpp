#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

// The frame of the command line. A verb is one file cmd_<verb>.cc with one function
// `void add_<verb>(CLI::App& app)` (CMake finds it): it adds its subcommand and a callback that
// does the work. A callback prints its result to stdout and throws bsfa::Error for what is refused
// or fails; main.cc turns that into a message and an exit code.

namespace bsfa::cli {

// What the process returns; the codes are documented in `bsfa --help`.
enum ExitCode : int {
  kExitOk = 0,
  kExitFailed = 1,    // a file that cannot be read or written, or a failure at run time
  kExitBadInput = 2,  // arguments, or the content of an input, were refused
};

// The flag `--json` of every verb: one JSON object on stdout and nothing else there.
void add_json_flag(CLI::App& verb, bool& json);

void print_json(const nlohmann::json& value);

// A measurement that is printed as JSON says what it was measured with: `report` gets "commit" (empty:
// not built from a clone) and, if the source had changes, "dirty".
void add_commit(nlohmann::json& report);

// What is on its way to stdout, written. Throws Error (kIo) if it cannot be, now or before: a
// result that nobody got is a failure.
void check_output();

// A text file as a string; throws Error naming `argument` and the path (kIo: it cannot be read;
// kFormat: it holds a NUL, at which llama.cpp's interfaces would end it).
std::string read_text_file(const std::string& argument, const std::string& path);

// What a numeric option accepts, the whole of its text: no number that wraps around or stops at the
// largest there is, no "nan". To be given to `transform`, since CLI11 would read 010 as eight.
CLI::Validator whole_number(std::int64_t least, std::int64_t most);
CLI::Validator number_between(double least, double most);

// Progress of long work on stderr: a bar on a terminal, nothing elsewhere.
class Progress {
 public:
  Progress(std::string title, std::int64_t total);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;
  void advance(std::int64_t steps = 1);
  void finish();  // removes the bar, before something else is printed

 private:
  void draw();

  std::string title_;
  std::int64_t total_;
  std::int64_t done_ = 0;
  bool terminal_;
};

}  // namespace bsfa::cli

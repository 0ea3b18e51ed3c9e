#pragma once

#include <sys/wait.h>

#include <cstdlib>
#include <string>

#include "file_bytes.hpp"

namespace bsfa::test {

struct ProgramRun {
  int exit_code = -1;
  std::string out;
  std::string err;
};

// Runs the command line with `arguments`, which go through the shell.
inline ProgramRun run_program(const std::string& arguments) {
  const TemporaryDirectory directory;
  const std::string out = directory / "out", err = directory / "err";
  const std::string command = "'" BSFA_PROGRAM "' " + arguments + " > " + out + " 2> " + err;
  const int status = std::system(command.c_str());
  ProgramRun run;
  if (WIFEXITED(status)) run.exit_code = WEXITSTATUS(status);
  run.out = read_bytes(out);
  run.err = read_bytes(err);
  return run;
}

}  // namespace bsfa::test

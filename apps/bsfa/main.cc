#include <fcntl.h>
#include <unistd.h>

#include <bsfa/backends.hpp>
#include <bsfa/error.hpp>
#include <bsfa/text.hpp>
#include <exception>
#include <iostream>
#include <new>
#include <string>

#include "command.hpp"
#include "verbs.hpp"

namespace {

constexpr const char* kDescription =
    "Block Sparse Flash Attention: a language model reads a long prompt faster by leaving out the\n"
    "blocks of the attention that do not matter.";

constexpr const char* kFooter =
    "Exit codes: 0 done; 1 a file could not be read or written, or a failure while running;\n"
    "            2 the arguments, or the content of an input, were refused.";

// A closed descriptor would be given to the first file that is opened, and what was meant for the
// terminal would be written into it.
bool standard_streams_are_open() {
  for (const int descriptor : {STDIN_FILENO, STDERR_FILENO}) {
    if (fcntl(descriptor, F_GETFD) == -1) (void)open("/dev/null", O_RDWR);
  }
  return fcntl(STDOUT_FILENO, F_GETFD) != -1;
}

int run(int argc, char** argv) {
  using namespace bsfa::cli;
  CLI::App app{kDescription, "bsfa"};
  app.footer(kFooter);
  app.set_version_flag("--version", bsfa::version());
  app.require_subcommand(1);
  app.get_formatter()->column_width(34);
  add_verbs(app);
  if (argc > 1 && argv[1][0] != '-') {  // CLI11 would only say that a verb is missing
    std::string verbs;
    bool known = false;
    for (const CLI::App* verb : app.get_subcommands({})) {
      known = known || verb->get_name() == argv[1];
      verbs += (verbs.empty() ? "" : ", ") + verb->get_name();
    }
    if (!known) {
      std::cerr << "bsfa: error: no verb " << bsfa::quote(argv[1]) << "; accepted: " << verbs
                << "\n";
      return kExitBadInput;
    }
  }
  try {
    app.parse(argc, argv);                 // runs the callback of the verb
  } catch (const CLI::Success& request) {  // --help, --version
    (void)app.exit(request);
  } catch (const CLI::ParseError& error) {
    std::cerr << "bsfa: error: " << bsfa::printable(error.what())
              << "\nRun with --help for more information.\n";
    return kExitBadInput;
  }
  check_output();
  return kExitOk;
}

}  // namespace

int main(int argc, char** argv) {
  using namespace bsfa::cli;
  try {
    if (!standard_streams_are_open()) {
      throw bsfa::Error(bsfa::ErrorCode::kIo, "standard output is closed");
    }
    return run(argc, argv);
  } catch (const bsfa::Error& error) {
    std::cerr << "bsfa: error: " << error.what() << "\n";
    const bool failed =
        error.code() == bsfa::ErrorCode::kIo || error.code() == bsfa::ErrorCode::kRuntime;
    return failed ? kExitFailed : kExitBadInput;
  } catch (const std::bad_alloc&) {
    std::cerr << "bsfa: error: out of memory\n";
    return kExitFailed;
  } catch (const std::exception& error) {
    std::cerr << "bsfa: error: " << bsfa::printable(error.what()) << "\n";
    return kExitFailed;
  }
}

#include <bsfa/backends.hpp>
#include <bsfa/error.hpp>
#include <exception>
#include <iostream>
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

}  // namespace

int main(int argc, char** argv) {
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
      std::cerr << "bsfa: error: no verb '" << argv[1] << "'; accepted: " << verbs << "\n";
      return kExitBadInput;
    }
  }
  try {
    app.parse(argc, argv);                 // runs the callback of the verb
  } catch (const CLI::Success& request) {  // --help, --version
    return app.exit(request);
  } catch (const CLI::ParseError& error) {
    app.exit(error);  // prints the message and how to get help
    return kExitBadInput;
  } catch (const bsfa::Error& error) {
    std::cerr << "bsfa: error: " << error.what() << "\n";
    const bool failed =
        error.code() == bsfa::ErrorCode::kIo || error.code() == bsfa::ErrorCode::kRuntime;
    return failed ? kExitFailed : kExitBadInput;
  } catch (const std::exception& error) {
    std::cerr << "bsfa: error: " << error.what() << "\n";
    return kExitFailed;
  }
  return std::cout.flush() ? kExitOk : kExitFailed;
}

// The verbs that run a model, in a build without llama.cpp: they say so, whatever their arguments.

#include <bsfa/error.hpp>
#include <string>

#include "model_benches.hpp"
#include "verbs.hpp"

namespace bsfa::cli {
namespace {

void add_absent(CLI::App& app, const std::string& name) {
  CLI::App* verb =
      app.add_subcommand(name, "(not in this build: it was configured without llama.cpp)");
  verb->allow_extras();
  verb->callback([name] {
    throw Error(ErrorCode::kUnsupported,
                name +
                    ": this build has no llama.cpp; run scripts/setup_llama.sh, then configure "
                    "and build again");
  });
}

}  // namespace

void add_calibrate(CLI::App& app) { add_absent(app, "calibrate"); }
void add_run(CLI::App& app) { add_absent(app, "run"); }
void add_bench_needle(CLI::App& bench) { add_absent(bench, "needle"); }
void add_bench_logits(CLI::App& bench) { add_absent(bench, "logits"); }

}  // namespace bsfa::cli

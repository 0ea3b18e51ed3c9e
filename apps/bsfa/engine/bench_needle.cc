// bsfa bench needle: do the answers stay?

#include <bsfa/error.hpp>
#include <bsfa/limits.hpp>
#include <bsfa/text.hpp>
#include <bsfa/thresholds.hpp>
#include <cstdio>
#include <memory>

#include "command.hpp"
#include "engine/contest.hpp"
#include "engine/options.hpp"
#include "model_benches.hpp"

namespace bsfa::cli {
namespace {

struct NeedleOptions {
  ModelOptions model;
  std::string prompt_file;
  ThresholdOptions thresholds;
  std::vector<std::int64_t> budgets;
  std::int64_t prompt_tokens = 3700;
  int depths = 10;
  std::int64_t answer_tokens = 24;  // a sentence around the five digits of the key
  bool json = false;
};

void needle(const NeedleOptions& options) {
  const std::string text = read_text_file("--prompt-file", options.prompt_file);
  const ThresholdTable table = ThresholdTable::load(options.thresholds.thresholds);
  const Model model(options.model.model);
  table.check_model(options.model.model, model.num_layers(), model.num_heads_q(),
                    table.metadata().softmax_scale);
  if (!options.thresholds.allow_other_model) warn_of_other_model(table, model);
  std::vector<std::int64_t> budgets = options.budgets;
  if (budgets.empty() && table.metadata().recommended_budget) {
    budgets.push_back(*table.metadata().recommended_budget);
  }
  if (budgets.empty()) {
    throw Error(ErrorCode::kInvalidArgument,
                "--budget: " + quote(options.thresholds.thresholds, kLongestPath) +
                    " recommends none; name one");
  }
  std::vector<Contestant> contestants{make_contestant("dense", "", 0, false)};
  for (const std::int64_t budget : budgets) {
    (void)table.view(budget, 0);  // refuses a budget that is not in the file
    contestants.push_back(make_contestant("bsfa", options.thresholds.thresholds, budget, false));
  }

  struct Tally {
    int right = 0;
    int right_with_dense = 0;
    double density = 0;
  };
  std::vector<Tally> tallies(contestants.size());
  nlohmann::json cases = nlohmann::json::array();
  const ContestOptions contest{1, options.answer_tokens};
  Module::instance();
  Session session(model, {session_tokens(options.prompt_tokens + 64, options.answer_tokens),
                          options.model.threads, true, false});
  for (int i = 0; i < options.depths; ++i) {
    const double depth = (i + 0.5) / options.depths;
    const Prompt prompt = build_prompt(model, {text, kNeedleQuestion, options.prompt_tokens, depth},
                                       options.answer_tokens);
    const auto results = run_contest(session, model, prompt, contestants, contest, false);
    nlohmann::json entry = {{"depth", depth}, {"key", prompt.key}};
    bool dense_right = false;
    for (std::size_t c = 0; c < results.size(); ++c) {
      const bool right = results[c].answer.find(prompt.key) != std::string::npos;
      if (c == 0) dense_right = right;
      tallies[c].right += right ? 1 : 0;
      tallies[c].right_with_dense += right && dense_right ? 1 : 0;
      tallies[c].density += results[c].density() / options.depths;
      const std::string name = c == 0 ? "dense" : std::to_string(budgets[c - 1]);
      entry[name] = {
          {"right", right}, {"answer", results[c].answer}, {"density", results[c].density()}};
    }
    cases.push_back(std::move(entry));
  }

  const int needed = (8 * options.depths + 9) / 10;
  nlohmann::json report = {{"model", model.path()},    {"prompt_tokens", options.prompt_tokens},
                           {"depths", options.depths}, {"dense_right", tallies[0].right},
                           {"cases", cases},           {"budgets", nlohmann::json::array()}};
  add_commit(report);
  for (std::size_t c = 1; c < tallies.size(); ++c) {
    const char* verdict = tallies[0].right < needed                         ? "inconclusive"
                          : tallies[c].right_with_dense == tallies[0].right ? "same as dense"
                                                                            : "worse than dense";
    report["budgets"].push_back(
        {{"budget", budgets[c - 1]},
         {"density", tallies[c].density},
         {"predicted_density",
          predicted_density(budgets[c - 1], options.prompt_tokens, table.metadata().block)},
         {"right", tallies[c].right},
         {"right_where_dense_is", tallies[c].right_with_dense},
         {"verdict", verdict}});
  }
  if (options.json) {
    print_json(report);
    return;
  }
  std::printf("Pass-key at %d depths of %lld tokens\n", options.depths,
              static_cast<long long>(options.prompt_tokens));
  std::printf("  dense        density 1.00              finds %2d\n", tallies[0].right);
  for (const auto& entry : report["budgets"]) {
    std::printf("  budget %-4lld  density %.2f (predicted %.2f) finds %2d, %2d of dense's: %s\n",
                entry["budget"].get<long long>(), entry["density"].get<double>(),
                entry["predicted_density"].get<double>(), entry["right"].get<int>(),
                entry["right_where_dense_is"].get<int>(),
                entry["verdict"].get<std::string>().c_str());
  }
}

}  // namespace

void add_bench_needle(CLI::App& bench) {
  auto needle_options = std::make_shared<NeedleOptions>();
  CLI::App* needle_verb = bench.add_subcommand(
      "needle",
      "Plant a pass-key at several depths of a text: does the block gate still find it\n"
      "where dense attention does?");
  needle_options->model.add_to(*needle_verb);
  needle_verb->add_option("--prompt-file", needle_options->prompt_file, "The text around it")
      ->required()
      ->type_name("FILE");
  needle_options->thresholds.add_to(*needle_verb);
  needle_verb
      ->add_option("--budget", needle_options->budgets,
                   "One or more of the file's budgets; default: the recommended one")
      ->delimiter(',')
      ->transform(whole_number(1, kMaxTokens));
  needle_verb->add_option("--prompt-tokens", needle_options->prompt_tokens, "Length of the prompt")
      ->transform(whole_number(1, kMaxTokens))
      ->capture_default_str();
  needle_verb->add_option("--depths", needle_options->depths, "How many depths, evenly spread")
      ->transform(whole_number(1, 1000))
      ->capture_default_str();
  add_json_flag(*needle_verb, needle_options->json);
  needle_verb->callback([needle_options] { needle(*needle_options); });
}

}  // namespace bsfa::cli

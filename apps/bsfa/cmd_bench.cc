// bsfa bench: measurements of the method inside a model. `needle` asks whether the answers stay,
// `logits` how far the numbers move.

#include <algorithm>
#include <bsfa/thresholds.hpp>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <memory>

#include "command.hpp"
#include "engine/contest.hpp"
#include "engine/options.hpp"

namespace bsfa::cli {
namespace {

// ---- needle
// --------------------------------------------------------------------------------------

struct NeedleOptions {
  ModelOptions model;
  std::string prompt_file;
  std::string thresholds;
  std::vector<std::int64_t> budgets;
  std::int64_t prompt_tokens = 3700;
  int depths = 10;
  std::int64_t answer_tokens = 24;  // a sentence around the five digits of the key
  bool json = false;
};

void needle(const NeedleOptions& options) {
  const std::string text = read_text_file("--prompt-file", options.prompt_file);
  const ThresholdTable table = ThresholdTable::load(options.thresholds);
  const Model model(options.model.model);
  table.check_model(options.model.model, model.num_layers(), model.num_heads_q(),
                    table.metadata().softmax_scale);
  std::vector<std::int64_t> budgets = options.budgets;
  if (budgets.empty() && table.metadata().recommended_budget) {
    budgets.push_back(*table.metadata().recommended_budget);
  }
  if (budgets.empty()) {
    throw Error(ErrorCode::kInvalidArgument,
                "--budget: '" + options.thresholds + "' recommends none; name one");
  }
  std::vector<Contestant> contestants{make_contestant("dense", "", 0, false)};
  for (const std::int64_t budget : budgets) {
    (void)table.view(budget, 0);  // refuses a budget that is not in the file
    contestants.push_back(make_contestant("bsfa", options.thresholds, budget, false));
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

// ---- logits
// --------------------------------------------------------------------------------------

struct LogitsOptions {
  ModelOptions model;
  std::string prompt_file;
  std::int64_t tokens = 1024;
  bool json = false;
};

// The differences of one way of computing from stock llama.cpp, over all tokens and the vocabulary.
struct Difference {
  double largest = 0;
  double square_sum = 0;
  std::int64_t count = 0;
  std::vector<double> gaps_where_tokens_differ;  // stock's two best logits

  double rms() const { return count > 0 ? std::sqrt(square_sum / static_cast<double>(count)) : 0; }
};

void compare(const float* stock, const float* other, std::int64_t size, Difference& difference) {
  double largest = 0, squares = 0;
  for (std::int64_t i = 0; i < size; ++i) {
    const double d = std::abs(static_cast<double>(stock[i]) - other[i]);
    largest = d > largest || std::isnan(d) ? d : largest;
    squares += d * d;
  }
  if (largest > difference.largest || std::isnan(largest)) difference.largest = largest;
  difference.square_sum += squares;
  difference.count += size;
  const llama_token best = argmax(stock, size);
  if (argmax(other, size) == best) return;
  float second = -INFINITY;
  for (std::int64_t i = 0; i < size; ++i) {
    if (i != best) second = std::max(second, stock[i]);
  }
  difference.gaps_where_tokens_differ.push_back(static_cast<double>(stock[best]) - second);
}

void logits(const LogitsOptions& options) {
  const std::string text = read_text_file("--prompt-file", options.prompt_file);
  const Model model(options.model.model);
  std::vector<llama_token> tokens = model.tokenize(text, true);
  const std::int64_t most = std::min(std::ssize(tokens), model.context_length());
  if (options.tokens > most) {
    throw Error(ErrorCode::kInvalidArgument, "--tokens is " + std::to_string(options.tokens) +
                                                 "; the text and the context allow " +
                                                 std::to_string(most));
  }
  tokens.resize(static_cast<std::size_t>(options.tokens));

  Module::instance();
  const std::int64_t room = session_tokens(options.tokens, 0);
  struct Way {
    const char* name;
    bsfa_ggml_config config;
    bool flash_attention;
    std::unique_ptr<Session> session;
    Difference difference;
  };
  std::vector<Way> ways(4);
  ways[0] = {"stock", make_contestant("stock", "", 0, false).config, true, nullptr, {}};
  ways[1] = {"stock without flash attention", ways[0].config, false, nullptr, {}};
  ways[2] = {"dense, exact", make_contestant("dense", "", 0, true).config, true, nullptr, {}};
  ways[3] = {"dense, bf16", make_contestant("dense", "", 0, false).config, true, nullptr, {}};
  for (Way& way : ways) {
    Module::instance().configure(way.config);
    way.session = std::make_unique<Session>(
        model, Session::Options{room, options.model.threads, way.flash_attention, true});
  }
  {
    Progress progress("logits", options.tokens);
    for (std::int64_t begin = 0; begin < options.tokens; begin += Session::kChunk) {
      const std::int64_t end = std::min(options.tokens, begin + Session::kChunk);
      const std::vector<llama_token> chunk(tokens.begin() + begin, tokens.begin() + end);
      for (Way& way : ways) {
        Module::instance().configure(way.config);
        way.session->read(chunk);
      }
      for (std::int64_t i = 0; i < end - begin; ++i) {
        for (std::size_t w = 1; w < ways.size(); ++w) {
          compare(ways[0].session->logits(i), ways[w].session->logits(i), model.vocabulary_size(),
                  ways[w].difference);
        }
      }
      progress.advance(end - begin);
    }
  }

  nlohmann::json report = {{"model", model.path()},
                           {"tokens", options.tokens},
                           {"differences_from_stock", nlohmann::json::array()}};
  for (std::size_t w = 1; w < ways.size(); ++w) {
    const Difference& difference = ways[w].difference;
    const auto& gaps = difference.gaps_where_tokens_differ;
    const double widest = gaps.empty() ? 0 : *std::max_element(gaps.begin(), gaps.end());
    report["differences_from_stock"].push_back({{"name", ways[w].name},
                                                {"largest", difference.largest},
                                                {"rms", difference.rms()},
                                                {"tokens_that_differ", gaps.size()},
                                                {"widest_gap_where_tokens_differ", widest}});
  }
  report["exact_within_stock"] = ways[2].difference.largest <= ways[1].difference.largest;
  const auto& bf16 = report["differences_from_stock"][2];
  report["bf16_tokens_agree_beyond_error"] =
      bf16["widest_gap_where_tokens_differ"].get<double>() <= bf16["largest"].get<double>();
  if (options.json) {
    print_json(report);
    return;
  }
  std::printf("Logits of %lld tokens, differences from stock llama.cpp with flash attention\n",
              static_cast<long long>(options.tokens));
  std::printf("  %-30s %10s %10s  %s\n", "", "largest", "rms", "next tokens that differ");
  for (const auto& entry : report["differences_from_stock"]) {
    std::printf("  %-30s %10.5f %10.6f  %lld (widest gap of stock's two best there: %.4f)\n",
                entry["name"].get<std::string>().c_str(), entry["largest"].get<double>(),
                entry["rms"].get<double>(), entry["tokens_that_differ"].get<long long>(),
                entry["widest_gap_where_tokens_differ"].get<double>());
  }
  std::printf("  exact within stock's own difference: %s\n",
              report["exact_within_stock"].get<bool>() ? "yes" : "no");
  std::printf("  bf16: tokens agree wherever the gap exceeds the error: %s\n",
              report["bf16_tokens_agree_beyond_error"].get<bool>() ? "yes" : "no");
}

}  // namespace

void add_bench(CLI::App& app) {
  CLI::App* verb = app.add_subcommand("bench", "Measure the method inside a model");
  verb->require_subcommand(1);

  auto needle_options = std::make_shared<NeedleOptions>();
  CLI::App* needle_verb = verb->add_subcommand(
      "needle",
      "Plant a pass-key at several depths of a text: does the block gate still find it\n"
      "where dense attention does?");
  needle_options->model.add_to(*needle_verb);
  needle_verb->add_option("--prompt-file", needle_options->prompt_file, "The text around it")
      ->required()
      ->type_name("FILE");
  needle_verb->add_option("--thresholds", needle_options->thresholds, "The model's threshold file")
      ->required()
      ->type_name("FILE");
  needle_verb
      ->add_option("--budget", needle_options->budgets,
                   "One or more of the file's budgets; default: the recommended one")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  needle_verb->add_option("--prompt-tokens", needle_options->prompt_tokens, "Length of the prompt")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  needle_verb->add_option("--depths", needle_options->depths, "How many depths, evenly spread")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  add_json_flag(*needle_verb, needle_options->json);
  needle_verb->callback([needle_options] { needle(*needle_options); });

  auto logits_options = std::make_shared<LogitsOptions>();
  CLI::App* logits_verb = verb->add_subcommand(
      "logits",
      "How far the model's logits move from stock llama.cpp's with dense attention here,\n"
      "exact and in bf16, beside stock's own difference with flash attention on and off");
  logits_options->model.add_to(*logits_verb);
  logits_verb->add_option("--prompt-file", logits_options->prompt_file, "The text")
      ->required()
      ->type_name("FILE");
  logits_verb->add_option("--tokens", logits_options->tokens, "So many tokens of it")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_json_flag(*logits_verb, logits_options->json);
  logits_verb->callback([logits_options] { logits(*logits_options); });
}

}  // namespace bsfa::cli

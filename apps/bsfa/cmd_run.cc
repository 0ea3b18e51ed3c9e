// bsfa run: a model reads a long prompt and answers, with each way of computing attention in turn.

#include <algorithm>
#include <bsfa/limits.hpp>
#include <bsfa/text.hpp>
#include <bsfa/thresholds.hpp>
#include <cstdio>
#include <iostream>
#include <memory>

#include "command.hpp"
#include "engine/contest.hpp"
#include "engine/options.hpp"

namespace bsfa::cli {
namespace {

struct RunOptions {
  ModelOptions model;
  std::string prompt_file;
  std::string question;
  ThresholdOptions thresholds;
  std::int64_t budget = 0;
  std::vector<std::string> compare{"stock", "dense"};
  std::vector<std::int64_t> prompt_tokens;
  std::optional<double> needle;
  ContestOptions contest;
  bool exact = false;
  bool by_layer = false;
  bool json = false;
};

const ContestantResult* find(const std::vector<ContestantResult>& results, const char* name) {
  for (const ContestantResult& result : results) {
    if (result.name == name) return &result;
  }
  return nullptr;
}

std::string trimmed(const std::string& text) {
  const auto first = text.find_first_not_of(" \n\r\t");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \n\r\t") - first + 1);
}

// Whether the block gate changed the answer. With a needle, what counts is the key.
std::string verdict_of(const std::vector<ContestantResult>& results, const Prompt& prompt) {
  const ContestantResult* sparse = find(results, "bsfa");
  const ContestantResult* dense = find(results, "dense");
  if (dense == nullptr) dense = find(results, "stock");
  if (dense == nullptr) return "nothing to compare with";
  if (!prompt.key.empty()) {
    const bool dense_right = dense->answer.find(prompt.key) != std::string::npos;
    const bool sparse_right = sparse->answer.find(prompt.key) != std::string::npos;
    if (!dense_right) return "inconclusive: dense attention does not find the key either";
    return sparse_right ? "same: both find the key"
                        : "different: only dense attention finds the key";
  }
  return trimmed(dense->answer) == trimmed(sparse->answer) ? "same answer" : "different answers";
}

nlohmann::json gains_of(const std::vector<ContestantResult>& results) {
  const ContestantResult* stock = find(results, "stock");
  const ContestantResult* dense = find(results, "dense");
  const ContestantResult* sparse = find(results, "bsfa");
  nlohmann::json gains = nlohmann::json::object();
  if (stock != nullptr && dense != nullptr) {
    gains["kernel_ttft"] = median(stock->ttft) / median(dense->ttft);
  }
  if (dense != nullptr) {
    const double limit = 2 / (1 + sparse->density());
    const double attention = median(dense->attention) / median(sparse->attention);
    gains["method_ttft"] = median(dense->ttft) / median(sparse->ttft);
    gains["method_attention"] = attention;
    gains["method_attention_limit"] = limit;
    gains["method_attention_of_limit"] = attention / limit;
  }
  return gains;
}

void print_text(const nlohmann::json& length) {
  std::printf("\nPrompt of %lld tokens\n", length["prompt_tokens"].get<long long>());
  std::printf("  %-15s %9s %19s %8s  %s\n", "", "TTFT", "attention", "density", "answer");
  for (const auto& contestant : length["contestants"]) {
    std::string answer = trimmed(contestant["answer"].get<std::string>());
    std::replace(answer.begin(), answer.end(), '\n', ' ');
    answer = printable(answer);  // what a model writes is no more to be trusted than a file
    std::printf("  %-15s %7.2f s %8.2f s (%3.0f %%) %8.2f  %s\n",
                contestant["name"].get<std::string>().c_str(),
                contestant["ttft_seconds"].get<double>(),
                contestant["attention_seconds"].get<double>(),
                100 * contestant["attention_share"].get<double>(),
                contestant["density"].get<double>(), answer.c_str());
  }
  const auto& gains = length["gains"];
  if (gains.contains("kernel_ttft")) {
    std::printf("  the kernel:  dense here reads %.2f times as fast as stock llama.cpp\n",
                gains["kernel_ttft"].get<double>());
  }
  if (gains.contains("method_ttft")) {
    std::printf(
        "  the method:  bsfa reads %.2f times as fast as dense here; its attention %.2f times\n"
        "               (limit at this density 2/(1+density) = %.2f; predicted density %.2f)\n",
        gains["method_ttft"].get<double>(), gains["method_attention"].get<double>(),
        gains["method_attention_limit"].get<double>(), length["predicted_density"].get<double>());
  }
  std::printf("  verdict:     %s\n", length["verdict"].get<std::string>().c_str());
}

void print_layers(const nlohmann::json& length) {
  for (const auto& contestant : length["contestants"]) {
    if (contestant["name"] != "bsfa") continue;
    std::printf("  density by layer:");
    for (const auto& layer : contestant["layers"]) {
      const double visible = layer["visible_blocks"].get<double>();
      if (layer["layer"].get<int>() % 10 == 0) std::printf("\n   %3d:", layer["layer"].get<int>());
      std::printf(" %.2f", visible > 0 ? layer["kept_blocks"].get<double>() / visible : 1.0);
    }
    std::printf("\n");
  }
}

void run(const RunOptions& options) {
  const std::string text = read_text_file("--prompt-file", options.prompt_file);
  const ThresholdTable table = ThresholdTable::load(options.thresholds.thresholds);
  const Model model(options.model.model);
  if (table.num_layers() != model.num_layers() || table.num_heads_q() != model.num_heads_q()) {
    table.check_model(options.model.model, model.num_layers(), model.num_heads_q(),
                      table.metadata().softmax_scale);
  }
  if (!options.thresholds.allow_other_model) warn_of_other_model(table, model);
  std::int64_t budget = options.budget;
  if (budget == 0) {
    if (!table.metadata().recommended_budget) {
      throw Error(ErrorCode::kInvalidArgument,
                  "--budget: " + quote(options.thresholds.thresholds, kLongestPath) +
                      " recommends none; name one");
    }
    budget = *table.metadata().recommended_budget;
  }
  (void)table.view(budget, 0);  // refuses a budget that is not in the file

  std::vector<Contestant> contestants;
  for (const std::string& name : options.compare) {
    if (name == "bsfa") continue;  // always there
    contestants.push_back(make_contestant(name, "", budget, options.exact));
  }
  contestants.push_back(
      make_contestant("bsfa", options.thresholds.thresholds, budget, options.exact));

  std::vector<Prompt> prompts;
  std::int64_t longest = 0;
  const std::string question =
      options.question.empty() && options.needle ? kNeedleQuestion : options.question;
  std::vector<std::int64_t> lengths = options.prompt_tokens;
  if (lengths.empty()) lengths.push_back(0);
  for (const std::int64_t tokens : lengths) {
    prompts.push_back(build_prompt(model, {text, question, tokens, options.needle},
                                   options.contest.answer_tokens));
    longest = std::max(longest, std::ssize(prompts.back().tokens));
  }
  if (longest > table.metadata().max_seqlen) {
    std::cerr << "bsfa: warning: the prompt has " << longest << " tokens, the thresholds were "
              << "calibrated up to " << table.metadata().max_seqlen
              << "; the last query block's serve beyond\n";
  }

  Module::instance();
  Session session(model, {session_tokens(longest, options.contest.answer_tokens),
                          options.model.threads, true, false});
  nlohmann::json report = {{"model", model.path()},
                           {"model_description", model.description()},
                           {"thresholds", options.thresholds.thresholds},
                           {"budget", budget},
                           {"threads", options.model.threads},
                           {"compute", options.exact ? "exact" : "bf16"},
                           {"runs", options.contest.runs},
                           {"lengths", nlohmann::json::array()}};
  add_commit(report);
  if (!options.json) {
    std::cout << printable(model.description()) << ", " << options.model.threads
              << " threads, budget " << budget << ", attention in "
              << report["compute"].get<std::string>() << "\n";
    check_output();  // before the long part
  }
  for (const Prompt& prompt : prompts) {
    const auto results = run_contest(session, model, prompt, contestants, options.contest, true);
    nlohmann::json length = {
        {"prompt_tokens", prompt.tokens.size()},
        {"needle", prompt.key},
        {"predicted_density",
         predicted_density(budget, std::ssize(prompt.tokens), table.metadata().block)},
        {"contestants", nlohmann::json::array()},
        {"gains", gains_of(results)},
        {"verdict", verdict_of(results, prompt)}};
    for (const ContestantResult& result : results) length["contestants"].push_back(to_json(result));
    if (!options.json) {
      print_text(length);
      if (options.by_layer) print_layers(length);
      check_output();
    }
    report["lengths"].push_back(std::move(length));
  }
  if (options.json) print_json(report);
}

}  // namespace

void add_run(CLI::App& app) {
  auto options = std::make_shared<RunOptions>();
  CLI::App* verb = app.add_subcommand(
      "run",
      "Let a model read a long prompt and answer a question: how long to the first token, with\n"
      "stock llama.cpp, with dense attention, and with Block Sparse Flash Attention");
  options->model.add_to(*verb);
  verb->add_option("--prompt-file", options->prompt_file, "The document, a text file")
      ->required()
      ->type_name("FILE");
  verb->add_option("--question", options->question, "Asked after the document");
  options->thresholds.add_to(*verb);
  verb->add_option("--budget", options->budget,
                   "Blocks that a query block keeps beside the diagonal: one of the threshold "
                   "file's; default: the one it recommends")
      ->transform(whole_number(1, kMaxTokens));
  verb->add_option("--compare", options->compare,
                   "What runs beside bsfa: stock, dense, sliding_window")
      ->delimiter(',')
      ->capture_default_str();
  verb->add_option("--prompt-tokens", options->prompt_tokens,
                   "Cut the document so that the prompt has about so many tokens; several lengths "
                   "give several rounds")
      ->delimiter(',')
      ->transform(whole_number(1, kMaxTokens));
  verb->add_option("--needle", options->needle,
                   "Plant a pass-key at this fraction of the document and ask for it")
      ->transform(number_between(0, 1));
  verb->add_option("--runs", options->contest.runs, "Timed runs, after one warm-up")
      ->transform(whole_number(1, 1000))
      ->capture_default_str();
  verb->add_option("--answer-tokens", options->contest.answer_tokens, "Longest answer")
      ->transform(whole_number(1, 4096))
      ->capture_default_str();
  verb->add_flag("--exact", options->exact,
                 "Multiply fp16 keys and values exactly instead of rounding to bf16");
  verb->add_flag("--by-layer", options->by_layer, "Print the density of every layer");
  add_json_flag(*verb, options->json);
  verb->callback([options] { run(*options); });
}

}  // namespace bsfa::cli

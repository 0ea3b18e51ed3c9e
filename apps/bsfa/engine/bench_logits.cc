// bsfa bench logits: how far do the numbers move?

#include <algorithm>
#include <bsfa/error.hpp>
#include <bsfa/limits.hpp>
#include <cmath>
#include <cstdio>
#include <memory>

#include "command.hpp"
#include "engine/contest.hpp"
#include "engine/options.hpp"
#include "model_benches.hpp"

namespace bsfa::cli {
namespace {

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
  add_commit(report);
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

void add_bench_logits(CLI::App& bench) {
  auto logits_options = std::make_shared<LogitsOptions>();
  CLI::App* logits_verb = bench.add_subcommand(
      "logits",
      "How far the model's logits move from stock llama.cpp's with dense attention here,\n"
      "exact and in bf16, beside stock's own difference with flash attention on and off");
  logits_options->model.add_to(*logits_verb);
  logits_verb->add_option("--prompt-file", logits_options->prompt_file, "The text")
      ->required()
      ->type_name("FILE");
  logits_verb->add_option("--tokens", logits_options->tokens, "So many tokens of it")
      ->transform(whole_number(1, kMaxTokens))
      ->capture_default_str();
  add_json_flag(*logits_verb, logits_options->json);
  logits_verb->callback([logits_options] { logits(*logits_options); });
}

}  // namespace bsfa::cli

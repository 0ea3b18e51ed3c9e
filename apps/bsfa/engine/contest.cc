#include "engine/contest.hpp"

#include <algorithm>
#include <bsfa/error.hpp>
#include <bsfa/text.hpp>
#include <chrono>

#include "command.hpp"

namespace bsfa::cli {
namespace {

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// One prefill; what the module counted meanwhile is left for the caller.
double time_to_first_token(Session& session, const Prompt& prompt, Progress& progress) {
  Module::instance().reset_stats();
  session.clear();
  std::int64_t reported = 0;
  const auto start = std::chrono::steady_clock::now();
  session.read(prompt.tokens, [&](std::int64_t done) {
    progress.advance(done - reported);
    reported = done;
  });
  (void)session.next_token();
  return seconds_since(start);
}

void check_that_it_ran(const Contestant& contestant) {
  if (contestant.config.mode == BSFA_GGML_OFF) return;
  if (!Module::instance().layer_stats().empty()) return;
  std::string reasons;
  for (const bsfa_ggml_decline& entry : Module::instance().declined()) {
    reasons += (reasons.empty() ? "" : "; ") + std::string(entry.reason);
  }
  throw Error(ErrorCode::kUnsupported,
              "contestant '" + contestant.name + "' left all attention to llama.cpp: " + reasons);
}

}  // namespace

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

std::int64_t session_tokens(std::int64_t tokens, std::int64_t answer_tokens) {
  return (tokens + answer_tokens + 255) / 256 * 256;
}

Contestant make_contestant(const std::string& name, const std::string& thresholds,
                           std::int64_t budget, bool exact) {
  Contestant contestant{name, {}};
  contestant.config.allow_other_model = 1;  // warn_of_other_model has looked
  contestant.config.compute = exact ? BSFA_GGML_EXACT : BSFA_GGML_BF16;
  if (name == "stock") {
    contestant.config.mode = BSFA_GGML_OFF;
  } else if (name == "dense") {
    contestant.config.mode = BSFA_GGML_DENSE;
  } else if (name == "bsfa") {
    contestant.config.mode = BSFA_GGML_THRESHOLD;
    contestant.config.thresholds = thresholds.c_str();
    contestant.config.budget = budget;
  } else if (name == "sliding_window") {
    contestant.config.mode = BSFA_GGML_SLIDING_WINDOW;
    contestant.config.budget = budget;
  } else {
    throw Error(ErrorCode::kInvalidArgument,
                "--compare: " + quote(name) + "; accepted: stock, dense, sliding_window");
  }
  return contestant;
}

double ContestantResult::density() const {
  std::int64_t kept = 0, visible = 0;
  for (const bsfa_ggml_layer_stats& layer : layers) {
    kept += layer.kept_blocks;
    visible += layer.visible_blocks;
  }
  return visible > 0 ? static_cast<double>(kept) / static_cast<double>(visible) : 1.0;
}

std::vector<ContestantResult> run_contest(Session& session, const Model& model,
                                          const Prompt& prompt,
                                          const std::vector<Contestant>& contestants,
                                          const ContestOptions& options, bool warm_up) {
  Module& module = Module::instance();
  std::vector<ContestantResult> results;
  for (const Contestant& contestant : contestants) results.emplace_back().name = contestant.name;
  const int rounds = options.runs + (warm_up ? 1 : 0);
  Progress progress(std::to_string(prompt.tokens.size()) + " tokens",
                    rounds * std::ssize(contestants) * std::ssize(prompt.tokens));
  for (int round = 0; round < rounds; ++round) {
    const bool timed = !warm_up || round > 0;
    for (std::size_t i = 0; i < contestants.size(); ++i) {
      ContestantResult& result = results[i];
      bsfa_ggml_config config = contestants[i].config;
      const bool stock = config.mode == BSFA_GGML_OFF;
      // Stock attention can only be timed through the module; its timed runs are without it.
      if (stock && !timed) config.mode = BSFA_GGML_HOST;
      module.configure(config);
      const double ttft = time_to_first_token(session, prompt, progress);
      const double attention = module.attention_seconds();
      if (timed) result.ttft.push_back(ttft);
      if (timed != stock) {
        result.attention.push_back(attention);
        result.attention_share.push_back(attention / ttft);
      }
      if (round + 1 < rounds) continue;
      check_that_it_ran(contestants[i]);
      result.layers = module.layer_stats();
      result.declined = module.declined();
      result.answer = model.text_of(session.generate(options.answer_tokens));
    }
  }
  return results;
}

nlohmann::json to_json(const ContestantResult& result) {
  nlohmann::json json = {{"name", result.name},
                         {"ttft_seconds", median(result.ttft)},
                         {"ttft_runs", result.ttft},
                         {"attention_seconds", median(result.attention)},
                         {"attention_share", median(result.attention_share)},
                         {"density", result.density()},
                         {"answer", result.answer}};
  json["layers"] = nlohmann::json::array();
  for (const bsfa_ggml_layer_stats& layer : result.layers) {
    json["layers"].push_back({{"layer", layer.layer},
                              {"calls", layer.calls},
                              {"kept_blocks", layer.kept_blocks},
                              {"visible_blocks", layer.visible_blocks},
                              {"seconds", layer.seconds}});
  }
  json["left_to_llama_cpp"] = nlohmann::json::array();
  for (const bsfa_ggml_decline& entry : result.declined) {
    json["left_to_llama_cpp"].push_back({{"reason", entry.reason},
                                         {"at_run_time", entry.at_run_time != 0},
                                         {"count", entry.count}});
  }
  return json;
}

}  // namespace bsfa::cli

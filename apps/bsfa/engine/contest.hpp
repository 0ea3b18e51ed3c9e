#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "engine/engine.hpp"
#include "engine/module.hpp"
#include "engine/prompt.hpp"

namespace bsfa::cli {

// One way of computing attention in a comparison.
struct Contestant {
  std::string name;  // "stock", "dense", "bsfa", "sliding_window"
  bsfa_ggml_config config{};
};

// "stock" is llama.cpp with its own flash attention, the module claiming nothing. `thresholds` must
// outlive the contestant. Throws Error, listing the names, for an unknown one.
Contestant make_contestant(const std::string& name, const std::string& thresholds,
                           std::int64_t budget, bool exact);

struct ContestantResult {
  std::string name;
  std::vector<double> ttft;       // seconds from the first token read to the first token chosen
  std::vector<double> attention;  // seconds of it in attention; stock: in the warm-up, by its own
                                  // kernel called through the module
  std::vector<double> attention_share;
  std::vector<bsfa_ggml_layer_stats> layers;  // of the last run
  std::vector<bsfa_ggml_decline> declined;    // likewise
  std::string answer;

  double density() const;  // over all layers; 1 without statistics
};

struct ContestOptions {
  int runs = 3;  // timed ones, after one warm-up
  std::int64_t answer_tokens = 16;
};

// All contestants take turns on one context, run by run. Throws Error if a contestant but stock
// left all attention to llama.cpp.
std::vector<ContestantResult> run_contest(Session& session, const Model& model,
                                          const Prompt& prompt,
                                          const std::vector<Contestant>& contestants,
                                          const ContestOptions& options, bool warm_up);

double median(std::vector<double> values);
nlohmann::json to_json(const ContestantResult& result);

// Context for `tokens` and an answer, in the steps that llama.cpp takes.
std::int64_t session_tokens(std::int64_t tokens, std::int64_t answer_tokens);

}  // namespace bsfa::cli

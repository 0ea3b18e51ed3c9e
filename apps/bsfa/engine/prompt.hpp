#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.hpp"

namespace bsfa::cli {

struct PromptRequest {
  std::string text;         // the document
  std::string question;     // after it
  std::int64_t tokens = 0;  // cut the document so that the prompt has about as many; 0: all
  std::optional<double> needle_depth;  // plant a pass-key at this fraction of the document
};

struct Prompt {
  std::vector<llama_token> tokens;
  std::string key;  // the pass-key; empty without a needle
};

// The question of a needle prompt if the user asks nothing else.
extern const char* const kNeedleQuestion;

// Throws Error if the prompt and `answer_tokens` do not fit the model's context.
Prompt build_prompt(const Model& model, const PromptRequest& request, std::int64_t answer_tokens);

}  // namespace bsfa::cli

#include "engine/prompt.hpp"

#include <algorithm>
#include <bsfa/error.hpp>
#include <cmath>

namespace bsfa::cli {
namespace {

// A key that no text holds by chance, and another one at every depth and length.
std::string pass_key(double depth, std::int64_t tokens) {
  const auto seed = static_cast<std::uint64_t>(std::lround(depth * 1000)) * 7919 +
                    static_cast<std::uint64_t>(tokens) * 104729;
  return std::to_string(10000 + seed % 90000);
}

std::string plant(const std::string& text, double depth, const std::string& key) {
  const std::string needle =
      " The pass key is " + key + ". Remember it. " + key + " is the pass key.";
  const auto target = static_cast<std::size_t>(depth * static_cast<double>(text.size()));
  // After the sentence that the depth falls into; at the end if none ends there.
  std::size_t at = text.find(". ", std::min(target, text.size()));
  at = at == std::string::npos || depth >= 1 ? text.size() : at + 1;
  return text.substr(0, at) + needle + text.substr(at);
}

}  // namespace

const char* const kNeedleQuestion =
    "What is the pass key mentioned in the text? Answer with the number.";

Prompt build_prompt(const Model& model, const PromptRequest& request, std::int64_t answer_tokens) {
  Prompt prompt;
  if (request.needle_depth) prompt.key = pass_key(*request.needle_depth, request.tokens);
  const auto assemble = [&](const std::string& text) {
    const std::string document =
        request.needle_depth ? plant(text, *request.needle_depth, prompt.key) : text;
    const std::string message =
        request.question.empty() ? document : document + "\n\n" + request.question;
    return model.tokenize(model.chat_prompt(message), true);
  };
  if (request.tokens == 0) {
    prompt.tokens = assemble(request.text);
  } else {
    const auto overhead = static_cast<std::int64_t>(assemble("").size());
    const std::int64_t room = request.tokens - overhead;
    std::vector<llama_token> document = model.tokenize(request.text, false);
    if (room < 1 || room > static_cast<std::int64_t>(document.size())) {
      throw Error(ErrorCode::kInvalidArgument,
                  "--prompt-tokens is " + std::to_string(request.tokens) +
                      "; accepted for this text and question: " + std::to_string(overhead + 1) +
                      " to " + std::to_string(overhead + std::ssize(document)));
    }
    document.resize(static_cast<std::size_t>(room));
    prompt.tokens = assemble(model.text_of(document));
  }
  const std::int64_t context = model.context_length();
  if (std::ssize(prompt.tokens) + answer_tokens > context) {
    throw Error(ErrorCode::kInvalidArgument,
                "the prompt has " + std::to_string(prompt.tokens.size()) +
                    " tokens and the answer " + std::to_string(answer_tokens) +
                    "; the model's context holds " + std::to_string(context) +
                    " (--prompt-tokens cuts the text)");
  }
  if (prompt.tokens.empty()) throw Error(ErrorCode::kInvalidArgument, "the prompt is empty");
  return prompt;
}

}  // namespace bsfa::cli

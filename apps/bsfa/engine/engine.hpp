#pragma once

#include <llama-cpp.h>

#include <bsfa/thresholds.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace bsfa::cli {

// llama.cpp's messages: errors go to stderr, the rest is dropped. Starts its back end once.
void start_llama();

// A model file, for any number of contexts.
class Model {
 public:
  // Throws Error if the file is missing, truncated, or not a model that llama.cpp runs.
  explicit Model(const std::string& path);

  llama_model* get() const { return model_.get(); }
  const std::string& path() const { return path_; }
  std::string description() const;
  std::int64_t context_length() const;  // that it was trained for
  std::int64_t num_layers() const;
  std::int64_t num_heads_q() const;
  std::int64_t vocabulary_size() const;

  std::vector<llama_token> tokenize(const std::string& text, bool special) const;
  std::string text_of(const std::vector<llama_token>& tokens) const;
  bool ends_generation(llama_token token) const;

  // A user's message in the model's chat format, up to where the answer begins; the message as it
  // is if the model has none.
  std::string chat_prompt(const std::string& message) const;

 private:
  std::string path_;
  llama_model_ptr model_;
};

// One llama.cpp context with a cache of `num_tokens` tokens. Prompts are read in chunks of 512.
class Session {
 public:
  struct Options {
    std::int64_t num_tokens = 0;
    int num_threads = 0;
    bool flash_attention = true;  // of llama.cpp's own
    bool all_logits = false;      // keep the logits of every token, not of the last alone
  };
  static constexpr std::int64_t kChunk = 512;

  Session(const Model& model, const Options& options);

  void clear();

  // Reads tokens after those that are there; `progress` is called with the tokens read so far.
  // Throws Error if llama.cpp fails.
  void read(const std::vector<llama_token>& tokens,
            const std::function<void(std::int64_t)>& progress = nullptr);

  // Greedy: the most likely token after what was read.
  llama_token next_token() const;
  std::vector<llama_token> generate(std::int64_t max_tokens);

  // Logits [vocabulary] of the token `index` of the last chunk read; -1: the last token.
  const float* logits(std::int64_t index) const;

  llama_context* get() const { return context_.get(); }

 private:
  const Model& model_;
  Options options_;
  llama_context_ptr context_;
};

// Says on stderr if the thresholds name other weights, or another model, than this one's. The
// module is told not to say it again (Contestant).
void warn_of_other_model(const ThresholdTable& thresholds, const Model& model);

llama_token argmax(const float* logits, std::int64_t count);

}  // namespace bsfa::cli

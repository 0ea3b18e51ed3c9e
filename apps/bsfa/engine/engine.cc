#include "engine/engine.hpp"

#include <ggml-backend.h>

#include <algorithm>
#include <bsfa/error.hpp>
#include <bsfa/text.hpp>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "engine/module.hpp"
#include "gguf_header.hpp"

namespace bsfa::cli {
namespace {

std::string last_llama_error;

}  // namespace

void start_llama() {
  static const bool started = [] {
    // A graph that is used again keeps the division of work that it was built with; contestants
    // that take turns on one context must not inherit each other's.
    setenv("LLAMA_GRAPH_REUSE_DISABLE", "1", 1);
    llama_log_set(
        [](ggml_log_level level, const char* text, void*) {
          if (level == GGML_LOG_LEVEL_ERROR) last_llama_error = text;
        },
        nullptr);
    llama_backend_init();
    return true;
  }();
  (void)started;
}

Model::Model(const std::string& path) : path_(path) {
  start_llama();
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    throw Error(ErrorCode::kIo, "--model: no file " + quote(path, kLongestPath));
  }
  llama_model_params params = llama_model_default_params();
  params.n_gpu_layers = 0;
  model_.reset(llama_model_load_from_file(path.c_str(), params));
  if (model_ == nullptr) {
    while (!last_llama_error.empty() && last_llama_error.back() == '\n')
      last_llama_error.pop_back();
    throw Error(ErrorCode::kFormat, "--model: llama.cpp cannot load " + quote(path, kLongestPath) +
                                        " (expected a complete GGUF file): " + last_llama_error);
  }
}

std::string Model::description() const {
  char text[256];
  llama_model_desc(model_.get(), text, sizeof text);
  return text;
}

std::int64_t Model::context_length() const { return llama_model_n_ctx_train(model_.get()); }
std::int64_t Model::num_layers() const { return llama_model_n_layer(model_.get()); }
std::int64_t Model::num_heads_q() const { return llama_model_n_head(model_.get()); }

std::int64_t Model::vocabulary_size() const {
  return llama_vocab_n_tokens(llama_model_get_vocab(model_.get()));
}

std::vector<llama_token> Model::tokenize(const std::string& text, bool special) const {
  const llama_vocab* vocab = llama_model_get_vocab(model_.get());
  if (text.size() > std::size_t{1} << 30) {
    throw Error(ErrorCode::kInvalidArgument, "the text has " + std::to_string(text.size()) +
                                                 " bytes; llama.cpp takes up to 2^30");
  }
  std::vector<llama_token> tokens(text.size() + 8);
  const std::int32_t count =
      llama_tokenize(vocab, text.data(), static_cast<std::int32_t>(text.size()), tokens.data(),
                     static_cast<std::int32_t>(tokens.size()), special, special);
  if (count < 0) throw Error(ErrorCode::kRuntime, "llama.cpp could not split the text in tokens");
  tokens.resize(static_cast<std::size_t>(count));
  return tokens;
}

std::string Model::text_of(const std::vector<llama_token>& tokens) const {
  const llama_vocab* vocab = llama_model_get_vocab(model_.get());
  std::string text;
  for (const llama_token token : tokens) {
    char piece[512];
    const std::int32_t size = llama_token_to_piece(vocab, token, piece, sizeof piece, 0, false);
    if (size > 0) text.append(piece, static_cast<std::size_t>(size));
  }
  return text;
}

bool Model::ends_generation(llama_token token) const {
  return llama_vocab_is_eog(llama_model_get_vocab(model_.get()), token);
}

std::string Model::chat_prompt(const std::string& message) const {
  const char* format = llama_model_chat_template(model_.get(), nullptr);
  if (format == nullptr) return message;
  if (message.find('\0') != std::string::npos) {
    throw Error(ErrorCode::kInvalidArgument, "the prompt holds a NUL; expected text");
  }
  const llama_chat_message chat{"user", message.c_str()};
  std::string text(message.size() + 1024, '\0');
  const std::int32_t size = llama_chat_apply_template(format, &chat, 1, true, text.data(),
                                                      static_cast<std::int32_t>(text.size()));
  if (size < 0 || static_cast<std::size_t>(size) > text.size()) {
    throw Error(ErrorCode::kUnsupported, "--model: llama.cpp does not know the chat template of " +
                                             quote(path_, kLongestPath));
  }
  text.resize(static_cast<std::size_t>(size));
  return text;
}

Session::Session(const Model& model, const Options& options) : model_(model), options_(options) {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<std::uint32_t>(options.num_tokens);
  params.n_batch = kChunk;
  params.n_ubatch = kChunk;
  params.n_threads = params.n_threads_batch = options.num_threads;
  params.flash_attn_type =
      options.flash_attention ? LLAMA_FLASH_ATTN_TYPE_ENABLED : LLAMA_FLASH_ATTN_TYPE_DISABLED;
  context_.reset(llama_init_from_model(model.get(), params));
  if (context_ == nullptr) {
    throw Error(ErrorCode::kRuntime, "llama.cpp could not make a context of " +
                                         std::to_string(options.num_tokens) +
                                         " tokens: " + last_llama_error);
  }
}

void Session::clear() { llama_memory_clear(llama_get_memory(context_.get()), false); }

void Session::read(const std::vector<llama_token>& tokens,
                   const std::function<void(std::int64_t)>& progress) {
  const auto total = static_cast<std::int64_t>(tokens.size());
  llama_pos position = llama_memory_seq_pos_max(llama_get_memory(context_.get()), 0) + 1;
  llama_batch batch = llama_batch_init(static_cast<std::int32_t>(std::min(kChunk, total)), 0, 1);
  int status = 0;
  for (std::int64_t begin = 0; begin < total && status == 0; begin += kChunk) {
    const std::int64_t end = std::min(total, begin + kChunk);
    batch.n_tokens = 0;
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int32_t row = batch.n_tokens++;
      batch.token[row] = tokens[static_cast<std::size_t>(i)];
      batch.pos[row] = position++;
      batch.n_seq_id[row] = 1;
      batch.seq_id[row][0] = 0;
      batch.logits[row] = options_.all_logits || i + 1 == total;
    }
    status = llama_decode(context_.get(), batch);
    if (status == 0 && progress) progress(end);
  }
  llama_batch_free(batch);
  if (status != 0) {
    const std::string reason = Module::instance().last_error();
    throw Error(ErrorCode::kRuntime, "llama.cpp stopped reading the prompt (status " +
                                         std::to_string(status) + ")" +
                                         (reason.empty() ? "" : ": " + reason));
  }
  llama_synchronize(context_.get());
}

const float* Session::logits(std::int64_t index) const {
  return llama_get_logits_ith(context_.get(), static_cast<std::int32_t>(index));
}

llama_token Session::next_token() const { return argmax(logits(-1), model_.vocabulary_size()); }

std::vector<llama_token> Session::generate(std::int64_t max_tokens) {
  std::vector<llama_token> answer;
  while (static_cast<std::int64_t>(answer.size()) < max_tokens) {
    const llama_token token = next_token();
    if (model_.ends_generation(token)) break;
    answer.push_back(token);
    read({token});
  }
  return answer;
}

void warn_of_other_model(const ThresholdTable& thresholds, const Model& model) {
  const std::string warning =
      thresholds.other_model(model.path(), gguf::gguf_fingerprint(model.path()));
  if (warning.empty()) return;
  std::fprintf(stderr, "bsfa: warning: %s (--allow-other-model if that is meant)\n",
               warning.c_str());
}

llama_token argmax(const float* logits, std::int64_t count) {
  return static_cast<llama_token>(std::max_element(logits, logits + count) - logits);
}

}  // namespace bsfa::cli

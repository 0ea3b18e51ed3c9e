// bsfa calibrate: makes a model's threshold file from texts, in one pass for all budgets.

#include <algorithm>
#include <bsfa/backends.hpp>
#include <bsfa/calibration.hpp>
#include <bsfa/file.hpp>
#include <bsfa/limits.hpp>
#include <bsfa/samples.hpp>
#include <bsfa/text.hpp>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>

#include "command.hpp"
#include "engine/engine.hpp"
#include "engine/module.hpp"
#include "engine/options.hpp"
#include "gguf_header.hpp"

namespace bsfa::cli {
namespace {

struct CalibrateOptions {
  ModelOptions model;
  std::vector<std::string> data;
  std::vector<std::int64_t> budgets{4, 8, 16, 32, 64, 96, 128};
  std::int64_t recommend = 0;
  std::int64_t samples = 16;
  std::int64_t max_tokens = 0;
  std::string name;
  std::string out;
  std::string partial;
  bool json = false;
};

std::vector<TextSample> samples_of(const CalibrateOptions& options) {
  std::vector<TextSample> samples;
  try {
    samples = read_samples(options.data);
  } catch (const Error& error) {
    throw Error(error.code(), std::string("--data: ") + error.what());
  }
  if (samples.empty()) throw Error(ErrorCode::kInvalidArgument, "--data: no samples in it");
  if (std::ssize(samples) > options.samples) {
    samples.resize(static_cast<std::size_t>(options.samples));
  }
  return samples;
}

// The results may stand neither in each other's place nor in that of what they are made from.
void check_outputs(const CalibrateOptions& options) {
  check_writable("--out", options.out);
  if (!options.partial.empty()) {
    check_writable("--partial", options.partial);
    if (same_file(options.out, options.partial)) {
      throw Error(ErrorCode::kInvalidArgument,
                  "--partial: " + quote(options.partial, kLongestPath) + " is the file of --out");
    }
  }
  for (const std::string& out : {options.out, options.partial}) {
    if (out.empty()) continue;
    std::vector<std::string> inputs = options.data;
    inputs.push_back(options.model.model);
    for (const std::string& input : inputs) {
      if (same_file(out, input)) {
        throw Error(ErrorCode::kInvalidArgument,
                    std::string(out == options.out ? "--out" : "--partial") + ": " +
                        quote(out, kLongestPath) + " is one of the inputs; it would be lost");
      }
    }
  }
}

// Takes the block maxima out of the model's attention, chunk by chunk and layer by layer.
class Collector {
 public:
  Collector(const CalibrateOptions& options, const Model& model)
      : options_(options), model_(model), pool_(options.model.threads) {}

  // The callback of the module; exceptions may not cross it and are kept for rethrow().
  static int receive(void* user, int layer, std::int64_t q_offset, std::int64_t seqlen_q,
                     std::int64_t num_heads, std::int64_t q_blocks, std::int64_t kv_blocks,
                     float softmax_scale, const float* block_max) {
    auto* self = static_cast<Collector*>(user);
    try {
      self->add(layer, q_offset, seqlen_q, {num_heads, q_blocks, kv_blocks}, softmax_scale,
                block_max);
      return 0;
    } catch (...) {
      self->failure_ = std::current_exception();
      return 1;
    }
  }

  void begin(const std::string& name, std::int64_t tokens) {
    name_ = name;
    tokens_ = tokens;
    begun_ = false;
  }

  void end() {
    if (!begun_) {
      throw Error(ErrorCode::kUnsupported, "sample " + quote(name_, kLongestPath) +
                                               ": llama.cpp kept all attention to itself (fewer "
                                               "than 32 tokens, or a model that is not served)");
    }
    calibration_->end_sample();
  }

  void rethrow() const {
    if (failure_) std::rethrow_exception(failure_);
  }

  const Calibration& result() const { return *calibration_; }

 private:
  struct Shape {
    std::int64_t num_heads, q_blocks, kv_blocks;
  };

  void add(int layer, std::int64_t q_offset, std::int64_t seqlen_q, const Shape& shape,
           float softmax_scale, const float* block_max) {
    if (!calibration_) {  // the scale of the scores is known only now
      ThresholdMetadata metadata;
      metadata.budgets = options_.budgets;
      metadata.softmax_scale = softmax_scale;
      metadata.model = options_.name.empty()
                           ? std::filesystem::path(options_.model.model).filename().string()
                           : options_.name;
      metadata.producer = std::string("bsfa calibrate ") + version();
      metadata.fingerprint = gguf::gguf_fingerprint(options_.model.model);
      if (options_.recommend != 0) metadata.recommended_budget = options_.recommend;
      calibration_.emplace(std::move(metadata), model_.num_layers(), shape.num_heads);
    }
    if (!begun_) {
      calibration_->begin_sample(name_, tokens_);
      begun_ = true;
    }
    const std::int64_t num_budgets = std::ssize(options_.budgets);
    thresholds_.resize(static_cast<std::size_t>(num_budgets * shape.num_heads * shape.q_blocks));
    SelectThresholdsParams params;
    params.block_max.data = block_max;
    const std::int64_t maxima[3] = {shape.num_heads, shape.q_blocks, shape.kv_blocks};
    std::copy(std::begin(maxima), std::end(maxima), params.block_max.shape);
    set_contiguous(params.block_max.shape, params.block_max.stride);
    params.first_q_block = q_offset / params.block.q;
    params.budgets = options_.budgets.data();
    params.num_budgets = num_budgets;
    params.thresholds.data = thresholds_.data();
    const std::int64_t table[3] = {num_budgets, shape.num_heads, shape.q_blocks};
    std::copy(std::begin(table), std::end(table), params.thresholds.shape);
    set_contiguous(params.thresholds.shape, params.thresholds.stride);
    params.executor = &pool_;
    select_thresholds(params);
    StridedView<const float, 3> view;
    view.data = thresholds_.data();
    std::copy(std::begin(table), std::end(table), view.shape);
    set_contiguous(view.shape, view.stride);
    calibration_->add(layer, q_offset, seqlen_q, view);
  }

  const CalibrateOptions& options_;
  const Model& model_;
  ThreadPool pool_;
  std::optional<Calibration> calibration_;
  std::string name_;
  std::int64_t tokens_ = 0;
  bool begun_ = false;
  std::vector<float> thresholds_;
  std::exception_ptr failure_;
};

void calibrate(CalibrateOptions options) {
  std::sort(options.budgets.begin(), options.budgets.end());
  if (std::adjacent_find(options.budgets.begin(), options.budgets.end()) != options.budgets.end()) {
    throw Error(ErrorCode::kInvalidArgument, "--budgets: the same budget twice");
  }
  if (options.recommend != 0 && std::find(options.budgets.begin(), options.budgets.end(),
                                          options.recommend) == options.budgets.end()) {
    throw Error(ErrorCode::kInvalidArgument, "--recommend is " + std::to_string(options.recommend) +
                                                 ", which is not among --budgets");
  }
  check_outputs(options);
  const std::vector<TextSample> samples = samples_of(options);
  const Model model(options.model.model);
  const std::int64_t limit = options.max_tokens != 0 ? options.max_tokens : model.context_length();
  if (limit > model.context_length()) {
    throw Error(ErrorCode::kInvalidArgument, "--max-tokens is " + std::to_string(limit) +
                                                 "; the model's context holds " +
                                                 std::to_string(model.context_length()));
  }

  std::vector<std::vector<llama_token>> prompts;
  std::int64_t total = 0, longest = 0;
  for (const TextSample& sample : samples) {
    prompts.push_back(model.tokenize(model.chat_prompt(sample.text), true));
    if (std::ssize(prompts.back()) > limit) prompts.back().resize(static_cast<std::size_t>(limit));
    // A last chunk of fewer than 32 tokens would be decode, and dense.
    const std::int64_t tail = std::ssize(prompts.back()) % Session::kChunk;
    if (tail < 32) prompts.back().resize(prompts.back().size() - static_cast<std::size_t>(tail));
    total += std::ssize(prompts.back());
    longest = std::max(longest, std::ssize(prompts.back()));
  }

  Collector collector(options, model);
  bsfa_ggml_config config{};
  config.mode = BSFA_GGML_CALIBRATE;
  config.block_max = Collector::receive;
  config.user = &collector;
  Module::instance().configure(config);
  Session session(model, {(longest + 255) / 256 * 256, options.model.threads, true, false});
  {
    Progress progress("calibrating", total);
    for (std::size_t i = 0; i < samples.size(); ++i) {
      session.clear();
      collector.begin(samples[i].name, std::ssize(prompts[i]));
      std::int64_t reported = 0;
      try {
        session.read(prompts[i], [&](std::int64_t done) {
          progress.advance(done - reported);
          reported = done;
        });
      } catch (const Error&) {
        collector.rethrow();
        throw;
      }
      collector.end();
    }
  }
  const ThresholdTable table = collector.result().finish();
  if (!options.partial.empty()) collector.result().save(options.partial);
  table.save(options.out);

  const ThresholdMetadata& metadata = table.metadata();
  nlohmann::json report = {{"out", options.out},
                           {"model", metadata.model},
                           {"num_samples", metadata.num_samples},
                           {"max_seqlen", metadata.max_seqlen},
                           {"tokens", total},
                           {"budgets", metadata.budgets}};
  if (options.json) {
    print_json(report);
  } else {
    std::cout << path_text(options.out) << ": " << metadata.num_samples << " samples, " << total
              << " tokens, " << metadata.budgets.size() << " budgets, up to " << metadata.max_seqlen
              << " tokens\n";
  }
}

}  // namespace

void add_calibrate(CLI::App& app) {
  auto options = std::make_shared<CalibrateOptions>();
  CLI::App* verb = app.add_subcommand(
      "calibrate",
      "Make a model's threshold file: the model reads some texts with exact attention,\n"
      "and the block maxima give the thresholds of all budgets in one pass");
  options->model.add_to(*verb);
  verb->add_option("--data", options->data,
                   "Texts: plain text files (one sample each), .json lists and .jsonl lines of "
                   "strings or of objects with \"input_text\", or folders of such files")
      ->required()
      ->type_name("PATH");
  verb->add_option("--out", options->out, "The threshold file to write")
      ->required()
      ->type_name("FILE");
  verb->add_option("--budgets", options->budgets, "Blocks kept beside the diagonal")
      ->delimiter(',')
      ->transform(whole_number(1, kMaxTokens))
      ->capture_default_str();
  verb->add_option("--recommend", options->recommend,
                   "The budget that `bsfa run` takes when none is named")
      ->transform(whole_number(1, kMaxTokens));
  verb->add_option("--samples", options->samples, "At most so many samples")
      ->transform(whole_number(1, kMaxTokens))
      ->capture_default_str();
  verb->add_option("--max-tokens", options->max_tokens,
                   "Cut samples to so many tokens; default: the model's context")
      ->transform(whole_number(1, kMaxTokens));
  verb->add_option("--model-name", options->name,
                   "The model's name in the file; default: the name of the model's file");
  verb->add_option("--partial", options->partial,
                   "Also write the sums, for `bsfa thresholds merge`")
      ->type_name("FILE");
  add_json_flag(*verb, options->json);
  verb->callback([options] { calibrate(*options); });
}

}  // namespace bsfa::cli

// bsfa thresholds show|merge|check: threshold files, and the partial calibrations they come from.

#include <algorithm>
#include <bsfa/calibration.hpp>
#include <bsfa/error.hpp>
#include <bsfa/file.hpp>
#include <bsfa/limits.hpp>
#include <bsfa/text.hpp>
#include <bsfa/thresholds.hpp>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <limits>
#include <memory>
#include <optional>
#include <sstream>

#include "command.hpp"
#include "gguf_header.hpp"

namespace bsfa::cli {
namespace {

// What a file of either kind holds.
struct Loaded {
  ThresholdTable table;
  bool partial = false;  // a partial calibration; `table` is what it would be finished to
};

Loaded load_either(const std::string& path) {
  try {
    return {ThresholdTable::load(path), false};
  } catch (const Error& as_table) {
    if (as_table.code() != ErrorCode::kFormat) throw;
    std::optional<ThresholdTable> finished;
    try {
      finished = Calibration::load(path).finish();
    } catch (const Error&) {
      // It is neither: what is wrong with it as a threshold file is the better message, unless it
      // says that it is a partial calibration.
      if (std::string(as_table.what()).find("'bsfa-calibration'") != std::string::npos) throw;
      throw as_table;
    }
    return {*std::move(finished), true};
  }
}

struct BudgetSummary {
  std::int64_t budget;
  std::int64_t dense = 0;  // entries that are -inf: nothing is left out there
  std::int64_t entries = 0;
  double lowest = std::numeric_limits<double>::quiet_NaN();  // of the finite ones
  double highest = std::numeric_limits<double>::quiet_NaN();
};

std::vector<BudgetSummary> summarise(const ThresholdTable& table) {
  std::vector<BudgetSummary> result;
  const auto& budgets = table.metadata().budgets;
  const std::size_t each = table.values().size() / budgets.size();
  for (std::size_t b = 0; b < budgets.size(); ++b) {
    BudgetSummary summary{budgets[b]};
    summary.entries = static_cast<std::int64_t>(each);
    for (std::size_t n = b * each; n < (b + 1) * each; ++n) {
      const double value = table.values()[n];
      if (std::isinf(value)) {
        summary.dense += value < 0 ? 1 : 0;
        continue;
      }
      summary.lowest = std::isnan(summary.lowest) ? value : std::min(summary.lowest, value);
      summary.highest = std::isnan(summary.highest) ? value : std::max(summary.highest, value);
    }
    result.push_back(summary);
  }
  return result;
}

// Powers of two up to the calibrated length, and that length.
std::vector<std::int64_t> default_lengths(std::int64_t max_seqlen) {
  std::vector<std::int64_t> lengths;
  for (std::int64_t length = 1024; length < max_seqlen && length < (std::int64_t{1} << 31);
       length *= 2) {
    lengths.push_back(length);
  }
  constexpr std::size_t kColumns = 6;
  if (lengths.size() >= kColumns) {
    lengths.erase(lengths.begin(), lengths.end() - static_cast<long>(kColumns) + 1);
  }
  lengths.push_back(std::min(max_seqlen, std::int64_t{1} << 31));
  return lengths;
}

std::string list_text(const std::vector<std::int64_t>& values) {
  constexpr std::size_t kShown = 32;
  std::ostringstream text;
  for (std::size_t n = 0; n < std::min(values.size(), kShown); ++n) {
    text << (n > 0 ? ", " : "") << values[n];
  }
  if (values.size() > kShown) text << ", ... (" << values.size() << " in all)";
  return text.str();
}

nlohmann::json describe(const std::string& path, const Loaded& loaded,
                        const std::vector<std::int64_t>& lengths) {
  const ThresholdMetadata& metadata = loaded.table.metadata();
  nlohmann::json result{{"file", path},
                        {"kind", loaded.partial ? "partial calibration" : "thresholds"},
                        {"model", metadata.model},
                        {"producer", metadata.producer},
                        {"fingerprint", nullptr},
                        {"num_samples", metadata.num_samples},
                        {"max_seqlen", metadata.max_seqlen},
                        {"num_layers", loaded.table.num_layers()},
                        {"num_heads_q", loaded.table.num_heads_q()},
                        {"num_q_blocks", loaded.table.num_q_blocks()},
                        {"q_block", metadata.block.q},
                        {"kv_block", metadata.block.kv},
                        {"softmax_scale", metadata.softmax_scale},
                        {"recommended_budget", nullptr}};
  if (metadata.recommended_budget) result["recommended_budget"] = *metadata.recommended_budget;
  if (!metadata.fingerprint.empty()) result["fingerprint"] = metadata.fingerprint;
  nlohmann::json& budgets = result["budgets"] = nlohmann::json::array();
  for (const BudgetSummary& summary : summarise(loaded.table)) {
    nlohmann::json densities = nlohmann::json::array();
    for (const std::int64_t length : lengths) {
      densities.push_back(
          {{"seqlen", length},
           {"predicted_density", predicted_density(summary.budget, length, metadata.block)}});
    }
    nlohmann::json entry{{"budget", summary.budget},
                         {"predicted", densities},
                         {"dense_entries", summary.dense},
                         {"entries", summary.entries}};
    if (!std::isnan(summary.lowest)) {
      entry["lowest"] = summary.lowest;
      entry["highest"] = summary.highest;
    }
    budgets.push_back(entry);
  }
  return result;
}

void print_table(const std::string& path, const Loaded& loaded,
                 const std::vector<std::int64_t>& lengths) {
  const ThresholdMetadata& metadata = loaded.table.metadata();
  std::cout << path_text(path)
            << (loaded.partial ? " (a partial calibration; `merge` makes thresholds of it)" : "")
            << "\n  model          " << printable(metadata.model) << "\n  weights        "
            << (metadata.fingerprint.empty() ? "no fingerprint: not told from others"
                                             : metadata.fingerprint)
            << "\n  made by        " << printable(metadata.producer) << "\n  samples        "
            << metadata.num_samples << ", the longest of " << metadata.max_seqlen
            << " tokens\n  shape          " << loaded.table.num_layers() << " layers, "
            << loaded.table.num_heads_q() << " query heads, " << loaded.table.num_q_blocks()
            << " query blocks\n  gate block     " << metadata.block.q << " queries x "
            << metadata.block.kv << " keys\n  softmax scale  " << metadata.softmax_scale
            << "\n  recommended    "
            << (metadata.recommended_budget
                    ? "budget " + std::to_string(*metadata.recommended_budget)
                    : std::string("no budget; name one with --budget"))
            << "\n\nPredicted density, by budget and prompt length in tokens: the share of the "
               "blocks that\nattention computes in full (1.00: all of them, nothing is left out)."
               "\n\n  budget";
  for (const std::int64_t length : lengths) std::printf("%9lld", static_cast<long long>(length));
  std::printf("   thresholds\n");
  for (const BudgetSummary& summary : summarise(loaded.table)) {
    std::printf("%8lld", static_cast<long long>(summary.budget));
    for (const std::int64_t length : lengths) {
      std::printf("%9.2f", predicted_density(summary.budget, length, metadata.block));
    }
    const double dense = 100.0 * static_cast<double>(summary.dense) /
                         static_cast<double>(std::max<std::int64_t>(summary.entries, 1));
    if (std::isnan(summary.lowest)) {
      std::printf("   none finite, %.0f %% dense\n", dense);
    } else {
      std::printf("   %.3g to %.3g, %.0f %% dense\n", summary.lowest, summary.highest, dense);
    }
  }
}

struct ShowOptions {
  std::string file;
  std::vector<std::int64_t> lengths;
  bool json = false;
};

void show(const ShowOptions& options) {
  const Loaded loaded = load_either(options.file);
  const std::vector<std::int64_t> lengths =
      options.lengths.empty() ? default_lengths(loaded.table.metadata().max_seqlen)
                              : options.lengths;
  if (options.json) {
    print_json(describe(options.file, loaded, lengths));
    return;
  }
  print_table(options.file, loaded, lengths);
}

struct MergeOptions {
  std::vector<std::string> parts;
  std::string out;
  std::string model;
  std::int64_t recommend = 0;
  bool partial = false;
  bool allow_other_model = false;
  bool json = false;
};

void merge(const MergeOptions& options) {
  check_writable("--out", options.out);
  MergeFilesParams params;
  params.parts = options.parts;
  params.out = options.out;
  params.partial = options.partial;
  params.model = options.model;
  if (options.recommend > 0) {
    if (options.partial) {
      throw Error(ErrorCode::kInvalidArgument,
                  "--recommend belongs to a threshold file; --partial writes sums");
    }
    params.recommended_budget = options.recommend;
  }
  params.allow_other_model = options.allow_other_model;
  const Calibration sum = merge_files(params);
  const ThresholdMetadata& metadata = sum.metadata();
  if (options.json) {
    print_json({{"out", options.out},
                {"kind", options.partial ? "partial calibration" : "thresholds"},
                {"parts", options.parts},
                {"num_samples", metadata.num_samples},
                {"max_seqlen", metadata.max_seqlen},
                {"budgets", metadata.budgets}});
    return;
  }
  std::cout << path_text(options.out) << ": "
            << (options.partial ? "partial calibration" : "thresholds") << " from "
            << metadata.num_samples << " samples in " << options.parts.size() << " files, budgets "
            << list_text(metadata.budgets) << "\n";
}

struct CheckOptions {
  std::string file;
  std::string model;
  std::optional<std::int64_t> num_layers;
  std::optional<std::int64_t> num_heads_q;
  std::optional<float> softmax_scale;
  std::optional<std::int64_t> budget;
  bool json = false;
};

void check(const CheckOptions& options) {
  const ThresholdTable table = ThresholdTable::load(options.file);
  const ThresholdMetadata& metadata = table.metadata();
  std::vector<std::string> notes;
  if (options.budget) (void)table.view(*options.budget, 0);
  table.check_model("the command line", options.num_layers.value_or(table.num_layers()),
                    options.num_heads_q.value_or(table.num_heads_q()),
                    options.softmax_scale.value_or(metadata.softmax_scale));
  if (!options.model.empty()) {
    const gguf::GgufShape shape = gguf::read_gguf_shape(options.model);
    table.check_model(options.model, shape.num_layers, shape.num_heads_q, shape.softmax_scale);
    const std::string other =
        table.other_model(options.model, gguf::gguf_fingerprint(options.model));
    if (!other.empty()) notes.push_back(other);
    if (shape.context_length > metadata.max_seqlen) {
      notes.push_back("the model reads up to " + std::to_string(shape.context_length) +
                      " tokens; the thresholds were calibrated on up to " +
                      std::to_string(metadata.max_seqlen) + ", and repeat their last block beyond");
    }
  }
  for (const BudgetSummary& summary : summarise(table)) {
    if (summary.dense == summary.entries) {
      notes.push_back("budget " + std::to_string(summary.budget) +
                      " leaves nothing out: no sample had more blocks than that");
    }
  }
  if (options.json) {
    print_json({{"file", options.file}, {"ok", true}, {"model", metadata.model}, {"notes", notes}});
    return;
  }
  std::cout << path_text(options.file) << ": ok, thresholds of " << quote(metadata.model) << " ("
            << table.num_layers() << " layers, " << table.num_heads_q() << " query heads), budgets "
            << list_text(metadata.budgets) << "\n";
  for (const std::string& note : notes) std::cout << "  note: " << note << "\n";
}

void add_show(CLI::App& parent) {
  const auto options = std::make_shared<ShowOptions>();
  CLI::App* verb = parent.add_subcommand(
      "show", "What a threshold file holds, and how much each budget leaves of attention");
  verb->add_option("file", options->file, "A threshold file or a partial calibration")
      ->required()
      ->type_name("FILE");
  verb->add_option("--length", options->lengths,
                   "Prompt lengths in tokens to predict the density for (default: up to the "
                   "calibrated length)")
      ->transform(whole_number(1, std::int64_t{1} << 31))
      ->type_name("N...");
  add_json_flag(*verb, options->json);
  verb->callback([options] { show(*options); });
}

void add_merge(CLI::App& parent) {
  const auto options = std::make_shared<MergeOptions>();
  CLI::App* verb = parent.add_subcommand(
      "merge", "Adds partial calibrations, as if one run had seen all their samples");
  verb->add_option("parts", options->parts,
                   "Partial calibrations, from `bsfa calibrate --partial` or `merge --partial`")
      ->required()
      ->type_name("FILE...");
  verb->add_option("--out", options->out, "The file to write; an existing one is replaced")
      ->required()
      ->type_name("FILE");
  verb->add_flag("--partial", options->partial,
                 "Write a partial calibration again, to be merged with more");
  verb->add_option("--model", options->model,
                   "The model's name in the new file; also merges parts that name it differently")
      ->type_name("NAME");
  verb->add_option("--recommend", options->recommend,
                   "The budget that is used where none is named; one of the file's")
      ->transform(whole_number(1, kMaxTokens))
      ->type_name("N");
  verb->add_flag("--allow-other-model", options->allow_other_model,
                 "Merge parts whose fingerprints say that they are of different weights");
  add_json_flag(*verb, options->json);
  verb->callback([options] { merge(*options); });
}

void add_check(CLI::App& parent) {
  const auto options = std::make_shared<CheckOptions>();
  CLI::App* verb = parent.add_subcommand(
      "check", "Whether a file is a sound threshold file, and fits a model (exit code 0, else 2)");
  verb->add_option("file", options->file, "The threshold file")->required()->type_name("FILE");
  verb->add_option("--model", options->model,
                   "A GGUF file whose layers, heads and softmax scale must match")
      ->type_name("FILE");
  verb->add_option("--layers", options->num_layers, "Layers the model must have")
      ->transform(whole_number(1, kMaxLayers))
      ->type_name("N");
  verb->add_option("--heads", options->num_heads_q, "Query heads the model must have")
      ->transform(whole_number(1, kMaxHeads))
      ->type_name("N");
  verb->add_option("--softmax-scale", options->softmax_scale, "The model's softmax scale")
      ->transform(
          number_between(std::numeric_limits<float>::min(), std::numeric_limits<float>::max()))
      ->type_name("X");
  verb->add_option("--budget", options->budget, "A budget that the file must have")
      ->transform(whole_number(1, kMaxTokens))
      ->type_name("N");
  add_json_flag(*verb, options->json);
  verb->callback([options] { check(*options); });
}

}  // namespace

void add_thresholds(CLI::App& app) {
  CLI::App* verb = app.add_subcommand(
      "thresholds",
      "Threshold files: what they hold, whether they fit, merging of partial calibrations");
  verb->require_subcommand(1);
  add_show(*verb);
  add_merge(*verb);
  add_check(*verb);
}

}  // namespace bsfa::cli

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bsfa/attention.hpp"
#include "bsfa/export.hpp"

namespace bsfa {

struct ThresholdMetadata {
  std::vector<std::int64_t> budgets;  // ascending; the paper's k, blocks kept beside the diagonal
  BlockShape block;
  float softmax_scale = 0;      // of the scores that were calibrated on
  std::int64_t max_seqlen = 0;  // tokens of the longest sample: num_q_blocks blocks, rounded up
  std::string model;            // name or path as given, UTF-8 without NUL
  std::int64_t num_samples = 0;
  std::string producer;                            // program and version
  std::optional<std::int64_t> recommended_budget;  // one of budgets
  std::string fingerprint = {};  // of the weights (weight_fingerprint); empty: not known
};

// Thresholds of a model at several budgets, and their file. docs/method.md "The threshold file".
class BSFA_API ThresholdTable {
 public:
  // values: [num_budgets, num_layers, num_heads_q, num_q_blocks] row-major. Throws Error if they
  // disagree with the metadata or hold NaN.
  ThresholdTable(ThresholdMetadata metadata, std::int64_t num_layers, std::int64_t num_heads_q,
                 std::int64_t num_q_blocks, std::vector<float> values);

  // Reads a safetensors file. Throws Error naming the file, the field, what it found and what it
  // expected; nothing in a file is ever executed.
  static ThresholdTable load(const std::string& path);
  // Writes beside `path` and renames, as write_file does: an interruption or a full disk leaves
  // the old file.
  void save(const std::string& path) const;

  const ThresholdMetadata& metadata() const { return metadata_; }
  std::int64_t num_layers() const { return num_layers_; }
  std::int64_t num_heads_q() const { return num_heads_q_; }
  std::int64_t num_q_blocks() const { return num_q_blocks_; }
  const std::vector<float>& values() const { return values_; }

  // The table of one layer at a budget of the file, for AttentionParams::policy on the CPU (or to
  // be copied to a device). Valid as long as this object. Throws Error, listing the budgets.
  ThresholdView view(std::int64_t budget, std::int64_t layer) const;

  // One of the budgets, or none. Throws Error, listing the budgets.
  void set_recommended_budget(std::optional<std::int64_t> budget);

  // What speaks against these being the thresholds of this model, as a sentence for a warning; ""
  // if nothing does. Fingerprints of one kind of source decide. Where there are none to compare,
  // names do, as far as they can: "org/Model-8B" and "model-8b-q8_0.gguf" are taken for one. An
  // empty argument: not known.
  std::string other_model(const std::string& name, const std::string& fingerprint) const;

  // Throws Error if these are not for a model of this shape; `what` names the model. Scales may
  // differ by rounding: 1e-5 of their size.
  void check_model(const std::string& what, std::int64_t num_layers, std::int64_t num_heads_q,
                   float softmax_scale) const;

 private:
  ThresholdMetadata metadata_;
  std::int64_t num_layers_;
  std::int64_t num_heads_q_;
  std::int64_t num_q_blocks_;
  std::vector<float> values_;
  std::string origin_;  // the file that this was read from, for messages
};

// sum_i (min(k, A_i) + D_i) / sum_i (A_i + D_i) over the query blocks of a causal prefill of
// `seqlen` tokens: D_i always-kept visible blocks, A_i the others. 1 for an empty prefill.
BSFA_API double predicted_density(std::int64_t budget, std::int64_t seqlen, BlockShape block);

}  // namespace bsfa

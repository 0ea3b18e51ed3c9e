#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bsfa/attention.hpp"
#include "bsfa/export.hpp"
#include "bsfa/thresholds.hpp"

// Calibration, paper section 4; docs/method.md "Calibration".

namespace bsfa {

// From block maxima (AttentionParams::block_max of a dense causal call over whole query blocks) to
// the threshold of every budget. Row i sees the columns from the first to the last that is not
// -inf. Its threshold is -inf if at most `budget` of those are not always kept, else the midpoint,
// in fp64 rounded to fp32, of the budget-th and the (budget+1)-th largest maximum of those. NaN for
// every budget if a column that the row sees is NaN or infinite: Calibration::add refuses it.
// Extents are those of a call: up to kMaxHeads heads and the blocks of kMaxTokens positions.
struct SelectThresholdsParams {
  StridedView<const float, 3> block_max;  // [num_heads_q, q blocks, kv blocks], -inf: invisible
  std::int64_t first_q_block = 0;         // absolute gate block of row 0
  std::int64_t first_kv_block = 0;        // absolute gate block of column 0
  BlockShape block;
  const std::int64_t* budgets = nullptr;  // [num_budgets] ascending, >= 1; host memory
  std::int64_t num_budgets = 0;
  StridedView<float, 3> thresholds;  // [num_budgets, num_heads_q, q blocks]; overlaps nothing
  Device device;                     // of block_max and thresholds
  std::string backend;               // empty: by device; the CPU ones share one implementation
  void* stream = nullptr;            // cudaStream_t
  Executor* executor = nullptr;      // CPU; none: the calling thread alone
};

// Throws Error before anything is written; otherwise writes every element of thresholds.
BSFA_API void select_thresholds(const SelectThresholdsParams& params);

// The running result of a calibration: for each budget, layer, head and query block the fp64 sum
// and the count of the finite sample thresholds, and for each query block the count of the samples
// that reach it. A merge adds these, so it loses nothing that one long run would have kept.
class BSFA_API Calibration {
 public:
  // The caller sets metadata.budgets, block, softmax_scale, model and, if it likes, fingerprint,
  // recommended_budget and producer (default: this library). This class keeps max_seqlen and
  // num_samples. Throws Error if the metadata or a count is not usable.
  Calibration(ThresholdMetadata metadata, std::int64_t num_layers, std::int64_t num_heads_q);

  // One sample of `num_tokens` tokens: begin_sample, then add until every layer has every query
  // block, then end_sample. Nothing of a sample counts before end_sample: whatever add or
  // end_sample refuse (they throw Error naming the sample) drops the whole sample.
  void begin_sample(const std::string& name, std::int64_t num_tokens);

  // The thresholds of query rows [q_offset, q_offset + seqlen_q) of one layer: all of them, or a
  // chunk of the prefill that starts on a query block and ends on one or at the last token.
  // Layers and chunks in any order. NaN (a maximum that was NaN or infinite) is refused.
  void add(std::int64_t layer, std::int64_t q_offset, std::int64_t seqlen_q,
           const StridedView<const float, 3>& thresholds);  // host memory, from select_thresholds
  void end_sample();
  void drop_sample();  // abandons the sample under way, if there is one

  // Adds the samples of another calibration of the same model name, budgets, grid, scale and shape.
  // Refuses samples that are in here already, and weights whose fingerprints differ; with
  // allow_other_model they may, and the sum has no fingerprint. Nor has it one if only one of the
  // two does.
  void merge(const Calibration& other, bool allow_other_model = false);

  const ThresholdMetadata& metadata() const { return metadata_; }
  std::int64_t num_samples() const { return metadata_.num_samples; }
  std::int64_t num_layers() const { return num_layers_; }
  std::int64_t num_heads_q() const { return num_heads_q_; }
  std::int64_t num_q_blocks() const { return num_q_blocks_; }  // of the longest sample

  // The name that files carry; also what merge compares.
  void set_model(const std::string& model) { metadata_.model = model; }

  // The mean over the samples that reach a block and are finite there, -inf if none is. Throws
  // Error if there is no sample, or one under way, or if nothing was gated: no finite threshold
  // anywhere, although blocks were left over at some budget.
  ThresholdTable finish() const;

  // A partial calibration as a file (safetensors, format bsfa-calibration), as strict as that of
  // ThresholdTable, and written as that is. What finish would refuse is not saved.
  void save(const std::string& path) const;
  static Calibration load(const std::string& path);

 private:
  friend struct CalibrationFile;  // reads and writes the members below

  void grow(std::int64_t num_q_blocks);
  void check_usable(const char* purpose) const;

  ThresholdMetadata metadata_;
  std::int64_t num_layers_ = 0;
  std::int64_t num_heads_q_ = 0;
  std::int64_t num_q_blocks_ = 0;
  std::vector<double> sums_;           // [num_budgets, num_layers, num_heads_q, num_q_blocks]
  std::vector<std::int64_t> finite_;   // likewise: samples with a finite threshold
  std::vector<std::int64_t> reached_;  // [num_q_blocks] samples that reach the block
  // Of each sample that has a finite threshold, 16 hexadecimal digits that tell it from others.
  std::vector<std::string> sample_ids_;

  // The sample under way.
  bool in_sample_ = false;
  std::string sample_name_;
  std::int64_t sample_tokens_ = 0;
  std::int64_t sample_q_blocks_ = 0;
  std::vector<float> sample_;              // [num_budgets, num_layers, num_heads_q, q blocks]
  std::vector<std::uint8_t> sample_done_;  // [num_layers, q blocks]
};

// Partial calibrations that are added, and the file that comes of it: the rules of `thresholds
// merge`, for every program.
struct MergeFilesParams {
  std::vector<std::string> parts;  // files of Calibration::save
  std::string out;                 // an existing file is replaced
  bool partial = false;            // out: the sums again, to be merged with more, not thresholds
  std::string model = {};  // its name in the new file, whatever the parts say; empty: as they agree
  std::optional<std::int64_t> recommended_budget = {};  // of thresholds
  bool allow_other_model = false;                       // fingerprints may differ
};

// Returns what was written, as sums. Throws Error, with nothing written: if parts do not fit
// together (Calibration::merge), if one is given twice under whatever name, and if the thresholds
// would replace one of them.
BSFA_API Calibration merge_files(const MergeFilesParams& params);

}  // namespace bsfa

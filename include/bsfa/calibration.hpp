#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bsfa/attention.hpp"
#include "bsfa/export.hpp"
#include "bsfa/thresholds.hpp"

// Calibration, paper section 4; docs/method.md "Calibration".

namespace bsfa {

// From block maxima (AttentionParams::block_max of a causal call over whole query blocks) to the
// threshold of every budget: per head and query block, -inf if at most `budget` visible blocks are
// not always kept, else the midpoint of the budget-th and the (budget+1)-th largest maximum of
// those. NaN where any of those maxima is NaN or infinite (Calibration::add refuses such a sample).
struct SelectThresholdsParams {
  StridedView<const float, 3> block_max;  // [num_heads_q, q blocks, kv blocks], -inf: invisible
  std::int64_t first_q_block = 0;         // absolute gate block of row 0
  std::int64_t first_kv_block = 0;        // absolute gate block of column 0
  BlockShape block;
  const std::int64_t* budgets = nullptr;  // [num_budgets] ascending, >= 1; host memory
  std::int64_t num_budgets = 0;
  StridedView<float, 3> thresholds;  // [num_budgets, num_heads_q, q blocks]
  Device device;                     // of block_max and thresholds
  std::string backend;               // empty: by device
  void* stream = nullptr;
  Executor* executor = nullptr;
};

// Throws Error; writes every element of thresholds.
BSFA_API void select_thresholds(const SelectThresholdsParams& params);

// The running result of a calibration: for each budget, layer, head and query block the fp64 sum
// and the count of finite sample thresholds, and the count of all samples that reach the block.
// Merging partial calibrations is exact in the counts and fp64 in the sums.
class BSFA_API Calibration {
 public:
  // metadata.budgets, block, softmax_scale, max_seqlen and model are set by the caller;
  // num_samples and producer by this class.
  Calibration(ThresholdMetadata metadata, std::int64_t num_layers, std::int64_t num_heads_q);

  // One sample: begin_sample, then add for each layer (in any order; several times for prefill in
  // chunks that start on a query block), then end_sample. A sample with a maximum that is NaN or
  // infinite is refused: add throws, naming sample, layer and head, and the whole sample is
  // dropped.
  void begin_sample(const std::string& name);
  // thresholds: [num_budgets, num_heads_q, q blocks], host memory, from select_thresholds.
  void add(std::int64_t layer, std::int64_t first_q_block,
           const StridedView<const float, 3>& thresholds);
  void end_sample();

  // Adds the samples of another calibration of the same model, budgets and grid.
  void merge(const Calibration& other);

  std::int64_t num_samples() const;

  // The mean over samples; blocks beyond the longest sample repeat the last one.
  ThresholdTable finish() const;

  // A partial calibration as a file (safetensors, fp64 sums and int64 counts): written to a
  // temporary file beside `path` and renamed, so that nothing is half written.
  void save(const std::string& path) const;
  static Calibration load(const std::string& path);

 private:
  ThresholdMetadata metadata_;
  std::int64_t num_layers_ = 0;
  std::int64_t num_heads_q_ = 0;
  std::int64_t num_q_blocks_ = 0;
  std::vector<double> sums_;           // [num_budgets, num_layers, num_heads_q, num_q_blocks]
  std::vector<std::int64_t> finite_;   // likewise: samples with a finite threshold
  std::vector<std::int64_t> reached_;  // likewise: samples that reach the block
  std::string sample_name_;            // of the sample under way
  bool in_sample_ = false;
  std::vector<float> sample_;  // its thresholds so far, NaN where not reached
};

}  // namespace bsfa

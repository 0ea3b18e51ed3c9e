#include "bsfa/calibration.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "bsfa/backends.hpp"
#include "bsfa/limits.hpp"
#include "bsfa/text.hpp"
#include "core/fingerprint.hpp"
#include "core/gate.hpp"
#include "core/memory.hpp"
#include "core/sha256.hpp"
#include "core/status.hpp"
#include "core/threshold_metadata.hpp"

namespace bsfa {
namespace {

// [rows, from] -> [rows, to] with to >= from; the new columns are zero.
template <typename T>
void widen(std::vector<T>* values, std::int64_t rows, std::int64_t from, std::int64_t to) {
  std::vector<T> wider(static_cast<std::size_t>(rows * to));
  for (std::int64_t row = 0; row < rows; ++row) {
    std::copy_n(values->begin() + row * from, from, wider.begin() + row * to);
  }
  *values = std::move(wider);
}

// What two calibrations must have in common.
Status check_alike(const Calibration& a, const Calibration& b, bool allow_other_model) {
  const ThresholdMetadata& x = a.metadata();
  const ThresholdMetadata& y = b.metadata();
  const auto refuse = [](const char* field, const auto& other, const auto& own) {
    return invalid_argument("the calibrations do not fit together: ", field, " is ", other,
                            " in one and ", own, " in the other; expected the same");
  };
  if (x.model != y.model) return refuse("model", quote(y.model), quote(x.model));
  if (x.budgets != y.budgets) return refuse("budgets", list_text(y.budgets), list_text(x.budgets));
  if (x.block.q != y.block.q) return refuse("q_block", y.block.q, x.block.q);
  if (x.block.kv != y.block.kv) return refuse("kv_block", y.block.kv, x.block.kv);
  if (x.softmax_scale != y.softmax_scale) {
    return refuse("softmax_scale", y.softmax_scale, x.softmax_scale);
  }
  if (a.num_layers() != b.num_layers()) {
    return refuse("the number of layers", b.num_layers(), a.num_layers());
  }
  if (a.num_heads_q() != b.num_heads_q()) {
    return refuse("the number of query heads", b.num_heads_q(), a.num_heads_q());
  }
  if (!allow_other_model && comparable_fingerprints(x.fingerprint, y.fingerprint) &&
      x.fingerprint != y.fingerprint) {
    return invalid_argument(
        "the calibrations are of models with different weights: fingerprint is ", y.fingerprint,
        " in one and ", x.fingerprint,
        " in the other; their mean would belong to neither "
        "(allow_other_model merges them all the same)");
  }
  return {};
}

// The sample as a file carries it: nothing of the caller's name, which another run may choose anew.
std::string sample_id(std::int64_t tokens, const std::vector<float>& thresholds) {
  Sha256 hash;
  hash.update(std::to_string(tokens) + "\n");
  hash.update(thresholds.data(), thresholds.size() * sizeof(float));
  return hash.finish().substr(0, 16);
}

// Whether some query block of the samples has more blocks before its diagonal than the smallest
// budget, so that layers that are gated have finite thresholds there.
bool leaves_blocks_over(const ThresholdMetadata& metadata, std::int64_t num_q_blocks) {
  const std::int64_t last = num_q_blocks - 1;
  return num_q_blocks > 0 && always_kept_range(last, metadata.block).begin > metadata.budgets[0];
}

}  // namespace

Calibration::Calibration(ThresholdMetadata metadata, std::int64_t num_layers,
                         std::int64_t num_heads_q)
    : metadata_(std::move(metadata)), num_layers_(num_layers), num_heads_q_(num_heads_q) {
  if (const Status status = check_calibration_metadata(metadata_); !status.ok()) {
    throw Error(status);
  }
  if (num_layers < 1 || num_layers > kMaxLayers || num_heads_q < 1 || num_heads_q > kMaxHeads) {
    throw Error(invalid_argument("num_layers and num_heads_q are ", num_layers, " and ",
                                 num_heads_q, "; accepted: 1 to ", kMaxLayers, " and 1 to ",
                                 kMaxHeads));
  }
  metadata_.max_seqlen = 0;
  metadata_.num_samples = 0;
  if (metadata_.producer.empty()) metadata_.producer = std::string("bsfa ") + version();
}

void Calibration::begin_sample(const std::string& name, std::int64_t num_tokens) {
  if (in_sample_) {
    throw Error(invalid_argument("sample ", quote(name), " begins while sample ",
                                 quote(sample_name_), " is under way; end or drop that first"));
  }
  if (num_tokens < 1 || num_tokens > kMaxTokens) {
    throw Error(invalid_argument("sample ", quote(name), " has ", num_tokens,
                                 " tokens; accepted: 1 to ", kMaxTokens));
  }
  const std::int64_t blocks = num_q_blocks_of(num_tokens, metadata_.block);
  std::int64_t values = 1;
  for (const std::int64_t extent :
       {static_cast<std::int64_t>(metadata_.budgets.size()), num_layers_, num_heads_q_, blocks}) {
    if (__builtin_mul_overflow(values, extent, &values) || values > kMaxElements) {
      throw Error(invalid_argument("sample ", quote(name), " has ", num_tokens, " tokens; ",
                                   num_layers_, " layers of ", num_heads_q_,
                                   " heads of it are more than memory can hold"));
    }
  }
  sample_name_ = name;
  sample_tokens_ = num_tokens;
  sample_q_blocks_ = blocks;
  sample_.assign(static_cast<std::size_t>(values), 0.0f);
  sample_done_.assign(static_cast<std::size_t>(num_layers_ * sample_q_blocks_), 0);
  in_sample_ = true;
}

void Calibration::drop_sample() {
  in_sample_ = false;
  sample_.clear();
  sample_done_.clear();
}

void Calibration::add(std::int64_t layer, std::int64_t q_offset, std::int64_t seqlen_q,
                      const StridedView<const float, 3>& thresholds) {
  if (!in_sample_) {
    throw Error(invalid_argument("thresholds were added with no sample under way; begin one"));
  }
  const auto refuse = [&](const auto&... parts) {
    const Status status = invalid_argument("sample ", quote(sample_name_), ": ", parts...);
    drop_sample();
    throw Error(status);
  };
  if (layer < 0 || layer >= num_layers_) {
    refuse("layer is ", layer, "; accepted: 0 to ", num_layers_ - 1);
  }
  if (q_offset < 0 || seqlen_q < 1 || q_offset > sample_tokens_ - seqlen_q) {
    refuse("layer ", layer, ": rows ", q_offset, " to ", q_offset, " + ", seqlen_q,
           " were added; the sample has ", sample_tokens_, " tokens");
  }
  const std::int64_t q_block = metadata_.block.q;
  const std::int64_t q_end = q_offset + seqlen_q;
  if (q_offset % q_block != 0 || (q_end % q_block != 0 && q_end != sample_tokens_)) {
    refuse("layer ", layer, ": rows ", q_offset, " to ", q_end,
           " split a query block over calls; a chunk starts on a multiple of ", q_block,
           " and ends on one or at the last token");
  }
  if (const Status status = check_view(memory_of("thresholds", thresholds)); !status.ok()) {
    refuse("layer ", layer, ": ", status.message);
  }
  const std::int64_t first = q_offset / q_block;
  const std::int64_t count = ceil_div(seqlen_q, q_block);
  const auto num_budgets = static_cast<std::int64_t>(metadata_.budgets.size());
  const std::int64_t* shape = thresholds.shape;
  if (shape[0] != num_budgets || shape[1] != num_heads_q_ || shape[2] != count) {
    refuse("layer ", layer, ": thresholds has shape [", shape[0], ", ", shape[1], ", ", shape[2],
           "]; expected [", num_budgets, " budgets, ", num_heads_q_, " heads, ", count,
           " query blocks]");
  }
  if (!thresholds) refuse("layer ", layer, ": thresholds.data is null");
  for (std::int64_t i = 0; i < count; ++i) {
    if (sample_done_[static_cast<std::size_t>(layer * sample_q_blocks_ + first + i)] != 0) {
      refuse("layer ", layer, ": query block ", first + i, " was added before");
    }
  }
  for (std::int64_t budget = 0; budget < num_budgets; ++budget) {
    for (std::int64_t head = 0; head < num_heads_q_; ++head) {
      const float* from =
          thresholds.data + budget * thresholds.stride[0] + head * thresholds.stride[1];
      float* to = sample_.data() +
                  ((budget * num_layers_ + layer) * num_heads_q_ + head) * sample_q_blocks_ + first;
      for (std::int64_t i = 0; i < count; ++i) {
        const float value = from[i * thresholds.stride[2]];
        // Selection gives -inf or a finite number, or NaN for a maximum that was not finite.
        if (std::isnan(value) || value == std::numeric_limits<float>::infinity()) {
          refuse("layer ", layer, ", head ", head, ", query block ", first + i,
                 ": a block maximum is NaN or infinite (the threshold came as ", value,
                 "); the sample is left out");
        }
        to[i] = value;
      }
    }
  }
  for (std::int64_t i = 0; i < count; ++i) {
    sample_done_[static_cast<std::size_t>(layer * sample_q_blocks_ + first + i)] = 1;
  }
}

void Calibration::end_sample() {
  if (!in_sample_) throw Error(invalid_argument("there is no sample under way to end"));
  const auto missing = std::find(sample_done_.begin(), sample_done_.end(), 0);
  if (missing != sample_done_.end()) {
    const std::int64_t index = missing - sample_done_.begin();
    const Status status =
        invalid_argument("sample ", quote(sample_name_), ": layer ", index / sample_q_blocks_,
                         " has no query block ", index % sample_q_blocks_, "; expected all of its ",
                         sample_tokens_, " tokens");
    drop_sample();
    throw Error(status);
  }
  grow(sample_q_blocks_);
  const std::int64_t rows =
      static_cast<std::int64_t>(metadata_.budgets.size()) * num_layers_ * num_heads_q_;
  bool any_finite = false;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < sample_q_blocks_; ++i) {
      const float value = sample_[static_cast<std::size_t>(row * sample_q_blocks_ + i)];
      if (!std::isfinite(value)) continue;
      const auto index = static_cast<std::size_t>(row * num_q_blocks_ + i);
      sums_[index] += value;
      ++finite_[index];
      any_finite = true;
    }
  }
  // A sample without a finite threshold adds nothing, however often it comes.
  if (any_finite) sample_ids_.push_back(sample_id(sample_tokens_, sample_));
  for (std::int64_t i = 0; i < sample_q_blocks_; ++i) ++reached_[static_cast<std::size_t>(i)];
  metadata_.max_seqlen = std::max(metadata_.max_seqlen, sample_tokens_);
  ++metadata_.num_samples;
  drop_sample();
}

void Calibration::grow(std::int64_t num_q_blocks) {
  if (num_q_blocks <= num_q_blocks_) return;
  const std::int64_t rows =
      static_cast<std::int64_t>(metadata_.budgets.size()) * num_layers_ * num_heads_q_;
  widen(&sums_, rows, num_q_blocks_, num_q_blocks);
  widen(&finite_, rows, num_q_blocks_, num_q_blocks);
  reached_.resize(static_cast<std::size_t>(num_q_blocks));
  num_q_blocks_ = num_q_blocks;
}

void Calibration::merge(const Calibration& other, bool allow_other_model) {
  if (in_sample_ || other.in_sample_) {
    throw Error(invalid_argument("sample ", quote(in_sample_ ? sample_name_ : other.sample_name_),
                                 " is under way; end or drop it before a merge"));
  }
  if (const Status status = check_alike(*this, other, allow_other_model); !status.ok()) {
    throw Error(status);
  }
  const std::set<std::string> known(sample_ids_.begin(), sample_ids_.end());
  std::int64_t common = 0;
  for (const std::string& id : other.sample_ids_) common += known.count(id) > 0 ? 1 : 0;
  // Files of before there were ids: the same sums, then, if there are any.
  const bool same_sums =
      other.sums_ == sums_ && other.finite_ == finite_ &&
      std::any_of(finite_.begin(), finite_.end(), [](std::int64_t count) { return count > 0; });
  if (common > 0 || same_sums) {
    throw Error(invalid_argument(
        "the calibrations have ", common > 0 ? std::to_string(common) : "their",
        common == 1 ? " sample" : " samples", " in common, which would count twice"));
  }
  // Only what both say is true of the sum.
  std::string& fingerprint = metadata_.fingerprint;
  if (metadata_.num_samples == 0 && fingerprint.empty()) {
    fingerprint = other.metadata_.fingerprint;
  } else if (fingerprint != other.metadata_.fingerprint) {
    fingerprint.clear();
  }
  sample_ids_.insert(sample_ids_.end(), other.sample_ids_.begin(), other.sample_ids_.end());
  grow(other.num_q_blocks_);
  const std::int64_t rows =
      static_cast<std::int64_t>(metadata_.budgets.size()) * num_layers_ * num_heads_q_;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t i = 0; i < other.num_q_blocks_; ++i) {
      const auto from = static_cast<std::size_t>(row * other.num_q_blocks_ + i);
      const auto to = static_cast<std::size_t>(row * num_q_blocks_ + i);
      sums_[to] += other.sums_[from];
      finite_[to] += other.finite_[from];
    }
  }
  for (std::size_t i = 0; i < other.reached_.size(); ++i) reached_[i] += other.reached_[i];
  metadata_.max_seqlen = std::max(metadata_.max_seqlen, other.metadata_.max_seqlen);
  metadata_.num_samples += other.metadata_.num_samples;
  if (!metadata_.recommended_budget) {
    metadata_.recommended_budget = other.metadata_.recommended_budget;
  }
}

void Calibration::check_usable(const char* purpose) const {
  if (in_sample_) {
    throw Error(invalid_argument("sample ", quote(sample_name_),
                                 " is under way; end or drop it before ", "the calibration is ",
                                 purpose));
  }
  if (metadata_.num_samples == 0) {
    throw Error(invalid_argument("the calibration has no sample and cannot be ", purpose));
  }
  const bool any_finite =
      std::any_of(finite_.begin(), finite_.end(), [](std::int64_t count) { return count > 0; });
  if (!any_finite && leaves_blocks_over(metadata_, num_q_blocks_)) {
    throw Error(invalid_argument(
        "no layer has a threshold, although the samples have more blocks than the smallest "
        "budget, ",
        metadata_.budgets[0],
        ": none was gated (a model's own windows leave nothing over, or attention fell back); "
        "nothing was calibrated"));
  }
}

ThresholdTable Calibration::finish() const {
  check_usable("finished");
  std::vector<float> values(sums_.size());
  for (std::size_t index = 0; index < values.size(); ++index) {
    values[index] = finite_[index] > 0
                        ? static_cast<float>(sums_[index] / static_cast<double>(finite_[index]))
                        : -std::numeric_limits<float>::infinity();
  }
  return ThresholdTable(metadata_, num_layers_, num_heads_q_, num_q_blocks_, std::move(values));
}

}  // namespace bsfa

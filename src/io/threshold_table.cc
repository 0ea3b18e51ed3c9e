#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "bsfa/thresholds.hpp"
#include "core/fingerprint.hpp"
#include "core/geometry.hpp"
#include "core/threshold_metadata.hpp"
#include "io/checksum.hpp"
#include "io/metadata.hpp"
#include "io/safetensors.hpp"
#include "io/text.hpp"
#include "io/threshold_file.hpp"

namespace bsfa {
namespace {

constexpr std::int64_t kMaxPredictedSeqlen = std::int64_t{1} << 31;  // a sum over its blocks

void throw_if_error(const Status& status) {
  if (!status.ok()) throw Error(status);
}

// The last part of a path or name, its letters and digits in lower case.
std::string essence_of(std::string_view name) {
  while (!name.empty() && (name.back() == '/' || name.back() == '\\')) name.remove_suffix(1);
  name.remove_prefix(name.find_last_of("/\\") + 1);
  if (name.ends_with(".gguf")) name.remove_suffix(5);
  std::string essence;
  for (const char c : name) {
    if (c >= 'A' && c <= 'Z') essence.push_back(static_cast<char>(c - 'A' + 'a'));
    // Bytes of other alphabets count as they are.
    if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || (c & 0x80) != 0) essence.push_back(c);
  }
  return essence;
}

// Two names of one model may differ by where it lies, its file type and its quantisation.
bool names_differ(std::string_view a, std::string_view b) {
  const std::string x = essence_of(a), y = essence_of(b);
  if (x.empty() || y.empty() || x == "unknown" || y == "unknown") return false;  // no names
  return x.find(y) == std::string::npos && y.find(x) == std::string::npos;
}

Status check_shape(const ThresholdMetadata& metadata, const std::vector<std::int64_t>& shape) {
  const auto budgets = static_cast<std::int64_t>(metadata.budgets.size());
  const std::int64_t blocks = num_q_blocks_of(metadata.max_seqlen, metadata.block);
  if (shape[0] != budgets || shape[1] < 1 || shape[2] < 1 || shape[3] != blocks) {
    return invalid_argument("thresholds has shape ", shape_text(shape), "; expected [", budgets,
                            " budgets, num_layers, num_heads_q, ", blocks,
                            " query blocks], which is what max_seqlen ", metadata.max_seqlen,
                            " in blocks of ", metadata.block.q, " gives");
  }
  return {};
}

Status check_values(const std::vector<std::int64_t>& shape, const ThresholdMetadata& metadata,
                    const std::vector<float>& values) {
  const auto found =
      std::find_if(values.begin(), values.end(), [](float value) { return std::isnan(value); });
  if (found == values.end()) return {};
  const std::int64_t index = found - values.begin();
  return invalid_argument(
      "thresholds holds NaN at budget ",
      metadata.budgets[static_cast<std::size_t>(index / (shape[1] * shape[2] * shape[3]))],
      ", layer ", index / (shape[2] * shape[3]) % shape[1], ", head ", index / shape[3] % shape[2],
      ", query block ", index % shape[3], "; expected a number or an infinity");
}

}  // namespace

ThresholdTable::ThresholdTable(ThresholdMetadata metadata, std::int64_t num_layers,
                               std::int64_t num_heads_q, std::int64_t num_q_blocks,
                               std::vector<float> values)
    : metadata_(std::move(metadata)),
      num_layers_(num_layers),
      num_heads_q_(num_heads_q),
      num_q_blocks_(num_q_blocks),
      values_(std::move(values)) {
  throw_if_error(check_threshold_metadata(metadata_));
  const std::vector<std::int64_t> shape{static_cast<std::int64_t>(metadata_.budgets.size()),
                                        num_layers, num_heads_q, num_q_blocks};
  throw_if_error(check_shape(metadata_, shape));
  std::int64_t elements = 1;
  for (const std::int64_t extent : shape) {
    if (__builtin_mul_overflow(elements, extent, &elements)) {
      throw Error(invalid_argument("thresholds has shape ", shape_text(shape), ": too large"));
    }
  }
  if (static_cast<std::int64_t>(values_.size()) != elements) {
    throw Error(invalid_argument("values has ", values_.size(), " elements; expected ", elements,
                                 " for shape ", shape_text(shape)));
  }
  throw_if_error(check_values(shape, metadata_, values_));
}

Status read_threshold_table(const ByteSource& source, std::optional<ThresholdTable>* table) {
  const std::string& file = source.name();
  SafetensorsReader reader(source);
  BSFA_RETURN_IF_ERROR(reader.open());
  ThresholdMetadata metadata;
  BSFA_RETURN_IF_ERROR(metadata_from_strings(file, kThresholdFormat, reader.metadata(), &metadata));
  BSFA_RETURN_IF_ERROR(reader.expect_tensors({"thresholds"}));
  const TensorEntry* tensor = nullptr;
  BSFA_RETURN_IF_ERROR(reader.find("thresholds", "F32", 4, &tensor));
  BSFA_RETURN_IF_ERROR(verify_checksum(file, reader));
  Status status = check_shape(metadata, tensor->shape);
  if (status.ok()) {
    std::vector<float> values((tensor->end - tensor->begin) / sizeof(float));
    BSFA_RETURN_IF_ERROR(reader.read(*tensor, values.data()));
    status = check_values(tensor->shape, metadata, values);
    if (status.ok()) {
      table->emplace(std::move(metadata), tensor->shape[1], tensor->shape[2], tensor->shape[3],
                     std::move(values));
      return {};
    }
  }
  return format_error(file, ": tensor ", status.message);
}

ThresholdTable ThresholdTable::load(const std::string& path) {
  FileSource source(path);
  throw_if_error(source.open());
  std::optional<ThresholdTable> table;
  throw_if_error(read_threshold_table(source, &table));
  table->origin_ = path_text(path);
  return *std::move(table);
}

void ThresholdTable::save(const std::string& path) const {
  const std::string_view bytes(reinterpret_cast<const char*>(values_.data()),
                               values_.size() * sizeof(float));
  const std::vector<TensorToWrite> tensors{{"thresholds",
                                            "F32",
                                            {static_cast<std::int64_t>(metadata_.budgets.size()),
                                             num_layers_, num_heads_q_, num_q_blocks_},
                                            bytes}};
  StringMap strings = metadata_to_strings(kThresholdFormat, metadata_);
  add_checksum(&strings, tensors);
  throw_if_error(write_safetensors(path, strings, tensors));
}

ThresholdView ThresholdTable::view(std::int64_t budget, std::int64_t layer) const {
  const std::string prefix = origin_.empty() ? "" : origin_ + ": ";
  const auto found = std::find(metadata_.budgets.begin(), metadata_.budgets.end(), budget);
  if (found == metadata_.budgets.end()) {
    throw Error(invalid_argument(prefix, "budget is ", budget, "; these thresholds have ",
                                 list_text(metadata_.budgets)));
  }
  if (layer < 0 || layer >= num_layers_) {
    throw Error(invalid_argument(prefix, "layer is ", layer, "; these thresholds have layers 0 to ",
                                 num_layers_ - 1));
  }
  ThresholdView view;
  const std::int64_t index = found - metadata_.budgets.begin();
  view.data = values_.data() + (index * num_layers_ + layer) * num_heads_q_ * num_q_blocks_;
  view.num_heads = num_heads_q_;
  view.num_q_blocks = num_q_blocks_;
  view.stride_head = num_q_blocks_;
  view.block = metadata_.block;
  return view;
}

void ThresholdTable::set_recommended_budget(std::optional<std::int64_t> budget) {
  ThresholdMetadata changed = metadata_;
  changed.recommended_budget = budget;
  throw_if_error(check_threshold_metadata(changed));
  metadata_ = std::move(changed);
}

std::string ThresholdTable::other_model(const std::string& name,
                                        const std::string& fingerprint) const {
  throw_if_error(check_fingerprint(fingerprint));
  const std::string made_for =
      (origin_.empty() ? "the thresholds" : origin_) + ": made for " + quote(metadata_.model);
  const std::string model = name.empty() ? "the model" : quote(name);
  if (comparable_fingerprints(metadata_.fingerprint, fingerprint)) {
    if (metadata_.fingerprint == fingerprint) return "";
    return made_for + " with the fingerprint " + metadata_.fingerprint + "; the weights of " +
           model + " have " + fingerprint;
  }
  if (!names_differ(metadata_.model, name)) return "";
  return made_for + "; this is " + model + ", and there are no fingerprints to compare";
}

void ThresholdTable::check_model(const std::string& what, std::int64_t num_layers,
                                 std::int64_t num_heads_q, float softmax_scale) const {
  const std::string made_for =
      (origin_.empty() ? "the thresholds" : origin_) + ": made for " + quote(metadata_.model);
  if (num_layers != num_layers_) {
    throw Error(
        invalid_argument(made_for, " with ", num_layers_, " layers; ", what, " has ", num_layers));
  }
  if (num_heads_q != num_heads_q_) {
    throw Error(invalid_argument(made_for, " with ", num_heads_q_, " query heads; ", what, " has ",
                                 num_heads_q));
  }
  // Two programs may round 1/sqrt(head_dim) differently; another scale moves every threshold.
  if (!(std::fabs(softmax_scale - metadata_.softmax_scale) <= 1e-5f * metadata_.softmax_scale)) {
    throw Error(invalid_argument(made_for, " with softmax_scale ", metadata_.softmax_scale, "; ",
                                 what, " has ", softmax_scale));
  }
}

double predicted_density(std::int64_t budget, std::int64_t seqlen, BlockShape block) {
  ThresholdMetadata checked;
  checked.budgets = {budget};
  checked.block = block;
  checked.softmax_scale = 1;
  throw_if_error(check_calibration_metadata(checked));
  if (seqlen < 0 || seqlen > kMaxPredictedSeqlen) {
    throw Error(invalid_argument("seqlen is ", seqlen, "; accepted: 0 to ", kMaxPredictedSeqlen));
  }
  SequenceLayout layout;
  layout.num_sequences = 1;
  layout.max_seqlen_q = seqlen;
  layout.max_seqlen_k = seqlen;
  layout.block = block;
  layout.causal = true;
  const Sequence sequence = sequence_at(layout, 0);
  double kept = 0;
  double visible = 0;
  for (std::int64_t i = 0; i < num_q_blocks_of(seqlen, block); ++i) {
    const BlockRange range = visible_blocks(layout, sequence, i);
    const std::int64_t diagonal = intersect(range, always_kept_range(i, block)).size();
    const std::int64_t others = range.size() - diagonal;
    kept += static_cast<double>(std::min(budget, others) + diagonal);
    visible += static_cast<double>(range.size());
  }
  return visible > 0 ? kept / visible : 1.0;
}

}  // namespace bsfa

#include <cmath>
#include <limits>
#include <utility>

#include "bsfa/calibration.hpp"
#include "core/threshold_metadata.hpp"
#include "io/checksum.hpp"
#include "io/metadata.hpp"
#include "io/safetensors.hpp"
#include "io/text.hpp"
#include "io/threshold_file.hpp"

// Partial calibrations: sums F64 and finite I64, both [num_budgets, num_layers, num_heads_q,
// num_q_blocks], reached I64 [num_q_blocks]; metadata as in a threshold file, and `samples`, a JSON
// list of the samples' identifiers (missing in files of before there were any).

namespace bsfa {

struct CalibrationFile {
  static Status read(const ByteSource& source, std::optional<Calibration>* calibration);
  static Status check(const Calibration& calibration);
  static void write(const Calibration& calibration, const std::string& path);
};

namespace {

constexpr double kLargest = std::numeric_limits<float>::max();

template <typename T>
std::string_view bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

}  // namespace

Status CalibrationFile::read(const ByteSource& source, std::optional<Calibration>* calibration) {
  const std::string& file = source.name();
  SafetensorsReader reader(source);
  BSFA_RETURN_IF_ERROR(reader.open());
  ThresholdMetadata metadata;
  BSFA_RETURN_IF_ERROR(
      metadata_from_strings(file, kCalibrationFormat, reader.metadata(), &metadata));
  if (metadata.num_samples < 1) {
    return format_error(file, ": metadata field num_samples is 0; expected 1 or more");
  }
  std::vector<std::string> sample_ids;
  BSFA_RETURN_IF_ERROR(sample_ids_from_strings(file, reader.metadata(), &sample_ids));
  BSFA_RETURN_IF_ERROR(reader.expect_tensors({"sums", "finite", "reached"}));
  const TensorEntry* sums = nullptr;
  const TensorEntry* finite = nullptr;
  const TensorEntry* reached = nullptr;
  BSFA_RETURN_IF_ERROR(reader.find("sums", "F64", 4, &sums));
  BSFA_RETURN_IF_ERROR(reader.find("finite", "I64", 4, &finite));
  BSFA_RETURN_IF_ERROR(reader.find("reached", "I64", 1, &reached));
  const auto budgets = static_cast<std::int64_t>(metadata.budgets.size());
  const std::int64_t blocks = num_q_blocks_of(metadata.max_seqlen, metadata.block);
  const std::vector<std::int64_t>& shape = sums->shape;
  if (shape[0] != budgets || shape[1] < 1 || shape[2] < 1 || shape[3] != blocks) {
    return format_error(file, ": tensor 'sums' has shape ", shape_text(shape), "; expected [",
                        budgets, " budgets, num_layers, num_heads_q, ", blocks,
                        " query blocks], which is what max_seqlen ", metadata.max_seqlen,
                        " in blocks of ", metadata.block.q, " gives");
  }
  if (finite->shape != shape) {
    return format_error(file, ": tensor 'finite' has shape ", shape_text(finite->shape),
                        "; expected that of 'sums', ", shape_text(shape));
  }
  if (reached->shape[0] != blocks) {
    return format_error(file, ": tensor 'reached' has shape ", shape_text(reached->shape),
                        "; expected [", blocks, "]");
  }
  if (sample_ids.size() > static_cast<std::uint64_t>(metadata.num_samples)) {
    return format_error(file, ": metadata field 'samples' lists ", sample_ids.size(),
                        " samples; num_samples is ", metadata.num_samples);
  }
  BSFA_RETURN_IF_ERROR(verify_checksum(file, reader));
  Calibration result(metadata, shape[1], shape[2]);
  result.metadata_ = metadata;  // the counts of samples and tokens too
  result.num_q_blocks_ = blocks;
  result.sample_ids_ = std::move(sample_ids);
  result.sums_.resize((sums->end - sums->begin) / sizeof(double));
  result.finite_.resize(result.sums_.size());
  result.reached_.resize(static_cast<std::size_t>(blocks));
  BSFA_RETURN_IF_ERROR(reader.read(*sums, result.sums_.data()));
  BSFA_RETURN_IF_ERROR(reader.read(*finite, result.finite_.data()));
  BSFA_RETURN_IF_ERROR(reader.read(*reached, result.reached_.data()));
  if (const Status status = check(result); !status.ok()) {
    return format_error(file, ": ", status.message);
  }
  *calibration = std::move(result);
  return {};
}

Status CalibrationFile::check(const Calibration& calibration) {
  const std::vector<std::int64_t>& reached = calibration.reached_;
  std::int64_t before = calibration.metadata_.num_samples;
  for (std::size_t i = 0; i < reached.size(); ++i) {
    // Samples start at token 0, so fewer and fewer reach on; the first block is reached by all.
    if (reached[i] < 1 || reached[i] > before || (i == 0 && reached[i] != before)) {
      return format_error("tensor 'reached' holds ", reached[i], " at query block ", i,
                          "; expected ", i == 0 ? "num_samples, " : "1 to ", before);
    }
    before = reached[i];
  }
  for (std::size_t index = 0; index < calibration.sums_.size(); ++index) {
    const std::size_t block = index % reached.size();
    const std::int64_t count = calibration.finite_[index];
    const double sum = calibration.sums_[index];
    if (count < 0 || count > reached[block]) {
      return format_error("tensor 'finite' holds ", count, " at query block ", block,
                          "; expected 0 to ", reached[block], ", the samples that reach it");
    }
    if (!std::isfinite(sum) || (count == 0 && sum != 0)) {
      return format_error("tensor 'sums' holds ", sum, " over ", count, " samples at query block ",
                          block, "; expected a finite sum, 0 over none");
    }
    // So that the mean is a finite fp32, as that of finite thresholds is.
    if (count > 0 && !(std::fabs(sum / static_cast<double>(count)) <= kLargest)) {
      return format_error("tensor 'sums' holds ", sum, " over ", count, " samples at query block ",
                          block, "; the mean is beyond fp32");
    }
  }
  return {};
}

void CalibrationFile::write(const Calibration& calibration, const std::string& path) {
  const std::vector<std::int64_t> shape{
      static_cast<std::int64_t>(calibration.metadata_.budgets.size()), calibration.num_layers_,
      calibration.num_heads_q_, calibration.num_q_blocks_};
  const std::vector<TensorToWrite> tensors{
      {"sums", "F64", shape, bytes_of(calibration.sums_)},
      {"finite", "I64", shape, bytes_of(calibration.finite_)},
      {"reached", "I64", {calibration.num_q_blocks_}, bytes_of(calibration.reached_)}};
  StringMap strings = metadata_to_strings(kCalibrationFormat, calibration.metadata_);
  sample_ids_to_strings(calibration.sample_ids_, &strings);
  add_checksum(&strings, tensors);
  const Status status = write_safetensors(path, strings, tensors);
  if (!status.ok()) throw Error(status);
}

Status read_calibration(const ByteSource& source, std::optional<Calibration>* calibration) {
  return CalibrationFile::read(source, calibration);
}

void Calibration::save(const std::string& path) const {
  check_usable("saved");
  CalibrationFile::write(*this, path);
}

Calibration Calibration::load(const std::string& path) {
  FileSource source(path);
  if (const Status status = source.open(); !status.ok()) throw Error(status);
  std::optional<Calibration> calibration;
  if (const Status status = read_calibration(source, &calibration); !status.ok()) {
    throw Error(status);
  }
  return *std::move(calibration);
}

}  // namespace bsfa

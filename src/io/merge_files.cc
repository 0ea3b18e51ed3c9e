#include <optional>
#include <utility>

#include "bsfa/calibration.hpp"
#include "bsfa/file.hpp"
#include "bsfa/text.hpp"
#include "core/status.hpp"

namespace bsfa {
namespace {

void check_names(const MergeFilesParams& params) {
  if (params.parts.empty()) {
    throw Error(invalid_argument("parts is empty; expected at least one partial calibration"));
  }
  if (params.partial && params.recommended_budget) {
    throw Error(invalid_argument("recommended_budget is ", *params.recommended_budget,
                                 "; it belongs to thresholds, and a partial calibration is to be "
                                 "written"));
  }
  for (std::size_t n = 0; n < params.parts.size(); ++n) {
    for (std::size_t m = 0; m < n; ++m) {
      if (!same_file(params.parts[n], params.parts[m])) continue;
      const bool one_name = params.parts[n] == params.parts[m];
      throw Error(invalid_argument(
          path_text(params.parts[n]), one_name ? " is given twice" : " is the same file as ",
          one_name ? "" : path_text(params.parts[m]), "; its samples would count twice"));
    }
    if (!params.partial && same_file(params.parts[n], params.out)) {
      throw Error(invalid_argument("out is ", path_text(params.out),
                                   ", one of the partial calibrations; its sums would be lost"));
    }
  }
}

}  // namespace

Calibration merge_files(const MergeFilesParams& params) {
  check_names(params);
  std::optional<Calibration> sum;
  for (const std::string& path : params.parts) {
    Calibration part = Calibration::load(path);
    if (!params.model.empty()) part.set_model(params.model);
    try {
      if (sum) {
        sum->merge(part, params.allow_other_model);
      } else {
        sum = std::move(part);
      }
    } catch (const Error& error) {
      throw Error(error.code(), path_text(path) + ": " + error.what());
    }
  }
  if (params.partial) {
    sum->save(params.out);
  } else {
    ThresholdTable table = sum->finish();
    if (params.recommended_budget) table.set_recommended_budget(params.recommended_budget);
    table.save(params.out);
  }
  return *std::move(sum);
}

}  // namespace bsfa

#pragma once

#include <cmath>
#include <cstddef>
#include <optional>
#include <string>

#include "bsfa/calibration.hpp"
#include "bsfa/text.hpp"
#include "bsfa/thresholds.hpp"
#include "io/threshold_file.hpp"

namespace bsfa::test {

struct ReadOutcome {
  bool table = false;        // it is a threshold file
  bool calibration = false;  // it is a partial calibration
  std::string complaint;     // what the readers did that they must not do; empty: nothing
};

// Both readers on the same bytes. What is accepted is used, so that a wrong size or an unchecked
// value would be met by the sanitizers.
inline ReadOutcome read_anything(const void* data, std::size_t size) {
  ReadOutcome outcome;
  const BufferSource source("input", data, size);
  const auto check_refusal = [&](const Status& status) {
    if (status.code != ErrorCode::kFormat) outcome.complaint = "refused, but not as a format";
    if (status.message.rfind("input: ", 0) != 0 || status.message.size() < 12) {
      outcome.complaint = "refused without a message: '" + status.message + "'";
    }
    const std::string thrown = Error(status).what();
    if (valid_utf8_bytes(thrown) != thrown.size() || thrown.size() > kLongestMessage) {
      outcome.complaint = "refused with a message that is no short text: '" + thrown + "'";
    }
  };
  std::optional<ThresholdTable> table;
  if (const Status status = read_threshold_table(source, &table); !status.ok()) {
    check_refusal(status);
    if (table.has_value()) outcome.complaint = "a table came out of a refused file";
  } else {
    outcome.table = true;
    for (const std::int64_t budget : table->metadata().budgets) {
      const ThresholdView view = table->view(budget, table->num_layers() - 1);
      for (std::int64_t n = 0; n < view.num_heads * view.num_q_blocks; ++n) {
        if (std::isnan(view.data[n])) outcome.complaint = "NaN got through";
      }
    }
  }
  std::optional<Calibration> calibration;
  if (const Status status = read_calibration(source, &calibration); !status.ok()) {
    check_refusal(status);
    if (calibration.has_value()) outcome.complaint = "a calibration came out of a refused file";
  } else {
    outcome.calibration = true;
    // Both may be refused for what the calibration is, not for what the file is.
    const auto use = [&](const auto& call) {
      try {
        call();
      } catch (const Error& error) {
        if (error.code() != ErrorCode::kInvalidArgument) {
          outcome.complaint =
              std::string("an accepted calibration cannot be used: ") + error.what();
        }
      }
    };
    use([&] { calibration->merge(*calibration); });
    use([&] { (void)calibration->finish(); });
  }
  return outcome;
}

}  // namespace bsfa::test

#include "bsfa/calibration.hpp"

#include "api/registry.hpp"
#include "bsfa/text.hpp"
#include "calibration/select_thresholds.hpp"
#include "core/status.hpp"

namespace bsfa {
namespace {

// The order statistics are the same for every CPU backend; a device has its own.
Status dispatch(const SelectThresholdsParams& params) {
  BSFA_RETURN_IF_ERROR(check_select_thresholds(params));
  const bool on_cpu = params.device.type == DeviceType::kCpu;
  if (!on_cpu && params.device.type != DeviceType::kCuda) {
    return invalid_argument("device.type is ", static_cast<int>(params.device.type),
                            "; accepted: cpu (0), cuda (1)");
  }
  if (!params.backend.empty()) {
    const Backend* named = nullptr;
    BSFA_RETURN_IF_ERROR(find_backend(params.backend, params.device.type, &named));
    if (!named->available()) {
      return unsupported("backend ", quote(params.backend),
                         " is not available here: ", named->describe());
    }
    if (!on_cpu) {
      if (named->select_thresholds == nullptr) {
        return unsupported("backend ", quote(params.backend), " does not select thresholds");
      }
      return named->select_thresholds(params);
    }
  }
  if (on_cpu) {
    select_thresholds_on_host(params);
    return {};
  }
  for (const Backend* backend : registered_backends()) {
    if (backend->device == params.device.type && backend->select_thresholds != nullptr &&
        backend->priority >= 0 && backend->available()) {
      return backend->select_thresholds(params);
    }
  }
  return unsupported(
      "no backend here selects thresholds on cuda tensors; copy the block maxima to "
      "the host");
}

}  // namespace

void select_thresholds(const SelectThresholdsParams& params) {
  if (const Status status = dispatch(params); !status.ok()) throw Error(status);
}

}  // namespace bsfa

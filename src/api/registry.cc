#include "api/registry.hpp"

#include <algorithm>
#include <cstdint>

#include "bsfa/backends.hpp"
#include "bsfa/text.hpp"
#include "core/status.hpp"

namespace bsfa {

const std::vector<const Backend*>& registered_backends() {
  static const std::vector<const Backend*> sorted = [] {
    std::vector<const Backend*> list = built_backends();
    std::stable_sort(list.begin(), list.end(), [](const Backend* a, const Backend* b) {
      return a->device != b->device ? a->device < b->device : a->priority > b->priority;
    });
    return list;
  }();
  return sorted;
}

Status find_backend(const std::string& name, DeviceType device, const Backend** backend) {
  for (const Backend* candidate : registered_backends()) {
    if (candidate->name != name) continue;
    if (candidate->device != device) {
      return invalid_argument("backend ", quote(name), " does not take tensors of this device (",
                              device == DeviceType::kCpu ? "cpu" : "cuda", ")");
    }
    *backend = candidate;
    return {};
  }
  std::string names;
  for (const Backend* candidate : registered_backends()) {
    names += (names.empty() ? "" : ", ") + std::string(candidate->name);
  }
  return invalid_argument("backend is ", quote(name), "; accepted: ", names);
}

Status first_backend_that_serves(const std::string& name, DeviceType device,
                                 const std::function<Status(const Backend&)>& plan) {
  if (!name.empty()) {
    const Backend* backend = nullptr;
    BSFA_RETURN_IF_ERROR(find_backend(name, device, &backend));
    if (!backend->available()) {
      return unsupported("backend ", quote(name), " is not available here: ", backend->describe());
    }
    return plan(*backend);
  }
  std::string reasons;
  ErrorCode code = ErrorCode::kUnsupported;
  for (const Backend* backend : registered_backends()) {
    if (backend->device != device || backend->priority < 0) continue;
    const Status status =
        backend->available() ? plan(*backend)
                             : unsupported("not available here: ", backend->describe());
    if (status.ok()) return {};
    code = status.code;
    reasons += (reasons.empty() ? "" : "; ") + std::string(backend->name) + ": " + status.message;
  }
  if (reasons.empty()) {
    return unsupported("this build of bsfa has no backend for ",
                       device == DeviceType::kCpu ? "cpu" : "cuda", " tensors");
  }
  return {code, reasons};
}

Status check_workspace(const AttentionParams& params, std::size_t bytes) {
  constexpr std::size_t kAlignment = 256;
  if (params.workspace_bytes < bytes) {
    return invalid_argument("workspace_bytes is ", params.workspace_bytes, "; this call needs ",
                            bytes);
  }
  if (bytes > 0 && params.workspace == nullptr) {
    return invalid_argument("workspace is null; this call needs ", bytes, " bytes");
  }
  if (reinterpret_cast<std::uintptr_t>(params.workspace) % kAlignment != 0) {
    return invalid_argument("workspace is not aligned to ", kAlignment, " bytes");
  }
  return {};
}

std::vector<BackendInfo> backends() {
  std::vector<BackendInfo> result;
  for (const Backend* backend : registered_backends()) {
    result.push_back({backend->name, backend->device, backend->available(), backend->describe()});
  }
  return result;
}

}  // namespace bsfa

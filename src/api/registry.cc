#include "api/registry.hpp"

#include <algorithm>

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

std::vector<BackendInfo> backends() {
  std::vector<BackendInfo> result;
  for (const Backend* backend : registered_backends()) {
    result.push_back({backend->name, backend->device, backend->available(), backend->describe()});
  }
  return result;
}

}  // namespace bsfa

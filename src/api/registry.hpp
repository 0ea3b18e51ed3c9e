#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/backend.hpp"

namespace bsfa {

// Every backend of this build, in no order (generated).
std::vector<const Backend*> built_backends();

// The same, the preferred ones of each device first.
const std::vector<const Backend*>& registered_backends();

// The backend called `name`, or an error that lists the names.
Status find_backend(const std::string& name, DeviceType device, const Backend** backend);

// Asks the backends of a device that are available here, the preferred first, or only the one that
// is named, until `plan` serves one. Every refusal is reported: a caller learns why each declined.
Status first_backend_that_serves(const std::string& name, DeviceType device,
                                 const std::function<Status(const Backend&)>& plan);

// Refuses a workspace that is too small, missing or not aligned.
Status check_workspace(const AttentionParams& params, std::size_t bytes);

}  // namespace bsfa

#pragma once

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

}  // namespace bsfa

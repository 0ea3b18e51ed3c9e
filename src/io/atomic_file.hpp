#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "bsfa/error.hpp"

namespace bsfa {

// Replaces the file `path` by the pieces one after the other, or leaves everything as it was: they
// are written to a new file beside it, which reaches the disk and is then renamed.
Status write_file_atomically(const std::string& path, const std::vector<std::string_view>& pieces);

}  // namespace bsfa

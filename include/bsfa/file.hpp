#pragma once

#include <string>
#include <string_view>

#include "bsfa/export.hpp"

// Files that are there as a whole or not at all: what every save of this library does, for the
// files that programs write beside its own.

namespace bsfa {

// Replaces the file `path` by these bytes, or leaves everything as it was: they are written to a
// new file beside it, which reaches the disk and is then renamed. A symbolic link stays, and what
// it names is written; a file that is replaced keeps its mode. What a process that was killed left
// beside the file is removed, what another is writing at the moment is not. Throws Error (kIo).
BSFA_API void write_file(const std::string& path, std::string_view bytes);

// Whether two paths name one file, also through links; of files that are not there yet, whether
// they would.
BSFA_API bool same_file(const std::string& a, const std::string& b);

// Whether write_file could write the file at the end of long work: throws Error (kIo), the message
// beginning with `argument`, for a directory and whatever else is no regular file, and for a folder
// that is not there or may not be written to.
BSFA_API void check_writable(const std::string& argument, const std::string& path);

}  // namespace bsfa

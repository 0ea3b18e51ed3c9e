#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "bsfa/error.hpp"
#include "bsfa/file.hpp"
#include "bsfa/text.hpp"

namespace bsfa {

void check_writable(const std::string& argument, const std::string& path) {
  namespace fs = std::filesystem;
  const auto refuse = [&](const std::string& why) {
    throw Error(ErrorCode::kIo, argument + ": " + quote(path, kLongestPath) + " " + why);
  };
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (fs::is_directory(status)) refuse("is a directory; expected the name of a file");
  if (fs::exists(status) && !fs::is_regular_file(status)) {
    refuse("is not a regular file; expected the name of a file");
  }
  if (error && status.type() != fs::file_type::not_found) refuse("cannot be: " + error.message());
  if (fs::path(path).filename().empty()) refuse("is no name of a file");
  // Where a link leads, the file is written beside its target, whether that is there or not. (A
  // circle of links was refused above: it has no status.)
  fs::path target = fs::absolute(path, error);
  while (fs::is_symlink(fs::symlink_status(target, error))) {
    target = target.parent_path() / fs::read_symlink(target, error);
  }
  const fs::path folder = target.parent_path();
  if (!fs::is_directory(folder, error)) {
    refuse("cannot be written: there is no folder " + quote(folder.string(), kLongestPath));
  }
  if (access(folder.c_str(), W_OK | X_OK) != 0) {
    refuse("cannot be written: folder " + quote(folder.string(), kLongestPath) + ": " +
           std::strerror(errno));
  }
}

}  // namespace bsfa

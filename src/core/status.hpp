#pragma once

#include <sstream>
#include <string>

#include "bsfa/error.hpp"

namespace bsfa {

template <typename... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream stream;
  (stream << ... << parts);
  return stream.str();
}

template <typename... Parts>
Status invalid_argument(const Parts&... parts) {
  return {ErrorCode::kInvalidArgument, text(parts...)};
}

template <typename... Parts>
Status unsupported(const Parts&... parts) {
  return {ErrorCode::kUnsupported, text(parts...)};
}

// Returns from the calling function if the expression's status is not ok.
#define BSFA_RETURN_IF_ERROR(expression)                                      \
  do {                                                                        \
    if (::bsfa::Status status_ = (expression); !status_.ok()) return status_; \
  } while (0)

}  // namespace bsfa

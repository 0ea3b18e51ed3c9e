#pragma once

#include "bsfa/text.hpp"  // quote: something out of a file, fit for a message
#include "core/status.hpp"

// Messages about files.

namespace bsfa {

template <typename... Parts>
Status format_error(const Parts&... parts) {
  return {ErrorCode::kFormat, text(parts...)};
}

template <typename... Parts>
Status io_error(const Parts&... parts) {
  return {ErrorCode::kIo, text(parts...)};
}

}  // namespace bsfa

#pragma once

#include <stdexcept>
#include <string>
#include <utility>

#include "bsfa/export.hpp"

namespace bsfa {

enum class ErrorCode : int {
  kOk = 0,
  kInvalidArgument = 1,  // an argument contradicts the contract, or another argument
  kUnsupported = 2,      // a valid request that no backend here serves
  kFormat = 3,           // a file that is not what it should be
  kIo = 4,               // a file that cannot be read or written
  kRuntime = 5,          // a device or driver failure
};

// A result without a value. Inside the library errors are values; the public functions throw them.
struct [[nodiscard]] Status {
  ErrorCode code = ErrorCode::kOk;
  std::string message;  // names the argument or field, what came, and what is accepted

  bool ok() const { return code == ErrorCode::kOk; }
};

// Thrown by the public C++ functions. what() is Status::message as printable() of bsfa/text.hpp
// leaves it: valid UTF-8 on one line, at most kLongestMessage bytes, whatever was in a file.
class BSFA_API Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message);
  explicit Error(const Status& status) : Error(status.code, status.message) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace bsfa

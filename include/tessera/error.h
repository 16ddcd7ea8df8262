// The one exception type that every Tessera function throws.
#pragma once

#include <stdexcept>
#include <string>

namespace tessera {

enum class ErrorCode {
  invalid_argument,  // a value, shape, stride or dtype that can never be right
  unsupported,       // a valid request that no implementation on this machine accepts
  io,                // a file that cannot be read, written or parsed
  peer,              // another rank failed, left, is silent or plans something else; the message names it
  device,            // a call of the CUDA driver failed; the message has the call and the cause
  internal,          // a defect of this library
};

// what() names the argument, the value that was given and the values that are accepted.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace tessera

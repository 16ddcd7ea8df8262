// Compilers that are not there.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cuda/jit/compiler.h"

namespace tessera::internal {

class UnavailableCompiler final : public KernelCompiler {
 public:
  explicit UnavailableCompiler(std::string reason) : reason_(std::move(reason)) {}
  std::optional<std::string> unavailable() const override { return reason_; }
  std::string identity() const override { return "none"; }
  std::vector<std::byte> compile(const CompileJob& job) const override;  // throws Error(internal)

 private:
  std::string reason_;
};

// `compiler`, which is asked for only then, or with TESSERA_JIT=off (or 0) one that is unavailable. The variable counts at each
// call: it is a switch of the process, not of the machine. Throws Error(invalid_argument) when it is neither off nor on (or 1).
const KernelCompiler& unless_switched_off(const KernelCompiler& (*compiler)());

}  // namespace tessera::internal

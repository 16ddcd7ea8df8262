#include "cuda/nvrtc.h"

#include "tessera/error.h"

namespace tessera::internal {

namespace {

class AbsentCompiler final : public KernelCompiler {
 public:
  std::optional<std::string> unavailable() const override { return "this build has no CUDA"; }
  std::string identity() const override { return "none"; }
  std::vector<std::byte> compile(const CompileJob& /*job*/) const override {
    throw Error(ErrorCode::internal, "this build has no CUDA");
  }
};

}  // namespace

const KernelCompiler& nvrtc() {
  static const AbsentCompiler absent;
  return absent;
}

}  // namespace tessera::internal

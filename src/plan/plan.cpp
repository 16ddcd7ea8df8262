#include "tessera/plan.h"

#include <algorithm>

#include "core/fail.h"
#include "plan/impl.h"
#include "plan/validate.h"

namespace tessera {

namespace {

// The caller's workspace, or one of our own for the time of a call.
class Workspace {
 public:
  Workspace(std::span<std::byte> given, std::int64_t bytes_needed, const internal::Executable& executable, void* stream)
      : bytes_(given), executable_(executable), stream_(stream) {
    const auto needed = static_cast<std::size_t>(bytes_needed);
    if (given.empty() && needed > 0) {
      owned_ = executable.allocate_workspace(needed, stream);
      bytes_ = {owned_, needed};
      return;
    }
    if (given.size() < needed) {
      internal::fail_argument("workspace", std::to_string(given.size()) + " bytes",
                              std::to_string(needed) + " bytes or more, or an empty span");
    }
    const std::uintptr_t excess = reinterpret_cast<std::uintptr_t>(given.data()) % kWorkspaceAlignment;
    if (excess != 0) {
      internal::fail_argument("workspace", "an address " + std::to_string(excess) + " bytes past alignment",
                              "addresses that are multiples of " + std::to_string(kWorkspaceAlignment));
    }
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() {
    if (owned_ != nullptr) {
      executable_.release_workspace(owned_, stream_);
    }
  }
  std::span<std::byte> bytes() const { return bytes_; }

 private:
  std::span<std::byte> bytes_;
  const internal::Executable& executable_;
  void* stream_;
  std::byte* owned_ = nullptr;
};

void require_pass(Pass made_for, Pass wanted) {
  if (made_for != wanted) {
    internal::fail_argument("tensors", std::string(pass_name(wanted)) + " tensors",
                            "those of the pass that the plan was made for, " + std::string(pass_name(made_for)));
  }
}

}  // namespace

void Plan::run(const ForwardTensors& tensors, std::span<std::byte> workspace, void* stream) const {
  require_pass(pass_, Pass::forward);
  internal::validate(problem_, tensors, device_);
  const Workspace memory(workspace, workspace_bytes(), *executable_, stream);
  executable_->run(tensors, memory.bytes(), stream);
}

void Plan::run(const BackwardTensors& tensors, std::span<std::byte> workspace, void* stream) const {
  require_pass(pass_, Pass::backward);
  internal::validate(problem_, tensors, device_);
  const Workspace memory(workspace, workspace_bytes(), *executable_, stream);
  executable_->run(tensors, memory.bytes(), stream);
}

}  // namespace tessera

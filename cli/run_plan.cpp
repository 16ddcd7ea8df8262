#include "cli/run_plan.h"

#include "cli/device_tensors.h"

namespace tessera::cli {

namespace {

constexpr std::uint8_t kNanByte = 0xFF;

}  // namespace

PlanWorkspace::PlanWorkspace(const Plan& plan, const Device& device) {
  if (plan.workspace_bytes() == 0) {
    return;
  }
  if (device.kind == DeviceKind::cuda) {
    device_ = internal::DeviceMemory(device.index, static_cast<std::size_t>(plan.workspace_bytes()));
    device_.fill(kNanByte);
    return;
  }
  const std::int64_t words = (plan.workspace_bytes() + 1) / 2;
  host_ = HostTensor(DType::float16, std::span(&words, 1));
}

std::span<std::byte> PlanWorkspace::bytes() const {
  return device_.bytes() > 0 ? std::span(static_cast<std::byte*>(device_.data()), device_.bytes()) : host_.memory();
}

void run_plan(const Plan& plan, const Device& device, const ProblemTensors& tensors) {
  const PlanWorkspace workspace(plan, device);
  if (device.kind == DeviceKind::cpu) {
    if (plan.pass() == Pass::forward) {
      plan.run(tensors.forward(), workspace.bytes());
    } else {
      plan.run(tensors.backward(), workspace.bytes());
    }
    return;
  }
  const DeviceTensors copies(tensors, device.index);
  const internal::DeviceStream stream(device.index);
  if (plan.pass() == Pass::forward) {
    plan.run(copies.moved(tensors.forward()), workspace.bytes(), stream.handle());
  } else {
    plan.run(copies.moved(tensors.backward()), workspace.bytes(), stream.handle());
  }
  stream.synchronize();
  copies.download(tensors, plan.pass());
}

}  // namespace tessera::cli

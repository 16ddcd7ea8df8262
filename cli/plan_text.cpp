#include "cli/plan_text.h"

#include <fmt/format.h>

#include "cli/flag_values.h"

namespace tessera::cli {

std::string plan_text(const PlanFacts& facts, const Device& device) {
  if (device.kind == DeviceKind::cuda) {
    return fmt::format("{} on {}", facts.impl, device_text(device));
  }
  return fmt::format("{} ({}{}{} thread{})", facts.impl, facts.isa, facts.isa.empty() ? "" : ", ", facts.threads,
                     facts.threads == 1 ? "" : "s");
}

}  // namespace tessera::cli

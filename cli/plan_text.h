// How the command line names what a plan computes with.
#pragma once

#include <string>

#include "tessera/plan.h"

namespace tessera::cli {

// Of a plan of `device`: "flash (avx512, 2 threads)" or "sm90 on cuda:0".
std::string plan_text(const PlanFacts& facts, const Device& device);

}  // namespace tessera::cli

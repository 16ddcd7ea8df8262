// Every refusal of bad input: what is checked once for a Problem and at each run for its tensors.
#pragma once

#include <cstdint>
#include <string_view>

#include "tessera/attention.h"
#include "tessera/plan.h"

namespace tessera::internal {

// Of a paged cache: a power of two from 16.
void check_page_size(std::string_view name, std::int64_t size);

// Throws Error(invalid_argument) unless every tensor has the shape, dtype, device and strides that `problem` asks for.
void validate(const Problem& problem, const ForwardTensors& tensors, const Device& device);
void validate(const Problem& problem, const BackwardTensors& tensors, const Device& device);
void validate(const AppendTensors& tensors);
void validate_merge(const ConstPartial& a, const ConstPartial& b, const Partial& result);

}  // namespace tessera::internal

// The linear steps and matrix products that both passes of the standard algorithm share.
#pragma once

#include <cstdint>

#include "cpu/standard_geometry.h"
#include "cpu/threads.h"

namespace tessera::internal {

// Calls body(band) for each band from several threads.
template <class Body>
void for_each_band(int threads, const std::vector<Band>& bands, const Body& body) {
  parallel_items(static_cast<std::int64_t>(bands.size()), threads,
                 [&](std::int64_t item, int /*thread*/) { body(bands[static_cast<std::size_t>(item)]); });
}

PlanFacts standard_facts(const StandardGeometry& geometry, std::int64_t workspace_bytes);

// Strided tensors of any dtype to packed float32 matrices. Keys beyond a sequence's length are left out.
void pack_queries(const StandardGeometry& geometry, const ConstTensorView& tensor, std::int64_t dim, float* packed);
void pack_keys(const StandardGeometry& geometry, const ConstTensorView& tensor, std::int64_t dim, float* packed);
void store_rows(const float* values, std::int64_t dim, const Rows<void>& rows, const Band& band);

// scores = factor * A B^T for every sequence and head, of packed queries A and packed keys B.
void multiply_transposed(const StandardGeometry& geometry, float factor, std::int64_t dim, const float* queries,
                         const float* keys, float* scores);

// take_out() for all rows of a packed tensor.
void take_out_queries(const StandardGeometry& geometry, std::int64_t dim, float* packed, std::uint8_t* flags);
void take_out_keys(const StandardGeometry& geometry, std::int64_t dim, float* packed, std::uint8_t* flags);

}  // namespace tessera::internal

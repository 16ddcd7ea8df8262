#include "cpu/standard_steps.h"

#include <algorithm>

#include "cpu/blas.h"
#include "cpu/standard_scores.h"

namespace tessera::internal {

namespace {

std::int64_t used_rows(const StandardGeometry& geometry, const Band& key_band) {
  return std::max<std::int64_t>(std::min(key_band.end, geometry.span(key_band.batch).keys) - key_band.begin, 0);
}

void pack_band(const Rows<const void>& rows, std::int64_t begin, std::int64_t count, std::int64_t dim, float* packed) {
  for (std::int64_t row = 0; row < count; ++row) {
    load_row(rows, begin + row, dim, packed + row * dim);
  }
}

}  // namespace

PlanFacts standard_facts(const StandardGeometry& geometry, std::int64_t workspace_bytes) {
  PlanFacts facts;
  facts.isa = blas_name();
  facts.threads = geometry.threads();
  // One tile for each score matrix: masked pairs are computed too.
  facts.tile_q = std::max<std::int64_t>(geometry.problem().seq_q, 1);
  facts.tile_k = std::max<std::int64_t>(geometry.problem().seq_k, 1);
  facts.workspace_bytes = workspace_bytes;
  return facts;
}

void pack_queries(const StandardGeometry& geometry, const ConstTensorView& tensor, std::int64_t dim, float* packed) {
  for_each_band(geometry.threads(), geometry.query_bands(), [&](const Band& band) {
    const auto rows = rows_of(tensor, band.batch, geometry.span(band.batch).query_row, band.head);
    pack_band(rows, band.begin, band.rows(), dim, packed + geometry.query_row(band.batch, band.head, band.begin) * dim);
  });
}

void pack_keys(const StandardGeometry& geometry, const ConstTensorView& tensor, std::int64_t dim, float* packed) {
  for_each_band(geometry.threads(), geometry.key_bands(), [&](const Band& band) {
    const auto rows = rows_of(tensor, band.batch, geometry.span(band.batch).key_row, band.head);
    pack_band(rows, band.begin, used_rows(geometry, band), dim,
              packed + geometry.key_row(band.batch, band.head, band.begin) * dim);
  });
}

void store_rows(const float* values, std::int64_t dim, const Rows<void>& rows, const Band& band) {
  for (std::int64_t row = 0; row < band.rows(); ++row) {
    store_row(values + row * dim, dim, rows, band.begin + row);
  }
}

void multiply_transposed(const StandardGeometry& geometry, float factor, std::int64_t dim, const float* queries,
                         const float* keys, float* scores) {
  for_each_band(geometry.threads(), geometry.query_bands(), [&](const Band& band) {
    const std::int64_t head_kv = band.head / geometry.problem().group_size();
    const std::int64_t key_count = geometry.span(band.batch).keys;
    const float* a = queries + geometry.query_row(band.batch, band.head, band.begin) * dim;
    const float* b = keys + geometry.key_row(band.batch, head_kv, 0) * dim;
    sgemm({band.rows(), key_count, dim}, factor, {a, dim}, {b, dim, true}, false,
          scores + geometry.score_row(band.batch, band.head, band.begin), key_count);
  });
}

void take_out_queries(const StandardGeometry& geometry, std::int64_t dim, float* packed, std::uint8_t* flags) {
  for_each_band(geometry.threads(), geometry.query_bands(), [&](const Band& band) {
    const std::int64_t row = geometry.query_row(band.batch, band.head, band.begin);
    take_out(packed + row * dim, band.rows(), dim, flags + row);
  });
}

void take_out_keys(const StandardGeometry& geometry, std::int64_t dim, float* packed, std::uint8_t* flags) {
  for_each_band(geometry.threads(), geometry.key_bands(), [&](const Band& band) {
    const std::int64_t row = geometry.key_row(band.batch, band.head, band.begin);
    take_out(packed + row * dim, used_rows(geometry, band), dim, flags + row);
  });
}

}  // namespace tessera::internal

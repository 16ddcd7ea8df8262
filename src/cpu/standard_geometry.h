// Where everything lies in the workspace of the standard algorithm, and how its work is cut into tasks.
#pragma once

#include <cstdint>
#include <vector>

#include "plan/rows.h"
#include "tessera/plan.h"

namespace tessera::internal {

// Some rows of one sequence and head: queries of a query head, or stored keys of a key head.
struct Band {
  std::int64_t batch = 0;
  std::int64_t head = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t rows() const { return end - begin; }
};

// The packed tensors are float32 matrices, one for each sequence and head; so are the scores [queries, keys]. Bands
// depend on the problem alone, so that results do not depend on the number of threads.
class StandardGeometry {
 public:
  StandardGeometry(const Problem& problem, int threads);

  const Problem& problem() const { return problem_; }
  int threads() const { return threads_; }
  std::int64_t query_rows() const { return problem_.total_q() * problem_.heads_q; }
  std::int64_t key_rows() const { return problem_.total_k() * problem_.heads_kv; }
  std::int64_t score_elements() const { return score_begin_.back(); }
  const std::vector<Band>& query_bands() const { return query_bands_; }
  const std::vector<Band>& key_bands() const { return key_bands_; }
  SequenceSpan span(std::int64_t batch) const { return problem_.sequence(batch); }
  const TileSchedule& schedule(std::int64_t batch, std::int64_t head) const;
  // Index of a packed row, and of a row of scores' first element.
  std::int64_t query_row(std::int64_t batch, std::int64_t head, std::int64_t query) const;
  std::int64_t key_row(std::int64_t batch, std::int64_t head_kv, std::int64_t key) const;
  std::int64_t score_row(std::int64_t batch, std::int64_t head, std::int64_t query) const;

 private:
  std::int64_t stored_keys(std::int64_t batch) const;

  Problem problem_;
  int threads_;
  bool alike_;                             // the sequences of the batch
  std::vector<std::int64_t> score_begin_;  // of each sequence, and their total
  std::vector<TileSchedule> schedules_;    // of one or of each sequence, for one or for each head
  std::vector<Band> query_bands_;
  std::vector<Band> key_bands_;
};

// One row between a tensor of any dtype and float32.
void load_row(const Rows<const void>& rows, std::int64_t row, std::int64_t size, float* result);
void store_row(const float* values, std::int64_t size, const Rows<void>& rows, std::int64_t row);

}  // namespace tessera::internal

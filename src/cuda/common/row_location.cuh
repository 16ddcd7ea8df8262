// From rows of statistics, which are padded to whole tiles of queries, to tokens.
#pragma once

#include "cuda/tile/work.cuh"

namespace tessera {

// The token that a row of statistics belongs to; `inside` is false for the rows that fill up its last tile.
struct Row {
  int batch, head;
  std::int64_t token;  // on the token axis
  int query;           // in its sequence
  bool inside;
};

// The sequence whose rows of statistics hold `rest`, counted in one head.
TESSERA_DEVICE int locate_sequence(const Batch& batch, int rest) {
  int low = 0;
  int high = batch.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (batch.sequences[middle].first_line <= rest) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

TESSERA_DEVICE Row locate(const Batch& batch, std::int64_t row, int line_rows) {
  const auto line = static_cast<int>(row / line_rows);
  const auto rest = static_cast<int>(row % line_rows);
  if (batch.sequences == nullptr) {
    return {line / batch.heads_q, line % batch.heads_q, rest, rest, rest < batch.queries};
  }
  const tile::Sequence sequence = tile::sequence_of(batch, locate_sequence(batch, rest));
  const int query = rest - sequence.first_line;
  return {sequence.batch, line, static_cast<std::int64_t>(sequence.query_row) + query, query, query < sequence.queries};
}

TESSERA_DEVICE std::int64_t offset(const Strides& strides, const Row& row) {
  return row.batch * strides.batch + row.token * strides.token + row.head * strides.head;
}

}  // namespace tessera

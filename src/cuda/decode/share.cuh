// Which steps of which units a block computes. The lengths may be known on the device alone, so that every block counts the
// steps of the whole problem and takes its share: equal ones, in a fixed order, whatever the lengths are.
//
// A line is a tile of rows of one sequence; a unit is a line and a key head. Units follow each other, heads within lines, and
// so do the steps within a unit: step number x of the problem belongs to one unit.
#pragma once

#include "cuda/decode/config.h"
#include "cuda/tile/work.cuh"

namespace tessera::decode {

// What the rows of a tile see between them. A line that sees nothing has one step, in which all is hidden, so that its
// outputs are written like any others.
struct Line {
  int index;
  int sequence;
  int first_row;
  int keys;
  tile::Bounds bounds;  // of the band, with the sequence's diagonal
  int first_key, last_key;
  int first_step, steps;  // steps count from the first key of the sequence
};

template <int kRows>
TESSERA_DEVICE Line line_of(const DecodeParams& params, int index) {
  Line line;
  line.index = index;
  line.sequence = index / params.row_tiles;
  line.first_row = index % params.row_tiles * kRows;
  line.keys = params.lengths == nullptr
                  ? params.keys
                  : min(max(params.lengths[line.sequence * params.lengths_stride], 0), params.keys);
  const int shift = params.band.bottom_right ? line.keys - params.queries : 0;
  line.bounds = {params.band.lower + shift, params.band.upper + shift};
  const int last_row = min(line.first_row + kRows, params.queries * params.group_size) - 1;
  line.first_key = max(line.first_row / params.group_size + line.bounds.lower, 0);
  line.last_key = min(last_row / params.group_size + line.bounds.upper, line.keys - 1);
  const bool sees = line.first_key <= line.last_key;
  line.first_step = sees ? line.first_key / kStepKeys : 0;
  line.steps = sees ? line.last_key / kStepKeys - line.first_step + 1 : 1;
  return line;
}

// The steps [begin, end) of a block; none for the blocks from `active` on.
struct Share {
  int begin, end;
  int total, active;
  int line;  // that of step `begin`, and the number of its first step
  int line_begin;

  // The first step of a block, and the block of a step.
  TESSERA_DEVICE int begin_of(int block) const {
    return static_cast<int>(static_cast<std::int64_t>(block) * total / active);
  }
  TESSERA_DEVICE int owner_of(int step) const {
    return static_cast<int>(((static_cast<std::int64_t>(step) + 1) * active - 1) / total);
  }
};

// By all threads of a block together.
template <int kRows, int kSlices, int kThreads>
TESSERA_DEVICE Share share_of(const DecodeParams& params, int block) {
  __shared__ int s_warp_sums[kThreads / 32];
  __shared__ int s_found[2];
  const int lines = params.batch * params.row_tiles;
  const int lines_of_thread = tile::ceil_div(lines, kThreads);
  const int first = min(static_cast<int>(threadIdx.x) * lines_of_thread, lines);
  const int last = min(first + lines_of_thread, lines);
  int steps = 0;
  for (int i = first; i < last; ++i) {
    steps += line_of<kRows>(params, i).steps;
  }
  steps *= params.heads_kv;
  int before = steps;  // with this thread's own
#pragma unroll
  for (int distance = 1; distance < 32; distance *= 2) {
    const int other = __shfl_up_sync(0xFFFFFFFFU, before, distance);
    before += static_cast<int>(threadIdx.x) % 32 >= distance ? other : 0;
  }
  if (threadIdx.x % 32 == 31) {
    s_warp_sums[threadIdx.x / 32] = before;
  }
  __syncthreads();
  Share share{};
#pragma unroll
  for (int warp = 0; warp < kThreads / 32; ++warp) {
    before += warp < static_cast<int>(threadIdx.x) / 32 ? s_warp_sums[warp] : 0;
    share.total += s_warp_sums[warp];
  }
  before -= steps;
  share.active = max(1, min(params.blocks, tile::ceil_div(share.total, kSlices * kFewestSteps)));
  share.begin = block < share.active ? share.begin_of(block) : share.total;
  share.end = block < share.active ? share.begin_of(block + 1) : share.total;
  if (before <= share.begin && share.begin < before + steps) {
    int line = first;
    for (int size = line_of<kRows>(params, line).steps * params.heads_kv; before + size <= share.begin;
         size = line_of<kRows>(params, line).steps * params.heads_kv) {
      before += size;
      ++line;
    }
    s_found[0] = line;
    s_found[1] = before;
  }
  __syncthreads();
  share.line = s_found[0];
  share.line_begin = s_found[1];
  return share;
}

// Goes through the units from that of a step on.
template <int kRows>
struct UnitCursor {
  Line line;
  int head;
  int begin, end;  // the steps of the unit

  TESSERA_DEVICE UnitCursor(const DecodeParams& params, const Share& share)
      : line(line_of<kRows>(params, share.line)), head((share.begin - share.line_begin) / line.steps) {
    begin = share.line_begin + head * line.steps;
    end = begin + line.steps;
  }
  // Not behind the last unit of the problem.
  TESSERA_DEVICE void advance(const DecodeParams& params) {
    if (++head == params.heads_kv) {
      head = 0;
      line = line_of<kRows>(params, line.index + 1);
    }
    begin = end;
    end += line.steps;
  }
};

// Rows of a line's tile that exist.
template <int kRows>
TESSERA_DEVICE int rows_of(const DecodeParams& params, const Line& line) {
  return min(kRows, params.queries * params.group_size - line.first_row);
}

// The (query, query head) of a row.
struct RowPlace {
  int query, head;
};
TESSERA_DEVICE RowPlace place_of(const DecodeParams& params, const Line& line, int head_kv, int row) {
  const int index = line.first_row + row;
  return {index / params.group_size, head_kv * params.group_size + index % params.group_size};
}

}  // namespace tessera::decode

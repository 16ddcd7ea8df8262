// K and V of one slice to its ring in shared memory.
#pragma once

#include "cuda/decode/share.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/cp_async.cuh"

namespace tessera::decode {

// Rows of `kDim` elements as pieces of 16 bytes, of which the first eight of every row are permuted by its number: the eight
// rows that a matrix load reads lie in different banks.
template <int kDim>
TESSERA_DEVICE int piece_offset(int row, int piece) {
  return row * kDim * 2 + (piece ^ row % 8) * 16;
}

// What does not change from step to step is kept in registers: a scheduler has one or two warps, so that each instruction between
// two copies is a wait of its own.
template <DecodeConfig kConfig>
class Loader {
 public:
  // `lane` is that of the thread in its slice, whose first step is `step`.
  TESSERA_DEVICE Loader(const DecodeParams& params, const Share& share, std::uint32_t s_ring, int lane, int step)
      : params_(params), cursor_(params, share), end_(share.end), step_(step), s_ring_(s_ring) {
    const int piece = lane % kPieces;
    first_row_ = lane / kPieces;
    s_thread_ = first_row_ * kConfig.head_dim * 2;
    s_piece_ = (piece ^ first_row_ % 8) * 16;
    k_ = side_of(params.k_strides, piece, params.dim_qk);
    v_ = side_of(params.v_strides, piece, params.dim_v);
  }

  // Starts the copies of the next step of the slice and closes their group, which is empty behind the last step.
  TESSERA_DEVICE void load_next() {
    if (step_ < end_) {
      while (step_ >= cursor_.end) {
        cursor_.advance(params_);
      }
      load(cursor_.line.first_step + (step_ - cursor_.begin));
      step_ += kConfig.slices;
    }
    ptx::copy_async_commit();
    slot_ = slot_ + 1 == kConfig.stages ? 0 : slot_ + 1;
  }

 private:
  static constexpr int kPieces = kConfig.head_dim / 8;  // of a row
  static constexpr int kLanes = 32 * kConfig.row_warps;
  static constexpr int kRowsAtOnce = kLanes / kPieces;
  static constexpr int kCopies = kStepKeys / kRowsAtOnce;
  static_assert(kLanes % kPieces == 0 && kStepKeys % kRowsAtOnce == 0);

  // One of K and V, in bytes.
  struct Side {
    std::int64_t thread;  // of the thread's piece in its first row
    int valid;            // of a piece: 0 behind the head dim
  };
  TESSERA_DEVICE Side side_of(const Strides& strides, int piece, int dim) const {
    const bool inside = 8 * piece < dim;
    return {2 * (first_row_ * strides.token + (inside ? 8 * piece : 0)), inside ? 16 : 0};
  }

  TESSERA_DEVICE void load(int step) {
    const Line& line = cursor_.line;
    const int first_key = step * kStepKeys;
    std::int64_t batch = line.sequence;
    int position = first_key;
    if (params_.pages.table != nullptr) {
      const int page = first_key >> params_.pages.size_log2;
      // A line that sees nothing may have no page.
      const int number =
          line.last_key < line.first_key
              ? 0
              : params_.pages.table[line.sequence * params_.pages.batch_stride + page * params_.pages.page_stride];
      batch = min(max(number, 0), params_.pages.pool - 1);
      position -= page << params_.pages.size_log2;
    }
    const std::uint32_t s_keys = s_ring_ + slot_ * kConfig.stage_bytes() + s_thread_;
    const std::uint32_t s_values = s_keys + kConfig.stage_bytes() / 2;
    const auto* g_keys = static_cast<const char*>(params_.k) + k_.thread + 2 * position * params_.k_strides.token +
                         2 * (batch * params_.k_strides.batch + cursor_.head * params_.k_strides.head);
    const auto* g_values = static_cast<const char*>(params_.v) + v_.thread + 2 * position * params_.v_strides.token +
                           2 * (batch * params_.v_strides.batch + cursor_.head * params_.v_strides.head);
    if (first_key >= line.first_key && first_key + kStepKeys - 1 <= line.last_key) {
      copy(s_keys, g_keys, k_, params_.k_strides, [](int) { return true; });
      copy(s_values, g_values, v_, params_.v_strides, [](int) { return true; });
    } else {
      // Keys that no row sees arrive as zeros: they may hold anything, and the weight 0 would not hide a NaN.
      const auto seen = [&](int row) { return first_key + row >= line.first_key && first_key + row <= line.last_key; };
      copy(s_keys, g_keys, k_, params_.k_strides, seen);
      copy(s_values, g_values, v_, params_.v_strides, seen);
    }
  }

  template <class Seen>
  TESSERA_DEVICE void copy(std::uint32_t s_tile, const char* g_row, const Side& side, const Strides& strides,
                           const Seen& seen) const {
#pragma unroll 4  // all sixteen of head dim 256 at once would spill
    for (int i = 0; i < kCopies; ++i) {
      const int row = i * kRowsAtOnce;  // behind the thread's first
      const bool read = seen(first_row_ + row);
      ptx::copy_async<16>(s_tile + row * kConfig.head_dim * 2 + (s_piece_ ^ row % 8 * 16),
                          read ? static_cast<const void*>(g_row) : params_.q, read ? side.valid : 0);
      g_row += 2 * kRowsAtOnce * strides.token;
    }
  }

  const DecodeParams& params_;
  UnitCursor<kConfig.rows()> cursor_;
  int end_;
  int step_;
  int slot_ = 0;
  int first_row_;
  std::uint32_t s_ring_, s_thread_, s_piece_;
  Side k_, v_;
};

}  // namespace tessera::decode

// The forward kernel of the sm80 family: FlashAttention-2 (Dao 2023), Algorithm 1, a block for each tile of queries.
//
// Copies of the next K and V run while the products of this tile are computed; two blocks share a multiprocessor, so that the
// exponentials of one overlap the products of the other.
#pragma once

#include "cuda/sm80/fwd/epilogue.cuh"
#include "cuda/sm80/fwd/products_float32.cuh"
#include "cuda/sm80/fwd/products_tf32.cuh"
#include "cuda/sm80/fwd/tile.cuh"
#include "cuda/tile/program.cuh"

namespace tessera::sm80 {

template <ForwardConfig kConfig, class Program, class Element>
class Forward {
 public:
  TESSERA_DEVICE Forward(const ForwardParams& params, std::uint8_t* s_raw)
      : params_(params),
        work_(query_tile(params, kConfig.tile_q())),
        bounds_(tile::bounds_of(params.band, work_.sequence)),
        key_tiles_(params, work_, bounds_, kConfig.tile_q(), kConfig.tile_k),
        modifiers_(params.score, work_.sequence, work_.sequence_index, work_.head),
        s_queries_(ptx::shared_address(s_raw)),
        s_keys_(s_queries_ + kConfig.query_bytes()),
        s_values_(s_queries_ + kConfig.values_offset()),
        warp_(__shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / 32, 0)),
        products_(s_queries_ + warp_ * kConfig.warp_rows() * Rows::QueryRows::kRowBytes,
                  s_queries_ + kConfig.scales_offset(), warp_) {}

  TESSERA_DEVICE void run() {
    start_rows();
    if (key_tiles_.count() > 0) {
      const tile::Sequence& sequence = work_.sequence;
      const int head_kv = work_.head / params_.batch.group_size;
      g_keys_ = tile::row_address(params_.k, sequence.batch, sequence.key_row, head_kv);
      g_values_ = tile::row_address(params_.v, sequence.batch, sequence.key_row, head_kv) +
                  work_.part * kConfig.dim_v * kConfig.element_bytes;
      copy_queries();
      ListedVisit visit = key_tiles_.visit(0);
      copy_keys(visit.tile, 0);
      if constexpr (kConfig.stages == 2) {
        copy_values(visit.tile, 0);
      }
      ptx::copy_async_commit();
      if constexpr (kConfig.stages == 1) {  // there is room for the first ones
        copy_values(visit.tile, 0);
        ptx::copy_async_commit();
      }
      ListedVisit next = key_tiles_.visit(min(1, key_tiles_.count() - 1));
      for (int n = 0; n < key_tiles_.count(); ++n) {
        const int slot = kConfig.stages == 2 ? n % 2 : 0;
        step(visit, next.tile, slot, n + 1 < key_tiles_.count(), n == 0);
        visit = next;
        next = key_tiles_.visit(min(n + 2, key_tiles_.count() - 1));
      }
    }
    Epilogue<kConfig, Program, Element>(params_, work_, warp_)
        .write(r_output_, softmax_, modifiers_.factor_log2(), modifiers_.sink_log2(), output_scale());
  }

 private:
  using Rows = Products<kConfig, Element>;
  static constexpr int kRowBlocks = kConfig.row_blocks;
  static constexpr int kThreads = kConfig.threads();
  static constexpr bool kInPairs = ptx::kSame<Element, ptx::float32>;  // converted by the warps that copy them

  TESSERA_DEVICE void start_rows() {
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m) {
#pragma unroll
      for (int i = 0; i < Rows::kOutputs; ++i) {
        r_output_[m][i] = 0.0F;
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        softmax_[m].maximum[r] = -__builtin_huge_valf();
        softmax_[m].sum[r] = 0.0F;
      }
    }
  }

  TESSERA_DEVICE float output_scale() const {
    return modifiers_.has(ScoreFeature::dropout) ? params_.score.dropout.kept_scale : 1.0F;
  }

  // One key tile. With two stages the copies have all of a step to complete; with one, those of V run beside the scores and
  // those of K beside the output, and with none nothing does, but the widest heads fit.
  TESSERA_DEVICE void step(const ListedVisit& visit, int next_tile, int slot, bool has_next, bool first) {
    const auto convert = [&] {
      if (first) {
        convert_queries();
      }
      convert_keys(slot);
      if constexpr (kConfig.stages == 2) {
        convert_values(slot);
      }
    };
    if (kConfig.stages == 1 && first) {
      await_copies<1>(convert);
    } else {
      await_copies(convert);
    }
    if constexpr (kConfig.stages == 2) {
      if (has_next) {
        copy_keys(next_tile, slot ^ 1);
        copy_values(next_tile, slot ^ 1);
        ptx::copy_async_commit();
      }
    } else if constexpr (kConfig.stages == 1) {
      if (!first) {
        copy_values(visit.tile, 0);
        ptx::copy_async_commit();
      }
    }
    if (first) {
      products_.take_queries();
    }
    float r_scores[kRowBlocks][Rows::kScores];
    const bool sees = sees_some_of(visit);
    if (sees) {
      products_.scores(r_scores, s_keys_ + slot * kConfig.key_bytes(), slot);
      modify(r_scores, visit);
#pragma unroll
      for (int m = 0; m < kRowBlocks; ++m) {
        if (softmax_[m].update(r_scores[m], modifiers_.factor_log2())) {
          softmax_[m].rescale_output(r_output_[m]);
        }
      }
      if (modifiers_.has(ScoreFeature::dropout)) {
        drop(r_scores, visit.tile);
      }
    }
    if constexpr (kConfig.stages == 1) {
      await_copies([&] { convert_values(0); });
      if (has_next) {
        copy_keys(next_tile, 0);
        ptx::copy_async_commit();
      }
    } else if constexpr (kConfig.stages == 0) {
      __syncthreads();
      copy_values(visit.tile, 0);
      ptx::copy_async_commit();
      await_copies([&] { convert_values(0); });
    }
    if (sees) {
      products_.output(r_output_, r_scores, s_values_ + slot * kConfig.value_bytes(), slot);
    }
    if constexpr (kConfig.stages == 0) {
      __syncthreads();
      if (has_next) {
        copy_keys(next_tile, 0);
        ptx::copy_async_commit();
      }
    }
  }

  // Whether any query of the warp sees any key of the tile, as far as a band goes. Where products take long, a warp above the
  // diagonal leaves the multiprocessor to the others.
  TESSERA_DEVICE bool sees_some_of(const ListedVisit& visit) const {
    if (!ptx::kSame<Element, ptx::float32> || key_tiles_.listed()) {
      return true;
    }
    const int first_query = work_.first_query + warp_ * kConfig.warp_rows();
    const int first_key = visit.tile * kConfig.tile_k;
    return first_key <= first_query + kConfig.warp_rows() - 1 + bounds_.upper &&
           first_key + kConfig.tile_k - 1 >= first_query + bounds_.lower;
  }

  // What was copied, but for the latest kPending groups, is there and converted for all threads, and all of them are done with what
  // was there before.
  template <int kPending = 0, class Convert>
  TESSERA_DEVICE static void await_copies(const Convert& convert) {
    ptx::copy_async_wait<kPending>();
    convert();
    __syncthreads();
  }

  // The thread's first query in row block m, and its first key in a tile.
  TESSERA_DEVICE int tile_row(int m) const {
    return warp_ * kConfig.warp_rows() + 16 * m + static_cast<int>(threadIdx.x % 32) / 4;
  }
  TESSERA_DEVICE static int tile_column() { return static_cast<int>(threadIdx.x % 4) * 2; }

  // Score modifiers, and the mask where it cuts this tile.
  TESSERA_DEVICE void modify(float (&r_scores)[kRowBlocks][Rows::kScores], const ListedVisit& visit) const {
    const int first_key = visit.tile * kConfig.tile_k;
    if (modifiers_.transforms()) {
#pragma unroll
      for (int m = 0; m < kRowBlocks; ++m) {
        modifiers_.transform(r_scores[m], work_.first_query + tile_row(m), first_key + tile_column());
      }
    }
    if (key_tiles_.listed()) {
      if (visit.bits >= 0) {
        const std::uint32_t* const g_bits = tile::bits_of(params_.listed, visit.bits, kConfig.tile_q(), kConfig.tile_k);
#pragma unroll
        for (int m = 0; m < kRowBlocks; ++m) {
          tile::hide_unlisted<kConfig.tile_k>(r_scores[m], g_bits, tile_row(m), tile_column());
        }
      }
    } else if (!tile::sees_whole_tile(bounds_, work_.sequence, work_.first_query + warp_ * kConfig.warp_rows(),
                                      kConfig.warp_rows(), first_key, kConfig.tile_k)) {
#pragma unroll
      for (int m = 0; m < kRowBlocks; ++m) {
        tile::hide_outside(r_scores[m], bounds_, work_.sequence.keys, work_.first_query + tile_row(m),
                           first_key + tile_column());
      }
    }
  }

  TESSERA_DEVICE void drop(float (&r_weights)[kRowBlocks][Rows::kScores], int tile) const {
#pragma unroll
    for (int m = 0; m < kRowBlocks; ++m) {
      std::uint32_t r_bits[(Rows::kScores + 31) / 32];
      modifiers_.template keep_bits<Rows::kScores>(r_bits, work_.first_query + tile_row(m),
                                                   tile * kConfig.tile_k + tile_column());
      tile::drop(r_weights[m], r_bits);
    }
  }

  TESSERA_DEVICE void copy_queries() const {
    const tile::Sequence& sequence = work_.sequence;
    const std::uint8_t* const g_first =
        tile::row_address(params_.q, sequence.batch, std::int64_t{sequence.query_row} + work_.first_query, work_.head);
    copy<kConfig.dim_qk, typename Rows::QueryRows, kConfig.tile_q()>(
        s_queries_, g_first, params_.q, params_.q.row_bytes, sequence.queries - work_.first_query);
  }
  TESSERA_DEVICE void copy_keys(int tile, int slot) const {
    const int first = tile * kConfig.tile_k;
    copy<kConfig.dim_qk, typename Rows::KeyRows, kConfig.tile_k>(s_keys_ + slot * kConfig.key_bytes(),
                                                                 g_keys_ + first * params_.k.token_stride, params_.k,
                                                                 params_.k.row_bytes, work_.sequence.keys - first);
  }
  TESSERA_DEVICE void copy_values(int tile, int slot) const {
    const int first = tile * kConfig.tile_k;
    copy<kConfig.dim_v, typename Rows::ValueRows, kConfig.tile_k>(
        s_values_ + slot * kConfig.value_bytes(), g_values_ + first * params_.v.token_stride, params_.v,
        params_.v.row_bytes - work_.part * kConfig.dim_v * kConfig.element_bytes, work_.sequence.keys - first);
  }
  template <int kColumns, class TileRows, int kRows>
  TESSERA_DEVICE void copy(std::uint32_t s_tile, const std::uint8_t* g_first, const RowSource& source, int row_bytes,
                           int valid_rows) const {
    if constexpr (kInPairs) {
      tile::FloatPairs<kColumns, kRows, kConfig.warps>::copy(warp_, s_tile, g_first, source, row_bytes, valid_rows);
    } else {
      tile::copy_rows<TileRows, kRows, kThreads>(s_tile, g_first, source, row_bytes, valid_rows);
    }
  }

  TESSERA_DEVICE void convert_queries() const {
    if constexpr (kInPairs) {
      tile::FloatPairs<kConfig.dim_qk, kConfig.tile_q(), kConfig.warps>::convert(warp_, s_queries_,
                                                                                 products_.query_scales());
    }
  }
  TESSERA_DEVICE void convert_keys(int slot) const {
    if constexpr (kInPairs) {
      tile::FloatPairs<kConfig.dim_qk, kConfig.tile_k, kConfig.warps>::convert(
          warp_, s_keys_ + slot * kConfig.key_bytes(), products_.key_scales(slot));
    }
  }
  TESSERA_DEVICE void convert_values(int slot) const {
    if constexpr (kInPairs) {
      tile::FloatPairs<kConfig.dim_v, kConfig.tile_k, kConfig.warps>::convert(
          warp_, s_values_ + slot * kConfig.value_bytes(), products_.value_scales(slot));
    }
  }

  const ForwardParams& params_;
  const QueryTile work_;
  const tile::Bounds bounds_;
  const KeyTiles key_tiles_;
  const tile::ScoreModifiers<Program, Element> modifiers_;
  const std::uint32_t s_queries_, s_keys_, s_values_;
  const int warp_;
  Rows products_;
  const std::uint8_t* g_keys_ = nullptr;
  const std::uint8_t* g_values_ = nullptr;

  float r_output_[kRowBlocks][Rows::kOutputs];
  tile::LazySoftmax softmax_[kRowBlocks];
};

// Which modifiers an image has.
using plain = StaticProgram<0>;
using any = RuntimeProgram;
template <std::uint32_t kFeatures>
using features = StaticProgram<kFeatures>;

}  // namespace tessera::sm80

#define TESSERA_SM80_FORWARD_INSTANCE(name, dim_qk, dim_v, warps, row_blocks, tile_k, stages, program, element)      \
  extern "C" __global__ void __launch_bounds__(32 * (warps), (warps) <= 4 ? 2 : 1)                                   \
      name(const __grid_constant__ tessera::sm80::ForwardParams params) {                                            \
    extern __shared__ __align__(128) std::uint8_t s_raw[];                                                           \
    using Element = tessera::ptx::element;                                                                           \
    tessera::sm80::Forward<tessera::sm80::ForwardConfig{tessera::tile::kElementBytes<Element>, dim_qk, dim_v, warps, \
                                                        row_blocks, tile_k, stages},                                 \
                           tessera::sm80::program, Element>(params, s_raw)                                           \
        .run();                                                                                                      \
  }

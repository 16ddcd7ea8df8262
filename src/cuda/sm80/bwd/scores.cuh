// What happens to a warp's scores between the products: S becomes P, dP becomes dS, and both go to shared memory, from where the
// products that follow read them transposed or not.
#pragma once

#include "cuda/ptx/registers.cuh"
#include "cuda/sm80/bwd/pairs.cuh"
#include "cuda/sm80/bwd/tiles.cuh"
#include "cuda/sm80/bwd/warp.cuh"
#include "cuda/tile/element_mask.cuh"
#include "cuda/tile/program.cuh"

namespace tessera::sm80 {

// Whether nothing of a step's tiles is hidden.
template <BackwardConfig kConfig, class At>
TESSERA_DEVICE bool sees_whole(const BackwardParams& params, const At& at) {
  if (params.is_listed != 0) {
    return at.bits() < 0;
  }
  return tile::sees_whole_tile(tile::bounds_of(params.band, at.sequence()), at.sequence(),
                               at.query_tile() * kConfig.tile_q, kConfig.tile_q, at.key_tile() * kConfig.tile_k,
                               kConfig.tile_k);
}

// Where the scale of the weights around (query, key) is, from the first one on; see pairs.cuh.
template <class Warp>
TESSERA_DEVICE std::uint32_t weight_scale_offset(int query, int key) {
  const int warp = query / Warp::kRows + Warp::kQueryWarps * (key / Warp::kScoreColumns);
  return 4 * (Warp::kM * warp + query % Warp::kRows / kPairRows);
}

template <BackwardConfig kConfig, class Element, class Program, BackwardRole kRole>
class BackwardScores {
  using Warp = BackwardWarp<kConfig, Element>;
  using Tiles = BackwardTiles<kConfig, kRole>;
  static constexpr int kM = Warp::kM;
  static constexpr int kScoreN = Warp::kScoreN;
  static constexpr int kWeightBytes = kConfig.weight_row_bytes();

 public:
  using Modifiers = tile::ScoreModifiers<Program, Element>;

  TESSERA_DEVICE BackwardScores(const BackwardParams& params, const Tiles& tiles, const Warp& warp)
      : params_(params), tiles_(tiles), warp_(warp) {}

  // Scores become P = 2^(S - LSE) and, times the dropout, what multiplies dO goes to shared memory. What stays in registers has
  // the derivative of the score modifiers in it. A dropped weight takes part in the softmax alone.
  template <class Step>
  TESSERA_DEVICE void weigh(const Modifiers& modifiers, const Step& at, bool whole, typename Warp::Scores& r_scores,
                            typename Warp::Kept& r_kept, int stage) const {
    const tile::Sequence& sequence = at.sequence();
    const int first_query = at.query_tile() * kConfig.tile_q + warp_.query_row() + warp_.row;
    const int column = warp_.score_column() + warp_.column;
    const int first_key = at.key_tile() * kConfig.tile_k + column;
    const tile::Bounds bounds = tile::bounds_of(params_.band, sequence);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const int row = warp_.query_row() + 16 * m + warp_.row;
      float r_derivative[4 * kScoreN];
      if (modifiers.transforms()) {
        modifiers.transform(r_scores[m], first_query + 16 * m, first_key, r_derivative);
      }
      if (!whole) {
        if (params_.is_listed != 0) {
          tile::hide_unlisted<kConfig.tile_k>(
              r_scores[m], tile::bits_of(params_.listed, at.bits(), kConfig.tile_q, kConfig.tile_k), row, column);
        } else {
          tile::hide_outside(r_scores[m], bounds, sequence.keys, first_query + 16 * m, first_key);
        }
      }
      const float factor = modifiers.factor_log2();
      const std::uint32_t s_lse = tiles_.lse(stage) + 4 * row;
      const float lse[2] = {ptx::load_float(s_lse), ptx::load_float(s_lse + 32)};
#pragma unroll
      for (int i = 0; i < 4 * kScoreN; ++i) {
        r_scores[m][i] = ptx::exp2(fmaf(r_scores[m][i], factor, -lse[i / 2 % 2]));
      }
      if (modifiers.has(ScoreFeature::dropout)) {
        modifiers.template keep_bits<4 * kScoreN>(r_kept[m], first_query + 16 * m, first_key);
      }
      if constexpr (kRole == BackwardRole::keys || kRole == BackwardRole::joint) {
        store_kept(modifiers, r_scores[m], r_kept[m], m);
      }
      if (kRole != BackwardRole::bias && modifiers.transforms()) {
#pragma unroll
        for (int i = 0; i < 4 * kScoreN; ++i) {
          // A function may have no derivative at a score that is hidden.
          r_scores[m][i] = Program::kFunction && r_scores[m][i] == 0.0F ? 0.0F : r_scores[m][i] * r_derivative[i];
        }
      }
    }
  }

  // Whether the product dP begins with -delta, which takes no instructions of its own: where nothing is dropped in between.
  static constexpr bool kFromDelta = kConfig.gated() && !Program::kMayDrop;
  TESSERA_DEVICE void negative_delta(RowSums<kM>& r_delta, int stage) const {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const std::uint32_t s_delta = tiles_.delta(stage) + 4 * (warp_.query_row() + 16 * m + warp_.row);
      r_delta[m][0] = -ptx::load_float(s_delta);
      r_delta[m][1] = -ptx::load_float(s_delta + 32);
    }
  }

  // dP becomes dS = P (dP - delta).
  TESSERA_DEVICE void differentiate(const Modifiers& modifiers, const typename Warp::Scores& r_p,
                                    typename Warp::Scores& r_ds, const typename Warp::Kept& r_kept, int stage) const {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const std::uint32_t s_delta = tiles_.delta(stage) + 4 * (warp_.query_row() + 16 * m + warp_.row);
      const float delta[2] = {kFromDelta ? 0.0F : ptx::load_float(s_delta),
                              kFromDelta ? 0.0F : ptx::load_float(s_delta + 32)};
      if (modifiers.has(ScoreFeature::dropout)) {
        tile::drop(r_ds[m], r_kept[m]);
#pragma unroll
        for (int i = 0; i < 4 * kScoreN; ++i) {
          r_ds[m][i] *= params_.score.dropout.kept_scale;
        }
      }
#pragma unroll
      for (int i = 0; i < 4 * kScoreN; ++i) {
        r_ds[m][i] = r_p[m][i] * (kFromDelta ? r_ds[m][i] : r_ds[m][i] - delta[i / 2 % 2]);
      }
      if constexpr (kRole != BackwardRole::bias) {
        store_weights(r_ds[m], tiles_.ds(), m);
      }
    }
  }

 private:
  TESSERA_DEVICE void store_kept(const Modifiers& modifiers, const float (&r_p)[4 * kScoreN],
                                 const std::uint32_t (&r_kept)[Warp::kKeptWords], int m) const {
    if (modifiers.has(ScoreFeature::dropout)) {
      float r_weights[4 * kScoreN];
#pragma unroll
      for (int i = 0; i < 4 * kScoreN; ++i) {
        r_weights[i] = r_p[i] * params_.score.dropout.kept_scale;
      }
      tile::drop(r_weights, r_kept);
      store_weights(r_weights, tiles_.p(), m);
    } else {
      store_weights(r_p, tiles_.p(), m);
    }
  }

  // Rows of fragment `m` of [queries x keys] to shared memory, in the elements of the products.
  TESSERA_DEVICE void store_weights(const float (&r_weights)[4 * kScoreN], const SharedTile& s_tile, int m) const {
    if constexpr (ptx::kSame<Element, ptx::float32>) {
      store_pairs(r_weights, s_tile, m);
      return;
    }
    constexpr int kPieceElements = 16 / tile::kElementBytes<Element>;
    const std::uint32_t s_rows = s_tile + (warp_.query_row() + 16 * m) * kWeightBytes;
    if constexpr (ptx::kStoresMatrices && !Operands<Element>::kWords) {
      const TileLanes<Element, kWeightBytes> lanes;
#pragma unroll
      for (int n = 0; n < kScoreN; n += 2) {
        const auto pair = [&](int i) { return ptx::pack<Element>(r_weights[4 * n + i], r_weights[4 * n + i + 1]); };
        ptx::store_matrices(lanes.a_address(s_rows, 0, warp_.score_column() + 8 * n), pair(0), pair(2), pair(4),
                            pair(6));
      }
      return;
    }
    const std::uint32_t lane = piece_offset<Element, kWeightBytes>(warp_.row, warp_.column / kPieceElements) +
                               warp_.column % kPieceElements * tile::kElementBytes<Element>;
    const int first_piece = warp_.score_column() / kPieceElements;
#pragma unroll
    for (int n = 0; n < kScoreN; ++n) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float* const r_pair = &r_weights[4 * n + 2 * r];
        const std::uint32_t s_pair =
            s_rows + 8 * r * kWeightBytes + (lane ^ (first_piece + 8 * n / kPieceElements) << 4);
        if constexpr (Operands<Element>::kWords) {
          asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(s_pair), "f"(r_pair[0]), "f"(r_pair[1]) : "memory");
        } else {
          asm volatile("st.shared.b32 [%0], %1;" ::"r"(s_pair), "r"(ptx::pack<Element>(r_pair[0], r_pair[1]))
                       : "memory");
        }
      }
    }
  }

  TESSERA_DEVICE void store_pairs(const float (&r_weights)[4 * kScoreN], const SharedTile& s_tile, int m) const {
    const PairLanes<kWeightBytes> lanes;
    const tile::PairScale scale = tile::scale_of(r_weights);
    const int row = warp_.query_row() + 16 * m;
    if (threadIdx.x % 32 == 0) {
      ptx::store_float(s_tile.scales + weight_scale_offset<Warp>(row, warp_.score_column()), scale.from);
    }
#pragma unroll
    for (int n = 0; n < kScoreN; n += 2) {
      std::uint32_t high[4], low[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const r_pair = r_weights + 4 * n + 2 * i;
        tile::split_pair(r_pair[0] * scale.to, r_pair[1] * scale.to, high[i], low[i]);
      }
      if constexpr (ptx::kStoresMatrices) {
        const std::uint32_t s_block = lanes.a_address(s_tile, row, warp_.score_column() + 8 * n);
        ptx::store_matrices(s_block, high[0], high[1], high[2], high[3]);
        ptx::store_matrices(s_block ^ 16, low[0], low[1], low[2], low[3]);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int pair = (warp_.score_column() + 8 * n) / 8 + i / 2;
          const std::uint32_t s_word = s_tile + lanes.offset(row + warp_.row + i % 2 * 8, pair) + warp_.column * 2;
          asm volatile("st.shared.b32 [%0], %1;" ::"r"(s_word), "r"(high[i]) : "memory");
          asm volatile("st.shared.b32 [%0], %1;" ::"r"(s_word ^ 16), "r"(low[i]) : "memory");
        }
      }
    }
  }

  const BackwardParams& params_;
  const Tiles tiles_;
  const Warp warp_;
};

}  // namespace tessera::sm80

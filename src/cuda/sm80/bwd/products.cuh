// The five products of a step: a warp's part of each, from tiles in shared memory.
#pragma once

#include "cuda/sm80/bwd/pairs.cuh"
#include "cuda/sm80/bwd/scores.cuh"
#include "cuda/sm80/bwd/tiles.cuh"
#include "cuda/sm80/bwd/warp.cuh"

namespace tessera::sm80 {

template <BackwardConfig kConfig, class Element, BackwardRole kRole>
class BackwardProducts {
  using Tiles = BackwardTiles<kConfig, kRole>;
  using Warp = BackwardWarp<kConfig, Element>;
  static constexpr bool kPairs = ptx::kSame<Element, ptx::float32>;
  using DataLanes = typename Lanes<Element, kConfig.row_bytes()>::Type;
  using WeightLanes = typename Lanes<Element, kConfig.weight_row_bytes()>::Type;
  static constexpr int kM = Warp::kM;

 public:
  TESSERA_DEVICE BackwardProducts(const Tiles& tiles, const Warp& warp) : tiles_(tiles), warp_(warp) {}

  // [queries x keys] += A B^T over the columns in shared memory.
  TESSERA_DEVICE void scores(typename Warp::Scores& r_sum, const SharedTile& s_a, const SharedTile& s_b,
                             const RowSums<kM>* r_from = nullptr) const {
    if constexpr (kPairs) {
      const PairLanes<kConfig.row_bytes()> lanes;
      multiply_pair_scores<kConfig.columns>(
          r_sum, [&](int row, int depth) { return lanes.a_rows(s_a, warp_.query_row() + row, depth); },
          [&](int column, int depth) { return lanes.b_rows(s_b, warp_.score_column() + column, depth); },
          [&](int m, int n) {
            return scale(s_a, warp_.query_row() / kPairRows + m) * scale(s_b, warp_.score_column() / kPairRows + n);
          });
    } else {
      const DataLanes lanes;
      multiply_tiles<Element, kConfig.columns>(
          r_sum, [&](int row, int depth) { return lanes.a_rows(s_a, warp_.query_row() + row, depth); },
          [&](int column, int depth) { return lanes.b_rows(s_b, warp_.score_column() + column, depth); }, r_from);
    }
  }

  // [keys x columns] += W^T B for weights W [queries x keys].
  TESSERA_DEVICE void of_keys(typename Warp::KeyRows& r_sum, const SharedTile& s_weights, const SharedTile& s_b) const {
    const WeightLanes weight_lanes;
    const DataLanes lanes;
    const auto a = [&](int row, int depth) { return weight_lanes.a_columns(s_weights, warp_.key_row() + row, depth); };
    const auto b = [&](int column, int depth) { return lanes.b_columns(s_b, warp_.key_column() + column, depth); };
    if constexpr (kPairs) {
      multiply_pairs<kConfig.tile_q>(r_sum, a, b, [&](int m, int depth) {
        return weight_scale(s_weights, depth, warp_.key_row() + 16 * m) * scale(s_b, depth / kPairRows);
      });
    } else {
      multiply_tiles<Element, kConfig.tile_q>(r_sum, a, b);
    }
  }

  // [queries x columns] += dS K.
  TESSERA_DEVICE void of_queries(typename Warp::QueryRows& r_sum, const SharedTile& s_keys) const {
    const WeightLanes weight_lanes;
    const DataLanes lanes;
    const auto a = [&](int row, int depth) { return weight_lanes.a_rows(tiles_.ds(), warp_.query_row() + row, depth); };
    const auto b = [&](int column, int depth) { return lanes.b_columns(s_keys, warp_.query_column() + column, depth); };
    if constexpr (kPairs) {
      multiply_pairs<kConfig.tile_k>(r_sum, a, b, [&](int m, int depth) {
        return weight_scale(tiles_.ds(), warp_.query_row() + 16 * m, depth) * scale(s_keys, depth / kPairRows);
      });
    } else {
      multiply_tiles<Element, kConfig.tile_k>(r_sum, a, b);
    }
  }

 private:
  // Pairs: of a group of rows, and of 16 x 16 weights.
  TESSERA_DEVICE static float scale(const SharedTile& s_tile, int group) {
    return ptx::load_float(s_tile.scales + 4 * group);
  }
  TESSERA_DEVICE static float weight_scale(const SharedTile& s_weights, int query, int key) {
    return ptx::load_float(s_weights.scales + weight_scale_offset<Warp>(query, key));
  }

  const Tiles tiles_;
  const Warp warp_;
};

}  // namespace tessera::sm80

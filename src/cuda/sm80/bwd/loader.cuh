// Copies of a step's tiles, which run ahead of the products.
#pragma once

#include "cuda/sm80/bwd/order.cuh"
#include "cuda/sm80/bwd/pairs.cuh"
#include "cuda/sm80/bwd/tiles.cuh"
#include "cuda/sm80/bwd/visits.cuh"

namespace tessera::sm80 {

template <BackwardConfig kConfig, BackwardRole kRole>
struct BackwardCursor {
  using Type = QueryTilesOfKeys<kConfig>;
};
template <BackwardConfig kConfig>
struct BackwardCursor<kConfig, BackwardRole::joint> {
  using Type = JointTilesOfKeys<kConfig>;
};
template <BackwardConfig kConfig>
struct BackwardCursor<kConfig, BackwardRole::queries> {
  using Type = KeyTilesOfQueries<kConfig>;
};
template <BackwardConfig kConfig>
struct BackwardCursor<kConfig, BackwardRole::bias> {
  using Type = TilesOfBias<kConfig>;
};

template <BackwardConfig kConfig, BackwardRole kRole>
struct BackwardStep {
  using Type = VisitStep;
};
template <BackwardConfig kConfig>
struct BackwardStep<kConfig, BackwardRole::bias> {
  using Type = TilesOfBias<kConfig>;
};

// The row of the statistics, and of the sum of dQ, at which the tile of queries of a step begins.
template <BackwardConfig kConfig, class At>
TESSERA_DEVICE std::int64_t statistics_row(const BackwardParams& params, const At& at) {
  const bool alike = params.batch.sequences == nullptr;
  const std::int64_t line = alike ? at.index() * params.batch.heads_q + at.head() : at.head();
  return line * params.line_rows + at.sequence().first_line + at.query_tile() * kConfig.tile_q;
}

// Of the first row of a tile.
TESSERA_DEVICE std::int64_t row_offset(const BackwardInput& input, const tile::Sequence& sequence, int sequence_row,
                                       int head, int first) {
  return sequence.batch * input.strides.batch +
         (static_cast<std::int64_t>(sequence_row) + first) * input.strides.token + head * input.strides.head;
}

template <BackwardConfig kConfig, class Element, class Program, BackwardRole kRole>
struct BackwardCopies {
  using Tiles = BackwardTiles<kConfig, kRole>;
  static constexpr bool kWideDout = !Program::kFunction || Program::kFloat32;  // dO may be float32 beside 16 bits
  static constexpr bool kPairs = ptx::kSame<Element, ptx::float32>;  // warps copy the groups that they convert
  static_assert(!kPairs || kConfig.stages == 1);

  const BackwardParams& params;
  const Tiles tiles;

  // The tiles that the block owns, if they stay.
  TESSERA_DEVICE void load_owned(const OwnedTile& owned) const {
    if constexpr (Tiles::kOwnsKeys) {
      load_keys(owned.sequence, owned.head, owned.tile, 0, 0);
    } else if constexpr (Tiles::kOwnsQueries) {
      load_queries(owned.sequence, owned.head, owned.tile, 0, 0);
    }
  }
  TESSERA_DEVICE void load_queries(const tile::Sequence& sequence, int head, int tile, int column, int stage) const {
    const int first = tile * kConfig.tile_q;
    load_queries(row_offset(params.q, sequence, sequence.query_row, head, first),
                 row_offset(params.dout, sequence, sequence.query_row, head, first), sequence.queries - first, column,
                 stage);
  }
  TESSERA_DEVICE void load_keys(const tile::Sequence& sequence, int head, int tile, int column, int stage) const {
    const int first = tile * kConfig.tile_k;
    load_keys(row_offset(params.k, sequence, sequence.key_row, head, first),
              row_offset(params.v, sequence, sequence.key_row, head, first), sequence.keys - first, column, stage);
  }
  // `rows` of them are there. Whether they are simple is known where one thread has looked for all.
  TESSERA_DEVICE void load_queries(std::int64_t q, std::int64_t dout, int rows, int column, int stage,
                                   bool simple = false) const {
    if (simple) {
      load_simple<kConfig.tile_q>(tiles.q(stage), params.q, q);
      load_simple<kConfig.tile_q>(tiles.dout(stage), params.dout, dout);
    } else {
      load<0, false, kConfig.tile_q>(tiles.q(stage), params.q, q, rows, column, params.dim_qk);
      load<1, kWideDout, kConfig.tile_q>(tiles.dout(stage), params.dout, dout, rows, column, params.dim_v);
    }
  }
  TESSERA_DEVICE void load_keys(std::int64_t k, std::int64_t v, int rows, int column, int stage,
                                bool simple = false) const {
    if (simple) {
      load_simple<kConfig.tile_k>(tiles.k(stage), params.k, k);
      load_simple<kConfig.tile_k>(tiles.v(stage), params.v, v);
    } else {
      load<0, false, kConfig.tile_k>(tiles.k(stage), params.k, k, rows, column, params.dim_qk);
      load<1, false, kConfig.tile_k>(tiles.v(stage), params.v, v, rows, column, params.dim_v);
    }
  }
  // float32: what this warp's lanes have copied becomes pairs.
  TESSERA_DEVICE void convert_queries(int stage) const {
    convert<0, kConfig.tile_q>(tiles.q(stage));
    convert<1, kConfig.tile_q>(tiles.dout(stage));
  }
  TESSERA_DEVICE void convert_keys(int stage) const {
    convert<0, kConfig.tile_k>(tiles.k(stage));
    convert<1, kConfig.tile_k>(tiles.v(stage));
  }
  // Whether streamed tiles of so many rows are loaded by load_simple.
  TESSERA_DEVICE bool is_simple(int rows) const {
    const bool aligned = Tiles::kOwnsKeys ? params.q.aligned != 0 && params.dout.aligned != 0
                                          : params.k.aligned != 0 && params.v.aligned != 0;
    return aligned && rows >= (Tiles::kOwnsKeys ? kConfig.tile_q : kConfig.tile_k) &&
           params.dim_qk == kConfig.columns && params.dim_v == kConfig.columns;
  }
  TESSERA_DEVICE void load_statistics(std::int64_t row, int stage) const {
    constexpr int kPieces = kConfig.tile_q / 4;  // of either statistic
    if (const int i = static_cast<int>(threadIdx.x); i < 2 * kPieces) {
      const float* const g_source = i < kPieces ? params.lse_log2 : params.delta;
      ptx::copy_async<16>(tiles.lse(stage) + 16 * i, g_source + row + i % kPieces * 4, 16);
    }
  }

 private:
  // The groups of tile kOfTwo of two that are this warp's.
  template <int kOfTwo, int kTileRows, class Body>
  TESSERA_DEVICE static void for_each_group(const Body& body) {
    constexpr int kGroups = kTileRows / kPairRows;
    const int warp = __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / 32, 0);
#pragma unroll
    for (int i = 0; i < (kGroups + kConfig.warps - 1) / kConfig.warps; ++i) {
      const int group = i * kConfig.warps + (warp + kOfTwo * kConfig.warps / 2) % kConfig.warps;
      if (kGroups % kConfig.warps == 0 || group < kGroups) {
        body(group);
      }
    }
  }
  template <int kOfTwo, int kTileRows>
  TESSERA_DEVICE static void convert(const SharedTile& s_tile) {
    using Group = tile::PairGroup<kConfig.columns, kPairRows>;
    for_each_group<kOfTwo, kTileRows>([&](int group) {
      const float scale = Group::convert(s_tile + group * Group::kBytes);
      if (threadIdx.x % 32 == 0) {
        ptx::store_float(s_tile.scales + 4 * group, scale);
      }
    });
  }
  template <int kOfTwo, bool kMayBeWide, int kTileRows>
  TESSERA_DEVICE void load(std::uint32_t s_tile, const BackwardInput& input, std::int64_t offset, int rows, int column,
                           int dim) const {
    if constexpr (kPairs) {
      for_each_group<kOfTwo, kTileRows>([&](int group) {
        const int first = group * kPairRows;
        load_tile<Element, kMayBeWide, kPairRows, kConfig.columns, 32>(s_tile + first * kConfig.row_bytes(), input,
                                                                       offset + first * input.strides.token,
                                                                       rows - first, column, dim);
      });
      return;
    }
    load_tile<Element, kMayBeWide, kTileRows, kConfig.columns, kConfig.threads()>(s_tile, input, offset, rows, column,
                                                                                  dim);
  }
  template <int kTileRows>
  TESSERA_DEVICE void load_simple(std::uint32_t s_tile, const BackwardInput& input, std::int64_t offset) const {
    const PieceOfThread<Element, kConfig.columns, kConfig.threads()> piece;
    piece.template copy_rows<kTileRows>(s_tile, piece.address(input, offset), input);
  }
};

template <BackwardConfig kConfig, class Element, class Program, BackwardRole kRole>
class BackwardLoader {
 public:
  using Cursor = typename BackwardCursor<kConfig, kRole>::Type;
  using Step = typename BackwardStep<kConfig, kRole>::Type;
  using Tiles = BackwardTiles<kConfig, kRole>;
  using Copies = BackwardCopies<kConfig, Element, Program, kRole>;

  TESSERA_DEVICE BackwardLoader(const BackwardParams& params, const Tiles& tiles, const OwnedTile& owned)
      : params_(params), copies_{params, tiles}, owned_(owned), cursor_(params, owned), step_(cursor_, owned) {}

  // The step after the last one that was loaded.
  TESSERA_DEVICE const Cursor& cursor() const { return cursor_; }
  TESSERA_DEVICE bool valid() const { return cursor_.valid(); }
  // The last step that was loaded, in whole or in part.
  TESSERA_DEVICE const Step& step() const { return step_; }
  TESSERA_DEVICE int chunks() const { return kConfig.resident != 0 ? 1 : params_.chunks; }

  // Part i of the sum over the columns. The block's own chunk comes last: it is still there for the products that follow.
  TESSERA_DEVICE int chunk_at(int i) const {
    const int chunk = owned_.chunk + 1 + i;
    return chunk >= params_.chunks ? chunk - params_.chunks : chunk;
  }

  TESSERA_DEVICE void load_owned() {
    copies_.load_owned(owned_);
    keys_loaded_ = Tiles::kOwnsKeys;
    queries_loaded_ = Tiles::kOwnsQueries;
  }
  // float32: what was loaded since, and has arrived, becomes pairs.
  TESSERA_DEVICE void convert(int stage) {
    if constexpr (Copies::kPairs) {
      __syncwarp();  // lanes convert what others have copied
      if (queries_loaded_) {
        copies_.convert_queries(stage);
      }
      if (keys_loaded_) {
        copies_.convert_keys(stage);
      }
      queries_loaded_ = false;
      keys_loaded_ = false;
    }
  }

  // The next chunk of columns to `stage`, of the next step once there are no more of this one; returns whether it began a step.
  TESSERA_DEVICE bool load_next(int stage) {
    const bool begins = cursor_.valid() && chunk_ == 0;
    if (cursor_.valid()) {
      if (begins) {
        step_ = Step(cursor_, owned_);
      }
      load_stage(chunk_at(chunk_), stage);
      ++loads_;
      if (++chunk_ == chunks()) {
        chunk_ = 0;
        cursor_.advance();
      }
    }
    ptx::copy_async_commit();
    return begins;
  }

 private:
  static constexpr bool kOfKeys = kRole == BackwardRole::keys || kRole == BackwardRole::joint;

  // The tiles that the block owns come as well unless they are there already: where all of their columns fit, every stage keeps
  // them.
  TESSERA_DEVICE void load_stage(int chunk, int stage) {
    const int column = chunk * kConfig.columns;
    const bool whole = loads_ < kConfig.stages || chunks() > 1;
    if (!Tiles::kOwnsQueries && (whole || kRole != BackwardRole::queries)) {
      copies_.load_queries(cursor_.sequence(), cursor_.head(), cursor_.query_tile(), column, stage);
      queries_loaded_ = true;
    }
    if (!Tiles::kOwnsKeys && (whole || !kOfKeys)) {
      copies_.load_keys(cursor_.sequence(), cursor_.head() / params_.batch.group_size, cursor_.key_tile(), column,
                        stage);
      keys_loaded_ = true;
    }
    copies_.load_statistics(statistics_row<kConfig>(params_, cursor_), stage);
  }

  const BackwardParams& params_;
  const Copies copies_;
  const OwnedTile& owned_;
  Cursor cursor_;
  Step step_;
  int chunk_ = 0;
  int loads_ = 0;
  bool queries_loaded_ = false;
  bool keys_loaded_ = false;
};

}  // namespace tessera::sm80

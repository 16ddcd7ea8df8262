// The work of a block: the steps over the tiles that are combined with its own. FlashAttention-2 (Dao 2023), Algorithm 2.
//
// Scores are [queries x keys]: S = Q K^T and dP = dO V^T come out of the tensor cores with the same elements in the same lanes,
// and P and dS go through shared memory, from where the other products read them transposed or not.
#pragma once

#include "cuda/sm80/bwd/order.cuh"
#include "cuda/sm80/bwd/store.cuh"
#include "cuda/sm80/bwd/tiles.cuh"
#include "cuda/sm80/bwd/visits.cuh"
#include "cuda/tile/dq_fragments.cuh"
#include "cuda/tile/element_mask.cuh"
#include "cuda/tile/program.cuh"

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

template <BackwardConfig kConfig, class Element, class Program, BackwardRole kRole>
class BackwardBlock {
  using Cursor = typename BackwardCursor<kConfig, kRole>::Type;
  using Step = typename BackwardStep<kConfig, kRole>::Type;
  using Tiles = BackwardTiles<kConfig, kRole>;
  using Ops = Operands<Element>;
  using Fragment = typename Ops::Fragment;
  using Modifiers = tile::ScoreModifiers<Program, Element>;
  static constexpr bool kOfKeys = kRole == BackwardRole::keys || kRole == BackwardRole::joint;
  static constexpr bool kOfQueries = kRole == BackwardRole::queries || kRole == BackwardRole::joint;

  // Of the 32 rows of a warp, fragments of 16; beside each other, fragments of 8 columns.
  static constexpr int kRows = BackwardConfig::kWarpRows;
  static constexpr int kM = kRows / 16;
  static constexpr int kQueryWarps = kConfig.tile_q / kRows;
  static constexpr int kKeyWarps = kConfig.tile_k / kRows;
  static constexpr int kScoreColumns = kConfig.tile_k * kQueryWarps / kConfig.warps;
  static constexpr int kScoreN = kScoreColumns / 8;
  static constexpr int kKeptWords = (4 * kScoreN + 31) / 32;
  static constexpr int kQueryColumns = kConfig.columns * kQueryWarps / kConfig.warps;
  static constexpr int kQueryN = kQueryColumns / 8;
  static constexpr int kKeyColumns = kConfig.columns * kKeyWarps / kConfig.warps;
  static constexpr int kKeyN = kKeyColumns / 8;
  static_assert(kConfig.warps % kQueryWarps == 0 && kConfig.warps % kKeyWarps == 0 && kScoreColumns % 16 == 0);
  // Steps along the depth of a product that are unrolled: all, or, where each takes many instructions, few.
  static constexpr int kUnrolled = Ops::kSplit ? 2 : 16;
  static constexpr int kRowBytes = kConfig.row_bytes();
  static constexpr int kWeightBytes = kConfig.weight_row_bytes();

  using DataLanes = TileLanes<Element, kRowBytes>;
  using WeightLanes = TileLanes<Element, kWeightBytes>;

 public:
  TESSERA_DEVICE BackwardBlock(const BackwardParams& params, std::uint32_t s_base)
      : params_(params),
        tiles_{s_base},
        warp_(__shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / 32, 0)),
        row_(static_cast<int>(threadIdx.x) % 32 / 4),
        column_(static_cast<int>(threadIdx.x) % 4 * 2) {}

  TESSERA_DEVICE void run(const OwnedTile& owned) {
    Cursor ahead(params_, owned);
    Step upcoming(ahead, owned);
    bool more = ahead.valid();
    float r_dk[kOfKeys ? kM : 1][kOfKeys ? 4 * kKeyN : 1] = {};
    float r_dv[kOfKeys ? kM : 1][kOfKeys ? 4 * kKeyN : 1] = {};
    float r_dq[kRole == BackwardRole::queries ? kM : 1][kRole == BackwardRole::queries ? 4 * kQueryN : 1] = {};
    float r_bias[kRole == BackwardRole::bias ? kM : 1][kRole == BackwardRole::bias ? 4 * kScoreN : 1] = {};
    load_owned(owned);
    int chunk_ahead = 0;
    int stage_ahead = 0;
    int loads = 0;
    const int chunks = kConfig.resident != 0 ? 1 : params_.chunks;
    const auto load_next = [&] {
      if (ahead.valid()) {
        if (chunk_ahead == 0) {
          upcoming = Step(ahead, owned);
          more = true;
        }
        load_stage(owned, ahead, chunk_at(owned, chunk_ahead), stage_ahead, loads < kConfig.stages || chunks > 1);
        ++loads;
        stage_ahead = following(stage_ahead);
        if (++chunk_ahead == chunks) {
          chunk_ahead = 0;
          ahead.advance();
        }
      }
      ptx::copy_async_commit();
    };
    if constexpr (kConfig.stages == 2) {
      load_next();
    }
    int stage = 0;
    while (more) {
      if constexpr (kConfig.stages == 1) {
        upcoming = Step(ahead, owned);
      }
      const Step now = upcoming;
      more = false;
      float r_scores[kM][4 * kScoreN] = {};
      float r_dp[kM][4 * kScoreN] = {};
      int current = stage;
      const Modifiers modifiers(params_.score, now.sequence(), now.index(), now.head());
      std::uint32_t r_kept[kM][kKeptWords];
      for (int i = 0; i < chunks; ++i) {
        current = stage;
        if constexpr (kConfig.stages == 2) {
          ptx::copy_async_wait<0>();
          __syncthreads();
          load_next();
        } else {
          __syncthreads();
          load_next();
          ptx::copy_async_wait<0>();
          __syncthreads();
        }
        const int column = kConfig.resident != 0 ? 0 : chunk_at(owned, i) * kConfig.columns;
        if (kConfig.resident != 0 || column < params_.dim_qk) {
          score_product(r_scores, tiles_.q(current), tiles_.k(current));
        }
        if constexpr (kConfig.resident != 0) {  // while other warps multiply
          weigh(modifiers, now, r_scores, r_kept, current);
        }
        if (kConfig.resident != 0 || column < params_.dim_v) {
          score_product(r_dp, tiles_.dout(current), tiles_.v(current));
        }
        stage = following(stage);
      }
      if constexpr (kConfig.stages == 1) {
        more = ahead.valid();
      }
      if constexpr (kConfig.resident == 0) {
        weigh(modifiers, now, r_scores, r_kept, current);
      }
      if constexpr (kRole == BackwardRole::joint) {
        pass_turn();
      }
      gradients(modifiers, r_scores, r_dp, r_kept, current);
      if constexpr (kRole == BackwardRole::bias) {
        add_to(r_bias, r_dp);
      } else {
        __syncthreads();
      }
      if constexpr (kOfKeys) {
        key_product(r_dv, tiles_.p(), tiles_.dout(current));
        key_product(r_dk, tiles_.ds(), tiles_.q(current));
      }
      if constexpr (kRole == BackwardRole::queries) {
        query_product(r_dq, tiles_.k(current));
      }
      if constexpr (kRole == BackwardRole::joint) {
        add_dq(ahead, now, current);
      }
    }
    if constexpr (kRole == BackwardRole::joint) {
      pass_turn();
    }
    if constexpr (kOfKeys) {
      store_keys(owned, r_dk, r_dv);
    } else if constexpr (kRole == BackwardRole::queries) {
      store_queries(owned, r_dq);
    } else {
      store_bias(ahead, r_bias);
    }
  }

 private:
  TESSERA_DEVICE static int following(int stage) { return kConfig.stages == 2 ? stage ^ 1 : 0; }

  // Step i of the sum over the columns. The block's own chunk comes last: it is still there for the products that follow.
  TESSERA_DEVICE int chunk_at(const OwnedTile& owned, int i) const {
    const int chunk = owned.chunk + 1 + i;
    return chunk >= params_.chunks ? chunk - params_.chunks : chunk;
  }

  TESSERA_DEVICE int score_column() const { return warp_ / kQueryWarps * kScoreColumns; }
  TESSERA_DEVICE int query_warp() const { return warp_ % kQueryWarps; }
  TESSERA_DEVICE int key_warp() const { return warp_ % kKeyWarps; }

  template <int kTileRows>
  TESSERA_DEVICE void load(std::uint32_t s_tile, const BackwardInput& input, const tile::Sequence& sequence,
                           int sequence_row, int head, int first, int count, int column, int dim) const {
    const std::int64_t offset = sequence.batch * input.strides.batch +
                                (static_cast<std::int64_t>(sequence_row) + first) * input.strides.token +
                                head * input.strides.head;
    load_tile<Element, kTileRows, kConfig.columns, kConfig.threads()>(s_tile, input, offset, count - first, column,
                                                                      dim);
  }

  TESSERA_DEVICE void load_queries(const tile::Sequence& sequence, int head, int tile, int column, int stage) const {
    const int first = tile * kConfig.tile_q;
    load<kConfig.tile_q>(tiles_.q(stage), params_.q, sequence, sequence.query_row, head, first, sequence.queries,
                         column, params_.dim_qk);
    load<kConfig.tile_q>(tiles_.dout(stage), params_.dout, sequence, sequence.query_row, head, first, sequence.queries,
                         column, params_.dim_v);
  }

  TESSERA_DEVICE void load_keys(const tile::Sequence& sequence, int head, int tile, int column, int stage) const {
    const int first = tile * kConfig.tile_k;
    load<kConfig.tile_k>(tiles_.k(stage), params_.k, sequence, sequence.key_row, head, first, sequence.keys, column,
                         params_.dim_qk);
    load<kConfig.tile_k>(tiles_.v(stage), params_.v, sequence, sequence.key_row, head, first, sequence.keys, column,
                         params_.dim_v);
  }

  TESSERA_DEVICE void load_owned(const OwnedTile& owned) const {
    if constexpr (Tiles::kOwnsKeys) {
      load_keys(owned.sequence, owned.head, owned.tile, 0, 0);
    } else if constexpr (Tiles::kOwnsQueries) {
      load_queries(owned.sequence, owned.head, owned.tile, 0, 0);
    }
  }

  // `whole`: the tiles that the block owns as well; where all of their columns fit, every stage keeps them.
  TESSERA_DEVICE void load_stage(const OwnedTile& owned, const Cursor& at, int chunk, int stage, bool whole) const {
    const int column = chunk * kConfig.columns;
    if (!Tiles::kOwnsQueries && (whole || kRole != BackwardRole::queries)) {
      load_queries(at.sequence(), at.head(), at.query_tile(), column, stage);
    }
    if (!Tiles::kOwnsKeys && (whole || !kOfKeys)) {
      load_keys(at.sequence(), at.head() / params_.batch.group_size, at.key_tile(), column, stage);
    }
    constexpr int kPieces = kConfig.tile_q / 4;  // of either statistic
    if (const int i = static_cast<int>(threadIdx.x); i < 2 * kPieces) {
      const float* const g_source = i < kPieces ? params_.lse_log2 : params_.delta;
      ptx::copy_async<16>(tiles_.lse(stage) + 16 * i, g_source + statistics_row(at) + i % kPieces * 4, 16);
    }
  }

  template <class At>
  TESSERA_DEVICE std::int64_t statistics_row(const At& at) const {
    const bool alike = params_.batch.sequences == nullptr;
    const std::int64_t line = alike ? at.index() * params_.batch.heads_q + at.head() : at.head();
    return line * params_.line_rows + at.sequence().first_line + at.query_tile() * kConfig.tile_q;
  }

  // [queries x keys] += A B^T over the columns in shared memory.
  TESSERA_DEVICE void score_product(float (&r_sum)[kM][4 * kScoreN], std::uint32_t s_a, std::uint32_t s_b) const {
    const DataLanes lanes;
    const int row = query_warp() * kRows;
    const int column = score_column();
#pragma unroll kUnrolled
    for (int depth = 0; depth < kConfig.columns; depth += Ops::kDepth) {
      Fragment a[kM];
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        a[m] = lanes.a_rows(s_a, row + 16 * m, depth);
      }
#pragma unroll
      for (int n = 0; n < kScoreN; n += 2) {
        const Fragment b = lanes.b_rows(s_b, column + 8 * n, depth);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          Ops::template multiply<0>(&r_sum[m][4 * n], a[m], b);
          Ops::template multiply<1>(&r_sum[m][4 * n + 4], a[m], b);
        }
      }
    }
  }

  // [keys x columns] += W^T B for weights W [queries x keys].
  TESSERA_DEVICE void key_product(float (&r_sum)[kM][4 * kKeyN], std::uint32_t s_weights, std::uint32_t s_b) const {
    const WeightLanes weight_lanes;
    const DataLanes lanes;
    const int row = key_warp() * kRows;
    const int column = warp_ / kKeyWarps * kKeyColumns;
#pragma unroll kUnrolled
    for (int depth = 0; depth < kConfig.tile_q; depth += Ops::kDepth) {
      Fragment a[kM];
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        a[m] = weight_lanes.a_columns(s_weights, row + 16 * m, depth);
      }
#pragma unroll
      for (int n = 0; n < kKeyN; n += 2) {
        const Fragment b = lanes.b_columns(s_b, column + 8 * n, depth);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          Ops::template multiply<0>(&r_sum[m][4 * n], a[m], b);
          Ops::template multiply<1>(&r_sum[m][4 * n + 4], a[m], b);
        }
      }
    }
  }

  // [queries x columns] += dS K.
  TESSERA_DEVICE void query_product(float (&r_sum)[kM][4 * kQueryN], std::uint32_t s_keys) const {
    const WeightLanes weight_lanes;
    const DataLanes lanes;
    const int row = query_warp() * kRows;
    const int column = warp_ / kQueryWarps * kQueryColumns;
#pragma unroll kUnrolled
    for (int depth = 0; depth < kConfig.tile_k; depth += Ops::kDepth) {
      Fragment a[kM];
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        a[m] = weight_lanes.a_rows(tiles_.ds(), row + 16 * m, depth);
      }
#pragma unroll
      for (int n = 0; n < kQueryN; n += 2) {
        const Fragment b = lanes.b_columns(s_keys, column + 8 * n, depth);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          Ops::template multiply<0>(&r_sum[m][4 * n], a[m], b);
          Ops::template multiply<1>(&r_sum[m][4 * n + 4], a[m], b);
        }
      }
    }
  }

  // Scores become P = 2^(S - LSE) and, times the dropout, what multiplies dO goes to shared memory. What stays in registers has
  // the derivative of the score modifiers in it. A dropped weight takes part in the softmax alone.
  TESSERA_DEVICE void weigh(const Modifiers& modifiers, const Step& at, float (&r_scores)[kM][4 * kScoreN],
                            std::uint32_t (&r_kept)[kM][kKeptWords], int stage) const {
    const tile::Sequence& sequence = at.sequence();
    const int first_query = at.query_tile() * kConfig.tile_q + query_warp() * kRows + row_;
    const int column = score_column() + column_;
    const int first_key = at.key_tile() * kConfig.tile_k + column;
    const tile::Bounds bounds = tile::bounds_of(params_.band, sequence);
    const bool whole = params_.is_listed != 0
                           ? at.bits() < 0
                           : tile::sees_whole_tile(bounds, sequence, at.query_tile() * kConfig.tile_q, kConfig.tile_q,
                                                   at.key_tile() * kConfig.tile_k, kConfig.tile_k);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const int row = query_warp() * kRows + 16 * m + row_;
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
      const float lse[2] = {shared_float(s_lse), shared_float(s_lse + 32)};
#pragma unroll
      for (int i = 0; i < 4 * kScoreN; ++i) {
        r_scores[m][i] = ptx::exp2(fmaf(r_scores[m][i], factor, -lse[i / 2 % 2]));
      }
      if (modifiers.has(ScoreFeature::dropout)) {
        modifiers.template keep_bits<4 * kScoreN>(r_kept[m], first_query + 16 * m, first_key);
      }
      if constexpr (kOfKeys) {
        store_kept(modifiers, r_scores[m], r_kept[m], m);
      }
      if (kRole != BackwardRole::bias && modifiers.transforms()) {
#pragma unroll
        for (int i = 0; i < 4 * kScoreN; ++i) {
          r_scores[m][i] *= r_derivative[i];
        }
      }
    }
  }

  TESSERA_DEVICE void store_kept(const Modifiers& modifiers, const float (&r_p)[4 * kScoreN],
                                 const std::uint32_t (&r_kept)[kKeptWords], int m) const {
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

  // dP becomes dS = P (dP - delta).
  TESSERA_DEVICE void gradients(const Modifiers& modifiers, const float (&r_p)[kM][4 * kScoreN],
                                float (&r_ds)[kM][4 * kScoreN], const std::uint32_t (&r_kept)[kM][kKeptWords],
                                int stage) const {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      const std::uint32_t s_delta = tiles_.delta(stage) + 4 * (query_warp() * kRows + 16 * m + row_);
      const float delta[2] = {shared_float(s_delta), shared_float(s_delta + 32)};
      if (modifiers.has(ScoreFeature::dropout)) {
        tile::drop(r_ds[m], r_kept[m]);
        scale(r_ds[m], params_.score.dropout.kept_scale);
      }
#pragma unroll
      for (int i = 0; i < 4 * kScoreN; ++i) {
        r_ds[m][i] = r_p[m][i] * (r_ds[m][i] - delta[i / 2 % 2]);
      }
      if constexpr (kRole != BackwardRole::bias) {
        store_weights(r_ds[m], tiles_.ds(), m);
      }
    }
  }

  template <int kCount>
  TESSERA_DEVICE static void scale(float (&r_values)[kCount], float factor) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      r_values[i] *= factor;
    }
  }

  TESSERA_DEVICE static float shared_float(std::uint32_t s_address) {
    float value;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(s_address) : "memory");
    return value;
  }

  TESSERA_DEVICE static void add_to(float (&r_sum)[kM][4 * kScoreN], const float (&r_terms)[kM][4 * kScoreN]) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int i = 0; i < 4 * kScoreN; ++i) {
        r_sum[m][i] += r_terms[m][i];
      }
    }
  }

  // Rows of fragment `m` of [queries x keys] to shared memory, in the elements of the products.
  TESSERA_DEVICE void store_weights(const float (&r_weights)[4 * kScoreN], std::uint32_t s_tile, int m) const {
    constexpr int kPieceElements = 16 / tile::kElementBytes<Element>;
    const std::uint32_t s_rows = s_tile + (query_warp() * kRows + 16 * m) * kWeightBytes;
    const std::uint32_t lane = piece_offset<Element, kWeightBytes>(row_, column_ / kPieceElements) +
                               column_ % kPieceElements * tile::kElementBytes<Element>;
    const int first_piece = score_column() / kPieceElements;
#pragma unroll
    for (int n = 0; n < kScoreN; ++n) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float* const r_pair = &r_weights[4 * n + 2 * r];
        const std::uint32_t s_pair =
            s_rows + 8 * r * kWeightBytes + (lane ^ (first_piece + 8 * n / kPieceElements) << 4);
        if constexpr (Ops::kSplit) {
          asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(s_pair), "f"(r_pair[0]), "f"(r_pair[1]) : "memory");
        } else {
          asm volatile("st.shared.b32 [%0], %1;" ::"r"(s_pair), "r"(ptx::pack<Element>(r_pair[0], r_pair[1]))
                       : "memory");
        }
      }
    }
  }

  // The number of terms is read before the product that takes as long as the answer. Nothing but additions in the L2 cache, where
  // those before them were done, depends on it.
  TESSERA_DEVICE void add_dq(const Cursor& cursor, const Step& at, int stage) {
    const std::int64_t first_row = statistics_row(at);
    float* const g_tile = params_.dq_sum + first_row * kConfig.columns;
    const bool in_turns = params_.turns.terms != nullptr;
    int terms = 0;
    if (in_turns) {
      g_turn_ = params_.turns.terms + first_row / kConfig.tile_q * kConfig.warps + warp_;
      terms = ptx::relaxed_load(g_turn_);
    }
    float r_term[kM][4 * kQueryN] = {};
    query_product(r_term, tiles_.k(stage));
    if (in_turns) {
      const int turn = cursor.turn(at.query_tile());
      if (turn == 0) {  // what lay there before is not read
        for_each_fragment([&](int index, int m, int n) {
          tile::DqFragments<kConfig.threads()>::store(g_tile, index, &r_term[m][4 * n]);
        });
        return;
      }
      while (terms != turn) {
        terms = ptx::acquire_load(g_turn_);
      }
    }
    for_each_fragment(
        [&](int index, int m, int n) { tile::DqFragments<kConfig.threads()>::add(g_tile, index, &r_term[m][4 * n]); });
  }
  template <class Body>
  TESSERA_DEVICE static void for_each_fragment(const Body& body) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int n = 0; n < kQueryN; ++n) {
        body(m * kQueryN + n, m, n);
      }
    }
  }

  // Hands dQ of the previous step to the next block: late enough that its additions are done and the fence is short.
  TESSERA_DEVICE void pass_turn() {
    if (g_turn_ != nullptr) {
      __syncwarp();
      if (threadIdx.x % 32 == 0) {
        ptx::release_add(g_turn_, 1);
      }
      g_turn_ = nullptr;
    }
  }

  // dK and dV of all stored keys: those behind the keys in use have gradients of zero.
  TESSERA_DEVICE void store_keys(const OwnedTile& owned, float (&r_dk)[kM][4 * kKeyN],
                                 float (&r_dv)[kM][4 * kKeyN]) const {
    const tile::Sequence& sequence = owned.sequence;
    const int first = owned.tile * kConfig.tile_k + key_warp() * kRows;
    const int column = owned.chunk * kConfig.columns + warp_ / kKeyWarps * kKeyColumns;
    store_rows<Element, kM, kKeyN>(params_.dk, r_dk, params_.score.scale, sequence.batch, sequence.key_row, owned.head,
                                   first, sequence.keys, sequence.stored_keys, column, params_.dim_qk);
    store_rows<Element, kM, kKeyN>(params_.dv, r_dv, 1.0F, sequence.batch, sequence.key_row, owned.head, first,
                                   sequence.keys, sequence.stored_keys, column, params_.dim_v);
  }

  TESSERA_DEVICE void store_queries(const OwnedTile& owned, float (&r_dq)[kM][4 * kQueryN]) const {
    const tile::Sequence& sequence = owned.sequence;
    const int first = owned.tile * kConfig.tile_q + query_warp() * kRows;
    const int column = owned.chunk * kConfig.columns + warp_ / kQueryWarps * kQueryColumns;
    store_rows<Element, kM, kQueryN>(params_.dq, r_dq, params_.score.scale, sequence.batch, sequence.query_row,
                                     owned.head, first, sequence.queries, sequence.queries, column, params_.dim_qk);
  }

  // A tile of dbias, summed along the extents that broadcast it.
  TESSERA_DEVICE void store_bias(const Cursor& end, const float (&r_bias)[kM][4 * kScoreN]) const {
    extern __shared__ __align__(1024) std::uint8_t s_raw[];
    float* const s_sum = reinterpret_cast<float*>(s_raw);
    __syncthreads();  // the tiles that lay there are read
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int i = 0; i < 4 * kScoreN; ++i) {
        const int row = query_warp() * kRows + 16 * m + row_ + i / 2 % 2 * 8;
        s_sum[row * kConfig.tile_k + score_column() + column_ + i / 4 * 8 + i % 2] = r_bias[m][i];
      }
    }
    __syncthreads();
    const BackwardBias& bias = params_.dbias;
    const bool sums_queries = bias.extents[2] == 1;
    const bool sums_keys = bias.extents[3] == 1;
    const int first_query = sums_queries ? 0 : end.begin(2) * kConfig.tile_q;
    const int first_key = sums_keys ? 0 : end.begin(3) * kConfig.tile_k;
    const int rows = sums_queries ? 1 : min(kConfig.tile_q, bias.extents[2] - first_query);
    const int columns = sums_keys ? 1 : min(kConfig.tile_k, bias.extents[3] - first_key);
    const std::int64_t offset = end.begin(0) * bias.strides[0] + end.begin(1) * bias.strides[1];
    for (int i = static_cast<int>(threadIdx.x); i < rows * columns; i += kConfig.threads()) {
      const int row = i / columns;
      const int column = i % columns;
      float sum = 0.0F;
      for (int r = row; r < (sums_queries ? kConfig.tile_q : row + 1); ++r) {
        float sum_of_row = 0.0F;
        for (int c = column; c < (sums_keys ? kConfig.tile_k : column + 1); ++c) {
          sum_of_row += s_sum[r * kConfig.tile_k + c];
        }
        sum += sum_of_row;
      }
      store_element<Element>(bias.data, bias.is_float32,
                             offset + (first_query + row) * bias.strides[2] + (first_key + column) * bias.strides[3],
                             sum);
    }
  }

  const BackwardParams& params_;
  const Tiles tiles_;
  const int warp_;
  const int row_, column_;
  std::int32_t* g_turn_ = nullptr;  // role joint: of dQ that was added to and not yet handed on
};

}  // namespace tessera::sm80

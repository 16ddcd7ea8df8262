// The work of a block: the steps over the tiles that are combined with its own. FlashAttention-2 (Dao 2023), Algorithm 2.
//
// Scores are [queries x keys]: S = Q K^T and dP = dO V^T come out of the tensor cores with the same elements in the same lanes,
// and P and dS go through shared memory, from where the other products read them transposed or not.
//
// Where the owned tiles stay and two stages are streamed, warps meet once a step, before the products that take P and dS. A warp
// that is done with those goes on to the scores of the next step, whose tiles that barrier has shown to be there; only what it
// then writes waits for the others, at a gate that they have mostly passed.
#pragma once

#include "cuda/ptx/gate.cuh"
#include "cuda/sm80/bwd/loader.cuh"
#include "cuda/sm80/bwd/scores.cuh"
#include "cuda/sm80/bwd/store.cuh"
#include "cuda/sm80/bwd/turn.cuh"
#include "cuda/tile/dq_fragments.cuh"

namespace tessera::sm80 {

template <BackwardConfig kConfig, class Element, class Program, BackwardRole kRole>
class BackwardBlock {
  using Loader = BackwardLoader<kConfig, Element, kRole>;
  using Cursor = typename Loader::Cursor;
  using Step = typename Loader::Step;
  using Tiles = BackwardTiles<kConfig, kRole>;
  using Warp = BackwardWarp<kConfig, Element>;
  using Scores = BackwardScores<kConfig, Element, Program, kRole>;
  using Modifiers = typename Scores::Modifiers;
  using DataLanes = TileLanes<Element, kConfig.row_bytes()>;
  using WeightLanes = TileLanes<Element, kConfig.weight_row_bytes()>;
  static constexpr bool kOfKeys = kRole == BackwardRole::keys || kRole == BackwardRole::joint;
  static constexpr bool kGated = kConfig.gated();
  static constexpr int kM = Warp::kM;

  // An accumulator that this role has, else nothing to speak of.
  template <bool kPresent, int kN>
  using Sum = float[kPresent ? kM : 1][kPresent ? 4 * kN : 1];

 public:
  TESSERA_DEVICE BackwardBlock(const BackwardParams& params, std::uint32_t s_base)
      : params_(params), tiles_{s_base}, scores_(params_, tiles_, warp_) {
    if constexpr (kGated) {
      if (threadIdx.x == 0) {
        ptx::gate_init(tiles_.gate(), kConfig.threads());
        ptx::gate_init(tiles_.arrival(), 2 * kConfig.threads());
      }
      __syncthreads();
    }
  }

  TESSERA_DEVICE void run(const OwnedTile& owned) {
    Loader loader(params_, tiles_, owned);
    Sum<kOfKeys, Warp::kKeyN> r_dk = {};
    Sum<kOfKeys, Warp::kKeyN> r_dv = {};
    Sum<kRole == BackwardRole::queries, Warp::kQueryN> r_dq = {};
    Sum<kRole == BackwardRole::bias, Warp::kScoreN> r_bias = {};
    loader.load_owned();
    bool more = loader.valid();
    if constexpr (kGated) {
      load_ahead(loader, stage_);
    } else if constexpr (kConfig.stages == 2) {
      loader.load_next(stage_);
    }
    while (more) {
      const Step now = kConfig.stages == 2 ? loader.step() : Step(loader.cursor(), owned);
      const Modifiers modifiers(params_.score, now.sequence(), now.index(), now.head());
      typename Warp::Scores r_scores = {};
      typename Warp::Scores r_dp = {};
      typename Warp::Kept r_kept;
      more = false;
      for (int i = 0; i < loader.chunks(); ++i) {
        if constexpr (kGated) {
          wait_for_tiles();
        } else {
          more = next_chunk(loader, following()) || more;
        }
        const int column = kConfig.resident != 0 ? 0 : loader.chunk_at(i) * kConfig.columns;
        if (kConfig.resident != 0 || column < params_.dim_qk) {
          score_product<true>(r_scores, tiles_.q(stage_), tiles_.k(stage_));
        }
        if constexpr (kGated) {
          pass_gate();
        }
        if constexpr (kConfig.resident != 0) {  // while other warps multiply
          scores_.weigh(modifiers, now, r_scores, r_kept, stage_);
        }
        if (kConfig.resident != 0 || column < params_.dim_v) {
          score_product<false>(r_dp, tiles_.dout(stage_), tiles_.v(stage_));
        }
        if (i + 1 < loader.chunks()) {
          stage_ = following();
        }
      }
      if constexpr (kConfig.stages == 1) {
        more = loader.valid();
      }
      if constexpr (kConfig.resident == 0) {
        scores_.weigh(modifiers, now, r_scores, r_kept, stage_);
      }
      scores_.differentiate(modifiers, r_scores, r_dp, r_kept, stage_);
      if constexpr (kRole == BackwardRole::bias) {
        add_to(r_bias, r_dp);
      } else {
        __syncthreads();
      }
      if constexpr (kRole == BackwardRole::joint) {
        turn_.pass();
      }
      if constexpr (kOfKeys) {
        key_product(r_dv, tiles_.p(), tiles_.dout(stage_));
        key_product(r_dk, tiles_.ds(), tiles_.q(stage_));
      }
      if constexpr (kGated) {
        more = load_ahead(loader, following());
      }
      if constexpr (kRole == BackwardRole::queries) {
        query_product(r_dq, tiles_.k(stage_));
        open_gate();
      }
      if constexpr (kRole == BackwardRole::keys) {
        open_gate();
      }
      if constexpr (kRole == BackwardRole::joint) {
        add_dq(loader.cursor(), now);
      }
      stage_ = following();
    }
    if constexpr (kRole == BackwardRole::joint) {
      __syncthreads();
      turn_.pass();
    }
    if constexpr (kOfKeys) {
      store_keys(owned, r_dk, r_dv);
    } else if constexpr (kRole == BackwardRole::queries) {
      store_queries(owned, r_dq);
    } else {
      extern __shared__ __align__(1024) std::uint8_t s_raw[];
      store_bias<kConfig, Element>(params_.dbias, loader.cursor(), r_bias, warp_, reinterpret_cast<float*>(s_raw));
    }
  }

 private:
  // The stage of the next chunk of columns, and of the next step.
  TESSERA_DEVICE int following() const { return kConfig.stages == 2 ? stage_ ^ 1 : 0; }

  TESSERA_DEVICE static void await_copies() {
    ptx::copy_async_wait<0>();
    __syncthreads();
  }

  // The chunk of columns that comes next is there; with two stages the one after it is on its way.
  TESSERA_DEVICE static bool next_chunk(Loader& loader, int stage) {
    if constexpr (kConfig.stages == 2) {
      await_copies();
      return loader.load_next(stage);
    }
    __syncthreads();
    const bool begins = loader.load_next(stage);
    await_copies();
    return begins;
  }

  // Begins to copy the next step's tiles, with the scores out of the registers and when warps are no longer in step. The arrival of all
  // threads' copies, and of what narrow ones store themselves, is what that step waits for.
  TESSERA_DEVICE bool load_ahead(Loader& loader, int stage) const {
    const bool begins = loader.load_next(stage);
    if (begins) {
      ptx::gate_arrive_after_copies(tiles_.arrival());
      ptx::gate_arrive(tiles_.arrival());
    }
    return begins;
  }
  TESSERA_DEVICE void wait_for_tiles() { ptx::gate_wait(tiles_.arrival(), stage_); }

  // The gate is closed until all warps have read what this step overwrites, P, dS and the tiles of the step before.
  TESSERA_DEVICE void pass_gate() { ptx::gate_wait(tiles_.gate(), stage_ ^ 1); }
  TESSERA_DEVICE void open_gate() const {
    if constexpr (kGated) {
      ptx::gate_arrive(tiles_.gate());
    }
  }

  // [queries x keys] += A B^T over the columns in shared memory. A softcap can make what S is off by many times as large.
  template <bool kNearest>
  TESSERA_DEVICE void score_product(typename Warp::Scores& r_sum, std::uint32_t s_a, std::uint32_t s_b) const {
    const DataLanes lanes;
    multiply_tiles<Element, kConfig.columns>(
        r_sum, [&](int row, int depth) { return lanes.template a_rows<kNearest>(s_a, warp_.query_row() + row, depth); },
        [&](int column, int depth) {
          return lanes.template b_rows<kNearest>(s_b, warp_.score_column() + column, depth);
        });
  }

  // [keys x columns] += W^T B for weights W [queries x keys].
  TESSERA_DEVICE void key_product(typename Warp::KeyRows& r_sum, std::uint32_t s_weights, std::uint32_t s_b) const {
    const WeightLanes weight_lanes;
    const DataLanes lanes;
    multiply_tiles<Element, kConfig.tile_q>(
        r_sum, [&](int row, int depth) { return weight_lanes.a_columns(s_weights, warp_.key_row() + row, depth); },
        [&](int column, int depth) { return lanes.b_columns(s_b, warp_.key_column() + column, depth); });
  }

  // [queries x columns] += dS K.
  TESSERA_DEVICE void query_product(typename Warp::QueryRows& r_sum, std::uint32_t s_keys) const {
    const WeightLanes weight_lanes;
    const DataLanes lanes;
    multiply_tiles<Element, kConfig.tile_k>(
        r_sum, [&](int row, int depth) { return weight_lanes.a_rows(tiles_.ds(), warp_.query_row() + row, depth); },
        [&](int column, int depth) { return lanes.b_columns(s_keys, warp_.query_column() + column, depth); });
  }

  TESSERA_DEVICE static void add_to(typename Warp::Scores& r_sum, const typename Warp::Scores& r_terms) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int i = 0; i < 4 * Warp::kScoreN; ++i) {
        r_sum[m][i] += r_terms[m][i];
      }
    }
  }

  // The number of terms is read before the product that takes as long as the answer.
  TESSERA_DEVICE void add_dq(const Cursor& cursor, const Step& at) {
    using Fragments = tile::DqFragments<kConfig.threads()>;
    const std::int64_t first_row = statistics_row<kConfig>(params_, at);
    float* const g_tile = params_.dq_sum + first_row * kConfig.columns;
    const bool in_turns = params_.turns.terms != nullptr;
    if (in_turns) {
      turn_.look(params_.turns.terms + first_row / kConfig.tile_q);
    }
    typename Warp::QueryRows r_term = {};
    query_product(r_term, tiles_.k(stage_));
    open_gate();
    if (in_turns) {
      const int turn = cursor.turn(at.query_tile());
      if (turn == 0) {  // what lay there before is not read
        for_each_fragment([&](int index, int m, int n) { Fragments::store(g_tile, index, &r_term[m][4 * n]); });
        return;
      }
      turn_.await(turn);
    }
    for_each_fragment([&](int index, int m, int n) { Fragments::add(g_tile, index, &r_term[m][4 * n]); });
  }
  template <class Body>
  TESSERA_DEVICE static void for_each_fragment(const Body& body) {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
#pragma unroll
      for (int n = 0; n < Warp::kQueryN; ++n) {
        body(m * Warp::kQueryN + n, m, n);
      }
    }
  }

  // dK and dV of all stored keys: those behind the keys in use have gradients of zero.
  TESSERA_DEVICE void store_keys(const OwnedTile& owned, typename Warp::KeyRows& r_dk,
                                 typename Warp::KeyRows& r_dv) const {
    const tile::Sequence& sequence = owned.sequence;
    const int first = owned.tile * kConfig.tile_k + warp_.key_row();
    const int column = owned.chunk * kConfig.columns + warp_.key_column();
    store_rows<Element, kM, Warp::kKeyN>(params_.dk, r_dk, params_.score.scale, sequence.batch, sequence.key_row,
                                         owned.head, first, sequence.keys, sequence.stored_keys, column,
                                         params_.dim_qk);
    store_rows<Element, kM, Warp::kKeyN>(params_.dv, r_dv, 1.0F, sequence.batch, sequence.key_row, owned.head, first,
                                         sequence.keys, sequence.stored_keys, column, params_.dim_v);
  }

  TESSERA_DEVICE void store_queries(const OwnedTile& owned, typename Warp::QueryRows& r_dq) const {
    const tile::Sequence& sequence = owned.sequence;
    const int first = owned.tile * kConfig.tile_q + warp_.query_row();
    const int column = owned.chunk * kConfig.columns + warp_.query_column();
    store_rows<Element, kM, Warp::kQueryN>(params_.dq, r_dq, params_.score.scale, sequence.batch, sequence.query_row,
                                           owned.head, first, sequence.queries, sequence.queries, column,
                                           params_.dim_qk);
  }

  const BackwardParams& params_;
  const Tiles tiles_;
  const Warp warp_;
  const Scores scores_;
  int stage_ = 0;  // of the step and, where there is a gate, the parity of its phases
  DqTurn turn_;    // role joint: of dQ that was added to and not yet handed on
};

}  // namespace tessera::sm80

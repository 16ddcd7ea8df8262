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
#include "cuda/sm80/bwd/block_work.cuh"
#include "cuda/sm80/bwd/products.cuh"
#include "cuda/sm80/bwd/store.cuh"
#include "cuda/sm80/bwd/turn.cuh"
#include "cuda/tile/dq_fragments.cuh"

namespace tessera::sm80 {

template <BackwardConfig kConfig, class Element, class Program, BackwardRole kRole>
class BackwardBlock {
  using Work = BlockWork<kConfig, kRole>;
  using Tiles = BackwardTiles<kConfig, kRole>;
  using Warp = BackwardWarp<kConfig, Element>;
  using Scores = BackwardScores<kConfig, Element, Program, kRole>;
  using Modifiers = typename Scores::Modifiers;
  static constexpr bool kOfKeys = kRole == BackwardRole::keys || kRole == BackwardRole::joint;
  static constexpr bool kGated = kConfig.gated();
  static constexpr int kM = Warp::kM;

  // An accumulator that this role has, else nothing to speak of.
  template <bool kPresent, int kN, int kRowsOfFragments = kM>
  using Sum = float[kPresent ? kRowsOfFragments : 1][kPresent ? 4 * kN : 1];

 public:
  TESSERA_DEVICE BackwardBlock(const BackwardParams& params, std::uint32_t s_base, Work& s_work)
      : params_(params), s_work_(s_work), tiles_{s_base}, scores_(params_, tiles_, warp_), products_(tiles_, warp_) {
    if constexpr (kGated) {
      if (threadIdx.x == 0) {
        ptx::gate_init(tiles_.gate(), kConfig.threads());
        ptx::gate_init(tiles_.arrival(), 2 * kConfig.threads());
      }
      __syncthreads();
    }
  }

  // Of the tile that it owns, see block_work.cuh.
  TESSERA_DEVICE void run() {
    if constexpr (kGated) {
      run_gated();
    } else if constexpr (kConfig.resident != 0) {
      run_resident();
    } else {
      run_streamed();
    }
  }

 private:
  struct Sums {
    Sum<kOfKeys, Warp::kKeyN, Warp::kKeyM> r_keys = {};  // dV or dK
    Sum<kRole == BackwardRole::queries, Warp::kQueryN> r_dq = {};
    Sum<kRole == BackwardRole::bias, Warp::kScoreN> r_bias = {};
  };

  TESSERA_DEVICE void run_gated() {
    const SharedSteps<kConfig, Element, Program, kRole> steps(params_, tiles_, s_work_);
    Sums sums;
    steps.begin();
    bool more = false;
#pragma unroll 1
    for (int i = 0; i < 2; ++i) {  // one copy of the code
      steps.work_out(step_ + i);
      if (i == 0) {
        __syncthreads();
        more = load_ahead(steps, step_);
      }
    }
    steps.work_out_item();
    while (more) {
      const SharedStep now = steps.step(step_);
      const Modifiers modifiers(params_.score, now.sequence(), now.index(), now.head());
      typename Warp::Scores r_scores = {};
      typename Warp::Scores r_dp = {};
      typename Warp::Kept r_kept;
      ptx::gate_wait(tiles_.arrival(), stage());
      products_.scores(r_scores, tiles_.q(stage()), tiles_.k(stage()));
      pass_gate();
      scores_.weigh(modifiers, now, now.whole(), r_scores, r_kept, stage());  // while other warps multiply
      if constexpr (Scores::kFromDelta) {
        RowSums<kM> r_delta;
        scores_.negative_delta(r_delta, stage());
        products_.scores(r_dp, tiles_.dout(stage()), tiles_.v(stage()), &r_delta);
      } else {
        products_.scores(r_dp, tiles_.dout(stage()), tiles_.v(stage()));
      }
      scores_.differentiate(modifiers, r_scores, r_dp, r_kept, stage());
      __syncthreads();
      multiply_by_keys(sums);
      // With the scores out of the registers, and when warps are no longer in step.
      more = load_ahead(steps, step_ + 1);
      if constexpr (kRole == BackwardRole::queries) {
        products_.of_queries(sums.r_dq, tiles_.k(stage()));
        open_gate();
      } else if constexpr (kRole == BackwardRole::joint) {
        add_dq(now);
      } else {
        open_gate();
      }
      steps.work_out(step_ + 2);  // where no warp waits for the one that does
      ++step_;
    }
    store(sums);
  }

  using Loader = BackwardLoader<kConfig, Element, Program, kRole>;
  using Step = typename Loader::Step;

  // Where steps are not worked out ahead.
  struct TermOfCursor {
    const BackwardParams& params;
    const typename Loader::Cursor& cursor;
    const Step& step;
    TESSERA_DEVICE std::int64_t statistics_row() const { return sm80::statistics_row<kConfig>(params, step); }
    TESSERA_DEVICE int turn() const { return cursor.turn(step.query_tile()); }
  };

  // One stage, which the tiles of the next step reach while dQ is multiplied.
  TESSERA_DEVICE void run_resident() {
    static_assert(kRole == BackwardRole::joint && kConfig.stages == 1);
    Loader loader(params_, tiles_, s_work_.owned);
    Sums sums;
    loader.load_owned();
    bool more = loader.load_next(0);
    while (more) {
      const Step now = loader.step();
      const Modifiers modifiers(params_.score, now.sequence(), now.index(), now.head());
      typename Warp::Scores r_scores = {};
      typename Warp::Scores r_dp = {};
      typename Warp::Kept r_kept;
      await_copies(loader, 0);
      products_.scores(r_scores, tiles_.q(0), tiles_.k(0));
      scores_.weigh(modifiers, now, sees_whole<kConfig>(params_, now), r_scores, r_kept, 0);
      products_.scores(r_dp, tiles_.dout(0), tiles_.v(0));
      scores_.differentiate(modifiers, r_scores, r_dp, r_kept, 0);
      __syncthreads();
      multiply_by_keys(sums);
      __syncthreads();
      more = loader.load_next(0);
      add_dq(TermOfCursor{params_, loader.cursor(), now});
    }
    store(sums);
  }

  TESSERA_DEVICE void run_streamed() {
    Loader loader(params_, tiles_, s_work_.owned);
    Sums sums;
    bool more = loader.valid();
    if constexpr (kConfig.stages == 2) {
      loader.load_next(stage());
    }
    while (more) {
      const Step now = kConfig.stages == 2 ? loader.step() : Step(loader.cursor(), s_work_.owned);
      const Modifiers modifiers(params_.score, now.sequence(), now.index(), now.head());
      typename Warp::Scores r_scores = {};
      typename Warp::Scores r_dp = {};
      typename Warp::Kept r_kept;
      more = false;
      for (int i = 0; i < loader.chunks(); ++i) {
        more = next_chunk(loader, following()) || more;
        const int column = loader.chunk_at(i) * kConfig.columns;
        if (column < params_.dim_qk) {
          products_.scores(r_scores, tiles_.q(stage()), tiles_.k(stage()));
        }
        if (column < params_.dim_v) {
          products_.scores(r_dp, tiles_.dout(stage()), tiles_.v(stage()));
        }
        if (i + 1 < loader.chunks()) {
          step_ = following();
        }
      }
      if constexpr (kConfig.stages == 1) {
        more = loader.valid();
      }
      scores_.weigh(modifiers, now, sees_whole<kConfig>(params_, now), r_scores, r_kept, stage());
      scores_.differentiate(modifiers, r_scores, r_dp, r_kept, stage());
      if constexpr (kRole == BackwardRole::bias) {
        add_to(sums.r_bias, r_dp);
      } else {
        __syncthreads();
        multiply_by_keys(sums);
      }
      if constexpr (kRole == BackwardRole::queries) {
        products_.of_queries(sums.r_dq, tiles_.k(stage()));
      }
      step_ = following();
    }
    if constexpr (kRole == BackwardRole::bias) {
      extern __shared__ __align__(1024) std::uint8_t s_raw[];
      store_bias<kConfig, Element>(params_.dbias, loader.cursor(), sums.r_bias, warp_, reinterpret_cast<float*>(s_raw));
    } else {
      store(sums);
    }
  }

  // Steps and, where they are streamed in chunks, chunks are counted modulo the stages; gates have a phase each.
  TESSERA_DEVICE int stage() const { return kGated ? step_ & 1 : step_; }
  TESSERA_DEVICE int following() const { return kConfig.stages == 2 ? step_ ^ 1 : 0; }

  // What was copied is there for all threads, in the elements of the products.
  TESSERA_DEVICE static void await_copies(Loader& loader, int stage) {
    ptx::copy_async_wait<0>();
    loader.convert(stage);
    __syncthreads();
  }

  // The chunk of columns that comes next is there; with two stages the one after it is on its way.
  TESSERA_DEVICE static bool next_chunk(Loader& loader, int stage) {
    if constexpr (kConfig.stages == 2) {
      await_copies(loader, stage ^ 1);
      return loader.load_next(stage);
    }
    __syncthreads();
    const bool begins = loader.load_next(stage);
    await_copies(loader, stage);
    return begins;
  }

  // Begins to copy a step's tiles, if there is such a step. The arrival of all threads' copies, and of what narrow ones store
  // themselves, is what that step waits for.
  template <class Steps>
  TESSERA_DEVICE bool load_ahead(const Steps& steps, int step) const {
    if (!steps.valid(step)) {
      return false;
    }
    steps.load(step);
    ptx::gate_arrive_after_copies(tiles_.arrival());
    ptx::gate_arrive(tiles_.arrival());
    return true;
  }

  // The gate is closed until all warps have read what this step overwrites, P, dS and the tiles of the step before.
  TESSERA_DEVICE void pass_gate() { ptx::gate_wait(tiles_.gate(), stage() ^ 1); }
  TESSERA_DEVICE void open_gate() const {
    if constexpr (kGated) {
      ptx::gate_arrive(tiles_.gate());
    }
  }

  // The products that take P and dS; all warps have written theirs.
  TESSERA_DEVICE void multiply_by_keys(Sums& sums) {
    if constexpr (kRole == BackwardRole::joint) {
      pass_turn(s_work_.added);
    }
    if constexpr (kOfKeys) {
      const bool dv = warp_.has_dv();
      products_.of_keys(sums.r_keys, SharedTile::choose(dv, tiles_.p(), tiles_.ds()),
                        SharedTile::choose(dv, tiles_.dout(stage()), tiles_.q(stage())));
    }
  }

  TESSERA_DEVICE void store(Sums& sums) {
    if constexpr (kConfig.resident != 0) {
      // A tile without a step leaves its copies on their way to where those of the next tile go.
      ptx::copy_async_commit();
      ptx::copy_async_wait<0>();
    }
    if constexpr (kRole == BackwardRole::joint) {
      __syncthreads();
      pass_turn(s_work_.added);
    }
    if constexpr (kOfKeys) {
      store_keys(s_work_.owned, sums);
    } else {
      store_queries(s_work_.owned, sums.r_dq);
    }
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
  template <class At>
  TESSERA_DEVICE void add_dq(const At& at) {
    using Fragments = tile::DqFragments<kConfig.threads()>;
    const bool in_turns = params_.turns.terms != nullptr;
    const auto g_terms = [&] { return params_.turns.terms + at.statistics_row() / kConfig.tile_q; };
    int seen = 0;
    if (in_turns) {
      seen = ptx::relaxed_load(g_terms());
      if (threadIdx.x == 0) {
        s_work_.added = g_terms();
      }
    }
    typename Warp::QueryRows r_term = {};
    products_.of_queries(r_term, tiles_.k(stage()));
    open_gate();
    float* const g_tile = params_.dq_sum + at.statistics_row() * kConfig.columns;
    if (in_turns) {
      const int turn = at.turn();
      if (turn == 0) {  // what lay there before is not read
        for_each_fragment([&](int index, int m, int n) { Fragments::store(g_tile, index, &r_term[m][4 * n]); });
        return;
      }
      await_turn(g_terms(), seen, turn);
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
  TESSERA_DEVICE void store_keys(const OwnedTile& owned, Sums& sums) const {
    const bool dv = warp_.has_dv();
    const tile::Sequence& sequence = owned.sequence;
    const int first = owned.tile * kConfig.tile_k + warp_.key_row();
    const int column = owned.chunk * kConfig.columns + warp_.key_column();
    const BackwardOutput& output = dv ? params_.dv : params_.dk;
    const float factor = dv ? 1.0F : params_.score.scale;
    const int dim = dv ? params_.dim_v : params_.dim_qk;
    store_rows<Element, Program, Warp::kKeyM, Warp::kKeyN>(
        {output, factor, sequence.batch, sequence.key_row, owned.head, first, sequence.keys, sequence.stored_keys,
         column, dim},
        sums.r_keys);
  }

  TESSERA_DEVICE void store_queries(const OwnedTile& owned, typename Warp::QueryRows& r_dq) const {
    const tile::Sequence& sequence = owned.sequence;
    const int first = owned.tile * kConfig.tile_q + warp_.query_row();
    const int column = owned.chunk * kConfig.columns + warp_.query_column();
    store_rows<Element, Program, kM, Warp::kQueryN>(
        {params_.dq, params_.score.scale, sequence.batch, sequence.query_row, owned.head, first, sequence.queries,
         sequence.queries, column, params_.dim_qk},
        r_dq);
  }

  const BackwardParams& params_;
  Work& s_work_;
  const Tiles tiles_;
  const Warp warp_;
  const Scores scores_;
  const BackwardProducts<kConfig, Element, kRole> products_;
  int step_ = 0;  // of all of the block's or, streamed, the stage
};

}  // namespace tessera::sm80

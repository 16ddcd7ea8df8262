// What a consumer warpgroup of the forward kernel does with its 64 rows of every tile of queries. In which order is in walk.cuh and
// compact_walk.cuh.
#pragma once

#include "cuda/sm90/fwd/score.cuh"
#include "cuda/sm90/fwd/shared.cuh"
#include "cuda/tile/listed.cuh"
#include "cuda/tile/steady_softmax.cuh"

namespace tessera::sm90 {

template <ForwardConfig kConfig, MaskKind kMask, class Element, std::uint32_t kFeatures>
class ForwardConsumer {
 public:
  using Shared = ForwardShared<kConfig>;
  using Score = ForwardScore<kConfig, Element, kFeatures>;

  TESSERA_DEVICE ForwardConsumer(const ForwardParams& params, const Shared& shared, int warpgroup, int twin)
      : params_(params),
        shared_(shared),
        warpgroup_(warpgroup),
        twin_(twin),
        leader_(threadIdx.x % 128 == 0),
        score_(params, warpgroup) {}

 protected:
  using QueryPosition = tile::RingPosition<kConfig.query_slots()>;
  static constexpr int kScores = kConfig.tile_k / 2;
  static constexpr int kOutputs = kConfig.head_dim / 2;
  // Two warpgroups under a band do not have the same work. Twins are faster without turns there, and so are score programs up to
  // head dim 128; elsewhere turns are worth up to 8 %. Dropout's random numbers are held in front of the turn's barrier.
  static constexpr bool kUnequal =
      (kMask == MaskKind::causal || kMask == MaskKind::window) &&
      (kConfig.twins() == 2 || (kFeatures != 0 && kConfig.warpgroups == 2 && kConfig.head_dim <= 128));
  static constexpr bool kTakesTurns = !kUnequal || Features<kFeatures>::kDropout;
  static constexpr int kTurnBarrier = 1;
  static constexpr int kRowBarrier = 4;
  static constexpr int kTwinBarriers = 8;

  // Around all tiles.
  TESSERA_DEVICE void start_turns() const {
    if (warpgroup_ == kConfig.warpgroups - 1) {
      pass_turn();  // to the first warpgroup
    }
  }
  TESSERA_DEVICE void end_turns() const {
    if (warpgroup_ == 0) {
      await_turn();  // the last one is not taken: a barrier may not be left half full
    }
  }

  TESSERA_DEVICE void start_rows() {
    const int first_row = work_.first_query + warpgroup_ * 64;
    const int last_row = first_row + 63;
    first_masked_ =
        max(0, min(work_.keys, kMask == MaskKind::dense ? work_.keys : first_row + work_.upper + 1)) / kConfig.tile_k;
    last_unmasked_ = kMask == MaskKind::window
                         ? max(work_.begin, tile::ceil_div(max(0, last_row + work_.lower), kConfig.tile_k))
                         : work_.begin;
    score_.start_tile(work_);
  }

  TESSERA_DEVICE void await_queries() const {
    const QueryPosition queries = own_queries();
    ptx::mbarrier_wait(shared_.bar_query_full + queries.slot, queries.parity);
  }
  TESSERA_DEVICE void await_keys() const { ptx::mbarrier_wait(shared_.bar_key_full + key_.slot, key_.parity); }

  // What the next stage holds under a listed mask, with its bits on the way from memory.
  TESSERA_DEVICE void await_visit() {
    await_keys();
    visit_ = shared_.visits[key_.slot];
    ptx::mbarrier_arrive(shared_.bar_key_empty + key_.slot);  // see Shared::key_arrivals()
    bits_.load(params_.listed.bits, visit_.bits, kConfig.tile_q(), warpgroup_ * 64 + tile::fragment_row());
  }

  // Of visit j. What holds nothing stands for the first one.
  TESSERA_DEVICE int key_tile(int j) const {
    if constexpr (kMask == MaskKind::listed) {
      return visit_.bits == kNoneAttend ? 0 : visit_.tile;
    }
    return kStartsAtDiagonal<kMask, kFeatures> ? key_tile_of(work_, j) : j;
  }

  // Rows of V behind the keys of a sequence, which only tables of sequences leave in a tile: the copy engine fills what is
  // outside the tensor with zeros. They are in the last key tile of a sequence.
  TESSERA_DEVICE void clear_hidden_values() {
    if (params_.batch.sequences == nullptr || last_tile_end() * kConfig.tile_k <= work_.keys) {
      return;
    }
    ptx::mbarrier_wait(shared_.bar_value_full + value_.slot, value_.parity);
    tile::clear_rows<kConfig.tile_k, kConfig.sub_tiles()>(shared_.values + value_.slot * kConfig.key_bytes(),
                                                          max(work_.keys - (last_tile_end() - 1) * kConfig.tile_k, 0),
                                                          row_barrier());
  }

  // One more than that tile or, under a listed mask, the one that is visited.
  TESSERA_DEVICE int last_tile_end() const {
    if constexpr (kMask == MaskKind::listed) {
      return visit_.tile + 1;
    }
    return work_.end;
  }

  // Of the scores of a key tile what the mask leaves out.
  TESSERA_DEVICE void hide(int tile) {
    if constexpr (kMask == MaskKind::listed) {
      bits_.hide(r_scores_, Score::Softmax::kHidden);
      return;
    }
    const int first_key = tile * kConfig.tile_k + tile::fragment_column();
    int first[2];
    int last[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int query = work_.first_query + warpgroup_ * 64 + tile::fragment_row() + 8 * r;
      last[r] = (kMask == MaskKind::dense ? work_.keys - 1 : min(work_.keys - 1, query + work_.upper)) - first_key;
      first[r] = query + work_.lower - first_key;
    }
    tile::hide_scores<kMask == MaskKind::window>(r_scores_, first, last, Score::Softmax::kHidden);
  }

  // S = Q K^T of the stage that is next.
  TESSERA_DEVICE void issue_scores() {
    using Product = ptx::Wgmma<kConfig.tile_k, Element>;
    const std::uint32_t s_queries =
        ptx::fresh(ptx::shared_address(shared_.queries) + own_queries().slot * kConfig.query_bytes());
    const std::uint32_t s_keys = ptx::fresh(ptx::shared_address(shared_.keys) + key_.slot * kConfig.key_bytes());
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kConfig.head_dim / 16; ++k) {
      const std::uint64_t a = ptx::depth_major(s_queries, k / 4 * 64 * 128 + k % 4 * 32);
      const std::uint64_t b = ptx::depth_major(s_keys, k / 4 * kConfig.tile_k * 128 + k % 4 * 32);
      if (k == 0) {
        Product::ss_first(r_scores_, a, b);
      } else {
        Product::ss(r_scores_, a, b);
      }
    }
    ptx::wgmma_commit();
  }

  // O += P V (or O = P V) of the stage before it.
  TESSERA_DEVICE void issue_output() {
    using Product = ptx::Wgmma<kConfig.head_dim, Element>;
    ptx::mbarrier_wait(shared_.bar_value_full + value_.slot, value_.parity);
    const std::uint32_t s_values = ptx::fresh(ptx::shared_address(shared_.values) + value_.slot * kConfig.key_bytes());
    ptx::wgmma_fence();
#pragma unroll
    for (int k = 0; k < kConfig.tile_k / 16; ++k) {
      Product::rs(r_output_, r_weights_ + 4 * k, ptx::width_major(s_values, kConfig.tile_k * 128, k * 2048),
                  accumulate_ || k > 0);
    }
    ptx::wgmma_commit();
  }

  // Where this warpgroup's queries are.
  TESSERA_DEVICE QueryPosition own_queries() const {
    QueryPosition own = query_;
    if constexpr (kConfig.query_slots() % kConfig.warpgroups == 0) {
      own.slot += warpgroup_;
    } else {
      own.advance(warpgroup_);
    }
    return own;
  }

  TESSERA_DEVICE void finish_output() {
    ptx::wgmma_wait<0>();
    ptx::pin(r_output_);
    release_values();
  }

  TESSERA_DEVICE void release_values() {
    release(shared_.bar_value_empty + value_.slot);
    value_.advance();
  }

  TESSERA_DEVICE void release(std::uint64_t* bar_empty) const {
    if (leader_) {
      ptx::mbarrier_arrive(bar_empty);
    }
  }

  // After the scores of a stage are complete; the queries too after those of a tile's last one.
  TESSERA_DEVICE void release_keys() {
    release(shared_.bar_key_empty + key_.slot);
    key_.advance();
    if (--keys_left_ == 0) {
      if (leader_) {
        ptx::mbarrier_arrive(shared_.bar_query_empty + own_queries().slot);
      }
      query_.advance(kConfig.warpgroups);
    }
  }

  TESSERA_DEVICE void read_tile() {
    ptx::mbarrier_wait(shared_.bar_tile_full + tile_.slot, tile_.parity);
    work_ = shared_.tiles[tile_.slot];
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      ptx::mbarrier_arrive(shared_.bar_tile_empty + tile_.slot);
    }
    tile_.advance();
    keys_left_ = work_.end - work_.begin;
  }

  TESSERA_DEVICE void write_output(const ForwardTile& done) {
    softmax_.finish();
    const int first_row = done.first_query + warpgroup_ * 64 + tile::fragment_row();
    const std::int64_t token = done.query_row + first_row;
    float factor[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float share = score_.finish_row(softmax_.maximum[r], softmax_.sum[r], done.head);
      factor[r] = softmax_.sum[r] == 0.0F ? 0.0F : ptx::reciprocal(softmax_.sum[r]) * share;
    }
    const bool stored[2] = {first_row < done.queries, first_row + 8 < done.queries};
    if (kConfig.stages_output() &&
        (params_.batch.ragged == 0 || first_row - tile::fragment_row() + 64 <= done.queries)) {
      store_through_shared(done, factor);
    } else {
      std::uint16_t* const g_row = static_cast<std::uint16_t*>(params_.out) + done.batch * params_.out_strides.batch +
                                   token * params_.out_strides.token + done.head * params_.out_strides.head;
      std::uint16_t* const g_rows[2] = {g_row, g_row + 8 * params_.out_strides.token};
      tile::store_rows<Element>(r_output_, factor, g_rows, stored, params_.dim_v);
    }
    // After O: the fence in front of the copy engine would wait for these writes to memory.
    if (params_.lse != nullptr && threadIdx.x % 4 == 0) {
      write_statistics(done, token, stored);
    }
  }

  TESSERA_DEVICE void write_statistics(const ForwardTile& done, std::int64_t token, const bool (&stored)[2]) const {
    constexpr float kLn2 = 0.693147180559945309F;
    float* const g_row = params_.lse + done.batch * params_.lse_strides.batch + done.head * params_.lse_strides.head +
                         token * params_.lse_strides.token;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (stored[r]) {
        g_row[8 * r * params_.lse_strides.token] =
            softmax_.sum[r] == 0.0F ? -__builtin_huge_valf()
                                    : fmaf(softmax_.maximum[r], score_.factor_log2(), __log2f(softmax_.sum[r])) * kLn2;
      }
    }
  }

  // By the copy engine, which leaves out the rows behind the tensor's end but not those of the next ragged sequence.
  TESSERA_DEVICE void store_through_shared(const ForwardTile& done, const float (&factor)[2]) const {
    std::uint8_t* const s_rows = shared_.output + warpgroup_ * kConfig.query_bytes();
    if (leader_) {
      ptx::bulk_wait_read<0>();
    }
    ptx::named_barrier_sync(row_barrier(), 128);
    tile::stage_rows<Element>(ptx::shared_address(s_rows), r_output_, factor);
    ptx::fence_async_shared();
    ptx::named_barrier_sync(row_barrier(), 128);
    if (leader_) {
#pragma unroll
      for (int x = 0; x < kConfig.sub_tiles(); ++x) {
        ptx::store_box(params_.out_map, s_rows + x * 64 * 128, x * ForwardConfig::kSubTileColumns,
                       done.query_row + done.first_query + warpgroup_ * 64, done.head, done.batch);
      }
      ptx::bulk_commit();
    }
  }

  TESSERA_DEVICE int turn_barrier(int warpgroup) const { return kTurnBarrier + warpgroup + of_twin(); }
  TESSERA_DEVICE int row_barrier() const { return kRowBarrier + warpgroup_ + of_twin(); }
  TESSERA_DEVICE int of_twin() const { return kConfig.twins() > 1 ? kTwinBarriers * twin_ : 0; }
  TESSERA_DEVICE void await_turn() const {
    if constexpr (kTakesTurns) {
      ptx::named_barrier_sync(turn_barrier(warpgroup_) + score_.drawn(), 256);
    }
  }
  TESSERA_DEVICE void pass_turn() const {
    if constexpr (kTakesTurns) {
      const int next = warpgroup_ + 1 == kConfig.warpgroups ? 0 : warpgroup_ + 1;
      ptx::named_barrier_arrive(turn_barrier(next), 256);
    }
  }

  const ForwardParams& params_;
  const Shared& shared_;
  const int warpgroup_;
  const int twin_;
  const bool leader_;

  ForwardTile work_;
  int first_masked_ = 0;   // key tiles from here on are hidden in part by the mask's upper end
  int last_unmasked_ = 0;  // key tiles before it are hidden in part by the lower end
  ListedVisit visit_{};    // of the next stage, under a listed mask
  int keys_left_ = 0;      // key tiles of this query tile whose scores are to come
  bool accumulate_ = false;
  QueryPosition query_;  // of the first warpgroup, the same in all threads, which keeps it out of their registers
  tile::RingPosition<kConfig.stages> key_, value_;
  tile::RingPosition<ForwardConfig::kTileSlots> tile_;

  float r_scores_[kScores];
  std::uint32_t r_weights_[kScores / 2];
  float r_output_[kOutputs];
  typename Score::Softmax softmax_;
  Score score_;
  tile::ListedBits<kConfig.tile_k> bits_;
};

}  // namespace tessera::sm90

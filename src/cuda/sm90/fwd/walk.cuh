// The walk of a consumer warpgroup of the forward kernel without a score program, or with a softcap alone.
//
// Work is one stream of key tiles across all tiles of queries. S of the next key tile is issued before O += P V of this one,
// so that the tensor cores are busy while the weights are computed; at the end of a query tile that next S already belongs to
// the next query tile, whose queries and first keys are in shared memory by then. Warpgroups take turns at issuing products:
// the exponentials of one overlap the products of another.
#pragma once

#include "cuda/sm90/fwd/consumer.cuh"

namespace tessera::sm90 {

template <ForwardConfig kConfig, MaskKind kMask, class Element, std::uint32_t kFeatures>
class ForwardWalk : ForwardConsumer<kConfig, kMask, Element, kFeatures> {
  using Consumer = ForwardConsumer<kConfig, kMask, Element, kFeatures>;
  static constexpr bool kCaps = Features<kFeatures>::kHasBound;
  using Consumer::await_turn, Consumer::pass_turn, Consumer::issue_scores, Consumer::issue_output,
      Consumer::finish_output;
  using Consumer::await_visit, Consumer::release_keys, Consumer::read_tile, Consumer::write_output;
  using Consumer::r_scores_, Consumer::r_weights_, Consumer::r_output_;
  using Consumer::work_, Consumer::visit_, Consumer::score_, Consumer::softmax_, Consumer::accumulate_;

 public:
  using Consumer::Consumer;

  TESSERA_DEVICE void run() {
    this->start_turns();
    read_tile();
    if (work_.valid != 0) {
      start_tile();
      await_turn();
      issue_scores();
      pass_turn();
      ptx::wgmma_wait<0>();
      ptx::pin(r_scores_);
      release_keys();
      first_weights();
      while (walk_tile()) {
      }
      ptx::bulk_wait_read<0>();
    }
    this->end_turns();
  }

 private:
  // The rest of a query tile, and the first weights of the next one. False when there is none.
  TESSERA_DEVICE bool walk_tile() {
    int j = work_.end - 2;
    if constexpr (kMask == MaskKind::listed) {
      for (; j >= work_.begin; --j) {
        await_visit();
        if (visit_.bits >= 0) {
          step<true>(j);
        } else {
          step<false>(j);
        }
      }
      return next_tile();
    }
    if constexpr (kMask != MaskKind::dense) {
      for (; j >= max(this->first_masked_, work_.begin); --j) {
        step<true>(j);
      }
    }
    for (; j >= this->last_unmasked_; --j) {
      step<false>(j);
    }
    if constexpr (kMask == MaskKind::window) {
      for (; j >= work_.begin; --j) {
        step<true>(j);
      }
    }
    return next_tile();
  }

  // One key tile: its scores and weights, and the output of the weights before it.
  template <bool kMasked>
  TESSERA_DEVICE void step(int j) {
    this->await_keys();
    await_turn();
    issue_scores();
    issue_output();
    pass_turn();
    accumulate_ = true;
    ptx::wgmma_wait<1>();
    ptx::pin(r_scores_);
    release_keys();
    // The products are issued when they are nearly done: there is nothing to gain from waiting later, and the values' room is
    // free sooner.
    finish_output();
    if constexpr (kMasked) {
      this->hide(j);
    }
    if constexpr (kCaps) {
      score_.update_weights(softmax_, r_scores_, r_weights_, r_output_);
    } else {
      softmax_.template update_weights<Element>(r_scores_, r_weights_, r_output_, score_.factor_log2());
    }
  }

  // The last output of a tile of queries, and the first scores and weights of the next one.
  TESSERA_DEVICE bool next_tile() {
    const ForwardTile done = work_;
    read_tile();
    if (work_.valid == 0) {
      issue_output();
      finish_output();
      write_output(done);
      return false;
    }
    start_tile();
    await_turn();
    issue_scores();
    issue_output();
    pass_turn();
    ptx::wgmma_wait<1>();
    ptx::pin(r_scores_);
    release_keys();
    finish_output();
    write_output(done);
    first_weights();
    return true;
  }

  // The next tile of queries, once its queries and its first keys are there.
  TESSERA_DEVICE void start_tile() {
    this->start_rows();
    this->await_queries();
    this->await_keys();
    if constexpr (kMask == MaskKind::listed) {
      await_visit();
    }
  }

  TESSERA_DEVICE void first_weights() {
    const int j = work_.end - 1;
    if (kMask == MaskKind::listed ? visit_.bits != kAllAttend : kMask != MaskKind::dense || j >= this->first_masked_) {
      this->hide(j);
    }
    if constexpr (kCaps) {
      softmax_.reset();
      score_.update_weights(softmax_, r_scores_, r_weights_, r_output_);
    } else {
      softmax_.template start<Element>(r_scores_, r_weights_, score_.factor_log2());
    }
    accumulate_ = false;
    this->clear_hidden_values();
  }
};

}  // namespace tessera::sm90

// The walk of a consumer warpgroup of the forward kernel in the code of one step, for kernels with a score program and
// those that a build lacks: it compiles in half the time of the three to five copies of a step in walk.cuh. Tiles do not overlap each other's ends.
#pragma once

#include "cuda/sm90/fwd/consumer.cuh"

namespace tessera::sm90 {

template <ForwardConfig kConfig, MaskKind kMask, class Element, std::uint32_t kFeatures>
class CompactForwardWalk : ForwardConsumer<kConfig, kMask, Element, kFeatures> {
  using Consumer = ForwardConsumer<kConfig, kMask, Element, kFeatures>;
  using Score = typename Consumer::Score;
  using Consumer::key_tile, Consumer::work_, Consumer::score_, Consumer::accumulate_;
  using Consumer::r_scores_, Consumer::r_weights_, Consumer::r_output_;

 public:
  using Consumer::Consumer;

  TESSERA_DEVICE void run() {
    this->start_turns();
    this->read_tile();
    for (; work_.valid != 0; this->read_tile()) {
      walk_tile();
    }
    ptx::bulk_wait_read<0>();
    this->end_turns();
  }

 private:
  TESSERA_DEVICE void walk_tile() {
    this->start_rows();
    this->softmax_.reset();
    this->await_queries();
    for (int j = work_.end - 1; j >= work_.begin; --j) {
      const bool first = j == work_.end - 1;
      if constexpr (kMask == MaskKind::listed) {
        this->await_visit();
      }
      score_.draw(work_, key_tile(j));
      this->await_keys();
      this->await_turn();
      this->issue_scores();
      if (first) {
        ptx::wgmma_commit();
      } else {
        this->issue_output();
        accumulate_ = true;
      }
      this->pass_turn();
      ptx::wgmma_wait<1>();
      ptx::pin(r_scores_);
      this->release_keys();
      if constexpr (Score::kDropout) {
        finish_step(j, first);
      }
      transform_scores(key_tile(j));
      if constexpr (!Score::kDropout) {
        finish_step(j, first);
      }
      score_.update_weights(this->softmax_, r_scores_, r_weights_, r_output_);
      score_.drop(r_weights_);
    }
    this->issue_output();
    this->finish_output();
    this->write_output(work_);
  }

  // Products to scores. A function must not see what lies behind an end: tiles with an end have code of their own.
  TESSERA_DEVICE void transform_scores(int tile) {
    const bool masked = is_masked(tile);
    if (Score::kFunction && (masked || score_.ends_inside(work_))) {
      if (score_.begins_inside(work_)) {
        score_.template transform<true>(r_scores_, work_, tile);
      }
      if (masked) {
        this->hide(tile);
      }
    } else {
      score_.template transform<false>(r_scores_, work_, tile);
      if (!Score::kFunction && masked) {
        this->hide(tile);
      }
    }
  }

  // The output of the step before. Programs are 1 to 8 % faster if they wait for it behind the transform; but those with dropout,
  // which hold more words in registers meanwhile, are 2 to 4 % faster if they do so in front of it.
  TESSERA_DEVICE void finish_step(int j, bool first) {
    ptx::wgmma_wait<0>();
    ptx::pin(r_output_);
    if (first) {
      accumulate_ = false;
    } else {
      this->release_values();
    }
    if (kMask == MaskKind::listed ? first : key_tile(j) == work_.end - 1) {
      this->clear_hidden_values();
    }
  }

  TESSERA_DEVICE bool is_masked(int tile) const {
    return kMask == MaskKind::listed ? this->visit_.bits != kAllAttend
                                     : tile >= this->first_masked_ || tile < this->last_unmasked_;
  }
};

}  // namespace tessera::sm90

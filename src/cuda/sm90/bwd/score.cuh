// The score program in a consumer warpgroup of the backward kernel, see ../score_hooks.cuh. Rows are keys, columns queries.
#pragma once

#include "cuda/sm90/bwd/shared.cuh"
#include "cuda/sm90/score_hooks.cuh"
#include "cuda/tile/softmax.cuh"

namespace tessera::sm90 {

// kLseParts: scores come without LSE.
template <BackwardConfig kConfig, class Element, std::uint32_t kFeatures, bool kLseParts>
class BackwardScore : public Features<kFeatures> {
 public:
  using Has = Features<kFeatures>;
  static constexpr int kScores = kConfig.tile_q / 2;
  // Whether weights are more than powers of two of scaled products.
  static constexpr bool kChangesWeights = Has::kSoftcap || Has::kFunction || Has::kAdds || Has::kDropout;
  static constexpr bool kUsesHead = Has::kAlibi || Has::kDropout || Has::kFunction;

  TESSERA_DEVICE BackwardScore(const BackwardParams& params, int warpgroup) : params_(params), warpgroup_(warpgroup) {}

  TESSERA_DEVICE float kept_scale() const { return Has::kDropout ? params_.score.dropout.kept_scale : 1.0F; }

  TESSERA_DEVICE void start_head(const BackwardTile& work, int head) {
    head_ = head;
    if constexpr (Has::kAlibi) {
      slope_log2_ = alibi_slope_log2(params_.score, sequence(work), head);
    }
  }

  // Which weights are kept, to shared memory, where the block of a query and a lane is needed by all four warps: rows of this
  // warpgroup in the buffer of dS that is written next. Computed by 128 threads while products run.
  template <class Wait>
  TESSERA_DEVICE void draw(const BackwardTile& work, int first_query, std::uint8_t* s_buffer, int barrier,
                           Wait&& await_buffer) {
    if constexpr (Has::kDropout) {
      constexpr int kBlocks = kConfig.tile_q / 32;
      const DropoutParams& dropout = params_.score.dropout;
      const auto group = static_cast<std::uint32_t>((dropout.key_start + work.first_key) / 64) + warpgroup_;
      const std::uint32_t lane_of_keys = threadIdx.x % 128 / 32;
      const int lane = static_cast<int>(threadIdx.x % 32);
      const int column_pair = lane % 8 / 2;
      s_words_ = reinterpret_cast<std::uint32_t*>(s_buffer + warpgroup_ * 64 * 128);
      await_buffer();
#pragma unroll
      for (int m = 0; m < kBlocks; ++m) {
        const int query = first_query + 32 * m + lane;
        const uint4 block = tile::keep_block(
            dropout, group, lane_of_keys,
            static_cast<std::uint32_t>(dropout.query_start + dropout.query_stride * query), dropout.head_start + head_,
            dropout.batch_start + static_cast<std::uint32_t>(sequence(work)));
        const int word = 2 * (4 * m + lane / 8) + lane % 2;
        std::uint32_t* const s_word =
            s_words_ + (lane_of_keys * 4 + column_pair) * kRun + swizzled(word / 4, column_pair) * 4 + word % 4;
        s_word[0] = block.x;
        s_word[16 * kRun] = block.y;
        s_word[32 * kRun] = block.z;
        s_word[48 * kRun] = block.w;
      }
      ptx::named_barrier_sync(barrier, 128);
    }
  }

  // After the last use of what draw() wrote, before dS is written over it.
  TESSERA_DEVICE void finish_draw(int barrier) const {
    if constexpr (Has::kDropout) {
      ptx::named_barrier_sync(barrier, 128);
    }
  }

  // Products to P in 16 bits and, where there is one, to P times the derivative of softcap and function. Anything where a pair is
  // hidden. LSE is in `s_lse`, unless the product has subtracted it.
  TESSERA_DEVICE void compute_weights(std::uint32_t (&r_packed)[kScores / 2], std::uint32_t (&r_factors)[kScores / 2],
                                      const float (&r_scores)[kScores], const BackwardTile& work, int first_query,
                                      const float2* s_lse) const {
    if constexpr (Has::kAlibi) {
      const int shift = params_.score.diagonal + (params_.score.bottom_right != 0 ? work.keys - work.queries : 0);
      const int smallest = first_query + shift - (work.first_key + warpgroup_ * 64 + 63);
      const int distance =
          first_query + tile::fragment_column() + shift - (work.first_key + warpgroup_ * 64 + tile::fragment_row());
      const int largest = smallest + kConfig.tile_q - 1 + 63;
      const AlibiFragment alibi[2] = {AlibiFragment(slope_log2_, distance, smallest, largest),
                                      AlibiFragment(slope_log2_, distance - 8, smallest, largest)};
      if (alibi[0].linear()) {
        const float first[2] = {alibi[0].linear_first(), alibi[1].linear_first()};
        weights<false>(r_packed, r_factors, r_scores, work, first_query, s_lse, [&](int column, int r) {
          return fmaf(static_cast<float>(column), alibi[0].linear_step(), first[r]);
        });
      } else {
        weights<false>(r_packed, r_factors, r_scores, work, first_query, s_lse,
                       [&](int column, int r) { return alibi[r].at(static_cast<float>(column)); });
      }
    } else {
      const auto nothing = [](int /*column*/, int /*r*/) { return 0.0F; };
      if (Has::kFunction && tile::kFunctionNamesPositions && first_query + kConfig.tile_q <= work.queries &&
          work.first_key + kConfig.tile_k <= work.keys) {
        weights<true>(r_packed, r_factors, r_scores, work, first_query, s_lse, nothing);
        return;
      }
      weights<false>(r_packed, r_factors, r_scores, work, first_query, s_lse, nothing);
    }
  }

  // dS = P o (dP - delta), of which the product has subtracted delta, in 16 bits: `r_factors` are P or P times a derivative. With
  // dropout dS = P o (dP o kept - delta), without the scale of kept weights, which dQ and dK get at the end: the product has
  // subtracted delta over that scale, unless there is a derivative too (see StatisticForms), and what is left of a dropped weight is
  // minus that. Dropped weights become 0.
  TESSERA_DEVICE void compute_score_gradients(std::uint32_t (&r_factors)[kScores / 2],
                                              std::uint32_t (&r_packed)[kScores / 2],
                                              const float (&r_dweights)[kScores], const float2* s_delta) const {
#pragma unroll
    for (int i = 0; i < kScores / 4; ++i) {
      uint4 words{};
      float delta[2] = {};
      if constexpr (Has::kDropout) {
        words = load_words(i / 2);
        delta[0] = s_delta[4 * i].x * kept_share(params_.score);
        delta[1] = s_delta[4 * i].y * kept_share(params_.score);
      }
      const std::uint32_t dropped = ptx::pack<Element>(-delta[0], -delta[1]);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int x = 2 * i + r;
        std::uint32_t gradient =
            Has::kHasDerivative && Has::kDropout
                ? ptx::pack<Element>(r_dweights[2 * x] - delta[0], r_dweights[2 * x + 1] - delta[1])
                : ptx::pack<Element>(r_dweights[2 * x], r_dweights[2 * x + 1]);
        const std::uint32_t factors = Has::kHasDerivative ? r_factors[x] : r_packed[x];
        if constexpr (Has::kDropout) {
          const std::uint32_t kept = i % 2 == 0 ? tile::spread_top_bits(words.x, words.y, byte_of_row(r))
                                                : tile::spread_top_bits(words.z, words.w, byte_of_row(r));
          gradient = (gradient & kept) | (dropped & ~kept);
          r_packed[x] &= kept;
        }
        r_factors[x] = ptx::multiply_pairs<Element>(factors, gradient);
      }
    }
  }

 private:
  static constexpr int kRun = kConfig.tile_q / 4;  // words in a row for one thread: two of every 8 queries

  TESSERA_DEVICE static int sequence(const BackwardTile& work) { return work.valid - 1; }

  // Which 16 bytes of a run hold its 16 bytes number `chunk`: runs of a quad's lanes lie in different banks.
  TESSERA_DEVICE static int swizzled(int chunk, int column_pair) {
    return chunk ^ (kConfig.tile_q == 128 ? column_pair : column_pair / 2);
  }

  // Words of the queries {0, 1, 8, 9} + 16 `chunk` of this thread's columns: byte 2 r + key % 2 is about its row r.
  TESSERA_DEVICE uint4 load_words(int chunk) const {
    const int warp = static_cast<int>(threadIdx.x % 128) / 32;
    const int lane_of_keys = static_cast<int>(threadIdx.x % 32) / 8;
    const int column_pair = static_cast<int>(threadIdx.x % 4);
    const std::uint32_t* const s_run = s_words_ + ((warp * 4 + lane_of_keys) * 4 + column_pair) * kRun;
    return *reinterpret_cast<const uint4*>(s_run + swizzled(chunk, column_pair) * 4);
  }
  // For a pair of elements, in all nibbles.
  TESSERA_DEVICE static std::uint32_t byte_of_row(int r) { return (threadIdx.x / 4 % 2 + 2 * r) * 0x1111U + 0x4400U; }

  // `addend`: of a column and a row, to the logit.
  template <bool kInside, class Addend>
  TESSERA_DEVICE void weights(std::uint32_t (&r_packed)[kScores / 2], std::uint32_t (&r_factors)[kScores / 2],
                              const float (&r_scores)[kScores], const BackwardTile& work, int first_query,
                              const float2* s_lse, Addend&& addend) const {
    const float factor = Has::kFunctionChanges ? kLog2e : params_.scale_log2;
#pragma unroll
    for (int i = 0; i < kScores / 4; ++i) {
      const float2 both = kLseParts ? float2{} : s_lse[4 * i];
      const float lse[2] = {both.x, both.y};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float weight[2];
        float slope[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = 8 * i + e;
          const Position at = position<kInside>(work, first_query, column, r);
          const tile::Tangent logit = logit_of<Element, kFeatures>(
              r_scores[4 * i + 2 * r + e], params_.score_scale, params_.score, at.place, at.query, at.key, at.distance);
          float exponent = logit.value * factor;
          if constexpr (Has::kFunctionAdds) {
            const float added = function_addend(at.place, at.query, at.key, at.distance);
            exponent = fmaf(logit.value, factor, Has::kAdds ? addend(column, r) + added : added);
          } else if constexpr (Has::kAdds) {
            exponent = fmaf(logit.value, factor, addend(column, r));
          }
          if constexpr (!kLseParts) {
            exponent -= lse[e];
          }
          weight[e] = ptx::exp2(exponent);
          if constexpr (Has::kHasDerivative) {
            slope[e] = weight[e] * logit.derivative;
          }
          if constexpr (Has::kFunctionChanges) {
            slope[e] = weight[e] == 0.0F ? 0.0F : slope[e];  // where it may have no derivative
          }
        }
        r_packed[2 * i + r] = ptx::pack<Element>(weight[0], weight[1]);
        if constexpr (Has::kHasDerivative) {
          r_factors[2 * i + r] = ptx::pack<Element>(slope[0], slope[1]);
        }
      }
    }
  }

  struct Position {
    typename Has::Place place;
    int query, key;
    float distance;
  };

  // kInside: all positions of the tile are of the sequence, which leaves the compiler to find those that are the same.
  template <bool kInside>
  TESSERA_DEVICE Position position(const BackwardTile& work, int first_query, int column, int r) const {
    const typename Has::Place place(params_.score.function, sequence(work), head_);
    const int query = first_query + tile::fragment_column() + column;
    const int key = work.first_key + warpgroup_ * 64 + tile::fragment_row() + 8 * r;
    return {place, kInside ? query : min(query, work.queries - 1), kInside ? key : max(min(key, work.keys - 1), 0),
            place.distance(query - column, key) + place.step(column, 0)};
  }

  const BackwardParams& params_;
  const int warpgroup_;
  int head_ = 0;
  float slope_log2_ = 0.0F;
  std::uint32_t* s_words_ = nullptr;
};

}  // namespace tessera::sm90

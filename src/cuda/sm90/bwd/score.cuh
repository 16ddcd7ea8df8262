// The score program in a consumer warpgroup of the backward kernel, see ../score_hooks.cuh. Rows are keys, columns queries.
#pragma once

#include "cuda/sm90/bwd/shared.cuh"
#include "cuda/sm90/score_hooks.cuh"
#include "cuda/tile/softmax.cuh"

namespace tessera::sm90 {

template <BackwardConfig kConfig, class Element, std::uint32_t kFeatures>
class BackwardScore : public Features<kFeatures> {
 public:
  using Has = Features<kFeatures>;
  static constexpr int kScores = kConfig.tile_q / 2;
  // Whether weights are more than powers of two of scaled products.
  static constexpr bool kChangesWeights = Has::kSoftcap || Has::kFunction || Has::kAdds || Has::kDropout;
  static constexpr bool kUsesHead = Has::kAlibi || Has::kDropout || Has::kFunction;
  // Whether what compute_weights() leaves is not P, but P times a derivative.
  static constexpr bool kHasDerivative = Has::kSoftcap || Has::kFunction;

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
#pragma unroll(kConfig.tile_q == 128 ? 1 : kBlocks)
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

  // Products to P in 16 bits, and to P times the derivative of softcap and function. Anything where a pair is hidden.
  TESSERA_DEVICE void compute_weights(std::uint32_t (&r_packed)[kScores / 2], float (&r_scores)[kScores],
                                      const BackwardTile& work, int first_query, const float2* s_lse) const {
    if constexpr (Has::kAlibi) {
      const int shift = params_.score.diagonal + (params_.score.bottom_right != 0 ? work.keys - work.queries : 0);
      const int smallest = first_query + shift - (work.first_key + warpgroup_ * 64 + 63);
      const int distance =
          first_query + tile::fragment_column() + shift - (work.first_key + warpgroup_ * 64 + tile::fragment_row());
      const int largest = smallest + kConfig.tile_q - 1 + 63;
      const AlibiFragment upper(slope_log2_, distance, smallest, largest);
      const AlibiFragment lower(slope_log2_, distance - 8, smallest, largest);
      if (upper.linear()) {
        // What depends on the column alone is added to its LSE, what depends on the row last.
        const float first[2] = {upper.linear_first(), lower.linear_first()};
        weights(
            r_packed, r_scores, work, first_query, s_lse,
            [&](float lse, int column) { return fmaf(static_cast<float>(column), upper.linear_step(), -lse); },
            [&](float logit, int /*column*/, int r) { return logit + first[r]; });
      } else {
        weights(
            r_packed, r_scores, work, first_query, s_lse, [](float lse, int /*column*/) { return -lse; },
            [&](float logit, int column, int r) {
              return logit + (r == 0 ? upper : lower).at(static_cast<float>(column));
            });
      }
    } else {
      weights(
          r_packed, r_scores, work, first_query, s_lse, [](float lse, int /*column*/) { return -lse; },
          [](float logit, int /*column*/, int /*r*/) { return logit; });
    }
  }

  // dS = P o (dP o kept - delta) of what compute_weights() left, whose dropped weights become 0; without the scale of kept
  // weights, which dQ and dK get at the end. A weight is taken as it was rounded: beside dP registers have no room for it in
  // both forms.
  TESSERA_DEVICE void compute_score_gradients(std::uint32_t (&r_dpacked)[kScores / 2],
                                              std::uint32_t (&r_packed)[kScores / 2], const float (&r_weights)[kScores],
                                              const float (&r_dweights)[kScores], const float2* s_delta) const {
    if constexpr (Has::kDropout) {
      const float kept = static_cast<float>(256 - params_.score.dropout.threshold) / 256.0F;
#pragma unroll
      for (int i = 0; i < kScores / 4; ++i) {
        const uint4 words = load_words(i / 2);
        const std::uint32_t word[2] = {i % 2 == 0 ? words.x : words.z, i % 2 == 0 ? words.y : words.w};
        const float2 deltas = s_delta[4 * i];
        const float delta[2] = {deltas.x * -kept, deltas.y * -kept};
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const std::uint32_t bytes = byte_of_row(r) * 0x1111U;
          const float2 whole = ptx::unpack<Element>(r_packed[2 * i + r]);
          r_packed[2 * i + r] &= tile::spread_top_bits(word[0], word[1], bytes + 0x4400U);
          const float2 zeroed = ptx::unpack<Element>(r_packed[2 * i + r]);
          float gradient[2];
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int x = 4 * i + 2 * r + e;
            float weight = e == 0 ? whole.x : whole.y;
            float left = e == 0 ? zeroed.x : zeroed.y;
            if constexpr (kHasDerivative) {
              weight = r_weights[x];
              left = left == 0.0F ? 0.0F : weight;
            }
            gradient[e] = fmaf(left, r_dweights[x], weight * delta[e]);
          }
          r_dpacked[2 * i + r] = ptx::pack<Element>(gradient[0], gradient[1]);
        }
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
  TESSERA_DEVICE static std::uint32_t byte_of_row(int r) { return threadIdx.x / 4 % 2 + 2 * r; }

  template <class Offset, class Finish>
  TESSERA_DEVICE void weights(std::uint32_t (&r_packed)[kScores / 2], float (&r_scores)[kScores],
                              const BackwardTile& work, int first_query, const float2* s_lse, Offset&& offset,
                              Finish&& finish) const {
    const float factor = Has::kFunction ? kLog2e : params_.scale_log2;
#pragma unroll
    for (int i = 0; i < kScores / 4; ++i) {
      const float2 lse = s_lse[4 * i];
      const float offsets[2] = {offset(lse.x, 8 * i), offset(lse.y, 8 * i + 1)};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float pair[2];
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = r_scores[4 * i + 2 * r + e];
          const tile::Tangent logit = logit_of(score, work, first_query, 8 * i + e, r);
          const float weight = ptx::exp2(finish(fmaf(logit.value, factor, offsets[e]), 8 * i + e, r));
          pair[e] = weight;
          score = kHasDerivative ? weight * logit.derivative : weight;
          if constexpr (Has::kFunction) {
            score = weight == 0.0F ? 0.0F : score;  // where it may have no derivative
          }
        }
        r_packed[2 * i + r] = ptx::pack<Element>(pair[0], pair[1]);
      }
    }
  }

  // What softcap and function make of a product, and the derivative of the logit by the scaled product.
  TESSERA_DEVICE tile::Tangent logit_of(float x, const BackwardTile& work, int first_query, int column, int r) const {
    tile::Tangent logit{x, 1.0F};
    if constexpr (Has::kSoftcap) {
      logit.value = soft_cap<Element>(x * params_.score_scale);
      logit.derivative = fmaf(-logit.value, logit.value, 1.0F);
    }
    if constexpr (Has::kFunction) {
      const typename Has::Place place(params_.score.function, sequence(work), head_);
      const int query = first_query + tile::fragment_column() + column;
      const int key = work.first_key + warpgroup_ * 64 + tile::fragment_row() + 8 * r;
      const tile::Tangent result = tile::differentiate_function(
          logit.value * Has::function_scale(params_.score), place, min(query, work.queries - 1),
          max(min(key, work.keys - 1), 0), place.distance(query - column, key) + place.step(column, 0));
      logit.value = result.value;
      logit.derivative *= result.derivative;
    }
    return logit;
  }

  const BackwardParams& params_;
  const int warpgroup_;
  int head_ = 0;
  float slope_log2_ = 0.0F;
  std::uint32_t* s_words_ = nullptr;
};

}  // namespace tessera::sm90

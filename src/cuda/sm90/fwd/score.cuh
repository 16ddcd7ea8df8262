// The score program in a consumer warpgroup of the forward kernel, see ../score_hooks.cuh.
#pragma once

#include "cuda/sm90/fwd/shared.cuh"
#include "cuda/sm90/score_hooks.cuh"
#include "cuda/tile/softmax.cuh"

namespace tessera::sm90 {

template <ForwardConfig kConfig, class Element, std::uint32_t kFeatures>
class ForwardScore : public Features<kFeatures> {
 public:
  using Has = Features<kFeatures>;
  static constexpr int kScores = kConfig.tile_k / 2;

  TESSERA_DEVICE ForwardScore(const ForwardParams& params, int warpgroup) : params_(params), warpgroup_(warpgroup) {}

  // Of the scores that transform() leaves.
  TESSERA_DEVICE float factor_log2() const { return Has::kAdds ? 1.0F : logit_factor(); }

  TESSERA_DEVICE void start_tile(const ForwardTile& work) {
    if constexpr (Has::kAlibi) {
      slope_log2_ = alibi_slope_log2(params_.score, sequence(work), work.head);
    }
  }

  // Which weights of the next key tile are kept, before this warpgroup's turn at issuing products.
  TESSERA_DEVICE void draw(const ForwardTile& work, int key_tile) {
    if constexpr (Has::kDropout) {
      static_assert(kConfig.tile_k % kGroup == 0);
      const DropoutParams& dropout = params_.score.dropout;
      const auto group = static_cast<std::uint32_t>((dropout.key_start + key_tile * kConfig.tile_k) / kGroup);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const auto query = static_cast<std::uint32_t>(dropout.query_start + dropout.query_stride * (row(work) + 8 * r));
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          r_keep_[r][g] = tile::keep_block(dropout, group + g, threadIdx.x % 4, query, dropout.head_start + work.head,
                                           dropout.batch_start + static_cast<std::uint32_t>(sequence(work)));
        }
      }
    }
  }

  // 0, from the words that draw() leaves: what needs it comes after them. The assembler would move them down to where they
  // are used, one block after the other to save registers: a sixth slower with two warpgroups, but not with three, which hide
  // the latency and have fewer registers.
  TESSERA_DEVICE int drawn() const {
    std::uint32_t mixed = 0;
    if constexpr (Has::kDropout && kConfig.warpgroups == 2) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          const uint4& words = r_keep_[r][g];
          mixed ^= words.x ^ words.y ^ words.z ^ words.w;
        }
      }
      mixed &= params_.score.dropout.threshold >> 16;  // at most 256
    }
    return static_cast<int>(mixed);
  }

  // `kMasked`: the tile may reach behind the last key.
  template <bool kMasked>
  TESSERA_DEVICE void transform(float (&r_scores)[kScores], const ForwardTile& work, int key_tile) const {
    if constexpr (Has::kSoftcap) {
      cap(r_scores);
    }
    const int first_key = key_tile * kConfig.tile_k;
    if constexpr (Has::kFunction) {
      apply_function<kMasked>(r_scores, work, first_key);
    }
    if constexpr (Has::kAlibi) {
      add_alibi(r_scores, work, first_key);
    } else if constexpr (Has::kBias) {
#pragma unroll
      for (int i = 0; i < kScores; ++i) {
        r_scores[i] *= logit_factor();
      }
    }
    if constexpr (Has::kBias) {
      if (params_.score.bias.is_float32 != 0) {
        add_bias<float>(r_scores, work, first_key);
      } else {
        add_bias<std::uint16_t>(r_scores, work, first_key);
      }
    }
  }

  // Zeroes the weights that draw() dropped.
  TESSERA_DEVICE void drop(std::uint32_t (&r_weights)[kScores / 2]) const {
    if constexpr (Has::kDropout) {
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const std::uint32_t words[4] = {r_keep_[r][g].x, r_keep_[r][g].y, r_keep_[r][g].z, r_keep_[r][g].w};
#pragma unroll
          for (int i = 0; i < 8; ++i) {
            r_weights[2 * (8 * g + i) + r] &=
                tile::spread_top_bits(words[i / 2], words[i / 2], i % 2 == 0 ? 0x1100U : 0x3322U);
          }
        }
      }
    }
  }

  // Counts the sink among the weights of a finished row; the factor that this leaves for O, with that of kept weights.
  TESSERA_DEVICE float finish_row(float& maximum, float& sum, int head) const {
    float factor = 1.0F;
    if constexpr (Has::kSinks) {
      const float sink = kLog2e * __ldg(params_.score.sinks + head * params_.score.sinks_stride);
      const float highest = sum == 0.0F ? -__builtin_huge_valf() : maximum * factor_log2();
      const float top = fmaxf(highest, sink);
      if (top != -__builtin_huge_valf()) {
        factor = ptx::exp2(highest - top);
        sum = fmaf(sum, factor, ptx::exp2(sink - top));
        maximum = highest == top ? maximum : __fdiv_rn(top, factor_log2());
      }
    }
    if constexpr (Has::kDropout) {
      factor *= params_.score.dropout.kept_scale;
    }
    return factor;
  }

 private:
  static constexpr int kGroup = 64;  // keys of a Philox block
  static constexpr int kGroups = kConfig.tile_k / kGroup;

  // From what the softcap, the function or the product leaves to logits in powers of two.
  TESSERA_DEVICE float logit_factor() const { return Has::kFunction ? kLog2e : params_.scale_log2; }

  TESSERA_DEVICE static int sequence(const ForwardTile& work) { return work.valid - 1; }
  TESSERA_DEVICE int first_row(const ForwardTile& work) const { return work.first_query + warpgroup_ * 64; }
  TESSERA_DEVICE int row(const ForwardTile& work) const { return first_row(work) + tile::fragment_row(); }

  // At head dim 64 the unit of tanh and 2^x is the limit: two instructions of a score take it longer than all of the plain
  // kernel takes. There every other tanh is a polynomial where all of this thread's scores are below the softcap. Above, the
  // latency of the branch costs more than the unit.
  TESSERA_DEVICE void cap(float (&r_scores)[kScores]) const {
    constexpr bool kMixed = kRoundsToBfloat16<Element> && kConfig.head_dim <= 64;
    constexpr int kStep = kMixed ? 2 : 1;
    float highest[2] = {0.0F, 0.0F};
#pragma unroll
    for (int i = 0; i < kScores; i += kStep) {
      if constexpr (kMixed) {
        highest[i / 2 % 2] = fmaxf(highest[i / 2 % 2], fabsf(r_scores[i + 1]));
      }
      r_scores[i] = soft_cap<Element>(r_scores[i] * params_.score_scale);
    }
    if constexpr (kMixed) {
      if (fmaxf(highest[0], highest[1]) <= params_.series_limit) {
#pragma unroll
        for (int i = 1; i < kScores; i += 2) {
          const float square = r_scores[i] * r_scores[i];
          float series = fmaf(square, params_.tanh_series[3], params_.tanh_series[2]);
          series = fmaf(series, square, params_.tanh_series[1]);
          series = fmaf(series, square, params_.tanh_series[0]);
          r_scores[i] *= series;
        }
      } else {
#pragma unroll
        for (int i = 1; i < kScores; i += 2) {
          r_scores[i] = soft_cap<Element>(r_scores[i] * params_.score_scale);
        }
      }
    }
  }

  // Rows and keys behind the end have the last position: they are hidden or not stored.
  template <bool kMasked>
  TESSERA_DEVICE void apply_function(float (&r_scores)[kScores], const ForwardTile& work, int first_key) const {
    const typename Has::Place place(params_.score.function, sequence(work), work.head);
    const float scale = Has::function_scale(params_.score);
    const int last_key = max(work.keys - 1, 0);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int query = min(row(work) + 8 * r, work.queries - 1);
      const float first = place.distance(query, first_key + tile::fragment_column());
#pragma unroll
      for (int i = 0; i < kScores / 2; ++i) {
        const int column = 8 * (i / 2) + i % 2;
        const int key = first_key + tile::fragment_column() + column;
        float& score = r_scores[4 * (i / 2) + 2 * r + i % 2];
        score = tile::call_function(score * scale, place, query, kMasked ? min(key, last_key) : key,
                                    first + place.step(0, column));
      }
    }
  }

  TESSERA_DEVICE void add_alibi(float (&r_scores)[kScores], const ForwardTile& work, int first_key) const {
    const int shift = params_.score.diagonal + (params_.score.bottom_right != 0 ? work.keys - work.queries : 0);
    const int smallest = first_row(work) + shift - (first_key + kConfig.tile_k - 1);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const AlibiFragment alibi(slope_log2_, row(work) + 8 * r + shift - first_key - tile::fragment_column(), smallest,
                                smallest + kConfig.tile_k - 1 + 63);
      if (alibi.linear()) {
#pragma unroll
        for (int i = 0; i < kScores / 2; ++i) {
          float& score = r_scores[4 * (i / 2) + 2 * r + i % 2];
          score = fmaf(score, logit_factor(), alibi.linear_at(-static_cast<float>(8 * (i / 2) + i % 2)));
        }
      } else {
#pragma unroll
        for (int i = 0; i < kScores / 2; ++i) {
          float& score = r_scores[4 * (i / 2) + 2 * r + i % 2];
          score = fmaf(score, logit_factor(), alibi.at(-static_cast<float>(8 * (i / 2) + i % 2)));
        }
      }
    }
  }

  // Rows and keys behind the end read the last ones: they are hidden or not stored.
  template <class Stored>
  TESSERA_DEVICE void add_bias(float (&r_scores)[kScores], const ForwardTile& work, int first_key) const {
    const BiasParams& bias = params_.score.bias;
    const Stored* const g_head =
        static_cast<const Stored*>(bias.data) + sequence(work) * bias.strides[0] + work.head * bias.strides[1];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Stored* const g_row = g_head + min(row(work) + 8 * r, work.queries - 1) * bias.strides[2];
#pragma unroll
      for (int i = 0; i < kScores / 2; ++i) {
        const int key = first_key + tile::fragment_column() + 8 * (i / 2) + i % 2;
        const Stored stored = __ldg(g_row + max(min(key, work.keys - 1), 0) * bias.strides[3]);
        float& score = r_scores[4 * (i / 2) + 2 * r + i % 2];
        score = fmaf(widened(stored), kLog2e, score);
      }
    }
  }
  TESSERA_DEVICE static float widened(float value) { return value; }
  TESSERA_DEVICE static float widened(std::uint16_t value) { return ptx::unpack<Element>(value).x; }

  const ForwardParams& params_;
  const int warpgroup_;
  float slope_log2_ = 0.0F;
  uint4 r_keep_[2][kGroups > 0 ? kGroups : 1];
};

}  // namespace tessera::sm90

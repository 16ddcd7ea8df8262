// The score program in a consumer warpgroup of the forward kernel, see ../score_hooks.cuh.
#pragma once

#include "cuda/sm90/fwd/dropout.cuh"
#include "cuda/sm90/fwd/shared.cuh"
#include "cuda/sm90/score_hooks.cuh"
#include "cuda/tile/bounded_softmax.cuh"

namespace tessera::sm90 {

template <bool kHasBound, bool kPlain>
struct SoftmaxOf {
  using Type = tile::TrackingSoftmax;
};
template <>
struct SoftmaxOf<false, true> {
  using Type = tile::SteadySoftmax;
};
template <>
struct SoftmaxOf<true, false> {
  using Type = tile::BoundedSoftmax;
};

// Weights of products under a softcap alone, for tile::BoundedSoftmax. With tanh and 2^x of every score their unit would be the limit.
class CappedWeight {
 public:
  TESSERA_DEVICE explicit CappedWeight(const ForwardParams& params)
      : first_(params.softcap_series[0]),
        third_(params.softcap_series[1]),
        fifth_(params.softcap_series[2]),
        limit_(params.series_limit),
        score_scale_(params.score_scale),
        scale_log2_(params.scale_log2) {}

  TESSERA_DEVICE float near(float score) const {
    const float square = score * score;
    return ptx::exp2(score * fmaf(fmaf(square, fifth_, third_), square, first_));
  }
  TESSERA_DEVICE float anywhere(float score) const { return ptx::exp2(ptx::tanh(score * score_scale_) * scale_log2_); }
  TESSERA_DEVICE float most() const { return near(limit_); }
  TESSERA_DEVICE float least() const { return near(-limit_); }

 private:
  float first_, third_, fifth_, limit_, score_scale_, scale_log2_;
};

template <ForwardConfig kConfig, class Element, std::uint32_t kFeatures>
class ForwardScore : public Features<kFeatures> {
 public:
  using Has = Features<kFeatures>;
  static constexpr int kScores = kConfig.tile_k / 2;

  TESSERA_DEVICE ForwardScore(const ForwardParams& params, int warpgroup) : params_(params), warpgroup_(warpgroup) {}

  // Of the scores that transform() leaves.
  TESSERA_DEVICE float factor_log2() const {
    return Has::kAlibi ? unit_log2_ : Has::kBias || Has::kHasBound ? 1.0F : logit_factor();
  }

  // For what transform() leaves.
  using Softmax = typename SoftmaxOf<Has::kHasBound, kFeatures == 0>::Type;

  // What transform() leaves to add to the scores of each row before factor_log2().
  static constexpr bool kShiftsRows = Has::kAlibi && !Has::kBias;
  TESSERA_DEVICE float row_shift(int r) const { return r == 0 ? row_shift_ : row_shift_ + row_step_; }

  // Weights of scores that transform() left and a mask has hidden in part.
  template <int kOutputs>
  TESSERA_DEVICE void update_weights(Softmax& softmax, const float (&r_scores)[kScores],
                                     std::uint32_t (&r_weights)[kScores / 2], float (&r_output)[kOutputs]) const {
    if constexpr (Has::kHasBound) {
      softmax.template update_weights<Element>(r_scores, r_weights, CappedWeight(params_));
    } else {
      softmax.template update_weights<Element, kShiftsRows>(r_scores, {row_shift(0), row_shift(1)}, r_weights, r_output,
                                                            factor_log2());
    }
  }

  TESSERA_DEVICE void start_tile(const ForwardTile& work) {
    if constexpr (Has::kAlibi) {
      constexpr float kLeastUnit = 1e-12F;
      const float slope_log2 = alibi_slope_log2(params_.score, sequence(work), work.head);
      unit_log2_ = !Has::kBias && slope_log2 > kLeastUnit ? slope_log2 : 1.0F;
      slope_in_unit_ = unit_log2_ == slope_log2 ? 1.0F : slope_log2;
      factor_in_unit_ = __fdividef(logit_factor(), unit_log2_);
    }
  }

  // The hooks of dropout: before this warpgroup's turn at issuing products, at it, and on rounded weights.
  TESSERA_DEVICE void draw(const ForwardTile& work, int key_tile) {
    if constexpr (Has::kDropout) {
      keep_.draw(params_.score.dropout, work, first_row(work) + static_cast<int>(threadIdx.x % 128) / 32 * 16,
                 key_tile);
    }
  }
  TESSERA_DEVICE int drawn() const {
    if constexpr (Has::kDropout) {
      return keep_.drawn(params_.score.dropout);
    }
    return 0;
  }
  TESSERA_DEVICE void drop(std::uint32_t (&r_weights)[kScores / 2]) const {
    if constexpr (Has::kDropout) {
      keep_.drop(r_weights);
    }
  }

  // Whether rows of this warpgroup are queries, and whether transform() has to know that others lie behind the last one.
  TESSERA_DEVICE bool begins_inside(const ForwardTile& work) const { return first_row(work) < work.queries; }
  TESSERA_DEVICE bool ends_inside(const ForwardTile& work) const {
    return Has::kFunction && first_row(work) + 63 >= work.queries;
  }

  // `kMasked`: the tile may reach behind the last query or key.
  template <bool kMasked>
  TESSERA_DEVICE void transform(float (&r_scores)[kScores], const ForwardTile& work, int key_tile) {
    if constexpr (Has::kSoftcap && !Has::kHasBound) {
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
  // From what the softcap, the function or the product leaves to logits in powers of two.
  TESSERA_DEVICE float logit_factor() const { return Has::kFunction ? kLog2e : params_.scale_log2; }

  TESSERA_DEVICE static int sequence(const ForwardTile& work) { return work.valid - 1; }
  TESSERA_DEVICE int first_row(const ForwardTile& work) const { return work.first_query + warpgroup_ * 64; }
  TESSERA_DEVICE int row(const ForwardTile& work) const { return first_row(work) + tile::fragment_row(); }

  // A softcap that something follows leaves tanh.
  TESSERA_DEVICE void cap(float (&r_scores)[kScores]) const {
#pragma unroll
    for (float& score : r_scores) {
      score = soft_cap<Element>(score * params_.score_scale);
    }
  }

  // Rows and keys behind the end have the last position: they are hidden or not stored.
  template <bool kMasked>
  TESSERA_DEVICE void apply_function(float (&r_scores)[kScores], const ForwardTile& work, int first_key) const {
    const typename Has::Place place(params_.score.function, sequence(work), work.head);
    const float scale = Has::function_scale(params_.score);
    const int last_key = max(work.keys - 1, 0);
    // Queries and keys that are 8 further on have the same distance, which the compiler then computes once.
    const float first = place.distance(row(work), first_key + tile::fragment_column());
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int query = row(work) + 8 * r;
#pragma unroll
      for (int i = 0; i < kScores / 2; ++i) {
        const int column = 8 * (i / 2) + i % 2;
        const int key = first_key + tile::fragment_column() + column;
        float& score = r_scores[4 * (i / 2) + 2 * r + i % 2];
        score = tile::call_function_of_product(score, scale, place, kMasked ? min(query, work.queries - 1) : query,
                                               kMasked ? min(key, last_key) : key, first + place.step(8 * r, column));
      }
    }
  }

  // -slope |query + diagonal - key|. In units of the slope it is a distance less a column: a tile on one side of the diagonal
  // costs an FFMA with an immediate a score, since the rest, which is of the row, is the softmax's shift.
  TESSERA_DEVICE void add_alibi(float (&r_scores)[kScores], const ForwardTile& work, int first_key) {
    const int shift = params_.score.diagonal + (params_.score.bottom_right != 0 ? work.keys - work.queries : 0);
    const int smallest = first_row(work) + shift - (first_key + kConfig.tile_k - 1);
    const int largest = smallest + kConfig.tile_k - 1 + 63;
    const auto distance = static_cast<float>(row(work) + shift - first_key - tile::fragment_column());
    if (!kShiftsRows || slope_in_unit_ != 1.0F || (smallest < 0 && largest > 0)) {
      row_shift_ = 0.0F;
      row_step_ = 0.0F;
#pragma unroll
      for (int i = 0; i < kScores; ++i) {
        const float step = static_cast<float>(i % 4 / 2 * 8 - i / 4 * 8 - i % 2);
        r_scores[i] = fmaf(-slope_in_unit_, fabsf(distance + step), r_scores[i] * factor_in_unit_);
      }
    } else if (smallest >= 0) {
      row_shift_ = -distance;
      row_step_ = -8.0F;
#pragma unroll
      for (int i = 0; i < kScores; ++i) {
        r_scores[i] = fmaf(r_scores[i], factor_in_unit_, static_cast<float>(i / 4 * 8 + i % 2));
      }
    } else {
      row_shift_ = distance;
      row_step_ = 8.0F;
#pragma unroll
      for (int i = 0; i < kScores; ++i) {
        r_scores[i] = fmaf(r_scores[i], factor_in_unit_, -static_cast<float>(i / 4 * 8 + i % 2));
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
  // Of ALiBi: what a unit of scores is as a power of two, and in that unit the slope and what multiplies scores.
  float unit_log2_ = 1.0F;
  float slope_in_unit_ = 0.0F;
  float factor_in_unit_ = 0.0F;
  float row_shift_ = 0.0F;  // of the first row, and how much more it is in the second
  float row_step_ = 0.0F;
  KeepBlocks<kConfig> keep_;
};

}  // namespace tessera::sm90

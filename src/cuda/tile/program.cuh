// What a score program does to fragments: a thread's part of [16 x N] scores in the layout of ptx/mma.cuh, element
// 4 i + 2 r + e being column 8 i + l % 4 * 2 + e of row l / 4 + 8 r. `query` and `key` are those of the thread's first element.
#pragma once

#include "cuda/ptx/mma.cuh"
#include "cuda/tile/function.cuh"
#include "cuda/tile/philox.cuh"
#include "cuda/tile/program.h"
#include "cuda/tile/shared_rows.cuh"
#include "cuda/tile/work.cuh"

namespace tessera::tile {

constexpr float kLog2e = 1.44269504088896341F;

// tanh and its derivative 1 - tanh^2. Far from 0 the derivative's difference would lose digits, so that it comes from
// 1 - tanh |x|; near 0 the quotient's would. float32 has an error of a few units of the last place.
template <class Element>
TESSERA_DEVICE Tangent tangent_of(float x) {
  const float power = ptx::exp2(2 * kLog2e * fabsf(x));
  const float rest = __fdividef(2.0F, power + 1.0F);  // 1 - tanh |x|
  const Tangent far{copysignf(1.0F - rest, x), rest * (2.0F - rest)};
  const float square = x * x;
  if constexpr (kElementBytes<Element> == 2) {
    return {fabsf(x) < 0.05F ? fmaf(square * x, -1.0F / 3.0F, x) : far.value, far.derivative};
  } else {
    float series = fmaf(square, 1.645924e-2F, -5.268439e-2F);
    series = fmaf(series, square, 1.3320946e-1F);
    series = fmaf(series, square, -3.3332958e-1F);
    const float near = fmaf(series * square, x, x);
    return fabsf(x) < 0.55F ? Tangent{near, fmaf(-near, near, 1.0F)} : far;
  }
}
// For bfloat16 the instruction, whose relative error of 2^-11 is below the rounding of such a score.
template <class Element>
TESSERA_DEVICE float tanh_of(float x) {
  if constexpr (ptx::kSame<Element, ptx::bfloat16>) {
    return ptx::tanh(x);
  } else {
    return tangent_of<Element>(x).value;
  }
}

// The modifiers for one sequence and query head. Element: of Q, K and V, and of a bias that is not float32.
template <class Program, class Element>
class ScoreModifiers {
 public:
  TESSERA_DEVICE ScoreModifiers(const ScoreParams& params, const Sequence& sequence, int sequence_index, int head)
      : params_(params), queries_(sequence.queries), keys_(sequence.keys), sequence_(sequence_index), head_(head) {
    if (has(ScoreFeature::alibi)) {
      slope_log2_ = kLog2e * params.alibi[sequence_index * params.alibi_batch_stride + head * params.alibi_head_stride];
      diagonal_ = params.diagonal + (params.bottom_right != 0 ? sequence.keys - sequence.queries : 0);
    }
  }

  TESSERA_DEVICE bool has(ScoreFeature feature) const { return Program::has(params_, feature); }
  // Whether transform() has something to do; else the softmax multiplies scores by factor_log2().
  TESSERA_DEVICE bool transforms() const { return Program::transforms(params_); }
  TESSERA_DEVICE float factor_log2() const { return transforms() ? 1.0F : params_.scale * kLog2e; }

  // Products to logits in base 2: softcap, a user's function, bias and ALiBi. Hidden ones are left to the mask, which comes after.
  template <int kCount>
  TESSERA_DEVICE void transform(float (&r_scores)[kCount], int query, int key) const {
    float none[1];
    transform<false>(r_scores, query, key, none);
  }
  // The same, and d logit / d (scaled product) of each, both without the factor log2(e).
  template <int kCount>
  TESSERA_DEVICE void transform(float (&r_scores)[kCount], int query, int key, float (&r_derivative)[kCount]) const {
    transform<true>(r_scores, query, key, r_derivative);
  }

  // The sink's logit in base 2; -inf without sinks.
  TESSERA_DEVICE float sink_log2() const {
    return has(ScoreFeature::sinks) ? kLog2e * params_.sinks[head_ * params_.sinks_stride] : -__builtin_huge_valf();
  }

  // Bit i of the words: whether dropout keeps element i.
  template <int kCount>
  TESSERA_DEVICE void keep_bits(std::uint32_t (&r_bits)[(kCount + 31) / 32], int query, int key) const {
    const DropoutParams& dropout = params_.dropout;
    const std::int64_t position = key * dropout.key_stride + dropout.key_start;
    if (dropout.key_stride == 1 && (position & 7) == key % 8) {
      keep_bits_of_blocks<kCount>(r_bits, query, position);
    } else {
      keep_bits_one_by_one<kCount>(r_bits, query, position);
    }
  }

 private:
  template <bool kDerivative, int kCount, int kDerivatives>
  TESSERA_DEVICE void transform(float (&r_scores)[kCount], int query, int key,
                                float (&r_derivative)[kDerivatives]) const {
    if (has(ScoreFeature::softcap)) {
      const float inverse = params_.scale / params_.softcap;
      const float cap_log2 = Program::kFunction ? params_.softcap : params_.softcap * kLog2e;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if constexpr (kDerivative) {
          const Tangent tangent = tangent_of<Element>(r_scores[i] * inverse);
          r_scores[i] = tangent.value * cap_log2;
          r_derivative[i] = tangent.derivative;
        } else {
          r_scores[i] = tanh_of<Element>(r_scores[i] * inverse) * cap_log2;
        }
      }
    } else {
      const float scale_log2 = Program::kFunction ? params_.scale : params_.scale * kLog2e;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        r_scores[i] *= scale_log2;
        if constexpr (kDerivative) {
          r_derivative[i] = 1.0F;
        }
      }
    }
    if constexpr (Program::kFunction) {
      apply_function<kDerivative>(r_scores, query, key, r_derivative);
    }
    if (has(ScoreFeature::bias)) {
      if (params_.bias.is_float32 != 0) {
        add_bias<float>(r_scores, query, key);
      } else {
        add_bias<std::uint16_t>(r_scores, query, key);
      }
    }
    if (has(ScoreFeature::alibi)) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int distance = query + i % 4 / 2 * 8 + diagonal_ - (key + i / 4 * 8 + i % 2);
        r_scores[i] = fmaf(-slope_log2_, fabsf(static_cast<float>(distance)), r_scores[i]);
      }
    }
  }

  // Of natural logits, to those in base 2. Elements behind an end, which are hidden or not stored, have the last position.
  template <bool kDerivative, int kCount, int kDerivatives>
  TESSERA_DEVICE void apply_function(float (&r_scores)[kCount], int query, int key,
                                     float (&r_derivative)[kDerivatives]) const {
    const FunctionPlace<Program::kMoved> place(params_.function, sequence_, head_);
    const float first = place.distance(query, key);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int row = i % 4 / 2 * 8;
      const int column = i / 4 * 8 + i % 2;
      const int query_of = min(query + row, queries_ - 1);
      const int key_of = min(key + column, keys_ - 1);
      const float distance = first + place.step(row, column);
      if constexpr (kDerivative) {
        const Tangent tangent = differentiate_function(r_scores[i], place, query_of, key_of, distance);
        r_scores[i] = tangent.value * kLog2e;
        r_derivative[i] *= tangent.derivative;
      } else {
        r_scores[i] = call_function(r_scores[i], place, query_of, key_of, distance) * kLog2e;
      }
    }
  }

  template <class Stored, int kCount>
  TESSERA_DEVICE void add_bias(float (&r_scores)[kCount], int query, int key) const {
    const BiasParams& bias = params_.bias;
    const Stored* const g_head =
        static_cast<const Stored*>(bias.data) + sequence_ * bias.strides[0] + head_ * bias.strides[1];
    const bool inside = query + 8 < queries_ && key + 2 * kCount - 7 < keys_;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const Stored* const g_row = g_head + (query + 8 * r) * bias.strides[2] + key * bias.strides[3];
      if (bias.in_pairs != 0 && inside) {
#pragma unroll
        for (int i = 0; i < kCount / 4; ++i) {
          const float2 pair = load_pair(g_row + 8 * i);
          float* const r_pair = r_scores + 4 * i + 2 * r;
          r_pair[0] = fmaf(pair.x, kLog2e, r_pair[0]);
          r_pair[1] = fmaf(pair.y, kLog2e, r_pair[1]);
        }
        continue;
      }
#pragma unroll
      for (int i = 0; i < kCount / 4; ++i) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int column = 8 * i + e;
          if (query + 8 * r < queries_ && key + column < keys_) {
            const Stored stored = __ldg(g_row + column * bias.strides[3]);
            float& score = r_scores[4 * i + 2 * r + e];
            score = fmaf(widened(stored), kLog2e, score);
          }
        }
      }
    }
  }
  TESSERA_DEVICE static float2 load_pair(const float* g_pair) { return __ldg(reinterpret_cast<const float2*>(g_pair)); }
  TESSERA_DEVICE static float2 load_pair(const std::uint16_t* g_pair) {
    if constexpr (kElementBytes<Element> == 4) {
      return {};
    } else {
      return ptx::unpack<Element>(__ldg(reinterpret_cast<const std::uint32_t*>(g_pair)));
    }
  }
  TESSERA_DEVICE static float widened(float value) { return value; }
  TESSERA_DEVICE static float widened(std::uint16_t value) {
    if constexpr (kElementBytes<Element> == 4) {
      return 0.0F;
    } else {
      return ptx::unpack<Element>(value).x;
    }
  }

  TESSERA_DEVICE uint4 block(int query, std::int64_t position) const {
    const DropoutParams& dropout = params_.dropout;
    const auto lane = static_cast<std::uint32_t>(position & 7) >> 1;
    return philox4x32_7({4 * static_cast<std::uint32_t>(position >> 6) + lane,
                         static_cast<std::uint32_t>(query * dropout.query_stride + dropout.query_start),
                         dropout.head_start + head_, dropout.batch_start + sequence_},
                        dropout.seed_low, dropout.seed_high);
  }
  TESSERA_DEVICE static std::uint32_t byte_of(const uint4& block, std::uint32_t index) {
    const std::uint32_t low = (index & 4) != 0 ? block.y : block.x;
    const std::uint32_t high = (index & 4) != 0 ? block.w : block.z;
    return ((index & 8) != 0 ? high : low) >> (8 * (index & 3)) & 0xFFU;
  }

  // The block of a thread's 16 elements of a row, whose positions are 8 apart in one lane of the blocks.
  TESSERA_DEVICE uint4 block_from(int query, std::int64_t position) const {
    const uint4 first = block(query, position);
    const auto octet = static_cast<std::uint32_t>(position >> 3 & 7);
    if (octet == 0) {
      return first;
    }
    const uint4 second = block(query, position + 64);
    const std::uint32_t words[8] = {first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};
    std::uint32_t shifted[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      shifted[i] = 0;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        if (octet / 2 == n) {
          shifted[i] = __funnelshift_r(words[i + n], words[i + n + 1], 16 * (octet % 2));
        }
      }
    }
    return {shifted[0], shifted[1], shifted[2], shifted[3]};
  }

  template <int kCount>
  TESSERA_DEVICE void keep_bits_of_blocks(std::uint32_t (&r_bits)[(kCount + 31) / 32], int query,
                                          std::int64_t position) const {
#pragma unroll
    for (int word = 0; word < (kCount + 31) / 32; ++word) {
      std::uint32_t bits = 0;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint4 bytes = block_from(query + 8 * r, position + word * 64);
#pragma unroll
        for (int n = 0; n < 16 && 32 * word + 2 * n < kCount; ++n) {
          const std::uint32_t kept = byte_of(bytes, n) >= params_.dropout.threshold ? 1U : 0U;
          bits |= kept << (n / 2 * 4 + 2 * r + n % 2);
        }
      }
      r_bits[word] = bits;
    }
  }

  template <int kCount>
  TESSERA_DEVICE void keep_bits_one_by_one(std::uint32_t (&r_bits)[(kCount + 31) / 32], int query,
                                           std::int64_t position) const {
    const std::int64_t stride = params_.dropout.key_stride;
#pragma unroll
    for (int word = 0; word < (kCount + 31) / 32; ++word) {
      std::uint32_t bits = 0;
#pragma unroll 1
      for (int i = 0; i < min(32, kCount - 32 * word); ++i) {
        const std::int64_t at = position + (word * 64 + i / 4 * 8 + i % 2) * stride;
        const auto index = static_cast<std::uint32_t>((at & 63) >> 3) * 2 + static_cast<std::uint32_t>(at & 1);
        bits |= (byte_of(block(query + i % 4 / 2 * 8, at), index) >= params_.dropout.threshold ? 1U : 0U) << i;
      }
      r_bits[word] = bits;
    }
  }

  const ScoreParams& params_;
  const int queries_, keys_;
  const int sequence_, head_;
  float slope_log2_ = 0.0F;
  int diagonal_ = 0;
};

// Zeroes the elements whose bit is 0. The scale of those that are kept is left to the caller.
template <int kCount>
TESSERA_DEVICE void drop(float (&r_weights)[kCount], const std::uint32_t (&r_bits)[(kCount + 31) / 32]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    r_weights[i] = (r_bits[i / 32] >> (i % 32) & 1U) != 0 ? r_weights[i] : 0.0F;
  }
}

}  // namespace tessera::tile

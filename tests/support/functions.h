// Score and mask functions of the tests, compiled with them: no test of an Impl needs a compiler.
#pragma once

#include <cstdint>
#include <vector>

#include "tessera/problem.h"

namespace tessera::test {

// params: the cap.
TESSERA_SCORE_FUNCTION(capped, const T cap(params[0]); return cap * tanh(s / cap);)

// params: a row of 2 * kFarthest + 1 numbers for each head, by distance.
TESSERA_SCORE_FUNCTION(relative_bias, const int farthest = 8;
                       const int distance = max(-farthest, min(i.key - i.query, farthest));
                       return s + params[i.head * (2 * farthest + 1) + distance + farthest];)

// params: the strength. The derivative depends on s, the head, the batch and both positions.
TESSERA_SCORE_FUNCTION(gated_distance, const float far = log(1.0F + static_cast<float>(abs(i.query - i.key)));
                       const T gate = tanh(s * 0.5F + static_cast<float>(i.head - i.batch));
                       return s - params[0] * far * gate;)

// Hides keys more than params[0] before the query's position, as a mask does.
TESSERA_SCORE_FUNCTION(nearby, return i.query - i.key > static_cast<int>(params[0]) ? T(-infinity) : s;)

// params: the dilation and the width.
TESSERA_MASK_FUNCTION(dilated, const int distance = i.query - i.key;
                      return distance >= 0 && distance < static_cast<int>(params[1]) &&
                             distance % static_cast<int>(params[0]) == 0;)

// params: the number of tokens in a sequence, and one document for each token of each.
TESSERA_MASK_FUNCTION(same_document, const float* documents = params + 1 + i.batch * static_cast<int>(params[0]);
                      return documents[i.query] == documents[i.key];)

// Every head sees every fourth key, and the keys of its own stripe.
TESSERA_MASK_FUNCTION(striped_heads, return i.key % 4 == 0 || (i.key / 8) % 3 == i.head % 3;)

// The relative_bias() of `heads` heads.
inline std::vector<float> relative_bias_params(std::int64_t heads) {
  std::vector<float> params;
  for (std::int64_t n = 0; n < heads * 17; ++n) {
    params.push_back(0.125F * static_cast<float>(n * 7 % 23) - 1.0F);
  }
  return params;
}

// The problem with a score function, a mask function or both, of the kinds and at the positions that `index` stands for.
inline Problem with_functions(Problem problem, std::uint64_t index) {
  const int kind = static_cast<int>(index % 3);
  const auto choice = static_cast<int>(index / 3 % 4);
  const auto at = static_cast<int>(index / 12 % 50);
  if (at % 3 == 0) {
    problem.function_positions = {at, at + 1, 7 * at, 5 * at, 1 + at % 2, 1 + at % 4};
  }
  const std::int64_t heads = problem.heads_q + problem.function_positions.head_start;
  if (kind != 0) {
    problem.score_function = choice == 0   ? capped({0.5F + static_cast<float>(at)})
                             : choice == 1 ? relative_bias(relative_bias_params(heads))
                             : choice == 2 ? nearby({static_cast<float>(at)})
                                           : gated_distance({0.1F * static_cast<float>(1 + at % 9)});
  }
  if (kind != 1) {
    const float width = static_cast<float>(1 + 4 * at);
    problem.mask_function = choice % 2 == 0 ? dilated({static_cast<float>(1 + at % 5), width}) : striped_heads();
  }
  return problem;
}

}  // namespace tessera::test

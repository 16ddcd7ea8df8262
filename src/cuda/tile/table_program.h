// The score programs that tables name, each in a word that is also how the names of their images end.
#pragma once

#include "cuda/tile/program.h"

namespace tessera {

enum class TableProgram : std::uint32_t {
  softcap = static_cast<std::uint32_t>(ScoreFeature::softcap),
  softcap_bounded = softcap | kBounded,
  alibi = static_cast<std::uint32_t>(ScoreFeature::alibi),
  dropout = static_cast<std::uint32_t>(ScoreFeature::dropout),
};

// What the kernels that a build has of a program are compiled for.
constexpr std::uint32_t built_features(TableProgram program) {
  const auto features = static_cast<std::uint32_t>(program);
  return (features & kBounded) != 0 ? features | kUnrolledWalk : features;
}

}  // namespace tessera

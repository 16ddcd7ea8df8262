// Two keys of equal score: the result is the mean of their values and LSE = log 2.
#include <array>
#include <cmath>
#include <iostream>

#include "tessera/tessera.h"

int main() {
  const std::array<float, 2> q{0.0F, 0.0F};
  const std::array<float, 4> k{1.0F, 2.0F, 3.0F, 4.0F};
  const std::array<float, 4> v{1.0F, 2.0F, 3.0F, 6.0F};
  std::array<float, 2> out{};
  std::array<float, 1> lse{};
  using enum tessera::DType;
  tessera::attention_forward({q.data(), float32, {1, 1, 1, 2}}, {k.data(), float32, {1, 2, 1, 2}},
                             {v.data(), float32, {1, 2, 1, 2}}, {out.data(), float32, {1, 1, 1, 2}},
                             {lse.data(), float32, {1, 1, 1}});
  std::cout << "tessera " << tessera::kVersion << ": out " << out[0] << ' ' << out[1] << ", lse " << lse[0] << '\n';
  const bool right =
      std::abs(out[0] - 2.0F) < 1e-6F && std::abs(out[1] - 4.0F) < 1e-6F && std::abs(lse[0] - std::log(2.0F)) < 1e-6F;
  return right ? 0 : 1;
}

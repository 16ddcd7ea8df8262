// Attention in two calls: describe the tensors, run. Values of 2 everywhere average to 2.
#include <cmath>
#include <vector>

#include "tessera/tessera.h"

int main() {
  std::vector<float> q(2 * 100 * 8 * 64, 0.1F), k(q), v(q.size(), 2.0F), out(q.size());
  const auto view = [](std::vector<float>& x) {
    return tessera::TensorView(x.data(), tessera::DType::float32, {2, 100, 8, 64});  // batch, seq, heads, dim
  };
  tessera::attention_forward(view(q), view(k), view(v), view(out), {}, {.mask = tessera::Mask::causal()});
  return std::abs(out.back() - 2.0F) < 1e-5F ? 0 : 1;
}

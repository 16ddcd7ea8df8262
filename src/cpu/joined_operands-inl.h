// multiply() of operands in three planes that hold a NaN or an infinity: put together again and multiplied as float32, since
// an infinity times a part that is zero would be a NaN.

// `count` pairs of every plane, as numbers `stride` apart in target[0] (the first of a pair) and target[1].
HWY_INLINE void join_pairs(const Operand& pairs, std::int64_t count, std::int64_t stride, float* even, float* odd) {
  const auto value = [&](int plane, std::int64_t n, std::uint32_t bits) {
    return std::bit_cast<float>(bits == 0 ? pairs.of_plane(plane)[n] << 16 : pairs.of_plane(plane)[n] & bits);
  };
  constexpr std::uint32_t kUpper = 0xFFFF0000U;
  for (std::int64_t n = 0; n < count; ++n) {
    even[n * stride] = value(0, n, 0) + (value(1, n, 0) + value(2, n, 0));
    odd[n * stride] = value(0, n, kUpper) + (value(1, n, kUpper) + value(2, n, kUpper));
  }
}

// p.joined has room for A and for one panel of B.
template <Update kUpdate>
HWY_NOINLINE void multiply_joined(const Product& p) {
  const std::int64_t depth = 2 * p.depth;
  float* a = p.joined;
  float* b = a + p.rows * depth;
  for (std::int64_t r = 0; r < p.rows; ++r) {
    join_pairs(p.a.at(r * p.a_stride), p.depth, 2, a + r * depth, a + r * depth + 1);
  }
  float32_products::Product product;
  product.a = {a, 0};
  product.a_stride = depth;
  product.b = {b, 0};
  product.b_stride = kPanel;
  product.c_stride = p.c_stride;
  product.rows = p.rows;
  product.depth = depth;
  product.scale = p.scale;
  Operand panel = p.b;
  for (std::int64_t column = 0; column < p.columns; column += kPanel, panel = panel.at(p.b_panel_stride)) {
    product.columns = std::min(kPanel, p.columns - column);
    for (std::int64_t k = 0; k < p.depth; ++k) {
      join_pairs(panel.at(k * p.b_stride), product.columns, 1, b + 2 * k * kPanel, b + (2 * k + 1) * kPanel);
    }
    product.c = p.c + column;
    float32_products::multiply<false, kUpdate>(product);
  }
}

// multiply() with vectors: a register tile of C, of which `Arithmetic` tells
//   kRows         rows of C held in registers
//   kVectors      vectors of C in a row
//   Vector, load(p), broadcast(p), multiply_add(a, b, c), and float arithmetic on C: zero, load_c, store_c, scale_add, add
//
// The limit is the FMA ports: a step of the depth costs kRows * kVectors FMAs, kVectors loads of B and kRows broadcasts
// of A. kRows * kVectors accumulators hide the FMA latency and must stay in registers, so every loop over them has
// constant bounds.

inline constexpr bool kTakesTransposedA = true;
struct ProductSession {};

// The partial sum starts from zero, not from C: blocked summation keeps the rounding error of long sums small, and
// folding the rescale of C into its only load makes it free.
template <bool kTransposedA, Update kUpdate, int kRows, int kVectors>
HWY_INLINE void micro_tile(const Product& p, const Arithmetic::Unit* HWY_RESTRICT a,
                           const Arithmetic::Unit* HWY_RESTRICT b, float* HWY_RESTRICT c,
                           const float* HWY_RESTRICT scale) {
  using Vector = Arithmetic::Vector;
  constexpr std::int64_t kLanes = Arithmetic::kLanes;
  constexpr int kBase = 3;  // rows that share a pointer: x86 addresses base, base + stride and base + 2 * stride
  constexpr int kBases = (kRows + kBase - 1) / kBase;
  Vector sum[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      sum[r][v] = Arithmetic::zero();
    }
  }
  const std::int64_t a_stride = p.a_stride;
  const std::int64_t b_stride = p.b_stride;
  const std::int64_t c_stride = p.c_stride;
  const Arithmetic::Unit* base[kBases];
#pragma GCC unroll 16
  for (int r = 0; r < kBases; ++r) {
    base[r] = a + (kTransposedA ? 0 : kBase * r * a_stride);
  }
  for (std::int64_t k = p.depth; k > 0; --k) {
    Vector row_b[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      row_b[v] = Arithmetic::load(b + v * kLanes);
    }
    b += b_stride;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vector element =
          Arithmetic::broadcast(kTransposedA ? base[0] + r : base[r / kBase] + (r % kBase) * a_stride);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sum[r][v] = Arithmetic::multiply_add(element, row_b[v], sum[r][v]);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < (kTransposedA ? 1 : kBases); ++r) {
      base[r] += kTransposedA ? a_stride : 1;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    float* row_c = c + r * c_stride;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      if constexpr (kUpdate == Update::kStore) {
        Arithmetic::store_c(sum[r][v], row_c + v * kLanes);
      } else if constexpr (kUpdate == Update::kAdd) {
        Arithmetic::store_c(Arithmetic::add(Arithmetic::load_c(row_c + v * kLanes), sum[r][v]), row_c + v * kLanes);
      } else {
        Arithmetic::store_c(Arithmetic::scale_add(scale[r], Arithmetic::load_c(row_c + v * kLanes), sum[r][v]),
                            row_c + v * kLanes);
      }
    }
  }
}

template <Update kUpdate>
HWY_INLINE const float* scale_of_row(const Product& p, std::int64_t row) {
  return kUpdate == Update::kScale ? p.scale + row : nullptr;
}

// Rows [row, row + kRows) of C against one panel of B. Returns the row behind them.
template <bool kTransposedA, Update kUpdate, int kRows, int kVectors>
HWY_INLINE std::int64_t multiply_rows(const Product& p, std::int64_t row, const Arithmetic::Unit* b, float* c) {
  const std::int64_t a_row_stride = kTransposedA ? 1 : p.a_stride;
  micro_tile<kTransposedA, kUpdate, kRows, kVectors>(p, p.a.units + row * a_row_stride, b, c + row * p.c_stride,
                                                     scale_of_row<kUpdate>(p, row));
  return row + kRows;
}

// Too few accumulators do not hide the latency of an FMA: where four rows would be left behind twelve, two tiles of eight
// take their place.
template <bool kTransposedA, Update kUpdate, int kVectors>
HWY_INLINE void panel_product(const Product& p, const Arithmetic::Unit* b, float* c) {
  constexpr int kRows = Arithmetic::kRows;
  constexpr bool kHasMiddle = kRows == 12;
  std::int64_t r = 0;
  while (r + kRows <= p.rows && !(kHasMiddle && p.rows - r == 16)) {
    r = multiply_rows<kTransposedA, kUpdate, kRows, kVectors>(p, r, b, c);
  }
  if constexpr (kHasMiddle) {
    while (r + 8 <= p.rows) {
      r = multiply_rows<kTransposedA, kUpdate, 8, kVectors>(p, r, b, c);
    }
  }
  while (r + 4 <= p.rows) {
    r = multiply_rows<kTransposedA, kUpdate, 4, kVectors>(p, r, b, c);
  }
  while (r < p.rows) {
    r = multiply_rows<kTransposedA, kUpdate, 1, kVectors>(p, r, b, c);
  }
}

// Panels outside, rows inside: a panel of B stays in L1 while the rows of A stream past it.
template <bool kTransposedA, Update kUpdate>
HWY_NOINLINE void multiply(const Product& p) {
  const Arithmetic::Unit* b = p.b.units;
  std::int64_t column = 0;
  for (; column + kPanel <= p.columns; column += kPanel, b += p.b_panel_stride) {
    panel_product<kTransposedA, kUpdate, Arithmetic::kVectors>(p, b, p.c + column);
  }
  for (; column < p.columns; column += Arithmetic::kLanes, b += Arithmetic::kLanes) {
    panel_product<kTransposedA, kUpdate, 1>(p, b, p.c + column);
  }
}

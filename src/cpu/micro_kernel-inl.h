// Register-tiled matrix products, C (rows x columns) from A (rows x depth) and B (depth x columns).
//
// Included once for each arithmetic, inside its namespace and target attributes, with `Arithmetic` defined there:
//   Unit          4-byte unit of A and B along the depth: a float, or a pair of bfloat16
//   kRows         rows of C held in registers
//   kVectors      vectors of C in a row
//   Vector, load(p), broadcast(p), multiply_add(a, b, c), and float arithmetic on C: zero, load_c, store_c, scale_add, add
//
// The limit is the FMA ports: a step of the depth costs kRows * kVectors FMAs, kVectors loads of B and kRows broadcasts
// of A. kRows * kVectors accumulators hide the FMA latency and must stay in registers, so every loop over them has
// constant bounds.

// How a product meets what C held.
enum class Update {
  kStore,  // C = A B
  kAdd,    // C += A B
  kScale,  // C = scale(row) C + A B
};

struct Product {
  const Arithmetic::Unit* a = nullptr;
  std::int64_t a_stride = 0;  // between rows of A; between depths when A is given transposed
  const Arithmetic::Unit* b = nullptr;
  std::int64_t b_stride = 0;        // between depths
  std::int64_t b_panel_stride = 0;  // between panels of kPanel columns
  float* c = nullptr;
  std::int64_t c_stride = 0;
  std::int64_t rows = 0;
  std::int64_t columns = 0;  // a multiple of the vector length
  std::int64_t depth = 0;
  const float* scale = nullptr;
};

inline constexpr std::int64_t kPanel = static_cast<std::int64_t>(Arithmetic::kVectors) * Arithmetic::kLanes;

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

template <bool kTransposedA, Update kUpdate, int kVectors>
HWY_INLINE void panel_product(const Product& p, const Arithmetic::Unit* b, float* c) {
  constexpr int kRows = Arithmetic::kRows;
  constexpr int kSome = 4;
  const std::int64_t a_row_stride = kTransposedA ? 1 : p.a_stride;
  std::int64_t r = 0;
  for (; r + kRows <= p.rows; r += kRows) {
    micro_tile<kTransposedA, kUpdate, kRows, kVectors>(p, p.a + r * a_row_stride, b, c + r * p.c_stride,
                                                       scale_of_row<kUpdate>(p, r));
  }
  for (; r + kSome <= p.rows; r += kSome) {
    micro_tile<kTransposedA, kUpdate, kSome, kVectors>(p, p.a + r * a_row_stride, b, c + r * p.c_stride,
                                                       scale_of_row<kUpdate>(p, r));
  }
  for (; r < p.rows; ++r) {
    micro_tile<kTransposedA, kUpdate, 1, kVectors>(p, p.a + r * a_row_stride, b, c + r * p.c_stride,
                                                   scale_of_row<kUpdate>(p, r));
  }
}

// Panels outside, rows inside: a panel of B stays in L1 while the rows of A stream past it.
template <bool kTransposedA, Update kUpdate>
HWY_NOINLINE void multiply(const Product& p) {
  const Arithmetic::Unit* b = p.b;
  std::int64_t column = 0;
  for (; column + kPanel <= p.columns; column += kPanel, b += p.b_panel_stride) {
    panel_product<kTransposedA, kUpdate, Arithmetic::kVectors>(p, b, p.c + column);
  }
  for (; column < p.columns; column += Arithmetic::kLanes, b += Arithmetic::kLanes) {
    panel_product<kTransposedA, kUpdate, 1>(p, b, p.c + column);
  }
}

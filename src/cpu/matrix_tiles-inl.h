// multiply() with AMX: tile registers of 16 rows of 64 bytes, and TDPBF16PS, which adds to 16 x 16 sums the products of 16
// rows of A and 16 columns of B, 16 pairs of bfloat16 deep.
//
// Packed panels are what it takes for B, rows of pairs what it takes for A. The limit is the tile unit: a product takes 16
// cycles and a load from L1 takes 8, so that two tiles of A against two of B leave the loads behind the products, and four
// sums hide the latency of a product (52 cycles).

static_assert(Arithmetic::kPlanes == 1 || Arithmetic::kPlanes == 3);
inline constexpr std::int64_t kTile = 16;  // rows of a tile, columns of a tile of C, and pairs along the depth

// Compilers do not see all that the tile instructions read and write: here memory, and what `pointer` points to, is up to
// date.
HWY_INLINE void compiler_barrier(const void* pointer) { __asm__ volatile("" : : "r"(pointer) : "memory"); }

// The shapes of the tile registers: 0 to 3 hold C, 4 and 5 A, 6 and 7 B. Tails of rows or depth need shapes of their own.
struct alignas(64) TileShapes {
  TileShapes(std::int64_t rows, std::int64_t depth) {
    for (int tile = 0; tile < 8; ++tile) {
      const bool of_a = tile == 4 || tile == 5;
      row_bytes[tile] = static_cast<std::uint16_t>(4 * (of_a ? depth : kTile));
      row_count[tile] = static_cast<std::uint8_t>(tile < 6 ? rows : depth);
    }
  }
  void load() const {
    compiler_barrier(this);
    _tile_loadconfig(this);
    compiler_barrier(this);
  }

  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t row_count[16] = {};
};

inline constexpr bool kTakesTransposedA = false;

// While one lives, this thread's tile registers are in use, with the shapes that multiply() expects.
class ProductSession {
 public:
  ProductSession() { TileShapes(kTile, kTile).load(); }
  ~ProductSession() { _tile_release(); }
  ProductSession(const ProductSession&) = delete;
  ProductSession& operator=(const ProductSession&) = delete;
};

template <int kRowTiles>
HWY_INLINE void load_a(const Arithmetic::Unit* a, std::int64_t stride) {
  _tile_loadd(4, a, stride * 4);
  if constexpr (kRowTiles == 2) {
    _tile_loadd(5, a + kTile * stride, stride * 4);
  }
}

template <int kColumnTiles>
HWY_INLINE void load_b(const Arithmetic::Unit* b, std::int64_t stride) {
  _tile_loadd(6, b, stride * 4);
  if constexpr (kColumnTiles == 2) {
    _tile_loadd(7, b + kTile, stride * 4);
  }
}

template <int kRowTiles, int kColumnTiles>
HWY_INLINE void multiply_loaded() {
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (kColumnTiles == 2) {
    _tile_dpbf16ps(1, 4, 7);
  }
  if constexpr (kRowTiles == 2) {
    _tile_dpbf16ps(2, 5, 6);
  }
  if constexpr (kRowTiles == 2 && kColumnTiles == 2) {
    _tile_dpbf16ps(3, 5, 7);
  }
}

// One tile of the depth. With three planes, the products of parts that are not below 2^-21: six of nine, in an order
// that leaves one of the two operands in place.
template <int kRowTiles, int kColumnTiles>
HWY_INLINE void multiply_step(const Product& p, const Arithmetic::Unit* a, const Arithmetic::Unit* b) {
  if constexpr (Arithmetic::kPlanes == 1) {
    load_b<kColumnTiles>(b, p.b_stride);
    load_a<kRowTiles>(a, p.a_stride);
    multiply_loaded<kRowTiles, kColumnTiles>();
  } else {
    load_b<kColumnTiles>(b, p.b_stride);
    load_a<kRowTiles>(a + 2 * p.a.plane, p.a_stride);
    multiply_loaded<kRowTiles, kColumnTiles>();
    load_a<kRowTiles>(a + p.a.plane, p.a_stride);
    multiply_loaded<kRowTiles, kColumnTiles>();
    load_a<kRowTiles>(a, p.a_stride);
    multiply_loaded<kRowTiles, kColumnTiles>();
    load_b<kColumnTiles>(b + p.b.plane, p.b_stride);
    multiply_loaded<kRowTiles, kColumnTiles>();
    load_a<kRowTiles>(a + p.a.plane, p.a_stride);
    multiply_loaded<kRowTiles, kColumnTiles>();
    load_b<kColumnTiles>(b + 2 * p.b.plane, p.b_stride);
    load_a<kRowTiles>(a, p.a_stride);
    multiply_loaded<kRowTiles, kColumnTiles>();
  }
}

template <int kRowTiles, int kColumnTiles>
HWY_INLINE void load_sums(const float* c, std::int64_t stride) {
  _tile_loadd(0, c, stride * 4);
  if constexpr (kColumnTiles == 2) {
    _tile_loadd(1, c + kTile, stride * 4);
  }
  if constexpr (kRowTiles == 2) {
    _tile_loadd(2, c + kTile * stride, stride * 4);
  }
  if constexpr (kRowTiles == 2 && kColumnTiles == 2) {
    _tile_loadd(3, c + kTile * stride + kTile, stride * 4);
  }
}

template <int kRowTiles, int kColumnTiles>
HWY_INLINE void store_sums(float* c, std::int64_t stride) {
  _tile_stored(0, c, stride * 4);
  if constexpr (kColumnTiles == 2) {
    _tile_stored(1, c + kTile, stride * 4);
  }
  if constexpr (kRowTiles == 2) {
    _tile_stored(2, c + kTile * stride, stride * 4);
  }
  if constexpr (kRowTiles == 2 && kColumnTiles == 2) {
    _tile_stored(3, c + kTile * stride + kTile, stride * 4);
  }
}

// Part of a product: `tiles` tiles of `rows` rows each from `row` on, `steps` tiles of the depth from `unit` on.
struct TilePart {
  std::int64_t row = 0;
  std::int64_t tiles = 0;
  std::int64_t rows = kTile;
  std::int64_t unit = 0;
  std::int64_t steps = 0;
  bool adds = false;  // to what C holds
};

// Sums of up to 2 x 2 tiles. Those of float32 begin at zero and are then added to C, so that the error of long sums stays
// small.
template <int kRowTiles, int kColumnTiles>
HWY_INLINE void multiply_tiles(const Product& p, const TilePart& part, const Arithmetic::Unit* a,
                               const Arithmetic::Unit* b, float* c) {
  constexpr bool kSumsInC = Arithmetic::kPlanes == 1;
  if (kSumsInC && part.adds) {
    load_sums<kRowTiles, kColumnTiles>(c, p.c_stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (std::int64_t step = 0; step < part.steps; ++step, a += kTile, b += kTile * p.b_stride) {
    multiply_step<kRowTiles, kColumnTiles>(p, a, b);
  }
  if (kSumsInC || !part.adds) {
    store_sums<kRowTiles, kColumnTiles>(c, p.c_stride);
    return;
  }
  alignas(64) float sums[kRowTiles * kTile * kPanel];
  store_sums<kRowTiles, kColumnTiles>(sums, kPanel);
  compiler_barrier(sums);
  const hn::ScalableTag<float> d;
  const std::int64_t rows = kRowTiles == 2 ? 2 * kTile : part.rows;
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t j = 0; j < kColumnTiles * kTile; j += kTile) {
      float* target = c + r * p.c_stride + j;
      hn::StoreU(hn::Add(hn::LoadU(d, target), hn::Load(d, sums + r * kPanel + j)), d, target);
    }
  }
}

template <int kColumnTiles>
HWY_INLINE void multiply_columns(const Product& p, const TilePart& part, const Arithmetic::Unit* b, float* c) {
  const Arithmetic::Unit* a = p.a.units + part.row * p.a_stride + part.unit;
  b += part.unit * p.b_stride;
  c += part.row * p.c_stride;
  std::int64_t tile = 0;
  for (; tile + 2 <= part.tiles; tile += 2) {
    multiply_tiles<2, kColumnTiles>(p, part, a + tile * kTile * p.a_stride, b, c + tile * kTile * p.c_stride);
  }
  if (tile < part.tiles) {
    multiply_tiles<1, kColumnTiles>(p, part, a + tile * kTile * p.a_stride, b, c + tile * kTile * p.c_stride);
  }
}

// Panels outside, rows inside: a panel of B stays in L1 while the rows of A stream past it.
HWY_INLINE void multiply_part(const Product& p, const TilePart& part) {
  static_assert(kPanel == 2 * kTile);
  const Arithmetic::Unit* b = p.b.units;
  std::int64_t column = 0;
  for (; column + kPanel <= p.columns; column += kPanel, b += p.b_panel_stride) {
    multiply_columns<2>(p, part, b, p.c + column);
  }
  if (column < p.columns) {
    multiply_columns<1>(p, part, b, p.c + column);
  }
}

HWY_INLINE void scale_rows(const Product& p) {
  const hn::ScalableTag<float> d;
  for (std::int64_t r = 0; r < p.rows; ++r) {
    if (p.scale[r] == 1.0F) {
      continue;
    }
    const auto factor = hn::Set(d, p.scale[r]);
    float* HWY_RESTRICT c = p.c + r * p.c_stride;
    for (std::int64_t j = 0; j < p.columns; j += kTile) {
      hn::StoreU(hn::Mul(hn::LoadU(d, c + j), factor), d, c + j);
    }
  }
}

// All of it, with the shapes that the tails of rows and of the depth need.
HWY_INLINE void multiply_all(const Product& p, bool adds) {
  const std::int64_t row_tiles = p.rows / kTile;
  const std::int64_t row_tail = p.rows % kTile;
  const std::int64_t steps = p.depth / kTile;
  const std::int64_t depth_tail = p.depth % kTile;
  const TilePart rows{0, row_tiles, kTile, 0, steps, adds};
  const TilePart last_rows{row_tiles * kTile, 1, row_tail, 0, steps, adds};
  const auto depth_end = [&](TilePart part) {
    part.unit = steps * kTile;
    part.steps = 1;
    part.adds = adds || steps > 0;
    return part;
  };
  if (steps > 0 || depth_tail == 0) {
    multiply_part(p, rows);
  }
  if (depth_tail > 0) {
    TileShapes(kTile, depth_tail).load();
    multiply_part(p, depth_end(rows));
  }
  if (row_tail > 0) {
    if (steps > 0 || depth_tail == 0) {
      TileShapes(row_tail, kTile).load();
      multiply_part(p, last_rows);
    }
    if (depth_tail > 0) {
      TileShapes(row_tail, depth_tail).load();
      multiply_part(p, depth_end(last_rows));
    }
  }
  if (row_tail > 0 || depth_tail > 0) {
    TileShapes(kTile, kTile).load();
  }
}

template <bool kTransposedA, Update kUpdate>
HWY_NOINLINE void multiply(const Product& p) {
  static_assert(!kTransposedA, "tiles of A hold its rows");
  if constexpr (Arithmetic::kPlanes > 1) {
    if (p.joined != nullptr) {
      multiply_joined<kUpdate>(p);
      return;
    }
  }
  if constexpr (kUpdate == Update::kScale) {
    scale_rows(p);
  }
  compiler_barrier(&p);
  multiply_all(p, kUpdate != Update::kStore);
  compiler_barrier(&p);
}

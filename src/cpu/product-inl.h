// A matrix product, C (rows x columns) from A (rows x depth) and B (depth x columns), as multiply() takes it.
//
// Included once for each arithmetic, inside its namespace and target attributes, with `Arithmetic` defined there:
//   Unit          4-byte unit of A and B along the depth: a float, or a pair of bfloat16
//   kLanes        columns of a vector of C
//   kVectors      vectors in a panel of B
//   kPlanes       1, or the number of parts that an operand is the sum of
// From micro_kernel-inl.h or matrix_tiles-inl.h follow
//   multiply<kTransposedA, kUpdate>(product)
//   kTakesTransposedA   whether kTransposedA may be true
//   ProductSession      of which one has to live, on this thread, while multiply() is called

using Operand = OperandOf<Arithmetic::Unit>;

struct Product {
  Operand a;
  std::int64_t a_stride = 0;  // between rows of A; between depths when A is given transposed
  Operand b;
  std::int64_t b_stride = 0;        // between depths
  std::int64_t b_panel_stride = 0;  // between panels of kPanel columns
  float* c = nullptr;
  std::int64_t c_stride = 0;
  std::int64_t rows = 0;
  std::int64_t columns = 0;  // a multiple of the vector length
  std::int64_t depth = 0;
  const float* scale = nullptr;
  // With several planes: room to put operands together again that hold a NaN or an infinity, of which the parts do not
  // multiply as they should. Null where they hold none.
  float* joined = nullptr;
};

inline constexpr std::int64_t kPanel = static_cast<std::int64_t>(Arithmetic::kVectors) * Arithmetic::kLanes;

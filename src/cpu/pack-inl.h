// Rows of user tensors into float32 rows and packed operands.

// Rows of one head are far apart in memory, so that no hardware prefetcher finds the next: ask for it by hand.
HWY_INLINE void prefetch_rows(const Rows<const void>& rows, std::int64_t begin, std::int64_t end, std::int64_t dim) {
  constexpr std::int64_t kLine = 64;
  const std::int64_t bytes = dim * dtype_bytes(rows.dtype);
  for (std::int64_t row = begin; row < end; ++row) {
    const auto* start = static_cast<const char*>(rows.at(row));
    for (std::int64_t offset = 0; offset < bytes; offset += kLine) {
      __builtin_prefetch(start + offset);
    }
  }
}

// The row that a loop over rows will want in a while.
HWY_INLINE void prefetch_ahead(const Rows<const void>& rows, std::int64_t row, std::int64_t end, std::int64_t dim) {
  constexpr std::int64_t kAhead = 8;
  prefetch_rows(rows, std::min(row + kAhead, end), std::min(row + kAhead + 1, end), dim);
}

// Columns [0, dim) of one row as float32.
HWY_INLINE void load_row(const void* row, DType dtype, std::int64_t dim, float factor, float* HWY_RESTRICT out) {
  if (dtype == DType::float32) {
    const auto* source = static_cast<const float*>(row);
    for (std::int64_t i = 0; i < dim; ++i) {
      out[i] = source[i] * factor;
    }
  } else if (dtype == DType::bfloat16) {
    const auto* source = static_cast<const std::uint16_t*>(row);
    for (std::int64_t i = 0; i < dim; ++i) {
      out[i] = bfloat16_to_float(source[i]) * factor;
    }
  } else {
    const auto* source = static_cast<const std::uint16_t*>(row);
    for (std::int64_t i = 0; i < dim; ++i) {
      out[i] = float16_to_float(source[i]) * factor;
    }
  }
}

HWY_INLINE void store_row(const float* HWY_RESTRICT values, DType dtype, std::int64_t dim, float factor, void* row) {
  if (dtype == DType::float32) {
    auto* target = static_cast<float*>(row);
    for (std::int64_t i = 0; i < dim; ++i) {
      target[i] = values[i] * factor;
    }
  } else if (dtype == DType::bfloat16) {
    auto* target = static_cast<std::uint16_t*>(row);
    for (std::int64_t i = 0; i < dim; ++i) {
      target[i] = float_to_bfloat16(values[i] * factor);
    }
  } else {
    auto* target = static_cast<std::uint16_t*>(row);
    for (std::int64_t i = 0; i < dim; ++i) {
      target[i] = float_to_float16(values[i] * factor);
    }
  }
}

// Whether the row holds a NaN or an infinity.
HWY_INLINE bool has_special(const float* row, std::int64_t count) {
  std::uint32_t special = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    special |= static_cast<std::uint32_t>((std::bit_cast<std::uint32_t>(row[i]) & 0x7F800000U) == 0x7F800000U);
  }
  return special != 0;
}

// The depth units of one row: float32, or pairs of bfloat16 (an odd tail is paired with zero).
template <class Arithmetic>
HWY_INLINE void load_units(const void* row, DType dtype, std::int64_t dim, float factor,
                           const OperandOf<typename Arithmetic::Unit>& out) {
  if constexpr (Arithmetic::kDepthUnit == 1) {
    load_row(row, dtype, dim, factor, out.units);
  } else if constexpr (Arithmetic::kPlanes == 1) {
    std::memcpy(out.units, row, static_cast<std::size_t>(dim) * 2);
    if (dim % 2 != 0) {
      out.units[dim / 2] &= 0xFFFFU;
    }
  } else {
    alignas(64) float values[FlashPlan::kMaxDim];
    load_row(row, dtype, dim, factor, values);
    std::fill(values + dim, values + round_up(dim, kPanel), 0.0F);
    Arithmetic::split_columns(values, dim, out);
  }
}

HWY_INLINE bool units_special(const float* units, std::int64_t count) { return has_special(units, count); }

HWY_INLINE bool units_special(const std::uint32_t* pairs, std::int64_t count) {
  std::uint32_t special = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    special |= static_cast<std::uint32_t>((pairs[i] & 0x7F80U) == 0x7F80U) |
               static_cast<std::uint32_t>((pairs[i] & 0x7F800000U) == 0x7F800000U);
  }
  return special != 0;
}

// target[k * stride + j] = source[j][k] for kBlock rows.
template <std::int64_t kBlock, class Unit>
HWY_INLINE void transpose_rows(const Unit* const* source, std::int64_t units, std::int64_t stride,
                               Unit* HWY_RESTRICT target) {
  std::int64_t k = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::FixedTag<Unit, 4> d;
  for (; k + 4 <= units; k += 4) {
#pragma GCC unroll 2
    for (std::int64_t j = 0; j < kBlock; j += 4) {
      const auto row0 = hn::LoadU(d, source[j] + k);
      const auto row1 = hn::LoadU(d, source[j + 1] + k);
      const auto row2 = hn::LoadU(d, source[j + 2] + k);
      const auto row3 = hn::LoadU(d, source[j + 3] + k);
      const auto low01 = hn::InterleaveLower(d, row0, row1);
      const auto low23 = hn::InterleaveLower(d, row2, row3);
      const auto high01 = hn::InterleaveUpper(d, row0, row1);
      const auto high23 = hn::InterleaveUpper(d, row2, row3);
      Unit* out = target + k * stride + j;
      hn::StoreU(hn::ConcatLowerLower(d, low23, low01), d, out);
      hn::StoreU(hn::ConcatUpperUpper(d, low23, low01), d, out + stride);
      hn::StoreU(hn::ConcatLowerLower(d, high23, high01), d, out + 2 * stride);
      hn::StoreU(hn::ConcatUpperUpper(d, high23, high01), d, out + 3 * stride);
    }
  }
#endif
  for (; k < units; ++k) {
    for (std::int64_t j = 0; j < kBlock; ++j) {
      target[k * stride + j] = source[j][k];
    }
  }
}

// Rows [begin, end) of a key-side tensor into panels [row / kPanel][unit][kPanel], zeros behind the last row. Returns
// whether any element is a NaN or an infinity.
template <class Arithmetic>
bool pack_transposed(const Rows<const void>& rows, Range range, std::int64_t dim, std::int64_t units, Operand out) {
  using Unit = typename Arithmetic::Unit;
  constexpr std::int64_t kMaxUnits = FlashPlan::kMaxDim / Arithmetic::kDepthUnit;
  constexpr std::int64_t kBlock = std::min<std::int64_t>(kPanel, 8);
  const bool readable_in_place = Arithmetic::kDepthUnit == 1 && rows.dtype == DType::float32;
  constexpr std::int64_t kPlanes = Arithmetic::kPlanes;
  alignas(64) Unit buffer[kPlanes][kBlock][kMaxUnits];
  const Unit* source[kPlanes][kBlock];
  bool special = false;
  for (std::int64_t first = range.begin; first < range.end; first += kPanel, out = out.at(units * kPanel)) {
    for (std::int64_t block = 0; block < kPanel; block += kBlock) {
      const std::int64_t next = first + block + kBlock;
      prefetch_rows(rows, std::min(next, range.end), std::min(next + kBlock, range.end), dim);
      for (std::int64_t j = 0; j < kBlock; ++j) {
        const std::int64_t row = first + block + j;
        for (std::int64_t plane = 0; plane < kPlanes; ++plane) {
          source[plane][j] = buffer[plane][j];
          if (row >= range.end) {
            std::memset(buffer[plane][j], 0, static_cast<std::size_t>(units) * sizeof(Unit));
          }
        }
        if (row < range.end && readable_in_place) {
          source[0][j] = static_cast<const Unit*>(rows.at(row));
        } else if (row < range.end) {
          load_units<Arithmetic>(rows.at(row), rows.dtype, dim, 1.0F, {buffer[0][j], kBlock * kMaxUnits});
        }
        special = units_special(source[0][j], units) || special;
      }
      for (std::int64_t plane = 0; plane < kPlanes; ++plane) {
        transpose_rows<kBlock>(source[plane], units, kPanel, out.of_plane(plane) + block);
      }
    }
  }
  return special;
}

// Rows [begin, end) of a tensor into panels of columns, [column / kPanel][row unit][kPanel]: a right-hand operand whose
// depth is the row. `panel_stride` is the distance between panels; rows up to `padded_end` are zero.
template <class Arithmetic>
bool pack_rows(const Rows<const void>& rows, Range range, std::int64_t padded_end, std::int64_t dim,
               std::int64_t panel_stride, Operand out) {
  using Unit = typename Arithmetic::Unit;
  using Element = typename Arithmetic::Element;  // of which kDepthUnit make a unit
  constexpr std::int64_t kUnit = Arithmetic::kDepthUnit;
  const std::int64_t panels = ceil_div(dim, kPanel);
  alignas(64) Element buffer[kUnit][FlashPlan::kMaxDim + kPanel] = {};
  bool special = false;
  for (std::int64_t row = range.begin; row < padded_end; row += kUnit) {
    for (std::int64_t u = 0; u < kUnit; ++u) {
      prefetch_ahead(rows, row + u, range.end, dim);
      if (row + u >= range.end) {
        std::memset(buffer[u], 0, static_cast<std::size_t>(dim) * sizeof(Element));
      } else if constexpr (std::is_same_v<Element, float>) {
        load_row(rows.at(row + u), rows.dtype, dim, 1.0F, buffer[u]);
      } else {
        std::memcpy(buffer[u], rows.at(row + u), static_cast<std::size_t>(dim) * sizeof(Element));
      }
    }
    Operand target = out.at((row - range.begin) / kUnit * kPanel);
    for (std::int64_t panel = 0; panel < panels; ++panel, target = target.at(panel_stride)) {
      const Element* HWY_RESTRICT even = buffer[0] + panel * kPanel;
      const Element* HWY_RESTRICT odd = buffer[kUnit - 1] + panel * kPanel;
      if constexpr (Arithmetic::kPlanes == 1) {
        Unit* HWY_RESTRICT packed = target.units;
        for (std::int64_t i = 0; i < kPanel; ++i) {
          packed[i] = Arithmetic::pack(even[i], odd[i]);
        }
      } else {
        Arithmetic::split_rows(even, odd, kPanel, target);
      }
      special = units_special(target.units, kPanel) || special;
    }
  }
  return special;
}

// Operands of bfloat16 products: what an arithmetic of such products consists of, but for the products.
//
// Included once, in the namespace and with the attributes of AVX-512 with bfloat16.

// Pairs of bfloat16, neighbours along the depth.
struct Bfloat16Pairs {
  using Unit = std::uint32_t;
  using Pairs = OperandOf<Unit>;
  static constexpr std::int64_t kLanes = 16;
  static constexpr std::int64_t kDepthUnit = 2;
  static constexpr int kVectors = 2;

  // Element j of both rows as pair j; `count` elements, rounded up to whole vectors.
  static HWY_INLINE void pair_rows(const Unit* even, const Unit* odd, std::int64_t count, Unit* out) {
    const __m512i low = pair_order(0);
    const __m512i high = pair_order(16);
    std::int64_t j = 0;
    for (; j + 32 <= count; j += 32) {
      const __m512i a = _mm512_loadu_si512(even + j / 2);
      const __m512i b = _mm512_loadu_si512(odd + j / 2);
      _mm512_storeu_si512(out + j, _mm512_permutex2var_epi16(a, low, b));
      _mm512_storeu_si512(out + j + 16, _mm512_permutex2var_epi16(a, high, b));
    }
    if (j < count) {
      const __m512i a = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(even + j / 2)));
      const __m512i b = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(odd + j / 2)));
      _mm512_storeu_si512(out + j, _mm512_permutex2var_epi16(a, low, b));
    }
  }
  static HWY_INLINE void pair_with_zeros(const Unit* even, std::int64_t count, Unit* out) {
    for (std::int64_t j = 0; j < count; j += 16) {
      const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(even + j / 2));
      _mm512_storeu_si512(out + j, _mm512_cvtepu16_epi32(a));
    }
  }

 protected:
  // 0, 16, 1, 17, ..: the halves of a vector of bfloat16 in turn.
  static HWY_INLINE __m512i halves_order() { return alternate(0, 16); }

 private:
  // first, first + 32, first + 1, first + 33, ..: of a vector of bfloat16, and of the one behind it.
  static HWY_INLINE __m512i pair_order(int first) { return alternate(first, 32); }
  static HWY_INLINE __m512i alternate(int first, int distance) {
    const __m512i even = _mm512_add_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                          _mm512_set1_epi32(first));
    return _mm512_or_si512(even, _mm512_slli_epi32(_mm512_add_epi32(even, _mm512_set1_epi32(distance)), 16));
  }
};

// A bfloat16 problem: numbers rounded to bfloat16.
struct RoundedPairs : Bfloat16Pairs {
  using Element = std::uint16_t;
  using Tag = hn::ScalableTag<float>;
  static constexpr int kPlanes = 1;

  static HWY_INLINE Unit pack(Element even, Element odd) { return even | (static_cast<Unit>(odd) << 16); }
  // Two vectors of neighbours along a row, as 16 pairs.
  static HWY_INLINE void store_pairs(hn::Vec<Tag> first, hn::Vec<Tag> second, const Pairs& out) {
    _mm512_storeu_si512(out.units, (__m512i)(_mm512_cvtne2ps_pbh(second.raw, first.raw)));
  }
  // Neighbours along a column, of which there are 16.
  static HWY_INLINE void store_pairs_of_rows(hn::Vec<Tag> even, hn::Vec<Tag> odd, const Pairs& out) {
    const __m512i both = (__m512i)(_mm512_cvtne2ps_pbh(odd.raw, even.raw));
    _mm512_storeu_si512(out.units, _mm512_permutexvar_epi16(halves_order(), both));
  }
};

// A float32 problem: each number the sum of three bfloat16 numbers, of eight bits of it each, which is exact.
struct SplitPairs : Bfloat16Pairs {
  using Element = float;
  using Tag = hn::ScalableTag<float>;
  static constexpr int kPlanes = 3;

  static HWY_INLINE void store_pairs(hn::Vec<Tag> first, hn::Vec<Tag> second, const Pairs& out) {
    store_columns(split(first.raw), split(second.raw), out);
  }
  // Neighbours along a column, of which there are 16.
  static HWY_INLINE void store_pairs_of_rows(hn::Vec<Tag> even, hn::Vec<Tag> odd, const Pairs& out) {
    store_rows(split(even.raw), split(odd.raw), out);
  }
  // `count` neighbours along a row, rounded up to two vectors.
  static HWY_INLINE void split_columns(const float* row, std::int64_t count, const Pairs& out) {
    for (std::int64_t j = 0; j < count; j += 32) {
      store_columns(split_loaded(_mm512_loadu_ps(row + j)), split_loaded(_mm512_loadu_ps(row + j + 16)), out.at(j / 2));
    }
  }
  // Element j of both rows as pair j.
  static HWY_INLINE void split_rows(const float* even, const float* odd, std::int64_t count, const Pairs& out) {
    for (std::int64_t j = 0; j < count; j += 16) {
      store_rows(split_loaded(_mm512_loadu_ps(even + j)), split_loaded(_mm512_loadu_ps(odd + j)), out.at(j));
    }
  }

 private:
  // As float32 whose lower halves are zero.
  struct Parts {
    __m512i bits[kPlanes];
  };
  static HWY_INLINE __m512i upper_half(__m512 x) {
    return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(static_cast<int>(0xFFFF0000U)));
  }
  // The first part of an infinity is infinite and that of a quiet NaN is NaN; their other parts are zero.
  static HWY_INLINE Parts split(__m512 x) {
    constexpr int kNotFinite = 0x99;
    const __m512i high = upper_half(x);
    const __mmask16 finite = _knot_mask16(_mm512_fpclass_ps_mask(x, kNotFinite));
    const __m512 rest = _mm512_maskz_sub_ps(finite, x, _mm512_castsi512_ps(high));
    const __m512i middle = upper_half(rest);
    return {{high, middle, upper_half(_mm512_sub_ps(rest, _mm512_castsi512_ps(middle)))}};
  }
  // Numbers that arithmetic has not been at may be signalling NaNs, whose upper halves can be those of infinities.
  static HWY_INLINE Parts split_loaded(__m512 x) {
    constexpr int kSignalling = 0x80;
    const __m512i bits = _mm512_castps_si512(x);
    return split(_mm512_castsi512_ps(
        _mm512_mask_or_epi32(bits, _mm512_fpclass_ps_mask(x, kSignalling), bits, _mm512_set1_epi32(0x00400000))));
  }
  static HWY_INLINE void store_columns(const Parts& first, const Parts& second, const Pairs& out) {
    for (int plane = 0; plane < kPlanes; ++plane) {
      _mm512_storeu_si512(out.of_plane(plane),
                          _mm512_permutex2var_epi16(first.bits[plane], upper_order(), second.bits[plane]));
    }
  }
  static HWY_INLINE void store_rows(const Parts& even, const Parts& odd, const Pairs& out) {
    for (int plane = 0; plane < kPlanes; ++plane) {
      _mm512_storeu_si512(out.of_plane(plane),
                          _mm512_or_si512(_mm512_srli_epi32(even.bits[plane], 16), odd.bits[plane]));
    }
  }
  // The upper halves of two vectors.
  static HWY_INLINE __m512i upper_order() {
    const __m512i even = _mm512_set_epi32(29, 25, 21, 17, 13, 9, 5, 1, 29, 25, 21, 17, 13, 9, 5, 1);
    const __m512i of_second = _mm512_set_epi32(32, 32, 32, 32, 32, 32, 32, 32, 0, 0, 0, 0, 0, 0, 0, 0);
    const __m512i low = _mm512_add_epi32(even, of_second);
    return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_add_epi32(low, _mm512_set1_epi32(2)), 16));
  }
};

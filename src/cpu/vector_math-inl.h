// Vector functions of float32: 2^x, tanh and reductions.

// 2^x for x <= 127, exactly 0 for -infinity and below -150; NaN stays NaN. Relative error below 2e-7: the polynomials
// are the least maximum relative error fits of degree 5 with value 1 at 0 (9.2e-8 and 8.3e-8 before rounding).
#if HWY_TARGET == HWY_AVX3
// VREDUCEPS gives x - floor(x), 0 for infinities, and VSCALEFPS multiplies by 2^floor(x), so no clamp is needed.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp2_of(D d, V x) {
  constexpr int kFloor = 1;
  V f;
  if constexpr (sizeof(x.raw) == 64) {
    f.raw = _mm512_reduce_ps(x.raw, kFloor);
  } else {
    f.raw = _mm_reduce_ps(x.raw, kFloor);
  }
  V p = hn::Set(d, 1.867130070e-3F);
  p = hn::MulAdd(p, f, hn::Set(d, 9.017030321e-3F));
  p = hn::MulAdd(p, f, hn::Set(d, 5.579991311e-2F));
  p = hn::MulAdd(p, f, hn::Set(d, 2.401644502e-1F));
  p = hn::MulAdd(p, f, hn::Set(d, 6.931513118e-1F));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0F));
  if constexpr (sizeof(x.raw) == 64) {
    return V{_mm512_scalef_ps(p.raw, x.raw)};
  } else {
    return V{_mm_scalef_ps(p.raw, x.raw)};
  }
}
#else
// Added to 1.5 * 2^23 a number is rounded to an integer in the low bits of the sum; 127 more make it a biased exponent,
// which is 0 at the clamp. Highway's conversion to integers would mend values out of range at a cost of three
// instructions; the exponent added as an integer would turn some NaNs into numbers, the product keeps them all.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp2_of(D d, V x) {
  const hn::RebindToSigned<D> di;
  const V lowest = hn::Set(d, -127.0F);
#if HWY_ARCH_X86 && HWY_TARGET != HWY_EMU128 && HWY_TARGET != HWY_SCALAR
  x = hn::Max(lowest, x);  // in this order x86 keeps a NaN in x
#else
  x = hn::IfThenElse(hn::Lt(x, lowest), lowest, x);  // Max would drop a NaN
#endif
  const V shifter = hn::Set(d, 12582912.0F + 127.0F);
  const V shifted = hn::Add(x, shifter);
  const V f = hn::Sub(x, hn::Sub(shifted, shifter));
  V p = hn::Set(d, 1.326472720e-3F);
  p = hn::MulAdd(p, f, hn::Set(d, 9.671512640e-3F));
  p = hn::MulAdd(p, f, hn::Set(d, 5.550733743e-2F));
  p = hn::MulAdd(p, f, hn::Set(d, 2.402224209e-1F));
  p = hn::MulAdd(p, f, hn::Set(d, 6.931469776e-1F));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0F));
  return hn::Mul(p, hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(di, shifted))));
}
#endif

// Odd polynomial (Taylor, degree 13) below 0.55, 1 - 2 / (2^(2 x log2 e) + 1) above; relative error below 3e-7.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V tanh_of(D d, V x) {
  const V magnitude = hn::Abs(x);
  const V square = hn::Mul(x, x);
  V p = hn::Set(d, 21844.0F / 6081075.0F);
  p = hn::MulAdd(p, square, hn::Set(d, -1382.0F / 155925.0F));
  p = hn::MulAdd(p, square, hn::Set(d, 62.0F / 2835.0F));
  p = hn::MulAdd(p, square, hn::Set(d, -17.0F / 315.0F));
  p = hn::MulAdd(p, square, hn::Set(d, 2.0F / 15.0F));
  p = hn::MulAdd(p, square, hn::Set(d, -1.0F / 3.0F));
  const V near = hn::MulAdd(hn::Mul(p, square), x, x);
  const V most = hn::Set(d, 20.0F);  // where tanh is 1 in float32; keeps 2^x in range
  const V bounded = hn::IfThenElse(hn::Gt(magnitude, most), most, magnitude);
  const V power = exp2_of(d, hn::Mul(bounded, hn::Set(d, 2.0F * 1.44269504088896340736F)));
  const V far = hn::Sub(hn::Set(d, 1.0F), hn::Div(hn::Set(d, 2.0F), hn::Add(power, hn::Set(d, 1.0F))));
  return hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 0.55F)), near, hn::CopySign(far, x));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE float sum_of(D d, V x) {
  return hn::GetLane(hn::SumOfLanes(d, x));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE float max_of(D d, V x) {
  return hn::GetLane(hn::MaxOfLanes(d, x));
}

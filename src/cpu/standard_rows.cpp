#include "cpu/standard_rows.h"

#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/standard_rows.cpp"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// After foreach_target.h.
#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tessera::internal::standard_rows::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// Calls body(tag, index) for every whole vector of the row, then for each element that is left.
template <class Body>
HWY_INLINE void for_each_vector(std::int64_t size, Body body) {
  const hn::ScalableTag<float> wide;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(wide));
  std::int64_t j = 0;
  for (; j + lanes <= size; j += lanes) {
    body(wide, j);
  }
  for (; j < size; ++j) {
    body(hn::CappedTag<float, 1>(), j);
  }
}

// exp that keeps NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp_of(D d, V x) {
  return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, x));
}

void scale(float* row, std::int64_t size, float factor) {
  for_each_vector(size, [=](auto d, std::int64_t j)
                            HWY_ATTR { hn::StoreU(hn::Mul(hn::LoadU(d, row + j), hn::Set(d, factor)), d, row + j); });
}

void multiply(float* row, const float* other, std::int64_t size) {
  for_each_vector(size, [=](auto d, std::int64_t j) HWY_ATTR {
    hn::StoreU(hn::Mul(hn::LoadU(d, row + j), hn::LoadU(d, other + j)), d, row + j);
  });
}

void add(float* row, const float* other, std::int64_t size) {
  for_each_vector(size, [=](auto d, std::int64_t j) HWY_ATTR {
    hn::StoreU(hn::Add(hn::LoadU(d, row + j), hn::LoadU(d, other + j)), d, row + j);
  });
}

void softcap(float* row, float* derivative, std::int64_t size, float cap) {
  for_each_vector(size, [=](auto d, std::int64_t j) HWY_ATTR {
    const auto x = hn::Div(hn::LoadU(d, row + j), hn::Set(d, cap));
    const auto tanh = hn::IfThenElse(hn::IsNaN(x), x, hn::Tanh(d, x));
    hn::StoreU(hn::Mul(tanh, hn::Set(d, cap)), d, row + j);
    if (derivative != nullptr) {
      hn::StoreU(hn::NegMulAdd(tanh, tanh, hn::Set(d, 1.0F)), d, derivative + j);
    }
  });
}

void subtract_distance(float* row, std::int64_t size, float slope, std::int64_t position) {
  for_each_vector(size, [=](auto d, std::int64_t j) HWY_ATTR {
    const auto distance = hn::Sub(hn::Set(d, static_cast<float>(position - j)), hn::Iota(d, 0.0F));
    hn::StoreU(hn::NegMulAdd(hn::Abs(distance), hn::Set(d, slope), hn::LoadU(d, row + j)), d, row + j);
  });
}

void round_bfloat16(float* row, std::int64_t size) {
  for_each_vector(size, [=](auto d, std::int64_t j) HWY_ATTR {
    const hn::RebindToUnsigned<decltype(d)> du;
    const auto x = hn::LoadU(d, row + j);
    const auto bits = hn::BitCast(du, x);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1U));
    const auto rounded = hn::And(hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFFU))), hn::Set(du, 0xFFFF0000U));
    hn::StoreU(hn::IfThenElse(hn::IsNaN(x), x, hn::BitCast(d, rounded)), d, row + j);
  });
}

// In place of a conversion and back, which only some instruction sets have.
void round_float16(float* row, std::int64_t size) {
  for_each_vector(size, [=](auto d, std::int64_t j) HWY_ATTR {
    const hn::RebindToUnsigned<decltype(d)> du;
    const auto x = hn::LoadU(d, row + j);
    const auto magnitude = hn::Abs(x);
    const auto bits = hn::BitCast(du, magnitude);
    const auto odd = hn::And(hn::ShiftRight<13>(bits), hn::Set(du, 1U));
    const auto normal = hn::And(hn::Add(bits, hn::Add(odd, hn::Set(du, 0xFFFU))), hn::Set(du, 0xFFFFE000U));
    // The last place of [0.5, 1) in float32 is that of a subnormal float16.
    const auto half = hn::Set(d, 0.5F);
    const auto subnormal = hn::Sub(hn::Add(magnitude, half), half);
    auto rounded = hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 0x1p-14F)), subnormal, hn::BitCast(d, normal));
    rounded = hn::IfThenElse(hn::Ge(magnitude, hn::Set(d, 65520.0F)),
                             hn::Set(d, std::numeric_limits<float>::infinity()), rounded);
    hn::StoreU(hn::IfThenElse(hn::IsNaN(x), x, hn::CopySign(rounded, x)), d, row + j);
  });
}

float max(const float* row, std::int64_t size) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto largest = hn::Set(d, -std::numeric_limits<float>::infinity());
  std::int64_t j = 0;
  for (; j + lanes <= size; j += lanes) {
    largest = hn::Max(largest, hn::LoadU(d, row + j));
  }
  float result = hn::GetLane(hn::MaxOfLanes(d, largest));
  for (; j < size; ++j) {
    result = row[j] > result ? row[j] : result;
  }
  return result;
}

float exp(float* row, std::int64_t size, float shift) {
  const hn::ScalableTag<float> d;
  const hn::CappedTag<float, 1> one;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto shifts = hn::Set(d, shift);
  auto sum = hn::Zero(d);
  std::int64_t j = 0;
  for (; j + lanes <= size; j += lanes) {
    const auto x = exp_of(d, hn::Sub(hn::LoadU(d, row + j), shifts));
    sum = hn::Add(sum, x);
    hn::StoreU(x, d, row + j);
  }
  float result = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; j < size; ++j) {
    row[j] = hn::GetLane(exp_of(one, hn::Set(one, row[j] - shift)));
    result += row[j];
  }
  return result;
}

void softmax_gradient(const float* weight, float* gradient, std::int64_t size, float shift) {
  for_each_vector(size, [=](auto d, std::int64_t j) HWY_ATTR {
    const auto shifted = hn::Add(hn::LoadU(d, gradient + j), hn::Set(d, shift));
    hn::StoreU(hn::Mul(hn::LoadU(d, weight + j), shifted), d, gradient + j);
  });
}

float dot(const float* a, const float* b, std::int64_t size) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  auto sum = hn::Zero(d);
  std::int64_t j = 0;
  for (; j + lanes <= size; j += lanes) {
    sum = hn::MulAdd(hn::LoadU(d, a + j), hn::LoadU(d, b + j), sum);
  }
  float result = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; j < size; ++j) {
    result += a[j] * b[j];
  }
  return result;
}

bool finite(const float* row, std::int64_t size) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  std::int64_t j = 0;
  for (; j + lanes <= size; j += lanes) {
    if (!hn::AllTrue(d, hn::IsFinite(hn::LoadU(d, row + j)))) {
      return false;
    }
  }
  for (; j < size; ++j) {
    if (!std::isfinite(row[j])) {
      return false;
    }
  }
  return true;
}

}  // namespace tessera::internal::standard_rows::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tessera::internal::standard_rows {

HWY_EXPORT(scale);
HWY_EXPORT(multiply);
HWY_EXPORT(add);
HWY_EXPORT(softcap);
HWY_EXPORT(subtract_distance);
HWY_EXPORT(round_bfloat16);
HWY_EXPORT(round_float16);
HWY_EXPORT(max);
HWY_EXPORT(exp);
HWY_EXPORT(softmax_gradient);
HWY_EXPORT(dot);
HWY_EXPORT(finite);

void scale(float* row, std::int64_t size, float factor) { HWY_DYNAMIC_DISPATCH(scale)(row, size, factor); }

void multiply(float* row, const float* other, std::int64_t size) { HWY_DYNAMIC_DISPATCH(multiply)(row, other, size); }

void add(float* row, const float* other, std::int64_t size) { HWY_DYNAMIC_DISPATCH(add)(row, other, size); }

void softcap(float* row, float* derivative, std::int64_t size, float cap) {
  HWY_DYNAMIC_DISPATCH(softcap)(row, derivative, size, cap);
}

void subtract_distance(float* row, std::int64_t size, float slope, std::int64_t position) {
  HWY_DYNAMIC_DISPATCH(subtract_distance)(row, size, slope, position);
}

void round(float* row, std::int64_t size, DType dtype) {
  if (dtype == DType::bfloat16) {
    HWY_DYNAMIC_DISPATCH(round_bfloat16)(row, size);
  } else if (dtype == DType::float16) {
    HWY_DYNAMIC_DISPATCH(round_float16)(row, size);
  }
}

float max(const float* row, std::int64_t size) { return HWY_DYNAMIC_DISPATCH(max)(row, size); }

float exp(float* row, std::int64_t size, float shift) { return HWY_DYNAMIC_DISPATCH(exp)(row, size, shift); }

void softmax_gradient(const float* weight, float* gradient, std::int64_t size, float shift) {
  HWY_DYNAMIC_DISPATCH(softmax_gradient)(weight, gradient, size, shift);
}

float dot(const float* a, const float* b, std::int64_t size) { return HWY_DYNAMIC_DISPATCH(dot)(a, b, size); }

bool finite(const float* row, std::int64_t size) { return HWY_DYNAMIC_DISPATCH(finite)(row, size); }

}  // namespace tessera::internal::standard_rows
#endif  // HWY_ONCE

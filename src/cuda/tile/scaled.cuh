// A number whose factor is still to be multiplied, as the T of a user's score function; behind tessera/function_support.h.
#pragma once

namespace tessera::math {

// number * factor, with the operators and functions of tessera::Dual. A score is a product of the kernel's with the softmax scale
// as its factor, a constant 1 with itself as its factor. So factors alone are computed from constants, once for all scores, and a
// function that begins by a product or a quotient costs one multiplication a score and not two.
class Scaled {
 public:
  TESSERA_FUNCTION constexpr Scaled() = default;
  TESSERA_FUNCTION constexpr Scaled(float constant)
      : factor_(constant) {}  // NOLINT(google-explicit-constructor): as Dual
  TESSERA_FUNCTION constexpr Scaled(float number, float factor) : number_(number), factor_(factor) {}

  friend TESSERA_FUNCTION float value(Scaled a) { return a.number_ * a.factor_; }

  TESSERA_FUNCTION Scaled& operator+=(Scaled other) { return *this = *this + other; }
  TESSERA_FUNCTION Scaled& operator-=(Scaled other) { return *this = *this - other; }
  TESSERA_FUNCTION Scaled& operator*=(Scaled other) { return *this = *this * other; }
  TESSERA_FUNCTION Scaled& operator/=(Scaled other) { return *this = *this / other; }

  friend TESSERA_FUNCTION Scaled operator+(Scaled a) { return a; }
  friend TESSERA_FUNCTION Scaled operator-(Scaled a) { return {a.number_, -a.factor_}; }
  friend TESSERA_FUNCTION Scaled operator+(Scaled a, Scaled b) { return value(a) + value(b); }
  friend TESSERA_FUNCTION Scaled operator-(Scaled a, Scaled b) { return value(a) - value(b); }
  friend TESSERA_FUNCTION Scaled operator*(Scaled a, Scaled b) {
    return {a.number_ * b.number_, a.factor_ * b.factor_};
  }
  friend TESSERA_FUNCTION Scaled operator/(Scaled a, Scaled b) {
    return {a.number_ / b.number_, a.factor_ / b.factor_};
  }
  friend TESSERA_FUNCTION bool operator==(Scaled a, Scaled b) { return value(a) == value(b); }
  friend TESSERA_FUNCTION bool operator!=(Scaled a, Scaled b) { return value(a) != value(b); }
  friend TESSERA_FUNCTION bool operator<(Scaled a, Scaled b) { return value(a) < value(b); }
  friend TESSERA_FUNCTION bool operator>(Scaled a, Scaled b) { return value(a) > value(b); }
  friend TESSERA_FUNCTION bool operator<=(Scaled a, Scaled b) { return value(a) <= value(b); }
  friend TESSERA_FUNCTION bool operator>=(Scaled a, Scaled b) { return value(a) >= value(b); }

  friend TESSERA_FUNCTION Scaled select(bool condition, Scaled a, Scaled b) { return condition ? value(a) : value(b); }
  friend TESSERA_FUNCTION Scaled min(Scaled a, Scaled b) { return math::min(value(a), value(b)); }
  friend TESSERA_FUNCTION Scaled max(Scaled a, Scaled b) { return math::max(value(a), value(b)); }
  friend TESSERA_FUNCTION Scaled pow(Scaled a, Scaled b) { return math::pow(value(a), value(b)); }
#define TESSERA_OF_SCALED(name) \
  friend TESSERA_FUNCTION Scaled name(Scaled a) { return math::name(value(a)); }
  TESSERA_OF_SCALED(abs)
  TESSERA_OF_SCALED(exp)
  TESSERA_OF_SCALED(log)
  TESSERA_OF_SCALED(tanh)
  TESSERA_OF_SCALED(sigmoid)
  TESSERA_OF_SCALED(sqrt)
  TESSERA_OF_SCALED(floor)
  TESSERA_OF_SCALED(sin)
  TESSERA_OF_SCALED(cos)
#undef TESSERA_OF_SCALED

 private:
  float number_ = 1.0F;
  float factor_ = 0.0F;
};

}  // namespace tessera::math

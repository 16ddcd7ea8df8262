// What the source of a ScoreFunction or MaskFunction can use: Index, the functions of tessera::math, and the dual numbers that
// differentiate it. Includes nothing, so that it compiles wherever such a function does: in the host's compiler at run time, in
// NVRTC, and in programs.
//
// Functions of float on the host are polynomials without branches, so that a loop over a row of scores becomes vector code;
// relative errors are below 2e-7. Functions of double and on the device are those of the platform.
#pragma once

#if defined(__CUDACC__)
#define TESSERA_FUNCTION __host__ __device__ __forceinline__
#else
#define TESSERA_FUNCTION inline
#endif

namespace tessera {

// The positions of an Index. Apart from the rest so that an Index cannot be taken apart by a structured binding: whether a function
// depends on the head and the batch is then seen in its source by their names.
struct PairIndex {
  int query = 0;
  int key = 0;
};

// Where a score stands: its sequence of the batch, its query head, and the positions of its query and key in the sequence.
struct Index : PairIndex {
  int batch = 0;
  int head = 0;

  constexpr Index() = default;
  TESSERA_FUNCTION constexpr Index(int batch_index, int head_index, int query_position, int key_position)
      : Index(batch_index, head_index, query_position, key_position,
              static_cast<float>(query_position - key_position)) {}
  // Of kernels, which step the distance from key to key.
  TESSERA_FUNCTION constexpr Index(int batch_index, int head_index, int query_position, int key_position,
                                   float signed_distance)
      : PairIndex{query_position, key_position}, batch(batch_index), head(head_index), distance_(signed_distance) {}

  // query - key, exact up to 2^24. In kernels it costs less than to subtract and to convert.
  TESSERA_FUNCTION constexpr float distance() const { return distance_; }

 private:
  float distance_ = 0;
};

namespace math {

// NOLINTNEXTLINE(readability-identifier-naming): it stands among functions
inline constexpr float infinity = __builtin_bit_cast(float, 0x7F800000);

TESSERA_FUNCTION int abs(int x) { return x < 0 ? -x : x; }
TESSERA_FUNCTION int min(int a, int b) { return b < a ? b : a; }
TESSERA_FUNCTION int max(int a, int b) { return a < b ? b : a; }
// A NaN in `a` stays.
TESSERA_FUNCTION float min(float a, float b) { return b < a ? b : a; }
TESSERA_FUNCTION float max(float a, float b) { return a < b ? b : a; }
TESSERA_FUNCTION double min(double a, double b) { return b < a ? b : a; }
TESSERA_FUNCTION double max(double a, double b) { return a < b ? b : a; }
// a where the condition holds, else b: both are computed, and nothing branches.
TESSERA_FUNCTION int select(bool condition, int a, int b) { return condition ? a : b; }
TESSERA_FUNCTION float select(bool condition, float a, float b) { return condition ? a : b; }
TESSERA_FUNCTION double select(bool condition, double a, double b) { return condition ? a : b; }
// The number without its derivative.
TESSERA_FUNCTION float value(float x) { return x; }
TESSERA_FUNCTION double value(double x) { return x; }

#if defined(__CUDA_ARCH__) || defined(__CUDACC_RTC__)

TESSERA_FUNCTION float abs(float x) { return ::fabsf(x); }
TESSERA_FUNCTION double abs(double x) { return ::fabs(x); }
// Kernels of 16-bit inputs take what is exact enough for their scores, which have TESSERA_FUNCTION_BITS significant bits.
#if !defined(TESSERA_FUNCTION_BITS) || TESSERA_FUNCTION_BITS > 11
TESSERA_FUNCTION float exp(float x) { return ::expf(x); }
TESSERA_FUNCTION float log(float x) { return ::logf(x); }
TESSERA_FUNCTION float tanh(float x) { return ::tanhf(x); }
#else
TESSERA_FUNCTION float exp(float x) { return ::__expf(x); }
TESSERA_FUNCTION float log(float x) { return ::__logf(x); }
#if TESSERA_FUNCTION_BITS > 8
TESSERA_FUNCTION float tanh(float x) { return 1.0F - ::__fdividef(2.0F, ::__expf(2.0F * x) + 1.0F); }
#else
TESSERA_FUNCTION float tanh(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif
#endif
TESSERA_FUNCTION float sqrt(float x) { return ::sqrtf(x); }
TESSERA_FUNCTION float floor(float x) { return ::floorf(x); }
TESSERA_FUNCTION float sin(float x) { return ::sinf(x); }
TESSERA_FUNCTION float cos(float x) { return ::cosf(x); }
TESSERA_FUNCTION float pow(float x, float y) { return ::powf(x, y); }
TESSERA_FUNCTION double exp(double x) { return ::exp(x); }
TESSERA_FUNCTION double log(double x) { return ::log(x); }
TESSERA_FUNCTION double tanh(double x) { return ::tanh(x); }
TESSERA_FUNCTION double sqrt(double x) { return ::sqrt(x); }
TESSERA_FUNCTION double floor(double x) { return ::floor(x); }
TESSERA_FUNCTION double sin(double x) { return ::sin(x); }
TESSERA_FUNCTION double cos(double x) { return ::cos(x); }
TESSERA_FUNCTION double pow(double x, double y) { return ::pow(x, y); }

#else

TESSERA_FUNCTION float abs(float x) { return __builtin_fabsf(x); }
TESSERA_FUNCTION double abs(double x) { return __builtin_fabs(x); }

namespace detail {

TESSERA_FUNCTION int bits_of(float x) { return __builtin_bit_cast(int, x); }
TESSERA_FUNCTION float float_of(int bits) { return __builtin_bit_cast(float, bits); }
// 2^n for -127 < n < 128.
TESSERA_FUNCTION float power_of_two(int n) { return float_of((n + 127) << 23); }

}  // namespace detail

TESSERA_FUNCTION float exp(float x) {
  constexpr float kLeast = -104.0F;  // below, exp(x) rounds to zero; above kMost, to infinity
  constexpr float kMost = 89.0F;
  constexpr float kRound = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
  float clamped = x < kLeast ? kLeast : x;
  clamped = clamped > kMost ? kMost : clamped;
  const float shifted = clamped * 1.44269504F + kRound;
  const int n = detail::bits_of(shifted) - detail::bits_of(kRound);
  const float whole = shifted - kRound;
  const float rest = (clamped - whole * 0.693359375F) + whole * 2.12194440e-4F;  // ln 2 in two parts
  float p = 1.9875691500e-4F;
  p = p * rest + 1.3981999507e-3F;
  p = p * rest + 8.3334519073e-3F;
  p = p * rest + 4.1665795894e-2F;
  p = p * rest + 1.6666665459e-1F;
  p = p * rest + 5.0000001201e-1F;
  p = p * rest * rest + rest + 1.0F;
  const int half = n >> 1;  // 2^n itself may be out of range
  return p * detail::power_of_two(half) * detail::power_of_two(n - half);
}

TESSERA_FUNCTION float log(float x) {
  const bool tiny = x < 1.17549435e-38F;
  const float scaled = tiny ? x * 8388608.0F : x;
  // The mantissa in [sqrt(1/2), sqrt(2)).
  const int bits = static_cast<int>(static_cast<unsigned>(detail::bits_of(scaled)) - 0x3F3504F3U);
  const int n = bits >> 23;
  const float m = detail::float_of((bits & 0x007FFFFF) + 0x3F3504F3) - 1.0F;
  const float z = m * m;
  float p = 7.0376836292e-2F;
  p = p * m - 1.1514610310e-1F;
  p = p * m + 1.1676998740e-1F;
  p = p * m - 1.2420140846e-1F;
  p = p * m + 1.4249322787e-1F;
  p = p * m - 1.6668057665e-1F;
  p = p * m + 2.0000714765e-1F;
  p = p * m - 2.4999993993e-1F;
  p = p * m + 3.3333331174e-1F;
  const float exponent = static_cast<float>(n) - (tiny ? 23.0F : 0.0F);
  float result = (p * m * z + exponent * -2.12194440e-4F - 0.5F * z + m) + exponent * 0.693359375F;
  result = scaled > 3.40282347e38F ? scaled : result;
  result = scaled == 0.0F ? -infinity : result;
  return scaled >= 0.0F ? result : __builtin_nanf("");
}

TESSERA_FUNCTION float tanh(float x) {
  const float magnitude = abs(x);
  const float decay = exp(-2.0F * magnitude);
  const float large = (1.0F - decay) / (1.0F + decay);
  const float z = x * x;
  float p = -5.70498872745e-3F;
  p = p * z + 2.06390887954e-2F;
  p = p * z - 5.37397155531e-2F;
  p = p * z + 1.33314422036e-1F;
  p = p * z - 3.33332819422e-1F;
  const float small = x + x * z * p;
  return magnitude < 0.625F ? small : (x < 0.0F ? -large : large);
}

TESSERA_FUNCTION float sqrt(float x) { return __builtin_sqrtf(x); }
TESSERA_FUNCTION float floor(float x) { return __builtin_floorf(x); }
TESSERA_FUNCTION float sin(float x) { return __builtin_sinf(x); }
TESSERA_FUNCTION float cos(float x) { return __builtin_cosf(x); }
TESSERA_FUNCTION float pow(float x, float y) { return __builtin_powf(x, y); }
TESSERA_FUNCTION double exp(double x) { return __builtin_exp(x); }
TESSERA_FUNCTION double log(double x) { return __builtin_log(x); }
TESSERA_FUNCTION double tanh(double x) { return __builtin_tanh(x); }
TESSERA_FUNCTION double sqrt(double x) { return __builtin_sqrt(x); }
TESSERA_FUNCTION double floor(double x) { return __builtin_floor(x); }
TESSERA_FUNCTION double sin(double x) { return __builtin_sin(x); }
TESSERA_FUNCTION double cos(double x) { return __builtin_cos(x); }
TESSERA_FUNCTION double pow(double x, double y) { return __builtin_pow(x, y); }

#endif

// 1 / (1 + exp(-x)).
TESSERA_FUNCTION float sigmoid(float x) { return 1.0F / (1.0F + exp(-x)); }
TESSERA_FUNCTION double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }

// Of positions and distances, in float.
TESSERA_FUNCTION float exp(int x) { return exp(static_cast<float>(x)); }
TESSERA_FUNCTION float log(int x) { return log(static_cast<float>(x)); }
TESSERA_FUNCTION float tanh(int x) { return tanh(static_cast<float>(x)); }
TESSERA_FUNCTION float sigmoid(int x) { return sigmoid(static_cast<float>(x)); }
TESSERA_FUNCTION float sqrt(int x) { return sqrt(static_cast<float>(x)); }
TESSERA_FUNCTION float sin(int x) { return sin(static_cast<float>(x)); }
TESSERA_FUNCTION float cos(int x) { return cos(static_cast<float>(x)); }
TESSERA_FUNCTION float pow(int x, int y) { return pow(static_cast<float>(x), static_cast<float>(y)); }

// Of two types, so that constants need not be written as T: max(s, 0), pow(s, 2.0F).
#define TESSERA_MIXED(A, B, R)                                                           \
  TESSERA_FUNCTION R min(A a, B b) { return min(static_cast<R>(a), static_cast<R>(b)); } \
  TESSERA_FUNCTION R max(A a, B b) { return max(static_cast<R>(a), static_cast<R>(b)); } \
  TESSERA_FUNCTION R pow(A a, B b) { return pow(static_cast<R>(a), static_cast<R>(b)); } \
  TESSERA_FUNCTION R select(bool condition, A a, B b) { return condition ? static_cast<R>(a) : static_cast<R>(b); }
TESSERA_MIXED(int, float, float)
TESSERA_MIXED(float, int, float)
TESSERA_MIXED(int, double, double)
TESSERA_MIXED(double, int, double)
TESSERA_MIXED(float, double, double)
TESSERA_MIXED(double, float, double)
#undef TESSERA_MIXED

}  // namespace math

// A number and its derivative with respect to the score that went in: forward-mode differentiation.
template <class T>
struct Dual {
  T number{};
  T slope{};

  constexpr Dual() = default;
  TESSERA_FUNCTION constexpr Dual(T x) : number(x) {}  // NOLINT(google-explicit-constructor): a constant is a number
  TESSERA_FUNCTION constexpr Dual(T x, T dx) : number(x), slope(dx) {}

  TESSERA_FUNCTION Dual& operator+=(Dual other) { return *this = *this + other; }
  TESSERA_FUNCTION Dual& operator-=(Dual other) { return *this = *this - other; }
  TESSERA_FUNCTION Dual& operator*=(Dual other) { return *this = *this * other; }
  TESSERA_FUNCTION Dual& operator/=(Dual other) { return *this = *this / other; }

  // Hidden friends: either operand may be anything that converts to T.
  friend TESSERA_FUNCTION Dual operator+(Dual a) { return a; }
  friend TESSERA_FUNCTION Dual operator-(Dual a) { return {-a.number, -a.slope}; }
  friend TESSERA_FUNCTION Dual operator+(Dual a, Dual b) { return {a.number + b.number, a.slope + b.slope}; }
  friend TESSERA_FUNCTION Dual operator-(Dual a, Dual b) { return {a.number - b.number, a.slope - b.slope}; }
  friend TESSERA_FUNCTION Dual operator*(Dual a, Dual b) {
    return {a.number * b.number, a.slope * b.number + a.number * b.slope};
  }
  friend TESSERA_FUNCTION Dual operator/(Dual a, Dual b) {
    const T quotient = a.number / b.number;
    return {quotient, (a.slope - quotient * b.slope) / b.number};
  }
  // With a number that does not depend on the score, whose derivative would be multiplied although it is 0.
  friend TESSERA_FUNCTION Dual operator+(Dual a, T b) { return {a.number + b, a.slope}; }
  friend TESSERA_FUNCTION Dual operator+(T a, Dual b) { return {a + b.number, b.slope}; }
  friend TESSERA_FUNCTION Dual operator-(Dual a, T b) { return {a.number - b, a.slope}; }
  friend TESSERA_FUNCTION Dual operator-(T a, Dual b) { return {a - b.number, -b.slope}; }
  friend TESSERA_FUNCTION Dual operator*(Dual a, T b) { return {a.number * b, a.slope * b}; }
  friend TESSERA_FUNCTION Dual operator*(T a, Dual b) { return {a * b.number, a * b.slope}; }
  friend TESSERA_FUNCTION Dual operator/(Dual a, T b) {
#if defined(TESSERA_FUNCTION_BITS) && TESSERA_FUNCTION_BITS <= 11
    const T factor = T(1) / b;  // one for all scores where b is a parameter
    return {a.number * factor, a.slope * factor};
#else
    return {a.number / b, a.slope / b};
#endif
  }
  friend TESSERA_FUNCTION bool operator==(Dual a, Dual b) { return a.number == b.number; }
  friend TESSERA_FUNCTION bool operator!=(Dual a, Dual b) { return a.number != b.number; }
  friend TESSERA_FUNCTION bool operator<(Dual a, Dual b) { return a.number < b.number; }
  friend TESSERA_FUNCTION bool operator>(Dual a, Dual b) { return a.number > b.number; }
  friend TESSERA_FUNCTION bool operator<=(Dual a, Dual b) { return a.number <= b.number; }
  friend TESSERA_FUNCTION bool operator>=(Dual a, Dual b) { return a.number >= b.number; }

  friend TESSERA_FUNCTION T value(Dual a) { return a.number; }
  friend TESSERA_FUNCTION Dual select(bool condition, Dual a, Dual b) {
    return {condition ? a.number : b.number, condition ? a.slope : b.slope};
  }
  friend TESSERA_FUNCTION Dual min(Dual a, Dual b) { return select(b.number < a.number, b, a); }
  friend TESSERA_FUNCTION Dual max(Dual a, Dual b) { return select(a.number < b.number, b, a); }
  friend TESSERA_FUNCTION Dual abs(Dual a) {
    const T sign = a.number > T(0) ? T(1) : a.number < T(0) ? T(-1) : T(0);
    return {math::abs(a.number), a.slope * sign};
  }
  friend TESSERA_FUNCTION Dual exp(Dual a) {
    const T e = math::exp(a.number);
    return {e, a.slope * e};
  }
  friend TESSERA_FUNCTION Dual log(Dual a) { return {math::log(a.number), a.slope / a.number}; }
  friend TESSERA_FUNCTION Dual tanh(Dual a) {
    const T t = math::tanh(a.number);
    return {t, a.slope * (T(1) - t * t)};
  }
  friend TESSERA_FUNCTION Dual sigmoid(Dual a) {
    const T s = math::sigmoid(a.number);
    return {s, a.slope * s * (T(1) - s)};
  }
  friend TESSERA_FUNCTION Dual sqrt(Dual a) {
    const T root = math::sqrt(a.number);
    return {root, a.slope / (T(2) * root)};
  }
  friend TESSERA_FUNCTION Dual floor(Dual a) { return {math::floor(a.number), T(0)}; }
  friend TESSERA_FUNCTION Dual sin(Dual a) { return {math::sin(a.number), a.slope * math::cos(a.number)}; }
  friend TESSERA_FUNCTION Dual cos(Dual a) { return {math::cos(a.number), -a.slope * math::sin(a.number)}; }
  friend TESSERA_FUNCTION Dual pow(Dual a, Dual b) {
    const T power = math::pow(a.number, b.number);
    const T by_base = a.slope == T(0) ? T(0) : a.slope * b.number * math::pow(a.number, b.number - T(1));
    const T by_exponent = b.slope == T(0) ? T(0) : b.slope * power * math::log(a.number);
    return {power, by_base + by_exponent};
  }
};

#if !defined(__CUDACC_RTC__)

namespace internal {

// Consecutive keys of one query. Key number n stands at position key + n * key_stride.
struct FunctionRow {
  Index first;
  int key_stride = 1;
  long long count = 0;

  Index at(long long n) const {
    return {first.batch, first.head, first.query, first.key + static_cast<int>(n) * key_stride};
  }
};

// s[n] <- score(s[n]).
template <class Function, class T>
void score_row(const FunctionRow& row, const float* params, T* s) {
  for (long long n = 0; n < row.count; ++n) {
    s[n] = static_cast<T>(Function::score(s[n], row.at(n), params));
  }
}

// The same, and slopes[n] <- slopes[n] * score'(s[n]).
template <class Function, class T>
void score_row_and_slopes(const FunctionRow& row, const float* params, T* s, T* slopes) {
  for (long long n = 0; n < row.count; ++n) {
    const Dual<T> result = Function::score(Dual<T>(s[n], T(1)), row.at(n), params);
    s[n] = result.number;
    slopes[n] *= result.slope;
  }
}

// keeps[n] <- keep(n), 0 or 1.
template <class Function>
void mask_row(const FunctionRow& row, const float* params, unsigned char* keeps) {
  for (long long n = 0; n < row.count; ++n) {
    keeps[n] = Function::keep(row.at(n), params) ? 1 : 0;
  }
}

}  // namespace internal

#endif

}  // namespace tessera

// Inside a function: the functions of tessera::math by their plain names, before those of the C library.
#define TESSERA_USE_MATH                                                                              \
  using ::tessera::math::infinity, ::tessera::math::abs, ::tessera::math::min, ::tessera::math::max,  \
      ::tessera::math::select, ::tessera::math::value, ::tessera::math::exp, ::tessera::math::log,    \
      ::tessera::math::tanh, ::tessera::math::sigmoid, ::tessera::math::sqrt, ::tessera::math::floor, \
      ::tessera::math::sin, ::tessera::math::cos, ::tessera::math::pow;

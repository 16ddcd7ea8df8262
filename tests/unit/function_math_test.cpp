// What the source of a function can use: every function of tessera::math, in float and double, and its derivative.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "tessera/score_function.h"

namespace tessera {
namespace {

TESSERA_SCORE_FUNCTION(f_exp, return exp(s);)
TESSERA_SCORE_FUNCTION(f_log, return log(s);)
TESSERA_SCORE_FUNCTION(f_tanh, return tanh(s);)
TESSERA_SCORE_FUNCTION(f_sigmoid, return sigmoid(s);)
TESSERA_SCORE_FUNCTION(f_sqrt, return sqrt(s);)
TESSERA_SCORE_FUNCTION(f_sin, return sin(s);)
TESSERA_SCORE_FUNCTION(f_cos, return cos(s);)
TESSERA_SCORE_FUNCTION(f_power, return pow(s, 2.5F);)
TESSERA_SCORE_FUNCTION(f_power_of_two, return pow(2, s);)
TESSERA_SCORE_FUNCTION(f_power_of_itself, return pow(s, s);)
TESSERA_SCORE_FUNCTION(f_abs, return abs(s - 1);)
TESSERA_SCORE_FUNCTION(f_min_max, return min(s, 1) * max(2 * s, 0.5);)
TESSERA_SCORE_FUNCTION(f_select, return select(s > 1, s* s, 3 / s);)
TESSERA_SCORE_FUNCTION(f_floor, return floor(s) + s;)
TESSERA_SCORE_FUNCTION(f_operators, return -(s + 1) / (s - 7) * 2 - s / 3 + 1 / s;)
TESSERA_SCORE_FUNCTION(f_compound, T x = s; x += s * s; x -= 2; x *= s; x /= s + 1; return +x;)
TESSERA_SCORE_FUNCTION(
    f_branches, if (s == 2 || s != s || s >= 2 || s <= 0.5F) { return s * 3; } return s < 1 ? s : 0.1F * s;)
TESSERA_SCORE_FUNCTION(f_of_integers, return s * log(1 + abs(i.query - i.key)) + pow(i.key, 2) + sqrt(i.query) +
                                             exp(i.head) + sigmoid(i.batch) + sin(i.key) + cos(min(i.key, 3)) +
                                             tanh(i.head);)
TESSERA_SCORE_FUNCTION(f_distance, return s * i.distance();)
TESSERA_SCORE_FUNCTION(f_constant, return value(s) * s;)

const internal::FunctionRow kOne{Index(1, 1, 9, 4), 1, 1};

class FunctionMath : public testing::TestWithParam<ScoreFunction> {};

TEST_P(FunctionMath, AgreesWithDifferencesAndInFloat) {
  const internal::NativeScore& rows = GetParam().native();
  for (const double x : {0.3, 0.9, 1.7, 2.6}) {
    constexpr double kStep = 1e-6;
    double value = x, slope = 1, above = x + kStep, below = x - kStep, alone = x;
    rows.double_slopes(kOne, nullptr, &value, &slope);
    rows.double_row(kOne, nullptr, &above);
    rows.double_row(kOne, nullptr, &below);
    rows.double_row(kOne, nullptr, &alone);
    EXPECT_NEAR(alone, value, 1e-14 * std::abs(value)) << x;
    EXPECT_NEAR(slope, (above - below) / (2 * kStep), 1e-7 * (1 + std::abs(slope))) << x;
    auto value32 = static_cast<float>(x);
    float slope32 = 1, alone32 = value32;
    rows.float_slopes(kOne, nullptr, &value32, &slope32);
    rows.float_row(kOne, nullptr, &alone32);
    EXPECT_NEAR(alone32, value32, 1e-6 * std::abs(value)) << x;
    EXPECT_NEAR(value32, value, 1e-6 * std::abs(value)) << x;
    EXPECT_NEAR(slope32, slope, 1e-6 * (1 + std::abs(slope))) << x;
  }
}

INSTANTIATE_TEST_SUITE_P(Functions, FunctionMath,
                         testing::Values(f_exp(), f_log(), f_tanh(), f_sigmoid(), f_sqrt(), f_sin(), f_cos(), f_power(),
                                         f_power_of_two(), f_power_of_itself(), f_abs(), f_min_max(), f_select(),
                                         f_floor(), f_operators(), f_compound(), f_branches(), f_of_integers(),
                                         f_distance()),
                         [](const auto& info) { return info.param.name(); });

TEST(FunctionMath, ValueHasNoDerivative) {
  double value = 3, slope = 1;
  f_constant().native().double_slopes(kOne, nullptr, &value, &slope);
  EXPECT_EQ(value, 9);
  EXPECT_EQ(slope, 3);
}

TEST(FunctionMath, SlopesMultiply) {
  std::vector<float> s{1, 2, 3}, slopes{2, 2, 0};
  f_distance().native().float_slopes({Index(0, 0, 9, 4), 2, 3}, nullptr, s.data(), slopes.data());
  EXPECT_EQ(s, (std::vector<float>{5, 6, 3}));
  EXPECT_EQ(slopes, (std::vector<float>{10, 6, 0}));
}

TEST(FunctionMath, FloatsAreAccurate) {
  double exp_error = 0, log_error = 0, tanh_error = 0;
  for (double x = -87; x < 88.7; x += 0.00317) {
    const auto f = static_cast<float>(x);
    const auto relative = [](float found, double expected) { return std::abs(found / expected - 1); };
    exp_error = std::max(exp_error, relative(math::exp(f), std::exp(static_cast<double>(f))));
    tanh_error = std::max(tanh_error, relative(math::tanh(f), std::tanh(static_cast<double>(f))));
    const auto power = static_cast<float>(std::exp(x));
    if (std::abs(x) > 1e-3)
      log_error = std::max(log_error, relative(math::log(power), std::log(static_cast<double>(power))));
  }
  EXPECT_LT(exp_error, 2e-7);
  EXPECT_LT(log_error, 2e-7);
  EXPECT_LT(tanh_error, 2e-7);
}

TEST(FunctionMath, FloatsKeepWhatIsNotANumber) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(math::infinity, kInfinity);
  EXPECT_EQ(math::exp(-kInfinity), 0.0F);
  EXPECT_EQ(math::exp(-200.0F), 0.0F);
  EXPECT_EQ(math::exp(100.0F), kInfinity);
  EXPECT_TRUE(std::isnan(math::exp(kNaN)));
  EXPECT_EQ(math::log(0.0F), -kInfinity);
  EXPECT_EQ(math::log(-0.0F), -kInfinity);
  EXPECT_EQ(math::log(kInfinity), kInfinity);
  EXPECT_NEAR(math::log(1e-45F), -103.2789, 1e-3);
  EXPECT_TRUE(std::isnan(math::log(-1.0F)));
  EXPECT_TRUE(std::isnan(math::log(kNaN)));
  EXPECT_EQ(math::tanh(kInfinity), 1.0F);
  EXPECT_EQ(math::tanh(-kInfinity), -1.0F);
  EXPECT_TRUE(std::isnan(math::tanh(kNaN)));
}

}  // namespace
}  // namespace tessera

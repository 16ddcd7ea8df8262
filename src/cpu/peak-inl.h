// The ceiling of the matrix kernels: multiply-adds in registers alone.
//
// Included once for each instruction set, inside its namespace and target attributes.

// Eight chains would hide the latency of two FMA ports (4 cycles); twelve and their two operands fit 16 registers.
inline constexpr int kPeakChains = 12;

// One step is kPeakChains multiply-adds. They converge to a fixed point, so nothing overflows or turns subnormal.
HWY_NOINLINE inline float run_multiply_adds(std::int64_t steps, float factor, float addend) {
  const hn::ScalableTag<float> d;
  using Vector = hn::Vec<decltype(d)>;
  const Vector a = hn::Set(d, factor);
  const Vector b = hn::Set(d, addend);
  Vector chain[kPeakChains];
#pragma GCC unroll 12
  for (int c = 0; c < kPeakChains; ++c) {
    chain[c] = hn::Iota(d, static_cast<float>(c));
  }
  for (std::int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (int c = 0; c < kPeakChains; ++c) {
      chain[c] = hn::MulAdd(chain[c], a, b);
    }
  }
  Vector sum = chain[0];
#pragma GCC unroll 12
  for (int c = 1; c < kPeakChains; ++c) {
    sum = hn::Add(sum, chain[c]);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// FLOP/s of the best of `runs` runs of `steps` steps.
inline double peak_flops_per_second(std::int64_t steps, int runs) {
  const auto flops_per_step = 2.0 * kPeakChains * static_cast<double>(hn::Lanes(hn::ScalableTag<float>()));
  // Volatile: neither the inputs nor the result may be known to the compiler.
  volatile float factor = 0.5F;
  volatile float result = 0.0F;
  double best = 0.0;
  for (int run = 0; run < runs; ++run) {
    const auto start = std::chrono::steady_clock::now();
    result = run_multiply_adds(steps, factor, 0.25F);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best = std::max(best, flops_per_step * static_cast<double>(steps) / elapsed.count());
  }
  static_cast<void>(result);
  return best;
}

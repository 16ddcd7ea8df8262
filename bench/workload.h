// One attention case with its inputs, ready to run again and again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "tessera/tessera.h"

namespace tessera::bench {

struct Case {
  Pass pass = Pass::forward;
  std::int64_t length = 2048;  // of queries and of keys
  std::int64_t dim = 64;       // of queries, keys and values
  std::int64_t heads = 1;
  std::string mask = "dense";  // or causal, butterfly, random-1/8, random-1/2: blocks of 128 x 128
  int threads = 1;
  DType dtype = DType::float32;
  std::string impl = "flash";
  std::string isa{};
};

// CPU time is that of the whole process: with one thread the same as elapsed time on an idle machine, and not disturbed by
// the scheduler on a busy one.
enum class Clock { elapsed, cpu };
double now_seconds(Clock clock);
inline Clock clock_for(int threads) { return threads == 1 ? Clock::cpu : Clock::elapsed; }

// For example "forward/float32/d64/n2048/dense/threads1".
std::string name_of(const Case& settings);

class Workload {
 public:
  explicit Workload(const Case& settings);

  const Plan& plan() const { return plan_; }
  // Done by the first run() otherwise.
  void make_workspace();
  // Allocates nothing once the workspace is made.
  void run();
  double seconds_of_run(Clock clock);
  // Without a workspace of the caller's: the plan allocates for the call.
  void run_without_workspace();
  // Bytes of O and LSE, or of dQ, dK and dV.
  std::int64_t output_bytes() const;

 private:
  struct AlignedDelete {
    void operator()(std::byte* bytes) const { ::operator delete(bytes, std::align_val_t{64}); }
  };
  using Bytes = std::vector<std::byte>;

  Bytes tensor(std::int64_t dim, unsigned seed) const;
  TensorView view(Bytes& bytes) const;
  TensorView lse_view();
  ForwardTensors forward_tensors();
  BackwardTensors backward_tensors();
  void run_in(std::span<std::byte> workspace);

  Case case_;
  Plan plan_;
  Bytes q_, k_, v_, out_, lse_, dout_, dq_, dk_, dv_;
  std::unique_ptr<std::byte, AlignedDelete> workspace_;
};

}  // namespace tessera::bench

// What tessera bench prints, and what it writes into files, of what it has measured.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "cli/measure.h"

namespace tessera::cli {

// What rates are shares of: the FMA peak of one thread with the instruction set that --isa names or, without it, the best
// one; of a GPU the rate of matrix products.
struct Peak {
  Device device;
  std::string name;  // of the instruction set or the GPU
  double flops_per_second = 0;
  double copy_bytes_per_second = 0;  // of a GPU, and only where something that memory limits is measured

  bool cuda() const { return device.kind == DeviceKind::cuda; }
  // "matrix rate" or "FMA peak".
  std::string what() const;
  double share(const Measurement& one) const;
};
// Takes 10 ms on a CPU, and about a second on a GPU.
Peak measure_peak(const PlanOptions& plan, bool with_memory);

struct BenchReport {
  std::vector<MeasuredPoint> points;  // at least one
  std::vector<std::string> impls;     // in the order of the columns
  std::vector<Pass> passes;
  Peak peak;
  bool errors = true;  // whether results were compared with the oracle

  // Whether any Impl computed anything.
  bool measured() const;
  // What all points share, without the lengths.
  std::string title() const;
  void print() const;
  nlohmann::ordered_json to_json() const;
};

// "4096", or "1x4096" where queries and keys differ.
std::string lengths_text(const Problem& problem);

}  // namespace tessera::cli

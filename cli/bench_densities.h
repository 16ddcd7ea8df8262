// tessera bench --densities: time against the share of blocks that a random block mask keeps.
#pragma once

#include <string>
#include <vector>

#include "cli/measure.h"

namespace tessera::cli {

struct DensityBench {
  Problem problem;  // without a block mask; each density adds one
  BlockGrid grid;
  std::vector<double> densities;
  std::vector<Pass> passes;
  MeasureOptions options;
  std::string json, plot;  // files; empty: none
};

// y = intercept + slope x by least squares. r_squared is 1 when all points are on the line.
struct Line {
  double intercept = 0;
  double slope = 0;
  double r_squared = 0;
};
Line fit_line(const std::vector<double>& x, const std::vector<double>& y);

int bench_densities(const DensityBench& bench);

}  // namespace tessera::cli

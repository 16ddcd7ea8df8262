// The rows of the kernel tables with a score program: images that a build has ahead of time, and problems that ask for them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "gpu/gpu_test.h"

namespace tessera::test {

struct ProgramImage {
  std::string name;  // as cmake/TesseraKernels.cmake makes it from the row
  Problem problem;
  Pass pass;
};

inline void set_program(Problem& problem, std::string_view program) {
  if (program == "softcap") problem.softcap = problem.dtype == DType::float16 ? 3 : 60;
  if (program == "softcap_bounded") problem.softcap = 30;
  if (program == "alibi") problem.alibi = true;
  if (program == "dropout") problem.dropout.probability = 0.25;
}

// Of every row for every mask and dtype.
inline std::vector<ProgramImage> program_images() {
  struct Row {
    Pass pass;
    std::int64_t head_dim;
    std::string tile;
    std::string_view program;
  };
  const std::vector<Row> rows{
#define TESSERA_SM90_FORWARD_PROGRAMS(head_dim, warpgroups, tile_k, stages, program, set) \
  {Pass::forward, head_dim, "sm90_forward_" #head_dim "_" #warpgroups "_" #tile_k "_" #stages, #program},
#include "cuda/sm90/fwd/table.def"
#define TESSERA_SM90_BACKWARD_PROGRAMS(head_dim, tile_q, tile_k, stages, program, set) \
  {Pass::backward, head_dim, "sm90_backward_" #head_dim "_" #tile_q "_" #tile_k "_" #stages, #program},
#include "cuda/sm90/bwd/table.def"
  };
  std::vector<ProgramImage> images;
  for (const Row& row : rows) {
    for (const bool causal : {false, true}) {
      for (const DType dtype : {DType::bfloat16, DType::float16}) {
        if (dtype == DType::float16 && row.program == "softcap_bounded") continue;
        Problem problem = gpu_problem(333, 401, 1, row.head_dim, causal ? Mask::causal() : Mask::none());
        problem.dtype = dtype;
        set_program(problem, row.program);
        images.push_back({row.tile + (causal ? "_causal_" : "_dense_") + std::string(dtype_name(dtype)) + "_" +
                              std::string(row.program),
                          problem, row.pass});
      }
    }
  }
  return images;
}

}  // namespace tessera::test

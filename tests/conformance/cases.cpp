#include "conformance/cases.h"

namespace tessera::test {

Problem base_problem() {
  Problem problem;
  problem.batch = 2;
  problem.seq_q = 75;
  problem.seq_k = 101;
  problem.heads_q = 2;
  problem.heads_kv = 2;
  problem.dim_qk = 40;
  problem.dim_v = 40;
  return problem;
}

Case make_case(std::string name, void (*change)(Problem&, cli::TensorOptions&)) {
  Case result{std::move(name), base_problem(), {}};
  result.tensors.seed = 2024;
  change(result.problem, result.tensors);
  return result;
}

std::vector<Case> conformance_cases() {
  std::vector<Case> all;
  for (const auto& part : {shape_cases(), mask_cases(), score_cases(), layout_cases(), combination_cases(),
                           block_cases(), function_cases()}) {
    all.insert(all.end(), part.begin(), part.end());
  }
  return all;
}

}  // namespace tessera::test

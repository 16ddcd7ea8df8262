// Lengths, head dims, head counts and dtypes.
#include "conformance/cases.h"

namespace tessera::test {

namespace {

Case lengths(std::int64_t queries, std::int64_t keys, const Mask& mask) {
  Case result{"lengths_" + std::to_string(queries) + "x" + std::to_string(keys) + (mask.has_band() ? "_causal" : ""),
              base_problem(),
              {}};
  result.problem.seq_q = queries;
  result.problem.seq_k = keys;
  result.problem.dim_qk = result.problem.dim_v = 16;
  result.problem.mask = mask;
  return result;
}

void add_lengths(std::vector<Case>& cases) {
  constexpr std::int64_t kPairs[][2] = {
      {0, 0},    {0, 7},    {7, 0},     {1, 1},    {1, 2},     {2, 1},     {1, 300},   {300, 1},   {3, 5},
      {15, 17},  {16, 16},  {17, 15},   {31, 33},  {63, 65},   {64, 64},   {65, 63},   {95, 97},   {96, 256},
      {97, 257}, {128, 96}, {129, 127}, {192, 64}, {193, 255}, {255, 193}, {256, 512}, {385, 129}, {130, 1030}};
  for (const auto& [queries, keys] : kPairs) {
    cases.push_back(lengths(queries, keys, Mask::none()));
    cases.push_back(lengths(queries, keys, Mask::causal()));
  }
}

void add_dims(std::vector<Case>& cases) {
  constexpr std::int64_t kPairs[][2] = {
      {1, 1},     {2, 2},   {3, 3},     {4, 4},     {5, 7},     {7, 5},     {8, 8},     {15, 15},   {16, 16},
      {17, 17},   {24, 24}, {31, 33},   {32, 32},   {48, 48},   {63, 65},   {64, 64},   {65, 63},   {72, 72},
      {80, 80},   {96, 96}, {100, 100}, {112, 112}, {127, 129}, {128, 128}, {160, 160}, {192, 128}, {128, 192},
      {256, 256}, {511, 3}, {3, 511},   {512, 512}, {1, 512},   {512, 1},   {257, 255}};
  for (const auto& [dim_qk, dim_v] : kPairs) {
    Case result{"dims_" + std::to_string(dim_qk) + "_" + std::to_string(dim_v), base_problem(), {}};
    Problem& problem = result.problem;
    problem.batch = 1;
    problem.seq_q = 37;
    problem.seq_k = 70;
    problem.dim_qk = dim_qk;
    problem.dim_v = dim_v;
    problem.mask = Mask::causal();
    result.tensors.seed = static_cast<std::uint64_t>(dim_qk * 1000 + dim_v);
    cases.push_back(result);
    for (const DType dtype : {DType::bfloat16, DType::float16}) {
      Case half = result;
      half.name += "_" + std::string(dtype_name(dtype));
      half.problem.dtype = dtype;
      cases.push_back(half);
    }
  }
}

void add_heads(std::vector<Case>& cases) {
  constexpr std::int64_t kPairs[][2] = {{1, 1}, {2, 1}, {3, 1}, {6, 2}, {6, 3}, {8, 1}, {12, 4}, {7, 7}, {16, 1}};
  for (const auto& [heads_q, heads_kv] : kPairs) {
    Case result{"heads_" + std::to_string(heads_q) + "_" + std::to_string(heads_kv), base_problem(), {}};
    result.problem.heads_q = heads_q;
    result.problem.heads_kv = heads_kv;
    result.problem.dim_qk = 16;
    result.problem.dim_v = 24;
    cases.push_back(result);
    result.name += "_one_query";
    result.problem.seq_q = 1;
    cases.push_back(result);
  }
}

void add_dtypes(std::vector<Case>& cases) {
  constexpr DType kPairs[][2] = {{DType::float32, DType::float32},
                                 {DType::bfloat16, DType::bfloat16},
                                 {DType::bfloat16, DType::float32},
                                 {DType::float16, DType::float16},
                                 {DType::float16, DType::float32}};
  for (const auto& [dtype, output] : kPairs) {
    Case result{"dtype_" + std::string(dtype_name(dtype)) + "_" + std::string(dtype_name(output)), base_problem(), {}};
    result.problem.dtype = dtype;
    result.problem.output_dtype = output;
    result.problem.heads_kv = 1;
    result.tensors.dlse = true;
    cases.push_back(result);
  }
}

}  // namespace

std::vector<Case> shape_cases() {
  std::vector<Case> cases;
  add_lengths(cases);
  add_dims(cases);
  add_heads(cases);
  add_dtypes(cases);
  cases.push_back(make_case("empty_batch", [](Problem& p, cli::TensorOptions&) { p.batch = 0; }));
  cases.push_back(make_case("many_sequences", [](Problem& p, cli::TensorOptions&) {
    p.batch = 33;
    p.seq_q = 5;
    p.seq_k = 9;
    p.dim_qk = p.dim_v = 8;
  }));
  return cases;
}

}  // namespace tessera::test

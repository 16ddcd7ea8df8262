// The conformance table and random problems on a GPU, against the double-precision oracle under the numerics contract.
#include <optional>
#include <set>

#include "cli/random_problem.h"
#include "conformance/cases.h"
#include "gpu/gpu_test.h"

namespace tessera {
namespace {

using test::Case;
using test::GpuTest;

constexpr std::int64_t kMostDim = 256;
constexpr std::int64_t kDimMultiple = 8;

constexpr std::int64_t kMostDropoutDim = 128;
constexpr std::int64_t kKeysOfBlock = 64;  // of random numbers
// Whether kernels walk lists of tiles for it.
bool is_listed(const Problem& problem) {
  return problem.mask.has_segments() || problem.mask.has_blocks() || problem.mask_function;
}

constexpr std::int64_t kMostListedDimBackward = 128;
constexpr int kAllDropped = 256;

// The field for which the Impl has to refuse a problem on an existing GPU; nullopt when it has to take it. The backward pass
// takes no more than the forward pass.
std::optional<std::string> refused_field(const Problem& problem, Pass pass = Pass::backward) {
  const bool backward = pass == Pass::backward;
  const bool wide = std::max(problem.dim_qk, problem.dim_v) > kMostDropoutDim;
  const bool listed = is_listed(problem);
  const auto dim_refused = [](std::int64_t dim) { return dim % kDimMultiple != 0 || dim > kMostDim; };
  const std::pair<bool, const char*> fields[] = {
      {problem.dtype != DType::bfloat16 && problem.dtype != DType::float16, "dtype"},
      {problem.out_dtype() != problem.dtype, "output_dtype"},
      {dim_refused(problem.dim_qk), "dim_qk"},
      {dim_refused(problem.dim_v), "dim_v"},
      {problem.softmax_scale() <= 0, "scale"},
      {backward && problem.bias_shape.has_value(), "bias_shape"},
      {problem.dropout.threshold() != 0 &&
           (wide || (backward && problem.dropout.threshold() == kAllDropped) || problem.dropout.key_stride != 1 ||
            problem.dropout.key_start % kKeysOfBlock != 0),
       "dropout"},
      {problem.sinks && problem.total_k() == 0, "sinks"},
      {backward && listed && std::max(problem.dim_qk, problem.dim_v) > kMostListedDimBackward, "mask"}};
  for (const auto& [refused, name] : fields) {
    if (refused) return name;
  }
  return std::nullopt;
}

// The table with both dtypes of 16 bits in place of float32, and tensors aligned to 16 bytes.
std::vector<Case> table() {
  std::vector<Case> rows;
  for (Case row : test::conformance_cases()) {
    row.tensors.aligned16 = true;
    if (row.problem.dtype != DType::float32) {
      rows.push_back(row);
      continue;
    }
    const std::string name = row.name;
    for (const DType dtype : {DType::bfloat16, DType::float16}) {
      row.name = name + "_as_" + std::string(dtype_name(dtype));
      row.problem.dtype = dtype;
      rows.push_back(row);
    }
  }
  return rows;
}

// A tensor core multiplies the weight 0 of a hidden pair with whatever the value is, and 0 times NaN is NaN: where a mask
// cuts a tile, a NaN reaches the rows of that tile that do not see it (docs/numerics.md).
bool beyond_the_contract(const Case& row) {
  return row.tensors.specials && (row.problem.mask.has_band() || is_listed(row.problem));
}

std::vector<Case> accepted_rows() {
  std::vector<Case> rows;
  for (const Case& row : table()) {
    if (!refused_field(row.problem) && !beyond_the_contract(row)) rows.push_back(row);
  }
  return rows;
}

class GpuConformance : public GpuTest, public testing::WithParamInterface<Case> {};

TEST_P(GpuConformance, MeetsTheContract) {
  const auto& [name, problem, tensors] = GetParam();
  if (test::lacks_kernel(problem)) GTEST_SKIP() << "this build has no kernel for it";
  test::expect_conforms(problem, tensors, test::gpu_targets());
}

INSTANTIATE_TEST_SUITE_P(Table, GpuConformance, testing::ValuesIn(accepted_rows()),
                         [](const auto& info) { return info.param.name; });

class GpuConformanceTable : public GpuTest {};

TEST_F(GpuConformanceTable, EveryRefusalNamesItsField) {
  for (const Case& row : table()) {
    for (const Pass pass : {Pass::forward, Pass::backward}) {
      const std::optional<std::string> field = refused_field(row.problem, pass);
      const std::string refusal = test::gpu_refusal(row.problem, pass);
      if (!field) {
        EXPECT_TRUE(refusal.empty() || test::kernel_missing(refusal)) << row.name << ": " << refusal;
      } else {
        EXPECT_NE(refusal.find("sm90: " + *field + ": "), std::string::npos) << row.name << ": " << refusal;
      }
    }
  }
}

// Needs no GPU: the restricted table still reaches every feature that the Impl has.
TEST(GpuTable, HasEnoughRows) {
  std::set<std::string> names;
  for (const Case& row : accepted_rows()) EXPECT_TRUE(names.insert(row.name).second) << row.name;
  EXPECT_GE(names.size(), 300U);
}

constexpr std::uint64_t kSeed = 90;
constexpr std::uint64_t kShards = 20;
constexpr std::uint64_t kProblemsPerShard = 50;

class GpuRandomProblems : public GpuTest, public testing::WithParamInterface<std::uint64_t> {};

TEST_P(GpuRandomProblems, Conform) {
  std::uint64_t missing = 0;
  for (std::uint64_t n = 0; n < kProblemsPerShard; ++n) {
    const std::uint64_t index = GetParam() * kProblemsPerShard + n;
    SCOPED_TRACE("tessera verify --device cuda --random 1 --seed " + std::to_string(kSeed) + " --first " +
                 std::to_string(index));
    const cli::RandomProblem random = cli::random_problem(kSeed, index, cli::ProblemSpace::sm90);
    ASSERT_FALSE(refused_field(random.problem)) << random.problem.describe();
    if (test::lacks_kernel(random.problem)) {
      ++missing;
      continue;
    }
    test::expect_conforms(random.problem, random.tensors, test::gpu_targets());
  }
  RecordProperty("problems_without_a_kernel", static_cast<int>(missing));
  EXPECT_LT(missing, kProblemsPerShard) << "this build has a kernel for none of them";
}

INSTANTIATE_TEST_SUITE_P(Shards, GpuRandomProblems, testing::Range(std::uint64_t{0}, kShards));

}  // namespace
}  // namespace tessera
